//! Checks of the shared words: detects values that no correct writer stores.
//!
//! Most bad values are *corrected*: clamped to the possible range, or restored, and counted. The positions of reader
//! and writer cannot be guessed. Words that are no positions, or lie too far apart, are [`Unsound`], and the caller
//! must give the buffer up. An honest writer never fails a check, wherever it is interrupted or killed.

use std::cell::Cell;

use super::{Readable, Reader, Unsound};
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;
use crate::ring::buffer::Buffer;

/// The findings so far, and the values to compare with.
#[derive(Debug)]
pub(super) struct Checks {
    corrected: Cell<u64>,
    /// The value of `consumed` unless a peer has stored there.
    consumed: Cell<Position>,
    /// Distance of the writer's stream position of the cursor's sub-buffer from ours.
    /// It is 0 unless a peer has changed a record. After one change each further change counts, not each further
    /// sub-buffer. `None`: not known yet.
    skew: Option<u64>,
}

impl Checks {
    pub(super) fn new(buffer: &Buffer) -> Checks {
        // Relaxed, both: only the daemon writes these words.
        let corrected = buffer.block().corrected.load(Ordering::Relaxed);
        let consumed = Position(buffer.block().consumed.load(Ordering::Relaxed));
        Checks { corrected: Cell::new(corrected), consumed: Cell::new(consumed), skew: Some(0) }
    }
}

impl Reader {
    /// Returns the number of corrections.
    pub fn corrected(&self) -> u64 {
        self.checks.corrected.get()
    }

    /// Checks that the words with the writer's position are such as a writer stores.
    /// If they are not, reads stay inside the ring, but deliver no message.
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
        // After half a reset the reader is ahead, by less than a lap. A daemon of an earlier release that ended a blocked
        // buffer has moved the state one further than a writer would.
        let may_be = match self.buffer.geometry().mode() {
            Mode::NoOverwrite => (-n_subbufs..2 * n_subbufs + 1).contains(&behind),
            Mode::Overwrite => behind >= -n_subbufs,
        };
        if may_be { Ok(()) } else { Err(Unsound::Apart(behind)) }
    }

    /// Corrects a `closed` that a peer has stored in an open buffer, see [`Buffer::deny_closed`].
    pub fn deny_closed(&self, is_ending: impl Fn() -> bool) {
        if self.buffer.deny_closed(is_ending) {
            self.correct();
            self.keep_count();
        }
    }

    fn correct(&self) {
        self.checks.corrected.set(self.corrected().wrapping_add(1));
    }

    /// Stores the count for the next reader.
    /// [`Reader::correct`] does not store it, since an observer may have read-only mappings.
    fn keep_count(&self) {
        self.buffer.block().corrected.store(self.corrected(), Ordering::Relaxed);
    }

    /// Checks the padding of a sub-buffer: at most the whole sub-buffer.
    pub(super) fn check_padding(&self, padding: u64) {
        if padding > self.buffer.geometry().subbuf_size() as u64 {
            self.correct();
        }
    }

    /// Checks that a sub-buffer has no less data than was read of it.
    /// In overwrite mode the record may be that of another sub-buffer by now.
    pub(super) fn check_readable(&self, readable: &Readable) {
        let read = self.buffer.widths().offset(self.cursor);
        if read > readable.len && self.buffer.geometry().mode() == Mode::NoOverwrite {
            self.correct();
        }
    }

    /// Checks that the sub-buffer at the cursor begins where the one before it ended.
    pub(super) fn check_next(&mut self) {
        if self.buffer.geometry().mode() == Mode::Overwrite {
            return; // the record may be that of another sub-buffer by now
        }
        let behind = self.buffer.widths().count(self.cursor, self.state());
        // Where an earlier release has ended a blocked buffer, the record may also be that of another sub-buffer.
        if (0..=self.buffer.geometry().n_subbufs() as i64).contains(&behind) {
            // Relaxed: the load of `state` orders it.
            let begin = self.buffer.record(self.cursor).begin.load(Ordering::Relaxed);
            let skew = begin.wrapping_sub(self.stream);
            if self.checks.skew.replace(skew).is_some_and(|before| before != skew) {
                self.correct();
            }
        }
    }

    /// Checks that the oldest sub-buffer according to `begun` is not itself begun.
    /// In a ring of one, whose writer died while beginning it, the oldest is one ahead.
    pub(super) fn check_begun(&self, state: Position, oldest: Position) {
        if self.buffer.widths().count(state, oldest) > 1 {
            self.correct();
        }
    }

    /// Counts a `begun` that has moved back.
    pub(super) fn check_back(&self) {
        self.correct();
    }

    /// Checks the former high-water mark: not higher than the ring.
    pub(super) fn check_high_water(&self, before: u64, n_finished: u64) {
        if before > self.buffer.geometry().n_subbufs() as u64 {
            self.buffer.block().high_water.store(n_finished, Ordering::Relaxed);
            self.correct();
            self.keep_count();
        }
    }

    /// Checks that only this reader has stored `consumed`.
    pub(super) fn check_consumed(&self) {
        if self.buffer.block().consumed.load(Ordering::Relaxed) != self.checks.consumed.get().0 {
            self.correct();
        }
        self.checks.consumed.set(self.cursor);
        self.keep_count();
    }

    /// Notes that a reset may have stored `consumed`.
    /// If the reset was done, our stream position equals the writer's again.
    pub(super) fn expect_consumed(&mut self) {
        let consumed = Position(self.buffer.block().consumed.load(Ordering::Relaxed));
        self.checks.consumed.set(consumed);
        if consumed == self.cursor {
            self.checks.skew = Some(0);
        }
    }

    /// Notes that our stream position comes from counters.
    /// The dead reader may have been about to count.
    pub(super) fn expect_any_stream(&mut self) {
        self.checks.skew = None;
    }
}
