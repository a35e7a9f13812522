//! Writers of records, by name.

use crate::trace::names::Names;
use crate::trace::text::digits::push;
use crate::trace::text::escape::escape;

/// The most bytes of a command that are shown. The kernel's names of commands have 15.
const COMMAND_MAX: usize = 40;

/// Appends how a thread was called at a time of CLOCK_BOOTTIME: `app[1234]`, or `tid 1234`.
pub(super) fn who(tid: u32, boottime: u64, names: &Names, out: &mut Vec<u8>) {
    if let Some(process) = names.process(tid, boottime) {
        command(process.command.as_bytes(), out);
        out.push(b'[');
        push(process.pid.into(), out);
        out.push(b']');
    } else {
        out.extend_from_slice(b"tid ");
        push(tid.into(), out);
    }
}

/// Appends a command's name, escaped and not too long.
pub(super) fn command(name: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    escape(name, out);
    let shown = String::from_utf8_lossy(&out[start..]).floor_char_boundary(COMMAND_MAX);
    out.truncate(start + shown);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::definition::Definitions;

    #[test]
    fn threads_have_the_names_of_their_processes() {
        let long = "é".repeat(30);
        let text = format!("1 4294967295 0 0 {long}\t/x\n2 7 0 0 a\x1b\t/x\nthread 5 1\nthread 133 2\n");
        let names = Names::new(Definitions::new(), &text);
        let who = |tid| {
            let mut out = Vec::new();
            who(tid, 0, &names, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(who(5), format!("{}[4294967295]", "é".repeat(20)));
        assert_eq!(who(133), "a\\x1b[7]");
        assert_eq!((who(0), who(u32::MAX - 1)), ("tid 0".to_owned(), "tid 4294967294".to_owned()));
    }
}
