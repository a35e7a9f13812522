//! What an open file keeps of what it has read, for a reader that seeks back.

use relay::memory::lent::Lent;

use crate::policy::quota::Reservation;

/// How much of what it has read an open file keeps at least, twice that at most, for a reader that seeks back, in bytes.
/// Programs that read ahead and seek back to where they stopped (head, grep -m, the shell's read, stdio at exit) read
/// less than this at a time.
const KEEP_READ_MAX: usize = 128 << 10;
/// How much an open file keeps once it has passed over something, in bytes. Programs that look for the last lines
/// (tail -n, tac) go to the end and then backwards from there, block by block.
const KEEP_PASSED_MAX: usize = 1 << 20;
/// What a file asks for at first, in bytes; then twice as much each time.
const KEEP_FIRST: usize = 4096;

/// Where an open file has been since it last sought: a run of file offsets, and the end of what it found there, for a
/// reader that seeks back.
pub(crate) struct ReadHistory {
    /// File offset at which the run begins.
    begin: u64,
    /// Whether the file has passed over some of it, for a reader that sought forward.
    passed: bool,
    /// File offset of the first byte that is kept.
    kept_at: u64,
    kept: Vec<u8>,
    /// The memory it may take for that.
    room: Reservation,
}

impl ReadHistory {
    pub(crate) fn new(room: Reservation) -> ReadHistory {
        ReadHistory { begin: 0, passed: false, kept_at: 0, kept: Vec::new(), room }
    }

    /// File offset behind the run. A peer that writes the buffer's records can let offsets be any.
    fn end(&self) -> u64 {
        self.kept_at.saturating_add(self.kept.len() as u64)
    }

    pub(crate) fn keeps(&self, at: u64) -> bool {
        (self.kept_at..self.end()).contains(&at)
    }

    /// Whether `at` is where the file has passed over something that is not kept any more, so that a reader who goes back
    /// there is too late: it must not take what comes next for what it was looking for.
    pub(crate) fn has_dropped(&self, at: u64) -> bool {
        self.passed && self.begin < self.kept_at && at < self.kept_at
    }

    /// Whether `at` is before all of the run, and that is still kept.
    pub(crate) fn begins_after(&self, at: u64) -> bool {
        at < self.begin && self.begin == self.kept_at && !self.kept.is_empty()
    }

    /// Lets the run begin at `at` instead. `tail -f` that looks back for its ten lines finds the end of the file where
    /// others have read before, and goes on from there: it must get what there is.
    pub(crate) fn begin_at(&mut self, at: u64) {
        (self.begin, self.kept_at) = (at, at);
    }

    /// Up to `count` bytes from an offset that is kept.
    pub(crate) fn again(&self, at: u64, count: usize) -> &[u8] {
        let rest = &self.kept[(at - self.kept_at) as usize..];
        &rest[..rest.len().min(count)]
    }

    /// Adds bytes found at `at`: read, or passed over.
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
            self.kept.clear(); // it would not be next to what is kept of these
        } else if self.kept.len() + new.len() > 2 * max {
            // Only now and then, or a reader of single bytes would have all of it moved for each.
            self.kept.drain(..(self.kept.len() + new.len() - max).min(self.kept.len()));
        }
        if !new.copy_to(&mut self.kept) {
            self.kept.clear(); // there was no memory for it
        }
        self.kept_at = at.saturating_add(bytes.len() as u64).saturating_sub(self.kept.len() as u64);
    }

    /// Makes room for more bytes, and returns how much is to be kept: `max`, or what there is memory for.
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

    /// Whatever is kept is what was there, of runs of replies of any length.
    #[test]
    fn what_is_kept_is_what_was_there() {
        let stream: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for lens in
            [&[1][..], &[1000], &[10_000, 1 << 20], &[1 << 20, 1, 130_000], &[128 << 10, 5], &[300_000]]
        {
            let (mut past, mut at) = (ReadHistory::new(Quota::new(1 << 20).begin(0)), 0);
            for len in lens.iter().cycle() {
                let end = (at + len).min(stream.len());
                past.add(at as u64, Lent::from(&stream[at..end]), false);
                at = end;
                assert_eq!(past.end(), at as u64);
                assert!(past.kept.len() >= at.min(KEEP_READ_MAX) && past.kept.len() <= 2 * KEEP_READ_MAX);
                if *len > 1 || at % 4096 == 0 {
                    assert_eq!(past.kept, stream[past.kept_at as usize..at], "{lens:?} at {at}");
                }
                if at == stream.len() || (*len == 1 && at > 300_000) {
                    break;
                }
            }
        }
    }

    /// Where a damaged buffer leads, which can be anywhere.
    #[test]
    fn offsets_at_the_end_of_their_range_are_survived() {
        for at in [u64::MAX, u64::MAX - 3, u64::MAX - 10, 1 << 63] {
            let mut past = ReadHistory::new(Quota::new(1 << 20).begin(0));
            past.add(at, Lent::from(b"hello"), false);
            past.add(past.end(), Lent::from(b"world"), true);
            for near in (0..20).map(|back| u64::MAX - back) {
                if past.keeps(near) {
                    assert!(past.again(near, 100).len() <= 10);
                }
                let _ = (past.has_dropped(near), past.begins_after(near));
            }
        }
    }

    /// Where there is no memory, less is kept, or nothing, and what is kept is still what was there.
    #[test]
    fn without_room_less_is_kept() {
        let stream: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for (max, least) in [(0, 0), (4096, 2048), (100_000, 32 << 10)] {
            let shares = Quota::new(max);
            let mut past = ReadHistory::new(shares.begin(0));
            for (i, bytes) in stream.chunks(3000).enumerate() {
                past.add(i as u64 * 3000, Lent::from(bytes), false);
                assert_eq!(past.kept, stream[past.kept_at as usize..past.end() as usize]);
                assert!(past.kept.capacity() <= max, "{} of {max}", past.kept.capacity());
            }
            assert!(past.kept.len() >= least, "{} of {max}", past.kept.len());
        }
    }
}
