//! Resuming a buffer that another reader has left, perhaps by dying in the middle of a read.
//!
//! Any process with the files may have written what the other reader left. Each number is therefore checked against the
//! others before the reader uses it. Producers may keep writing during the checks.

use thiserror::Error;

use super::{Reader, TRIES_MAX};
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;
use crate::ring::buffer::Buffer;

/// The fault of a buffer that was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unsound {
    /// A word is not a position in a channel of this geometry.
    #[error("its word '{word}' says {value:#x}, which is no position in it")]
    Word {
        /// Name of the word.
        word: &'static str,
        /// Value of the word.
        value: u64,
    },
    /// Reader and writer are further apart than a buffer allows.
    #[error("the reader is {0} sub-buffers behind the writer, which cannot be")]
    Apart(i64),
    /// The newest begun sub-buffer is not near the writer's.
    #[error("the writer has begun a sub-buffer {0} away from its own")]
    Begun(i64),
    /// More bytes were read of a sub-buffer than it has.
    #[error("{offset} bytes are read of a sub-buffer of {len}")]
    ReadBeyond {
        /// Bytes read.
        offset: usize,
        /// Bytes in the sub-buffer.
        len: usize,
    },
    /// The record of one sub-buffer does not fit that of the next.
    #[error("the record of sub-buffer {0} does not go with the next one's")]
    Record(u64),
    /// The counters have more bytes than were written.
    #[error("{counted} bytes are counted as read or lost, of {size} that were written")]
    Counters {
        /// Sum of the counters of bytes.
        counted: u64,
        /// Bytes written.
        size: u64,
    },
}

impl Reader {
    /// Checks a buffer that an earlier reader left, and creates its reading end.
    /// There must be only one at a time.
    ///
    /// Counts the bytes that the last reader had replied but not counted. A reset that it had begun stays undone: see
    /// [`Reader::is_half_reset`].
    pub fn resume(buffer: Buffer) -> Result<Reader, Unsound> {
        let mut reader = Reader::new(buffer);
        if let Some(read_bytes) = reader.check()? {
            reader.buffer.block().read_bytes.store(read_bytes, Ordering::Relaxed);
        }
        Ok(reader)
    }

    /// Creates a reading end for an observer that does not ask the daemon and changes nothing.
    /// It is for snapshots and the like. An unsound buffer is read as far as possible.
    pub fn look(buffer: Buffer) -> (Reader, Option<Unsound>) {
        let mut reader = Reader::new(buffer);
        let unsound = reader.check().err();
        (reader, unsound)
    }

    /// Checks all words that the reader uses, and derives its missing values.
    /// Returns the new value of the counter of read bytes, if it has to change.
    fn check(&mut self) -> Result<Option<u64>, Unsound> {
        self.look_back();
        let (state, begun) = self.state_and_begun();
        let behind = self.check_positions(state, begun)?;
        let widths = *self.buffer.widths();
        let n_subbufs = self.buffer.geometry().n_subbufs() as i64;
        let block = self.buffer.block();
        // Relaxed: counters, and only the reader writes these.
        let get = |counter: &crate::memory::sync::AtomicU64| counter.load(Ordering::Relaxed);
        let lost = get(&block.overwritten_bytes).wrapping_add(get(&block.discarded_bytes));
        let counted = get(&block.read_bytes).wrapping_add(lost);
        let size = self.size();
        // An overwritten sub-buffer, or one not begun yet, has no record. The record of one lap ago may be gone where an
        // earlier release has ended a blocked buffer.
        let overwrite = self.buffer.geometry().mode() == Mode::Overwrite;
        if behind < 0 || behind > n_subbufs || self.lapped() {
            if counted > size {
                return Err(Unsound::Counters { counted, size });
            }
            self.stream = counted;
            self.expect_any_stream();
            return Ok(None);
        }
        if !overwrite {
            self.check_records(state, behind)?;
            let readable = self.readable_at(self.cursor, state);
            let offset = widths.offset(self.cursor);
            if offset > readable.len {
                return Err(Unsound::ReadBeyond { offset, len: readable.len });
            }
        }
        if self.stream > size || lost > self.stream {
            return Err(Unsound::Counters { counted: lost, size });
        }
        Ok(Some(self.stream - lost))
    }

    /// Returns whether the last reader died between the steps of a [`reset`](Reader::reset).
    /// The caller must then reset again before anything else.
    pub fn is_half_reset(&self) -> bool {
        self.buffer.widths().before(self.state(), self.cursor)
    }

    /// Returns both words as of one time, unless the writer never pauses.
    fn state_and_begun(&self) -> (Position, Position) {
        let begun = || Position(self.buffer.block().begun.load(Ordering::Acquire));
        let mut seen = (self.state(), begun());
        for _ in 0..TRIES_MAX {
            let state = self.state();
            if state == seen.0 {
                break;
            }
            seen = (state, begun());
        }
        seen
    }

    /// Returns the number of sub-buffers from reader to writer; negative after half a reset.
    fn check_positions(&self, state: Position, begun: Position) -> Result<i64, Unsound> {
        let widths = self.buffer.widths();
        let n_subbufs = self.buffer.geometry().n_subbufs() as i64;
        let words = [("state", state), ("consumed", self.cursor), ("begun", begun)];
        for (word, position) in words {
            if !widths.is_sound(position) || word != "state" && widths.blocked(position) {
                return Err(Unsound::Word { word, value: position.0 });
            }
        }
        let behind = widths.count(self.cursor, state);
        let half_reset = self.cursor == widths.next_lap(state);
        // A daemon of an earlier release that ended a blocked buffer has moved the state one further than a writer would.
        let may_be = match self.buffer.geometry().mode() {
            Mode::NoOverwrite => (0..2 * n_subbufs + 1).contains(&behind),
            Mode::Overwrite => behind >= 0,
        };
        if !may_be && !half_reset {
            return Err(Unsound::Apart(behind));
        }
        let ahead = widths.count(state, begun);
        if !(-n_subbufs - 1..=n_subbufs).contains(&ahead) {
            return Err(Unsound::Begun(ahead));
        }
        Ok(behind)
    }

    /// Checks that numbers and stream positions of unread sub-buffers follow one another.
    /// No writer changes them while they are unread.
    fn check_records(&self, state: Position, behind: i64) -> Result<(), Unsound> {
        let buffer = &self.buffer;
        let mut position = self.cursor;
        for _ in 0..behind {
            let next = buffer.widths().next(position);
            if !self.records_follow(position, next) {
                return Err(Unsound::Record(buffer.record(position).number.load(Ordering::Relaxed)));
            }
            position = next;
        }
        debug_assert_eq!(buffer.widths().at(position, 0), buffer.widths().at(state, 0));
        Ok(())
    }
}
