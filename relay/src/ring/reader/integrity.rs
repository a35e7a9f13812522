//! What a reader finds in the shared words that nobody who keeps to the rules writes there.
//!
//! Most of it is *corrected*: cut to what can be, or put back, and counted. Where reader and writer are, that cannot be
//! guessed: words that are no positions, or are too far apart, are [`Unsound`], and it is for the caller to give the buffer
//! up. All checks are such that an honest writer never fails one, wherever it is interrupted or killed.

use std::cell::Cell;

use super::{Readable, Reader, Unsound};
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;
use crate::ring::buffer::Buffer;

/// What was found so far.
#[derive(Debug)]
pub(super) struct Checks {
    corrected: Cell<u64>,
    /// What `consumed` says if nobody else has stored there.
    consumed: Cell<Position>,
    /// How far the writer's stream position of the cursor's sub-buffer is ahead of ours: not at all, unless somebody has
    /// changed a record. Then each further change counts, not each further sub-buffer. `None`: not known yet.
    skew: Option<u64>,
}

impl Checks {
    pub(super) fn new(buffer: &Buffer) -> Checks {
        // Relaxed, both: the daemon's own words.
        let corrected = buffer.block().corrected.load(Ordering::Relaxed);
        let consumed = Position(buffer.block().consumed.load(Ordering::Relaxed));
        Checks { corrected: Cell::new(corrected), consumed: Cell::new(consumed), skew: Some(0) }
    }
}

impl Reader {
    /// How often something was corrected.
    pub fn corrected(&self) -> u64 {
        self.checks.corrected.get()
    }

    /// Whether the words that say where the writer is are such as a writer stores. What is read otherwise is inside the
    /// ring, but nobody's message.
    pub fn check_words(&self) -> Result<(), Unsound> {
        let widths = self.buffer.widths();
        let begun = Position(self.buffer.block().begun.load(Ordering::Relaxed));
        let state = self.state();
        for (word, position) in [("state", state), ("begun", begun)] {
            if !widths.is_sound(position) || word == "begun" && widths.at(position, 0) != position {
                return Err(Unsound::Word { word, value: position.0 });
            }
        }
        let behind = widths.count(self.cursor, state);
        let n_subbufs = self.buffer.geometry().n_subbufs() as i64;
        // After half a reset the reader is ahead, by less than a lap. Ending a blocked buffer goes one further than a
        // writer would.
        let may_be = match self.buffer.geometry().mode() {
            Mode::NoOverwrite => (-n_subbufs..2 * n_subbufs + 1).contains(&behind),
            Mode::Overwrite => behind >= -n_subbufs,
        };
        if may_be { Ok(()) } else { Err(Unsound::Apart(behind)) }
    }

    /// The buffer is not closed, whoever says so.
    pub fn deny_closed(&self) {
        if self.buffer.block().closed.load(Ordering::Relaxed) != 0 {
            self.buffer.reopen();
            self.correct();
            self.keep_count();
        }
    }

    fn correct(&self) {
        self.checks.corrected.set(self.corrected().wrapping_add(1));
    }

    /// Stores the count for the next reader. Not where something is found: who only looks may have maps that cannot be written.
    fn keep_count(&self) {
        self.buffer.block().corrected.store(self.corrected(), Ordering::Relaxed);
    }

    /// The padding of a sub-buffer, which is no more than all of it.
    pub(super) fn check_padding(&self, padding: u64) {
        if padding > self.buffer.geometry().subbuf_size() as u64 {
            self.correct();
        }
    }

    /// There is no less of a sub-buffer than was read of it. In overwrite mode it may be another one's record by now.
    pub(super) fn check_readable(&self, readable: &Readable) {
        let read = self.buffer.widths().offset(self.cursor);
        if read > readable.len && self.buffer.geometry().mode() == Mode::NoOverwrite {
            self.correct();
        }
    }

    /// The sub-buffer that the cursor has come to begins where the one before it has ended.
    pub(super) fn check_next(&mut self) {
        if self.buffer.geometry().mode() == Mode::Overwrite {
            return; // it may be another one's record by now
        }
        let behind = self.buffer.widths().count(self.cursor, self.state());
        // Where a buffer was ended while blocked, the record may be another one's, too.
        if (0..=self.buffer.geometry().n_subbufs() as i64).contains(&behind) {
            // Relaxed: `state` is behind it.
            let begin = self.buffer.record(self.cursor).begin.load(Ordering::Relaxed);
            let skew = begin.wrapping_sub(self.stream);
            if self.checks.skew.replace(skew).is_some_and(|before| before != skew) {
                self.correct();
            }
        }
    }

    /// The oldest sub-buffer, by what is begun, is not begun itself. Where a ring has one, and its writer died of beginning it,
    /// that is one ahead.
    pub(super) fn check_begun(&self, state: Position, oldest: Position) {
        if self.buffer.widths().count(state, oldest) > 1 {
            self.correct();
        }
    }

    /// What is begun has gone back.
    pub(super) fn check_back(&self) {
        self.correct();
    }

    /// What the high-water mark was: not higher than the ring.
    pub(super) fn check_high_water(&self, before: u64, n_finished: u64) {
        if before > self.buffer.geometry().n_subbufs() as u64 {
            self.buffer.block().high_water.store(n_finished, Ordering::Relaxed);
            self.correct();
            self.keep_count();
        }
    }

    /// Nobody but this reader stores `consumed`.
    pub(super) fn check_consumed(&self) {
        if self.buffer.block().consumed.load(Ordering::Relaxed) != self.checks.consumed.get().0 {
            self.correct();
        }
        self.checks.consumed.set(self.cursor);
        self.keep_count();
    }

    /// A reset has stored `consumed`, or may have; if it was done, our stream is the writer's again.
    pub(super) fn expect_consumed(&mut self) {
        let consumed = Position(self.buffer.block().consumed.load(Ordering::Relaxed));
        self.checks.consumed.set(consumed);
        if consumed == self.cursor {
            self.checks.skew = Some(0);
        }
    }

    /// Our stream was found out by counting, where one that died may have been about to count.
    pub(super) fn expect_any_stream(&mut self) {
        self.checks.skew = None;
    }
}
