//! Giving back sub-buffers read in a mapping: the kernel's `relay_subbufs_consumed`.
//!
//! The kernel's clients call that function directly. Here the clients are processes, and there may be several.

use thiserror::Error;

use super::Reader;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;
use crate::ring::buffer::add;

/// The reason for which no sub-buffer was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConsumeError {
    /// The next unread sub-buffer is another one.
    /// Another reader or the writer took the expected one.
    #[error("the next sub-buffer is number {next}")]
    Stale {
        /// Number of the next unread sub-buffer.
        next: u64,
    },
    /// Fewer sub-buffers are finished.
    #[error("only {finished} sub-buffers are finished")]
    TooMany {
        /// Number of finished sub-buffers.
        finished: u64,
    },
}

impl Reader {
    /// Returns the number of the next sub-buffer that a mapping can see.
    /// The number counts the sub-buffers finished before it since the channel was created. In overwrite mode the next
    /// sub-buffer is the oldest that is still whole.
    pub fn next_number(&self) -> u64 {
        self.number_of(self.next_whole())
    }

    /// Gives back `count` finished sub-buffers; a partly read one counts as one.
    /// If `from` is given, it must be the number of the first of them. Returns whether any was given back; an error
    /// changes nothing.
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
        self.drop_pending(); // belongs to the first of them, or to one that the writer has taken
        let widths = *self.buffer.widths();
        let end = (0..count).fold(widths.at(first, 0), |position, _| widths.next(position));
        for _ in 0..self.steps_max() {
            if !widths.before(self.cursor, end) {
                break;
            }
            let unread = self.readable().len.saturating_sub(widths.offset(self.cursor));
            if self.lapped() {
                // `catch_up` counts the overwritten ones.
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

    /// Returns the cursor, or the oldest whole sub-buffer if the writer has lapped the cursor.
    fn next_whole(&self) -> Position {
        if self.lapped() { self.buffer.oldest_whole() } else { self.cursor }
    }

    pub(super) fn number_of(&self, position: Position) -> u64 {
        self.stable(|buffer, state| {
            let ahead = buffer.widths().count(position, state).max(0).cast_unsigned();
            buffer.record(state).number.load(Ordering::Relaxed).wrapping_sub(ahead)
        })
    }
}
