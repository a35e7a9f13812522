//! The state word of a buffer: `lap | slot | offset`, from the highest bits to the lowest.
//!
//! ```text
//! 63                                  offset+slot bits      offset bits            0
//! |  lap: times around the ring, >= 30 bits  |  slot: 0..n_subbufs  |  offset       |
//! ```
//!
//! The widths are fixed for a channel. `offset` runs to `subbuf_size + 1`, the kernel's mark for *blocked*: the last
//! sub-buffer is finished and there was no room to start the next. The next sub-buffer is `slot + 1`, or slot 0 of
//! the next lap: right for every number of sub-buffers, without a division. Because the lap has the highest bits,
//! differences of words, taken modulo 2^64 and read as signed, stay right when the lap wraps.

use crate::layout::geometry::{Geometry, offset_bits, slot_bits};

/// A place in a buffer's history; what its parts are, only the channel's [`Widths`] know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(pub u64);

/// How a channel's positions are divided, and the arithmetic on them.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    offset_bits: u32,
    slot_bits: u32,
    subbuf_size: u64,
    n_subbufs: u64,
    /// The offset's bits, and as many as the slot has, at the low end; kept for the way of every message.
    offset_mask: u64,
    slot_mask: u64,
}

impl Widths {
    /// The widths of a channel of this geometry.
    pub fn new(geometry: &Geometry) -> Widths {
        let (subbuf_size, n_subbufs) = (geometry.subbuf_size() as u64, geometry.n_subbufs() as u64);
        let (offset_bits, slot_bits) = (offset_bits(subbuf_size), slot_bits(n_subbufs));
        Widths {
            offset_bits,
            slot_bits,
            subbuf_size,
            n_subbufs,
            offset_mask: (1 << offset_bits) - 1,
            slot_mask: (1 << slot_bits) - 1,
        }
    }

    /// Number of bits of the offset, lowest in the word.
    pub fn offset_bits(&self) -> u32 {
        self.offset_bits
    }

    /// Number of bits of the slot, between offset and lap.
    pub fn slot_bits(&self) -> u32 {
        self.slot_bits
    }

    /// Puts a position together. The lap wraps.
    pub fn pack(&self, lap: u64, slot: u64, offset: u64) -> Position {
        debug_assert!(slot < self.n_subbufs && offset <= self.subbuf_size + 1);
        Position((lap.unbounded_shl(self.lap_shift())) | (slot << self.offset_bits) | offset)
    }

    /// Times around the ring.
    pub fn lap(&self, position: Position) -> u64 {
        position.0 >> self.lap_shift()
    }

    /// Which sub-buffer of the ring; never out of the ring, whatever the word says.
    pub fn slot(&self, position: Position) -> usize {
        let slot = (position.0 >> self.offset_bits) & self.slot_mask;
        slot.min(self.n_subbufs - 1) as usize
    }

    /// Bytes in the sub-buffer before the position, [`Widths::blocked`] aside; never more than its size.
    pub fn offset(&self, position: Position) -> usize {
        if self.blocked(position) { 0 } else { self.raw_offset(position).min(self.subbuf_size) as usize }
    }

    /// Whether the sub-buffer could not be started for lack of room.
    pub fn blocked(&self, position: Position) -> bool {
        self.raw_offset(position) == self.subbuf_size + 1
    }

    /// Whether the word is a position at all: its slot and its offset are ones that there are.
    pub fn is_sound(&self, position: Position) -> bool {
        let slot = (position.0 >> self.offset_bits) & self.slot_mask;
        slot < self.n_subbufs && self.raw_offset(position) <= self.subbuf_size + 1
    }

    /// The same sub-buffer at another offset.
    pub fn at(&self, position: Position, offset: usize) -> Position {
        Position(position.0 & !self.offset_mask | offset as u64)
    }

    /// The same sub-buffer, marked as blocked.
    pub fn at_blocked(&self, position: Position) -> Position {
        Position(position.0 & !self.offset_mask | (self.subbuf_size + 1))
    }

    /// Where in the ring `len` bytes more go, and where they end; `None` if they do not fit the sub-buffer, or it is
    /// blocked. `len` is not longer than a message may be. A hostile word may give a place behind the ring.
    #[inline(always)]
    pub fn append(&self, position: Position, len: usize) -> Option<(usize, Position)> {
        // Blocked is one more than full, so nothing fits. Offset and length are far from overflowing.
        let offset = self.raw_offset(position);
        if offset + len as u64 > self.subbuf_size {
            return None;
        }
        // No sum of bits of a word overflows: slot and offset have at most 34 of them.
        let slot = position.0.wrapping_shr(self.offset_bits) & self.slot_mask;
        Some(((slot * self.subbuf_size + offset) as usize, Position(position.0 + len as u64)))
    }

    /// Start of the next sub-buffer.
    pub fn next(&self, position: Position) -> Position {
        if self.slot(position) as u64 + 1 < self.n_subbufs {
            Position((position.0 & !self.offset_mask).wrapping_add(1 << self.offset_bits))
        } else {
            self.next_lap(position)
        }
    }

    /// Start of the first slot of the next lap.
    pub fn next_lap(&self, position: Position) -> Position {
        self.pack(self.lap(position).wrapping_add(1), 0, 0)
    }

    /// Start of the oldest sub-buffer that is not the one at `newest`, nor overwritten when `newest` was begun.
    /// With one sub-buffer in the ring that is `newest` itself. May lie before the first sub-buffer ever.
    ///
    /// With 3 slots and `newest` in slot 1 of lap 5, it is slot 2 of lap 4; in slot 2, slot 0 of lap 5.
    pub fn oldest(&self, newest: Position) -> Position {
        self.next(Position(newest.0.wrapping_sub(1u64.unbounded_shl(self.lap_shift()))))
    }

    /// Whether the sub-buffer of `a` comes before that of `b`.
    pub fn before(&self, a: Position, b: Position) -> bool {
        self.distance(a, b) > 0
    }

    /// Whether a writer may not begin the sub-buffer of `next`, because a full ring from `consumed` on is unread:
    /// exactly the kernel's `produced - consumed >= n_subbufs`.
    pub fn full(&self, next: Position, consumed: Position) -> bool {
        self.distance(consumed, next) >= 1i64.unbounded_shl(self.lap_shift())
    }

    /// Number of sub-buffers from that of `from` to that of `to`; negative if `to` is before it.
    pub fn count(&self, from: Position, to: Position) -> i64 {
        let laps = ((to.0 & self.lap_mask()).wrapping_sub(from.0 & self.lap_mask())).cast_signed()
            >> self.lap_shift();
        laps * self.n_subbufs as i64 + self.slot(to) as i64 - self.slot(from) as i64
    }

    /// Signed difference of the words without their offsets.
    fn distance(&self, from: Position, to: Position) -> i64 {
        let mask = !self.offset_mask;
        (to.0 & mask).wrapping_sub(from.0 & mask).cast_signed()
    }

    fn raw_offset(&self, position: Position) -> u64 {
        position.0 & self.offset_mask
    }

    fn lap_mask(&self) -> u64 {
        u64::MAX << self.lap_shift()
    }

    fn lap_shift(&self) -> u32 {
        self.offset_bits + self.slot_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GeometrySpec;

    fn widths(subbuf_size: u64, n_subbufs: u64) -> Widths {
        let spec =
            GeometrySpec { subbuf_size: Some(subbuf_size), n_subbufs: Some(n_subbufs), ..Default::default() };
        Widths::new(&spec.build().unwrap())
    }

    const RINGS: [(u64, u64); 7] =
        [(1, 1), (64, 1), (8192, 2), (1000, 3), (100, 5), (64, 8), (64 << 20, 128)];

    #[test]
    fn parts_come_back() {
        for (size, n) in RINGS {
            let w = widths(size, n);
            for (lap, slot, offset) in [(0, 0, 0), (7, n - 1, size), ((1 << 30) - 1, n - 1, 0)] {
                let p = w.pack(lap, slot, offset);
                assert_eq!((w.lap(p), w.slot(p) as u64, w.offset(p) as u64), (lap, slot, offset));
                assert!(!w.blocked(p) && w.blocked(w.at_blocked(p)));
                assert_eq!(w.offset(w.at_blocked(p)), 0);
            }
        }
    }

    /// Ten laps from just below the end of the lap field: counting, order and fullness never notice the wrap.
    #[test]
    fn arithmetic_survives_the_end_of_the_lap_field() {
        for (size, n) in RINGS {
            let w = widths(size, n);
            let lap_max = u64::MAX >> w.lap_shift();
            let start = w.pack(lap_max - 1, 0, 3.min(size));
            let mut p = start;
            let mut behind_a_lap = start; // n sub-buffers before p, once p is that far
            for i in 1..=10 * n {
                p = w.next(p);
                assert_eq!(w.count(start, p), i as i64);
                assert_eq!(w.count(p, start), -(i as i64));
                assert!(w.before(start, p) && !w.before(p, start));
                assert_eq!(w.full(p, start), i >= n);
                if i > n {
                    behind_a_lap = w.next(behind_a_lap);
                }
                if i >= n {
                    assert_eq!(w.oldest(p), w.next(behind_a_lap));
                }
            }
        }
    }

    /// A `consumed` that is ahead of the writer, as reset leaves it for a moment, means room.
    #[test]
    fn consumed_ahead_is_room() {
        let w = widths(64, 3);
        let p = w.pack(4, 1, 0);
        assert!(!w.full(w.next(p), w.next_lap(p)));
    }

    /// Whatever a word says, slot and offset stay inside the ring.
    #[test]
    fn hostile_words_are_clamped() {
        let w = widths(100, 5);
        for word in [u64::MAX, 0x7fff, 0x3ff] {
            assert!(w.slot(Position(word)) < 5);
            assert!(w.offset(Position(word)) <= 100);
        }
    }
}
