//! A copy of what a buffer holds, which consumes nothing.

use super::Reader;
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;

/// Tries at getting anything at all of a ring that the writer goes round faster than it can be copied.
const TRIES_MAX: u32 = 16;

/// How far a snapshot goes, so that memory for it can be had before it is taken; and how far it has been taken.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Where the writer was.
    end: Position,
    /// Bytes that a snapshot up to there takes at most.
    max: usize,
    /// The next sub-buffer. `None`: the first.
    at: Option<Position>,
    /// Sub-buffers looked at since the first.
    n_taken: usize,
    /// How often it was begun again.
    n_tries: u32,
}

impl Extent {
    /// Bytes that a snapshot takes at most.
    pub fn max(&self) -> usize {
        self.max
    }
}

impl Reader {
    /// Bytes that a snapshot would have, as of now; in overwrite mode, at most.
    pub fn snapshot_len(&self) -> u64 {
        match self.buffer.geometry().mode() {
            Mode::NoOverwrite => self.unread().min(self.buffer.geometry().buffer_size()),
            Mode::Overwrite => self.size().min(self.buffer.geometry().buffer_size()),
        }
    }

    /// How far a snapshot goes that begins now. In overwrite mode the writer may be gone round the ring before it is taken,
    /// and it goes further then.
    pub fn snapshot_extent(&self) -> Extent {
        let end = self.state();
        // After `end`, so not less than there is up to it.
        let max = match self.buffer.geometry().mode() {
            Mode::NoOverwrite => self.snapshot_len(),
            Mode::Overwrite => self.buffer.geometry().buffer_size(),
        };
        Extent { end, max: max.try_into().unwrap_or(usize::MAX), at: None, n_taken: 0, n_tries: 0 }
    }

    /// Copies what is unread, or in overwrite mode all that is still whole, read or not, since the last reset; up to the
    /// last message before the extent's end. `out` is empty.
    pub fn snapshot(&self, mut extent: Extent, out: &mut Vec<u8>) {
        while self.snapshot_part(&mut extent, out) {}
    }

    /// Copies one sub-buffer of a snapshot, behind what `out` has of it, and returns whether there is more. For those with whom
    /// others wait for the reader: they need not wait for all of a ring. What others read, reset or overwrite between two parts
    /// is left out, and all before, so that what is there goes on from byte to byte.
    pub fn snapshot_part(&self, extent: &mut Extent, out: &mut Vec<u8>) -> bool {
        let widths = self.buffer.widths();
        let overwrite = self.buffer.geometry().mode() == Mode::Overwrite;
        let at = match extent.at {
            Some(at) if overwrite || !widths.before(at, self.cursor) => at,
            Some(_) => {
                out.clear();
                self.cursor
            }
            None if overwrite => {
                let oldest = self.buffer.oldest_whole();
                if widths.before(oldest, self.floor) { self.floor } else { oldest }
            }
            None => self.cursor,
        };
        let readable = self.readable_at(at, extent.end);
        // More than `max` would be the doing of a peer that does not keep to the rules.
        let len = readable.len.saturating_sub(widths.offset(at)).min(extent.max - out.len());
        self.buffer.data().copy_out(self.buffer.ring_offset(at), len, out);
        if self.buffer.lapped(at) {
            out.clear();
        }
        extent.at = Some(widths.next(at));
        extent.n_taken += 1;
        if readable.finished && extent.n_taken <= self.buffer.geometry().n_subbufs() {
            return true;
        }
        // A writer may have gone round the ring before anything could be copied.
        extent.n_tries += 1;
        if !overwrite || !out.is_empty() || self.size() == 0 || extent.n_tries >= TRIES_MAX {
            return false;
        }
        (extent.end, extent.at, extent.n_taken) = (self.state(), None, 0);
        true
    }

    /// Finds, for a reader that begins with a buffer that was in use, how far back the last reset was, if it is not
    /// overwritten. Where one was, the records do not go on: it passes over slots, and leaves behind a sub-buffer that was not
    /// finished, and whose number the next one takes over. (With next to nothing written since the creation or the last resets, an
    /// old record may seem to go on after all. Then some of what was reset shows again, and nothing is missing.)
    pub(super) fn look_back(&mut self) {
        if self.buffer.geometry().mode() == Mode::NoOverwrite {
            return; // there is nothing before the cursor
        }
        let widths = self.buffer.widths();
        let (mut at, state) = (self.buffer.oldest_whole(), self.state());
        let mut floor = at;
        for _ in 0..self.buffer.geometry().n_subbufs() {
            if !widths.before(at, state) {
                break;
            }
            let next = widths.next(at);
            if !self.goes_on(at, next) {
                floor = next;
            }
            at = next;
        }
        // Half a reset is one.
        self.floor = if widths.before(state, self.cursor) { widths.at(self.cursor, 0) } else { floor };
    }

    /// Whether the records of two sub-buffers say that the second followed the first, which is finished.
    pub(super) fn goes_on(&self, first: Position, second: Position) -> bool {
        let (first, second) = (self.buffer.record(first), self.buffer.record(second));
        // Relaxed: `state` or `begun`, loaded before with Acquire, are behind them.
        let get = |word: &crate::memory::sync::AtomicU64| word.load(Ordering::Relaxed);
        let len = (self.buffer.geometry().subbuf_size() as u64).checked_sub(get(&first.padding));
        let end = len.and_then(|len| get(&first.begin).checked_add(len));
        end == Some(get(&second.begin)) && get(&first.number).checked_add(1) == Some(get(&second.number))
    }
}
