//! A copy of what a buffer holds, which consumes nothing.

use super::Reader;
use crate::geometry::Mode;
use crate::position::Position;

/// Tries at getting anything at all of a ring that the writer goes round faster than it can be copied.
const TRIES_MAX: u32 = 16;

/// How far a snapshot goes, so that memory for it can be had before it is taken.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Where the writer was.
    end: Position,
    /// Bytes that a snapshot up to there takes at most.
    max: usize,
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
        Extent { end, max: max.try_into().unwrap_or(usize::MAX) }
    }

    /// Copies what is unread, or in overwrite mode all that is still whole, read or not, since the last reset; up to the
    /// last message before the extent's end. `out` is empty.
    pub fn snapshot(&self, extent: Extent, out: &mut Vec<u8>) {
        match self.buffer.geometry().mode() {
            // All of it at once: nobody else reads it, since whoever calls has the only reader.
            Mode::NoOverwrite => self.copy_between(self.cursor, extent.end, extent.max, out),
            Mode::Overwrite => {
                let mut end = extent.end;
                for _ in 0..TRIES_MAX {
                    let oldest = self.oldest_whole();
                    let behind_reset = self.buffer.widths().before(oldest, self.floor);
                    self.copy_between(if behind_reset { self.floor } else { oldest }, end, extent.max, out);
                    if !out.is_empty() || self.size() == 0 {
                        return;
                    }
                    end = self.state();
                }
            }
        }
    }

    /// Copies from `at` up to `end`, without padding. What turns out to have been overwritten is left out, and all before.
    /// At most `max` bytes: more would be the doing of a peer that does not keep to the rules.
    fn copy_between(&self, mut at: Position, end: Position, max: usize, out: &mut Vec<u8>) {
        let widths = self.buffer.widths();
        let overwrite = self.buffer.geometry().mode() == Mode::Overwrite;
        for _ in 0..=self.buffer.geometry().n_subbufs() {
            let readable = self.readable_at(at, end);
            let len = readable.len.saturating_sub(widths.offset(at));
            self.buffer.data().copy_out(self.buffer.ring_offset(at), len.min(max - out.len()), out);
            if overwrite && self.lapped_at(at) {
                out.clear();
            }
            if !readable.finished {
                return;
            }
            at = widths.next(at);
        }
    }
}
