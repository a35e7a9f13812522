//! The state word of a buffer: `lap | slot | offset`, from the highest bits to the lowest.
//!
//! ```text
//! 63                                  offset+slot bits      offset bits            0
//! |  lap: times around the ring, >= 30 bits  |  slot: 0..n_subbufs  |  offset       |
//! ```
//!
//! A channel's widths never change. `offset` runs to `subbuf_size + 1`, the kernel's mark for *blocked*: the last
//! sub-buffer is finished and there was no room to start the next. The next sub-buffer is `slot + 1`, or slot 0 of the
//! next lap, for every number of sub-buffers and without a division.
//!
//! The lap has the highest bits. Differences of words, modulo 2^64 and read as signed, therefore stay right when the
//! lap wraps.

use crate::layout::geometry::{Geometry, offset_bits, slot_bits};

/// A position in a buffer's history.
/// Only the channel's [`Widths`] can split it into its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position(pub u64);

/// Widths of the parts of a channel's positions, and arithmetic on positions.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    offset_bits: u32,
    slot_bits: u32,
    subbuf_size: u64,
    n_subbufs: u64,
    /// Mask of the offset's bits. This and the next are stored because every message needs them.
    offset_mask: u64,
    /// Mask of the slot's bits, shifted down.
    slot_mask: u64,
}

impl Widths {
    /// Returns the widths for a channel of this geometry.
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

    /// Returns the number of bits of the offset, lowest in the word.
    pub fn offset_bits(&self) -> u32 {
        self.offset_bits
    }

    /// Returns the number of bits of the slot, between offset and lap.
    pub fn slot_bits(&self) -> u32 {
        self.slot_bits
    }

    /// Packs a position. The lap wraps.
    pub fn pack(&self, lap: u64, slot: u64, offset: u64) -> Position {
        debug_assert!(slot < self.n_subbufs && offset <= self.subbuf_size + 1);
        Position((lap.unbounded_shl(self.lap_shift())) | (slot << self.offset_bits) | offset)
    }

    /// Returns the lap: times around the ring.
    pub fn lap(&self, position: Position) -> u64 {
        position.0 >> self.lap_shift()
    }

    /// Returns the slot in the ring. It is clamped to the ring, even if the word is hostile.
    pub fn slot(&self, position: Position) -> usize {
        let slot = (position.0 >> self.offset_bits) & self.slot_mask;
        slot.min(self.n_subbufs - 1) as usize
    }

    /// Returns the bytes in the sub-buffer before the position, at most its size.
    /// 0 if the position is blocked.
    pub fn offset(&self, position: Position) -> usize {
        if self.blocked(position) { 0 } else { self.raw_offset(position).min(self.subbuf_size) as usize }
    }

    /// Returns whether the sub-buffer is *blocked*: it could not be started for lack of room.
    pub fn blocked(&self, position: Position) -> bool {
        self.raw_offset(position) == self.subbuf_size + 1
    }

    /// Returns whether the word is a valid position: slot and offset are in range.
    pub fn is_sound(&self, position: Position) -> bool {
        let slot = (position.0 >> self.offset_bits) & self.slot_mask;
        slot < self.n_subbufs && self.raw_offset(position) <= self.subbuf_size + 1
    }

    /// Returns a position in the same sub-buffer at another offset.
    pub fn at(&self, position: Position, offset: usize) -> Position {
        Position(position.0 & !self.offset_mask | offset as u64)
    }

    /// Returns a position in the same sub-buffer, marked as blocked.
    pub fn at_blocked(&self, position: Position) -> Position {
        Position(position.0 & !self.offset_mask | (self.subbuf_size + 1))
    }

    /// Returns where in the ring `len` more bytes go, and the position behind them.
    /// `None` if the bytes do not fit the sub-buffer, or it is blocked. `len` must not exceed the message limit. A
    /// hostile word may lead to an offset behind the ring.
    #[inline(always)]
    pub fn append(&self, position: Position, len: usize) -> Option<(usize, Position)> {
        // A blocked offset is one more than a full one, so nothing fits. Offset plus length cannot overflow.
        let offset = self.raw_offset(position);
        if offset + len as u64 > self.subbuf_size {
            return None;
        }
        // Neither product nor sum overflows: slot and offset together have at most 34 bits.
        let slot = position.0.wrapping_shr(self.offset_bits) & self.slot_mask;
        Some(((slot * self.subbuf_size + offset) as usize, Position(position.0 + len as u64)))
    }

    /// Returns the start of the next sub-buffer.
    pub fn next(&self, position: Position) -> Position {
        if self.slot(position) as u64 + 1 < self.n_subbufs {
            Position((position.0 & !self.offset_mask).wrapping_add(1 << self.offset_bits))
        } else {
            self.next_lap(position)
        }
    }

    /// Returns the start of the first slot of the next lap.
    pub fn next_lap(&self, position: Position) -> Position {
        self.pack(self.lap(position).wrapping_add(1), 0, 0)
    }

    /// Returns the start of the oldest sub-buffer that is still whole when `newest` is begun.
    /// With one sub-buffer in the ring the result is `newest` itself. It may lie before the first sub-buffer ever.
    ///
    /// With 3 slots and `newest` in slot 1 of lap 5, the result is slot 2 of lap 4. With `newest` in slot 2, it is slot
    /// 0 of lap 5.
    pub fn oldest(&self, newest: Position) -> Position {
        self.next(Position(newest.0.wrapping_sub(1u64.unbounded_shl(self.lap_shift()))))
    }

    /// Returns whether the sub-buffer of `a` comes before that of `b`.
    pub fn before(&self, a: Position, b: Position) -> bool {
        self.distance(a, b) > 0
    }

    /// Returns whether a writer must not begin the sub-buffer of `next`.
    /// Then a full ring behind `consumed` is unread. This is exactly the kernel's `produced - consumed >= n_subbufs`.
    pub fn full(&self, next: Position, consumed: Position) -> bool {
        self.distance(consumed, next) >= 1i64.unbounded_shl(self.lap_shift())
    }

    /// Returns the number of sub-buffers from `from` to `to`; negative if `to` comes first.
    pub fn count(&self, from: Position, to: Position) -> i64 {
        let laps = ((to.0 & self.lap_mask()).wrapping_sub(from.0 & self.lap_mask())).cast_signed()
            >> self.lap_shift();
        laps * self.n_subbufs as i64 + self.slot(to) as i64 - self.slot(from) as i64
    }

    /// Returns the signed difference of the words without their offsets.
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
    fn packed_parts_are_unpacked() {
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

    /// Goes ten laps from just below the end of the lap field.
    #[test]
    fn wrapped_lap_keeps_count_order_and_fullness() {
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

    /// A reset leaves `consumed` ahead of the writer for a moment. That means room.
    #[test]
    fn consumed_ahead_of_writer_is_room() {
        let w = widths(64, 3);
        let p = w.pack(4, 1, 0);
        assert!(!w.full(w.next(p), w.next_lap(p)));
    }

    /// Slot and offset of any word stay inside the ring.
    #[test]
    fn hostile_word_is_clamped() {
        let w = widths(100, 5);
        for word in [u64::MAX, 0x7fff, 0x3ff] {
            assert!(w.slot(Position(word)) < 5);
            assert!(w.offset(Position(word)) <= 100);
        }
    }
}
