//! What `/proc` says of a process or a thread, as text.
//!
//! The texts have the name that a program gave its thread. That can be any bytes; those that are no UTF-8 are replaced.

use std::fs;
use std::str::FromStr;

/// Returns the text of `/proc/ID/FILE`; `None` if there is none, or the caller may not read it.
pub fn read(id: u32, file: &str) -> Option<String> {
    let text = fs::read(format!("/proc/{id}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Returns a number in the text of `stat`, by its index among the words behind the thread's name.
pub fn number<N: FromStr>(stat: &str, index: usize) -> Option<N> {
    // The name, in parentheses, may have any characters in it.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(index)?.parse().ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use nix::sys::prctl;
    use nix::unistd::gettid;

    use super::*;

    /// Index of the id of a thread's parent.
    const PARENT: usize = 1;

    #[test]
    fn numbers_come_behind_a_name_of_any_characters() {
        let stat = "4711 (a) b (c) ) R 1 4711 -1 0 18446744073709551615";
        assert_eq!((number(stat, 1), number(stat, 3)), (Some(1), Some(-1)));
        assert_eq!(number(stat, 5), Some(u64::MAX));
        assert_eq!((number::<u64>(stat, 3), number::<u64>(stat, 6)), (None, None));
        assert_eq!((number::<u64>("4711 (a", 0), number::<u64>("4711 (a)", 0)), (None, None));
    }

    #[test]
    fn thread_with_a_name_that_is_not_utf8_is_read() {
        let thread = std::thread::spawn(|| {
            prctl::set_name(c") 7 (\xff").unwrap();
            let id = gettid().as_raw().cast_unsigned();
            ["stat", "status"].map(|file| read(id, file).unwrap())
        });
        let [stat, status] = thread.join().unwrap();
        assert_eq!(number(&stat, PARENT), Some(std::os::unix::process::parent_id()));
        assert!(status.starts_with("Name:\t) 7 (\u{fffd}\n"), "{status}");
        assert_eq!(read(u32::MAX, "stat"), None);
    }
}
