//! Take: a copy of the unread part, consumed as a whole once all bytes are delivered.

use std::ops::Range;

use super::Reader;
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;
use crate::ring::buffer::add;

/// Attempts at a copy of a ring that the writer overwrites faster than the copy proceeds.
const ATTEMPTS_MAX: u32 = 16;

/// The range of a take, and how far it has been copied.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Position of the writer when the take began. The next field is its stream position.
    end: Position,
    to: u64,
    /// First sub-buffer copied from the ring.
    first: Position,
    /// Next sub-buffer to copy. `None`: the copy begins at the cursor.
    at: Option<Position>,
    /// The sub-buffer copied last, from its first byte in the copy on.
    pub(super) last: Position,
    /// Overwrite mode: stream positions of the copy that the reader keeps.
    /// The next field is its length. The take begins with it.
    kept: Range<u64>,
    pub(super) n_kept: usize,
    /// Bytes copied.
    len: usize,
    /// Most bytes that the copy can have.
    max: usize,
    n_attempts: u32,
    /// Sub-buffers looked at.
    n_steps: usize,
}

impl Taken {
    /// Returns the most bytes that the copy can have.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Returns the bytes that the copy has so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the copy has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the stream positions of the copy's bytes, in two runs.
    /// The writer has overwritten the bytes between them.
    pub fn ranges(&self) -> [Range<u64>; 2] {
        let from_ring = (self.len - self.n_kept) as u64;
        [self.kept.clone(), self.to.saturating_sub(from_ring)..self.to]
    }

    /// Returns how many bytes of the copy are at stream position `at` or behind it.
    fn len_from(&self, at: u64) -> u64 {
        self.ranges().map(|range| range.end.saturating_sub(range.start.max(at))).iter().sum()
    }
}

impl Reader {
    /// Returns the bytes that a take would have now.
    pub fn take_len(&self) -> u64 {
        self.unread().saturating_sub(self.overwritten_unread().bytes).min(self.take_max())
    }

    /// Begins a take, which ends at the writer's present position.
    pub fn take(&self) -> Taken {
        let (end, to) = self.writer_at();
        let max = match self.buffer.geometry().mode() {
            // After `end`, so that it covers at least the bytes up to `end`.
            Mode::NoOverwrite => self.take_len(),
            Mode::Overwrite => self.take_max(),
        };
        let max = max.try_into().unwrap_or(usize::MAX);
        Taken {
            end,
            to,
            first: end,
            at: None,
            last: end,
            kept: 0..0,
            n_kept: 0,
            len: 0,
            max,
            n_attempts: 0,
            n_steps: 0,
        }
    }

    /// Copies one sub-buffer of a take to the empty `out`, and returns whether there is more.
    ///
    /// The bytes belong at `taken.len() - out.len()` of the copy, and end it: bytes copied earlier for a place behind
    /// that are void. Between two parts other readers may read, and writers may overwrite. Then the copy begins later,
    /// without a gap.
    pub fn take_part(&self, taken: &mut Taken, out: &mut Vec<u8>) -> bool {
        let widths = self.buffer.widths();
        let at = match taken.at {
            Some(at) if !widths.before(at, self.cursor) => at,
            _ => self.take_begin(taken, out),
        };
        let readable = self.readable_at(at, taken.end);
        // Only a hostile peer can make it more than `max`.
        let len = readable.len.saturating_sub(widths.offset(at)).min(taken.max - taken.len);
        let n_kept = out.len();
        self.buffer.data().copy_out(self.buffer.ring_offset(at), len, out);
        taken.len += out.len() - n_kept;
        (taken.at, taken.last) = (Some(widths.next(at)), at);
        if self.buffer.lapped(at) {
            out.truncate(n_kept);
            (taken.len, taken.first) = (taken.n_kept, widths.next(at));
        }
        taken.n_steps += 1;
        if taken.n_steps > ATTEMPTS_MAX as usize * (self.steps_max() + 1) {
            // No correct writer does that, so no part of the copy is reliable.
            out.clear();
            (taken.kept, taken.n_kept, taken.len) = (0..0, 0, 0);
            return false;
        }
        if readable.finished {
            return true;
        }
        // The writer may have lapped the whole copy.
        taken.n_attempts += 1;
        let again = self.buffer.lapped(taken.end) && taken.n_attempts < ATTEMPTS_MAX;
        if again {
            (taken.end, taken.to) = self.writer_at();
            taken.at = None;
        }
        again
    }

    /// Begins the copy at the cursor, with the reader's kept copy.
    /// Returns the next sub-buffer in the ring.
    fn take_begin(&self, taken: &mut Taken, out: &mut Vec<u8>) -> Position {
        let widths = self.buffer.widths();
        let kept = &self.pending[self.pending_at..];
        // A reader that has read on since the take began may keep bytes from behind its end.
        let max = if widths.before(self.cursor, taken.end) {
            kept.len()
        } else if widths.before(taken.end, self.cursor) {
            0
        } else {
            widths.offset(taken.end).saturating_sub(widths.offset(self.cursor))
        };
        out.extend_from_slice(&kept[..kept.len().min(max)]);
        let behind = widths.at(self.cursor, widths.offset(self.cursor) + out.len());
        taken.kept = self.stream..self.stream.saturating_add(out.len() as u64);
        (taken.n_kept, taken.len) = (out.len(), out.len());
        taken.first = if self.lapped() { self.buffer.oldest_whole() } else { behind };
        taken.first
    }

    /// Gives back the whole take, as far as no other reader has given it back before.
    /// Its bytes count as read. Returns whether a sub-buffer was given back.
    pub fn consume_taken(&mut self, taken: &Taken) -> bool {
        let widths = *self.buffer.widths();
        let (consumed, end) = (self.cursor, widths.at(taken.end, widths.offset(taken.end)));
        let n_passed = widths.count(consumed, end);
        // Another reader has read it, or a reset discarded it.
        let is_over = taken.is_empty()
            || n_passed < 0
            || n_passed == 0 && widths.offset(end) <= widths.offset(consumed);
        // A correct writer does not go back; only a hostile peer makes the second condition true.
        if is_over || widths.before(self.state(), end) {
            return false;
        }
        self.note_high_water();
        self.drop_pending();
        let passed = taken.to.saturating_sub(self.stream);
        let read = taken.len_from(self.stream).min(passed);
        let n_overwritten = widths.count(consumed, taken.first).clamp(0, n_passed);
        (self.cursor, self.stream) = (end, taken.to);
        let readable = self.readable();
        let is_read = readable.finished && widths.offset(end) == readable.len;
        if is_read && !self.lapped() {
            self.give_back();
        }
        self.publish();
        // After `publish`, as for a read.
        let block = self.buffer.block();
        add(&block.read_bytes, read);
        add(&block.overwritten_bytes, passed - read);
        add(&block.read_subbufs, (n_passed - n_overwritten).cast_unsigned());
        add(&block.overwritten_subbufs, n_overwritten.cast_unsigned());
        widths.before(consumed, self.cursor)
    }

    fn take_max(&self) -> u64 {
        let geometry = self.buffer.geometry();
        // The ring, and the reader's kept copy besides.
        geometry.buffer_size()
            + if geometry.mode() == Mode::Overwrite { geometry.subbuf_size() as u64 } else { 0 }
    }

    /// Returns the writer's position, and its stream position.
    fn writer_at(&self) -> (Position, u64) {
        self.stable(|buffer, state| {
            let begin = buffer.record(state).begin.load(Ordering::Relaxed);
            (state, begin.wrapping_add(buffer.widths().offset(state) as u64))
        })
    }
}
