//! Advice, from what was measured and from nothing else.
//!
//! More sub-buffers would have held what was dropped. The backlog at any time would have been what it was, and what had
//! been dropped until then at most: readers read in order, so they would not have been slower. So room for all bytes
//! that were dropped is enough, rounded up for the ends of sub-buffers that no message fits.

use super::amounts::{age, bytes, count};
use super::look::{ChannelLook, Numbers};
use super::rates::Rates;

/// Losses that are older get no advice, in nanoseconds: an hour.
const OLD: u64 = 3600 * 1_000_000_000;
/// The longest message that a channel can take.
const MESSAGE_MAX: u64 = 1 << 20;
/// The part of the memory limit that a channel gets at most by advice.
const MEMORY_PART: u64 = 2;

/// Returns advice about a channel, the most important first.
pub(crate) fn advice(channel: &ChannelLook, rates: &[Rates], memory_max: u64) -> Vec<String> {
    if let Some(why) = &channel.broken {
        return vec![format!(
            "the channel is damaged ({why}): echo 1 >.relay/channels/{}/reset makes it again",
            channel.name
        )];
    }
    let mut found = Vec::new();
    found.extend(of_room(channel, rates, memory_max));
    found.extend(of_size(channel));
    found
}

/// The losses of a buffer for lack of room, and in which time.
struct Short {
    cpu: usize,
    times: u64,
    lost_bytes: u64,
    span: String,
}

fn of_room(channel: &ChannelLook, rates: &[Rates], memory_max: u64) -> Option<String> {
    let shorts = channel.buffers.iter().enumerate().filter_map(|(cpu, numbers)| short(channel, cpu, numbers));
    let worst = shorts.max_by_key(|short| short.lost_bytes)?;
    let Short { cpu, times, lost_bytes, span } = worst;
    let numbers = &channel.buffers[cpu];
    let n_subbufs = subbufs_for(channel, numbers, lost_bytes)?;
    let memory = n_subbufs.saturating_mul(channel.subbuf_size).saturating_mul(channel.buffers.len() as u64);
    let fits = memory_max == 0 || memory <= memory_max / MEMORY_PART;
    let lost = bytes(lost_bytes as f64);
    let sum = Rates::sum(rates);
    if channel.overwrites {
        // Without a reader, that is what the mode is for.
        let is_read = !channel.readers.is_empty();
        return (is_read && fits).then(|| {
            format!("cpu{cpu} gave up {lost} unread {span}: --n-subbufs {n_subbufs} would have held them")
        });
    }
    let was_full = format!("cpu{cpu} was full {} {span}", count(times, "time"));
    let is_read = !channel.readers.is_empty() || sum.read_bytes > 0.0;
    if !is_read && (numbers.read_bytes == 0 || !fits) {
        return Some(format!(
            "{was_full}, and no process reads it: audience record -c {} -o DIR, or a channel with :overwrite",
            channel.name
        ));
    }
    if !fits {
        let (written, read) = (bytes(sum.bytes), bytes(sum.read_bytes));
        return Some(format!(
            "{was_full} and dropped {lost}, more than memory can hold: {written}/s are written and {read}/s read; \
             write less, or read faster"
        ));
    }
    Some(format!("{was_full} and dropped {lost}: --n-subbufs {n_subbufs} would have held it"))
}

/// Returns what a buffer lost lately, or since the channel was created if there was no earlier look.
fn short(channel: &ChannelLook, cpu: usize, numbers: &Numbers) -> Option<Short> {
    let last = if channel.overwrites { numbers.last_overwritten } else { numbers.last_dropped };
    if last == 0 || channel.time.saturating_sub(last) > OLD {
        return None;
    }
    let (recent, all) = if channel.overwrites {
        (numbers.recent_overwritten_bytes, numbers.overwritten_bytes)
    } else {
        (numbers.recent_dropped_bytes, numbers.dropped_bytes)
    };
    let (times, lost_bytes, span) = if recent == 0 {
        let ago = age(channel.time.saturating_sub(last));
        (numbers.full, all, format!("since it was created (last {ago} ago)"))
    } else {
        (
            numbers.recent_full,
            recent,
            format!("in the last {}", age(numbers.recent_ms.saturating_mul(1_000_000))),
        )
    };
    (lost_bytes > 0).then_some(Short { cpu, times: times.max(1), lost_bytes, span })
}

/// Returns the number of sub-buffers that would have had room for the lost bytes as well, as a power of two.
fn subbufs_for(channel: &ChannelLook, numbers: &Numbers, lost_bytes: u64) -> Option<u64> {
    let room = channel.subbuf_size.checked_sub(channel.header).filter(|room| *room > 0)?;
    let longest = numbers.longest_dropped.clamp(1, room);
    // Each sub-buffer has at least that much in it, since the next message did not fit.
    let by_longest = lost_bytes.div_ceil(room - longest + 1);
    // Two neighbours have together more than fits one.
    let by_pairs = lost_bytes.div_ceil(room).saturating_mul(2).saturating_add(1);
    let more = by_longest.min(by_pairs).saturating_add(1);
    channel.n_subbufs.checked_add(more)?.checked_next_power_of_two()
}

/// Advice about messages that are longer than a sub-buffer.
fn of_size(channel: &ChannelLook) -> Option<String> {
    let recent = |numbers: &&Numbers| {
        numbers.last_too_big > 0 && channel.time.saturating_sub(numbers.last_too_big) <= OLD
    };
    let longest = channel.buffers.iter().filter(recent).map(|numbers| numbers.longest_too_big).max()?;
    let (needed, is_timed) = (longest.checked_add(channel.header)?, channel.is_timed);
    // A record's length has 16 bits, and 16 bytes stand in front.
    let max = if is_timed { u64::from(u16::MAX) + 16 } else { MESSAGE_MAX };
    (longest <= max && needed > channel.subbuf_size).then(|| {
        let size = needed.next_power_of_two();
        format!(
            "a message of {longest} bytes is longer than a sub-buffer: --subbuf-size {size} would take it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::look::Look;
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    fn channel(lines: &str) -> ChannelLook {
        let text = format!(
            "channel a\nmode no-overwrite\nsubbuf_size 1024\nn_subbufs 4\ntime {}\n{lines}",
            100 * MINUTE
        );
        Look::parse(&text).channels.remove(0)
    }

    fn said(lines: &str) -> Vec<String> {
        advice(&channel(lines), &[], 1 << 30)
    }

    #[test]
    fn advice_follows_from_the_numbers() {
        let last = format!("cpu1.last_dropped {}\n", 99 * MINUTE);
        let full = format!(
            "{last}cpu1.full 3\ncpu1.dropped_bytes 2000\ncpu1.longest_dropped 25\ncpu1.read_bytes 1\n"
        );
        assert_eq!(
            said(&full),
            [
                "cpu1 was full 3 times since it was created (last 60s ago) and dropped 2.0K: --n-subbufs 8 would have held it"
            ]
        );
        let recent =
            format!("{full}cpu1.recent_ms 61000\ncpu1.recent_full 1\ncpu1.recent_dropped_bytes 900\n");
        assert_eq!(
            said(&recent),
            ["cpu1 was full 1 time in the last 61s and dropped 900: --n-subbufs 8 would have held it"]
        );
        let unread = full.replace("cpu1.read_bytes 1\n", "");
        assert!(said(&unread)[0].contains("no process reads it: audience record -c a -o DIR"));
        let unread_lately = said(&recent.replace("cpu1.read_bytes 1\n", ""));
        assert_eq!(
            unread_lately,
            [
                "cpu1 was full 1 time in the last 61s, and no process reads it: audience record -c a -o DIR, or a channel with :overwrite"
            ]
        );
        let much = full.replace("dropped_bytes 2000", "dropped_bytes 999999999999");
        assert!(said(&format!("{much}reader 1 0 read cpu1 cat\n"))[0].contains("more than memory can hold"));
        assert_eq!(said(&full.replace(&last, "cpu1.last_dropped 1\n")), [""; 0], "long ago");
        assert_eq!(said(""), [""; 0]);
    }

    #[test]
    fn overwriting_is_advised_about_only_where_a_reader_misses_something() {
        let lines =
            format!("mode overwrite\ncpu0.last_overwritten {}\ncpu0.overwritten_bytes 5000\n", 99 * MINUTE);
        assert_eq!(said(&lines), [""; 0]);
        let read = said(&format!("{lines}reader 1 0 read cpu0 cat\n"));
        assert_eq!(
            read,
            [
                "cpu0 gave up 4.9K unread since it was created (last 60s ago): --n-subbufs 16 would have held them"
            ]
        );
    }

    #[test]
    fn size_is_advised_where_it_can_help() {
        let big = |len: u64| format!("cpu0.last_too_big {}\ncpu0.longest_too_big {len}\n", 99 * MINUTE);
        assert_eq!(
            said(&big(1025)),
            ["a message of 1025 bytes is longer than a sub-buffer: --subbuf-size 2048 would take it"]
        );
        assert_eq!(said(&big((1 << 20) + 1)), [""; 0]);
        assert!(said("broken x y\n")[0].contains("echo 1 >.relay/channels/a/reset"));
    }
}
