//! Giving back sub-buffers that were read by other means: in a mapping. The kernel's `relay_subbufs_consumed`, which
//! clients call there, for clients that are processes, and may not be alone.

use thiserror::Error;

use super::Reader;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;
use crate::ring::buffer::add;

/// Why nothing was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConsumeError {
    /// The next sub-buffer to be read is another one: somebody else was there first, or the writer.
    #[error("the next sub-buffer is number {next}")]
    Stale {
        /// Its number.
        next: u64,
    },
    /// So many are not finished.
    #[error("only {finished} sub-buffers are finished")]
    TooMany {
        /// How many are.
        finished: u64,
    },
}

impl Reader {
    /// Number of the next sub-buffer to be found in a mapping: how many were finished before it since the channel was
    /// created. In overwrite mode that is the oldest that is still whole.
    pub fn next_number(&self) -> u64 {
        self.number_of(self.next_whole())
    }

    /// Gives back `count` finished sub-buffers, a partly read one counting as one, if the first of them has number `from`,
    /// where that is given. Returns whether any was; an error changes nothing.
    pub fn consume(&mut self, from: Option<u64>, count: u64) -> Result<bool, ConsumeError> {
        let (consumed, first) = (self.cursor, self.next_whole());
        let next = self.number_of(first);
        if from.is_some_and(|from| from != next) {
            return Err(ConsumeError::Stale { next });
        }
        let finished = self.n_finished_from(first);
        if count > finished {
            return Err(ConsumeError::TooMany { finished });
        }
        if count == 0 {
            return Ok(false);
        }
        self.note_high_water();
        self.drop_pending(); // of the first of them, or of one that the writer has taken meanwhile
        let widths = *self.buffer.widths();
        let end = (0..count).fold(widths.at(first, 0), |position, _| widths.next(position));
        for _ in 0..self.steps_max() {
            if !widths.before(self.cursor, end) {
                break;
            }
            let unread = self.readable().len.saturating_sub(widths.offset(self.cursor));
            if self.lapped() {
                // These are gone, and counted.
                if !self.catch_up() {
                    break;
                }
            } else {
                add(&self.buffer.block().read_bytes, unread as u64);
                self.advance(unread);
                self.give_back();
            }
        }
        self.publish();
        Ok(widths.before(consumed, self.cursor))
    }

    /// The cursor, unless the writer was there first.
    fn next_whole(&self) -> Position {
        if self.lapped() { self.buffer.oldest_whole() } else { self.cursor }
    }

    fn number_of(&self, position: Position) -> u64 {
        self.stable(|buffer, state| {
            let ahead = buffer.widths().count(position, state).max(0).cast_unsigned();
            buffer.record(state).number.load(Ordering::Relaxed).wrapping_sub(ahead)
        })
    }
}
