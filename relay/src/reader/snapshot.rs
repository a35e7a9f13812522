//! A copy of what a buffer holds, which consumes nothing.

use super::Reader;
use crate::geometry::Mode;
use crate::position::Position;

/// Tries at getting anything at all of a ring that the writer goes round faster than it can be copied.
const TRIES_MAX: u32 = 16;

impl Reader {
    /// Bytes that [`Reader::snapshot`] takes at most, as of now.
    pub fn snapshot_max(&self) -> u64 {
        match self.buffer.geometry().mode() {
            Mode::NoOverwrite => self.unread().min(self.buffer.geometry().buffer_size()),
            Mode::Overwrite => self.size().min(self.buffer.geometry().buffer_size()),
        }
    }

    /// Copies what is unread, or in overwrite mode all that is still whole, read or not, since the last reset; up to the
    /// last message, at most `max` bytes, of which then the newest sub-buffers. `out` is empty.
    pub fn snapshot(&self, max: usize, out: &mut Vec<u8>) {
        match self.buffer.geometry().mode() {
            // All of it at once: nobody else reads it, since whoever calls has the only reader, or writes to it.
            Mode::NoOverwrite => {
                self.copy_between(self.cursor, self.state(), max, out);
            }
            Mode::Overwrite => {
                for _ in 0..TRIES_MAX {
                    let (oldest, state) = (self.oldest_whole(), self.state());
                    let behind_reset = self.buffer.widths().before(oldest, self.floor);
                    self.copy_between(if behind_reset { self.floor } else { oldest }, state, max, out);
                    if !out.is_empty() || self.size() == 0 {
                        return;
                    }
                }
            }
        }
    }

    /// Copies from `at` up to `end`, without padding. What turns out to have been overwritten is left out, and all before.
    fn copy_between(&self, mut at: Position, end: Position, max: usize, out: &mut Vec<u8>) {
        let widths = self.buffer.widths();
        let overwrite = self.buffer.geometry().mode() == Mode::Overwrite;
        for _ in 0..=self.buffer.geometry().n_subbufs() {
            let readable = self.readable_at(at, end);
            let len = readable.len.saturating_sub(widths.offset(at));
            if out.len() + len > max {
                out.clear();
            }
            self.buffer.data().copy_out(self.buffer.ring_offset(at), len.min(max), out);
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
