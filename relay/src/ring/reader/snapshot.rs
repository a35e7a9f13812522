//! Snapshot: a copy of a buffer's contents that consumes nothing.

use super::Reader;
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;

/// Tries to copy anything from a ring that the writer overwrites faster than that.
const TRIES_MAX: u32 = 16;

/// The range of a snapshot, and how far it has been copied.
/// It is known before the copy, so that memory can be reserved.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Position of the writer when the snapshot began.
    end: Position,
    /// Most bytes that a snapshot up to `end` has.
    max: usize,
    /// The next sub-buffer to copy. `None`: the first.
    at: Option<Position>,
    /// The sub-buffer copied last, from its first byte in the copy on.
    pub(super) last: Position,
    /// Where that part begins in the copy, in bytes.
    pub(super) from: usize,
    /// Sub-buffers looked at since the first.
    n_taken: usize,
    /// Number of times the copy has started over.
    n_tries: u32,
}

impl Extent {
    /// Returns the most bytes that a snapshot has.
    pub fn max(&self) -> usize {
        self.max
    }
}

impl Reader {
    /// Returns the bytes that a snapshot would have now, in overwrite mode at most.
    pub fn snapshot_len(&self) -> u64 {
        match self.buffer.geometry().mode() {
            Mode::NoOverwrite => self.unread().min(self.buffer.geometry().buffer_size()),
            Mode::Overwrite => self.size().min(self.buffer.geometry().buffer_size()),
        }
    }

    /// Returns the range of a snapshot that begins now.
    /// In overwrite mode the writer may lap the snapshot, whose range then moves on.
    pub fn snapshot_extent(&self) -> Extent {
        let end = self.state();
        // After `end`, so that it covers at least the bytes up to `end`.
        let max = match self.buffer.geometry().mode() {
            Mode::NoOverwrite => self.snapshot_len(),
            Mode::Overwrite => self.buffer.geometry().buffer_size(),
        };
        let max = max.try_into().unwrap_or(usize::MAX);
        Extent { end, max, at: None, last: end, from: 0, n_taken: 0, n_tries: 0 }
    }

    /// Copies the unread bytes up to the last message before the extent's end.
    /// `out` must be empty. In overwrite mode it copies everything since the last reset that is still whole, read or
    /// not.
    pub fn snapshot(&self, mut extent: Extent, out: &mut Vec<u8>) {
        while self.snapshot_part(&mut extent, out) {}
    }

    /// Copies one sub-buffer of a snapshot, and returns whether there is more.
    /// The bytes are appended to `out`, which has the earlier parts. Callers copy in parts so that others wait for the
    /// reader only briefly. Bytes that others read, reset or overwrite between two parts are left out, with all before
    /// them. The copy therefore has no gap.
    pub fn snapshot_part(&self, extent: &mut Extent, out: &mut Vec<u8>) -> bool {
        let widths = self.buffer.widths();
        let overwrite = self.buffer.geometry().mode() == Mode::Overwrite;
        let at = match extent.at {
            Some(at) if overwrite || !widths.before(at, self.cursor) => at,
            Some(_) => {
                out.clear();
                self.cursor
            }
            None if overwrite => self.snapshot_begin(),
            None => self.cursor,
        };
        let readable = self.readable_at(at, extent.end);
        // Only a hostile peer can make it more than `max`.
        let len = readable.len.saturating_sub(widths.offset(at)).min(extent.max - out.len());
        extent.from = out.len();
        self.buffer.data().copy_out(self.buffer.ring_offset(at), len, out);
        if self.buffer.lapped(at) {
            out.clear();
            extent.from = 0;
        }
        (extent.at, extent.last) = (Some(widths.next(at)), at);
        extent.n_taken += 1;
        if readable.finished && extent.n_taken <= self.buffer.geometry().n_subbufs() {
            return true;
        }
        // The writer may have lapped the whole copy.
        extent.n_tries += 1;
        if !overwrite || !out.is_empty() || self.size() == 0 || extent.n_tries >= TRIES_MAX {
            return false;
        }
        (extent.end, extent.at, extent.n_taken) = (self.state(), None, 0);
        true
    }

    /// Returns the first sub-buffer of a snapshot in overwrite mode.
    pub(super) fn snapshot_begin(&self) -> Position {
        let oldest = self.buffer.oldest_whole();
        if self.buffer.widths().before(oldest, self.floor) { self.floor } else { oldest }
    }

    /// Finds the last reset of a used buffer, and sets `floor` behind it.
    /// If its place is overwritten, `floor` is the oldest whole sub-buffer.
    /// A reset skips slots and leaves an unfinished sub-buffer, whose number the next one takes over. So the records
    /// across a reset do not follow one another. Shortly after the creation or the last resets an old record may seem
    /// to follow all the same. Then some bytes from before the reset show again, and none are missing.
    pub(super) fn look_back(&mut self) {
        if self.buffer.geometry().mode() == Mode::NoOverwrite {
            return; // a snapshot begins at the cursor
        }
        let widths = self.buffer.widths();
        let (mut at, state) = (self.buffer.oldest_whole(), self.state());
        let mut floor = at;
        for _ in 0..self.buffer.geometry().n_subbufs() {
            if !widths.before(at, state) {
                break;
            }
            let next = widths.next(at);
            if !self.records_follow(at, next) {
                floor = next;
            }
            at = next;
        }
        // Half a reset counts as a reset.
        self.floor = if widths.before(state, self.cursor) { widths.at(self.cursor, 0) } else { floor };
    }

    /// Returns whether the records show that `second` followed `first`, which is finished.
    pub(super) fn records_follow(&self, first: Position, second: Position) -> bool {
        let (first, second) = (self.buffer.record(first), self.buffer.record(second));
        // Relaxed: an earlier Acquire load of `state` or `begun` orders them.
        let get = |word: &crate::memory::sync::AtomicU64| word.load(Ordering::Relaxed);
        let len = (self.buffer.geometry().subbuf_size() as u64).checked_sub(get(&first.padding));
        let end = len.and_then(|len| get(&first.begin).checked_add(len));
        end == Some(get(&second.begin)) && get(&first.number).checked_add(1) == Some(get(&second.number))
    }
}
