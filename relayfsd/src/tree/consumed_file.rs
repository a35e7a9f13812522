//! `consumed/cpuN`: readers of mappings give sub-buffers back by writing to it.
//!
//! `COUNT` gives back so many; `FROM COUNT` only if the first of them has number FROM, so that of two who read the same, one
//! is told.

use relay::ring::reader::ConsumeError;

use crate::registry::ChannelRef;
use crate::writers::Job;

/// Does what was written. An errno if that is not possible; nothing has changed then.
pub(crate) fn consume(channel: &ChannelRef, cpu: usize, text: &[u8]) -> Result<(), i32> {
    let (from, count) = parse(text).ok_or(libc::EINVAL)?;
    if channel.is_broken() {
        return Err(libc::EIO);
    }
    give_back(channel, cpu, from, count).map_err(|error| errno(&error))
}

/// Why sub-buffers are not given back, for programs.
pub(crate) fn errno(error: &ConsumeError) -> i32 {
    match error {
        ConsumeError::Stale { .. } => libc::ESTALE,
        ConsumeError::TooMany { .. } => libc::EINVAL,
    }
}

/// Gives `count` sub-buffers back, the first of which has number `from`, where that is given.
pub(crate) fn give_back(
    channel: &ChannelRef,
    cpu: usize,
    from: Option<u64>,
    count: u64,
) -> Result<(), ConsumeError> {
    let mut side = channel.read_side(cpu);
    let freed = side.reader.consume(from, count)?;
    side.reader.note_losses();
    let room = freed && std::mem::take(&mut side.parked);
    drop(side);
    if room {
        channel.writers().submit_now(Job::Room { channel: channel.clone(), cpu });
    }
    Ok(())
}

/// The number of the first sub-buffer, if there is one, and how many.
fn parse(text: &[u8]) -> Option<(Option<u64>, u64)> {
    let number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?;
    // One line: `1\n1\n` is no FROM and COUNT.
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
    fn one_number_or_two() {
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
