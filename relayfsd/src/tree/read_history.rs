//! Keeps the last bytes that an open file has read, for a reader that seeks back.

use relay::memory::lent::Lent;

use crate::policy::quota::Reservation;

/// Bytes that an open file keeps at least, and half of what it keeps at most.
///
/// Some programs read ahead and seek back to where they stopped: head, grep -m, the shell's read, stdio at exit. They
/// read less than this at a time.
const KEEP_READ_MAX: usize = 128 << 10;
/// Bytes that an open file keeps once it has passed over bytes.
///
/// Programs that look for the last lines (tail -n, tac) seek to the end and then go backwards, block by block.
const KEEP_PASSED_MAX: usize = 1 << 20;
/// Bytes of memory that a file asks for first; then it asks for twice as much each time.
const KEEP_FIRST: usize = 4096;

/// A run of file offsets that an open file has read since its last seek, and its last bytes.
pub(crate) struct ReadHistory {
    /// File offset at which the run begins.
    begin: u64,
    /// Whether the file has passed over a part of the run, for a reader that sought forward.
    passed: bool,
    /// File offset of the first kept byte.
    kept_at: u64,
    kept: Vec<u8>,
    /// The memory that `kept` may take.
    room: Reservation,
}

impl ReadHistory {
    pub(crate) fn new(room: Reservation) -> ReadHistory {
        ReadHistory { begin: 0, passed: false, kept_at: 0, kept: Vec::new(), room }
    }

    /// Returns the file offset behind the run.
    ///
    /// Saturating: a peer that writes the buffer can cause any offset.
    fn end(&self) -> u64 {
        self.kept_at.saturating_add(self.kept.len() as u64)
    }

    pub(crate) fn keeps(&self, at: u64) -> bool {
        (self.kept_at..self.end()).contains(&at)
    }

    /// Returns whether the file has passed over the byte at `at` and does not keep it now.
    ///
    /// A reader that seeks back there is too late. It must not get the next bytes in place of those it looks for.
    pub(crate) fn has_dropped(&self, at: u64) -> bool {
        self.passed && self.begin < self.kept_at && at < self.kept_at
    }

    /// Returns whether `at` is before the whole run, and the whole run is still kept.
    pub(crate) fn begins_after(&self, at: u64) -> bool {
        at < self.begin && self.begin == self.kept_at && !self.kept.is_empty()
    }

    /// Lets the run begin at `at` instead.
    ///
    /// `tail -f` looks back for its ten lines. It finds the end of the file where other readers have read before, and
    /// reads on from there. It must then get the bytes that exist.
    pub(crate) fn begin_at(&mut self, at: u64) {
        (self.begin, self.kept_at) = (at, at);
    }

    /// Returns up to `count` bytes from a kept offset.
    pub(crate) fn again(&self, at: u64, count: usize) -> &[u8] {
        let rest = &self.kept[(at - self.kept_at) as usize..];
        &rest[..rest.len().min(count)]
    }

    /// Adds bytes at `at` that the file has read or passed over.
    pub(crate) fn add(&mut self, at: u64, bytes: Lent<'_>, passed: bool) {
        if bytes.is_empty() {
            return;
        }
        if at != self.end() {
            (self.begin, self.passed) = (at, false);
            self.kept.clear();
        }
        self.passed |= passed;
        let max = self.make_room(if self.passed { KEEP_PASSED_MAX } else { KEEP_READ_MAX }, bytes.len());
        let new = bytes.skip(bytes.len().saturating_sub(max));
        if new.len() < bytes.len() {
            self.kept.clear(); // the kept bytes would not be next to these
        } else if self.kept.len() + new.len() > 2 * max {
            // Not each time: for a reader of single bytes, every read would move all kept bytes.
            self.kept.drain(..(self.kept.len() + new.len() - max).min(self.kept.len()));
        }
        if !new.copy_to(&mut self.kept) {
            self.kept.clear(); // there was no memory for the new bytes
        }
        self.kept_at = at.saturating_add(bytes.len() as u64).saturating_sub(self.kept.len() as u64);
    }

    /// Makes room for more bytes.
    ///
    /// Returns how many bytes the file keeps: `max`, or less if memory is short.
    fn make_room(&mut self, max: usize, more: usize) -> usize {
        let needed = (self.kept.len() + more).min(2 * max);
        if needed <= self.room.len() {
            return max;
        }
        let wanted = needed.next_power_of_two().max(KEEP_FIRST);
        let granted = self.room.grow(wanted - self.room.len()).is_ok()
            && self.kept.try_reserve_exact(wanted - self.kept.len()).is_ok();
        if granted { max } else { self.kept.capacity() / 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::quota::Quota;

    /// The kept bytes are right for runs of replies of any length.
    #[test]
    fn kept_bytes_are_the_last_bytes_read() {
        let stream: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for lens in
            [&[1][..], &[1000], &[10_000, 1 << 20], &[1 << 20, 1, 130_000], &[128 << 10, 5], &[300_000]]
        {
            let (mut history, mut at) = (ReadHistory::new(Quota::new(1 << 20).begin(0)), 0);
            for len in lens.iter().cycle() {
                let end = (at + len).min(stream.len());
                history.add(at as u64, Lent::from(&stream[at..end]), false);
                at = end;
                assert_eq!(history.end(), at as u64);
                assert!(
                    history.kept.len() >= at.min(KEEP_READ_MAX) && history.kept.len() <= 2 * KEEP_READ_MAX
                );
                if *len > 1 || at % 4096 == 0 {
                    assert_eq!(history.kept, stream[history.kept_at as usize..at], "{lens:?} at {at}");
                }
                if at == stream.len() || (*len == 1 && at > 300_000) {
                    break;
                }
            }
        }
    }

    /// A damaged buffer can lead to any offset.
    #[test]
    fn largest_offsets_do_not_overflow() {
        for at in [u64::MAX, u64::MAX - 3, u64::MAX - 10, 1 << 63] {
            let mut history = ReadHistory::new(Quota::new(1 << 20).begin(0));
            history.add(at, Lent::from(b"hello"), false);
            history.add(history.end(), Lent::from(b"world"), true);
            for near in (0..20).map(|back| u64::MAX - back) {
                if history.keeps(near) {
                    assert!(history.again(near, 100).len() <= 10);
                }
                let _ = (history.has_dropped(near), history.begins_after(near));
            }
        }
    }

    /// If memory is short, the file keeps fewer bytes or none, and the kept bytes are right.
    #[test]
    fn file_without_memory_keeps_fewer_bytes() {
        let stream: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for (max, least) in [(0, 0), (4096, 2048), (100_000, 32 << 10)] {
            let shares = Quota::new(max);
            let mut history = ReadHistory::new(shares.begin(0));
            for (i, bytes) in stream.chunks(3000).enumerate() {
                history.add(i as u64 * 3000, Lent::from(bytes), false);
                assert_eq!(history.kept, stream[history.kept_at as usize..history.end() as usize]);
                assert!(history.kept.capacity() <= max, "{} of {max}", history.kept.capacity());
            }
            assert!(history.kept.len() >= least, "{} of {max}", history.kept.len());
        }
    }
}
