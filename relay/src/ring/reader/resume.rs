//! Going on with a buffer that another reader has left, perhaps by dying in the middle of something.
//!
//! What it left may have been written by anybody who had the files, so each number is checked against the others before
//! it is gone by. Producers may go on writing all the while.

use thiserror::Error;

use super::{Reader, TRIES_MAX};
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;
use crate::ring::buffer::Buffer;

/// What is wrong with a buffer that was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unsound {
    /// A word is no position of a channel of this geometry.
    #[error("its word '{word}' says {value:#x}, which is no position in it")]
    Word {
        /// The word's name.
        word: &'static str,
        /// What it says.
        value: u64,
    },
    /// Reader and writer are where they cannot be at the same time.
    #[error("the reader is {0} sub-buffers behind the writer, which cannot be")]
    Apart(i64),
    /// The sub-buffer begun last is not near the writer's.
    #[error("the writer has begun a sub-buffer {0} away from its own")]
    Begun(i64),
    /// More was read of a sub-buffer than there is in it.
    #[error("{offset} bytes are read of a sub-buffer of {len}")]
    ReadBeyond {
        /// Bytes read.
        offset: usize,
        /// Bytes there are.
        len: usize,
    },
    /// What is said of one sub-buffer does not go with what is said of the next.
    #[error("the record of sub-buffer {0} does not go with the next one's")]
    Record(u64),
    /// The counters tell of more bytes than were written.
    #[error("{counted} bytes are counted as read or lost, of {size} that were written")]
    Counters {
        /// Bytes the counters tell of.
        counted: u64,
        /// Bytes written.
        size: u64,
    },
}

impl Reader {
    /// The reading end of a buffer where the last one left off, after a look at all that it goes by. There must be only one
    /// at a time.
    ///
    /// What the last one had replied but not counted is counted now. If it was about to reset the buffer, that is left to
    /// be done: see [`Reader::is_half_reset`].
    pub fn resume(buffer: Buffer) -> Result<Reader, Unsound> {
        let mut reader = Reader::new(buffer);
        if let Some(read_bytes) = reader.check()? {
            reader.buffer.block().read_bytes.store(read_bytes, Ordering::Relaxed);
        }
        Ok(reader)
    }

    /// The same for who looks, without asking the daemon if there is one, and changes nothing: only for snapshots and the
    /// like. A buffer that is not sound is read as well as it can be.
    pub fn look(buffer: Buffer) -> (Reader, Option<Unsound>) {
        let mut reader = Reader::new(buffer);
        let unsound = reader.check().err();
        (reader, unsound)
    }

    /// Checks all that the reader goes by, and finds out what it did not know. Returns what the counter of read bytes has to
    /// be set to, if to anything.
    fn check(&mut self) -> Result<Option<u64>, Unsound> {
        self.look_back();
        let (state, begun) = self.state_and_begun();
        let behind = self.check_positions(state, begun)?;
        let widths = *self.buffer.widths();
        let n_subbufs = self.buffer.geometry().n_subbufs() as i64;
        let block = self.buffer.block();
        // Relaxed: counters, and only who reads writes these.
        let get = |counter: &crate::memory::sync::AtomicU64| counter.load(Ordering::Relaxed);
        let lost = get(&block.overwritten_bytes).wrapping_add(get(&block.discarded_bytes));
        let counted = get(&block.read_bytes).wrapping_add(lost);
        let size = self.size();
        // Of a sub-buffer that is overwritten, or not begun yet, there is no record; one of a lap ago may be gone where a
        // buffer was ended while blocked.
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

    /// Whether the last reader died between the steps of a [`reset`](Reader::reset), which is then to be done again before
    /// anything else.
    pub fn is_half_reset(&self) -> bool {
        self.buffer.widths().before(self.state(), self.cursor)
    }

    /// Both words as they were at one time, unless the writer never stops.
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

    /// How many sub-buffers the reader is behind the writer; negative after half a reset.
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
        // Ending a blocked buffer goes one further than a writer would.
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

    /// Numbers and stream positions of what is unread follow one another. Nobody changes them while it is unread.
    fn check_records(&self, state: Position, behind: i64) -> Result<(), Unsound> {
        let buffer = &self.buffer;
        let mut position = self.cursor;
        for _ in 0..behind {
            let next = buffer.widths().next(position);
            if !self.goes_on(position, next) {
                return Err(Unsound::Record(buffer.record(position).number.load(Ordering::Relaxed)));
            }
            position = next;
        }
        debug_assert_eq!(buffer.widths().at(position, 0), buffer.widths().at(state, 0));
        Ok(())
    }
}
