//! `consumed/cpuN`: readers of mappings give sub-buffers back by writing to this file.
//!
//! `COUNT` gives back that many sub-buffers. `FROM COUNT` does so only if the first of them has number FROM. So if two
//! readers have read the same sub-buffers, the second gets an error.

use crate::channel::ChannelRef;
use crate::channel::give_back::errno;
use crate::writers::Writers;

/// Gives back the sub-buffers that the text names.
///
/// Fails with an errno, and then changes nothing.
pub(crate) fn consume(writers: &Writers, channel: &ChannelRef, cpu: usize, text: &[u8]) -> Result<(), i32> {
    let (from, count) = parse(text).ok_or(libc::EINVAL)?;
    if channel.is_broken() {
        return Err(libc::EIO);
    }
    if channel.give_back(cpu, from, count).map_err(|error| errno(&error))? {
        writers.make_room(channel, cpu);
    }
    Ok(())
}

/// Returns the number of the first sub-buffer, if the text has it, and the count.
fn parse(text: &[u8]) -> Option<(Option<u64>, u64)> {
    let number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?;
    // The text is one line: `1\n1\n` is not FROM and COUNT.
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let words: Vec<&str> =
        std::str::from_utf8(line).ok()?.split([' ', '\t']).filter(|w| !w.is_empty()).collect();
    match words[..] {
        [count] => Some((None, number(count)?)),
        [from, count] => Some((Some(number(from)?), number(count)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_one_or_two_numbers_is_parsed() {
        assert_eq!(parse(b"3\n"), Some((None, 3)));
        assert_eq!(parse(b" 7 2"), Some((Some(7), 2)));
        assert_eq!(parse(b"18446744073709551615 0"), Some((Some(u64::MAX), 0)));
        for bad in [
            "",
            "\n",
            "-1",
            "+1",
            "1 2 3",
            "x",
            "1x",
            "18446744073709551616",
            "1\0",
            "0x10",
            "1\n1\n",
            "1\n\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
