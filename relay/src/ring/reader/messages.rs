//! The messages of a timed channel's buffer: how many were written, and how old the oldest unread one is.

use super::{Reader, TRIES_MAX};
use crate::clock::Clock;
use crate::layout::position::Position;
use crate::memory::sync::{Ordering, fence};

/// The part of a sub-buffer whose records are counted, so that the next look counts only the new ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// The sub-buffer, and the offset up to which records are counted.
    to: Position,
    n: u64,
}

impl Reader {
    /// Returns the records written since the channel was created, by any process; `None` of a raw channel.
    /// A raw channel does not know where messages end.
    pub fn messages(&mut self) -> Option<u64> {
        self.buffer.clock()?;
        let mut n_tries = 0;
        loop {
            let state = self.state();
            let widths = self.buffer.widths();
            let begin = widths.at(state, 0);
            // Relaxed: the load of `state` orders it.
            let before = self.buffer.record(begin).messages.load(Ordering::Relaxed);
            let known =
                if widths.at(self.counted.to, 0) == begin { self.counted } else { Counted::default() };
            let end = if widths.blocked(state) { 0 } else { widths.offset(state) };
            let from = if known.n == 0 { 0 } else { widths.offset(known.to) };
            let (n, at) = self.buffer.count_records(begin, from, end);
            let counted = Counted { to: widths.at(begin, at), n: known.n + n };
            // Orders the look before the second load, as F does.
            fence(Ordering::Acquire);
            n_tries += 1;
            if widths.at(self.state(), 0) == begin || n_tries == TRIES_MAX {
                self.counted = counted;
                return Some(before.wrapping_add(counted.n));
            }
        }
    }

    /// Returns the stamp of the oldest record that no reader has got; `None` if all are read, or of a raw channel.
    pub fn oldest_unread(&self) -> Option<u64> {
        let clock: Clock = self.buffer.clock()?;
        for _ in 0..TRIES_MAX {
            let state = self.state();
            let mut at = if self.lapped() { self.buffer.oldest_whole() } else { self.cursor };
            let mut found = None;
            for _ in 0..=self.buffer.geometry().n_subbufs() {
                if self.buffer.widths().before(state, at) {
                    break;
                }
                found = self.first_stamp(at, state);
                if found.is_some() {
                    break;
                }
                at = self.buffer.widths().next(at);
            }
            if !self.buffer.lapped(at) {
                // A process can have written any number. No record is younger than the present.
                return found.map(|stamp| stamp.min(clock.now()));
            }
        }
        None
    }

    /// Returns the stamp of the first record at `position` or behind it in the same sub-buffer.
    fn first_stamp(&self, position: Position, state: Position) -> Option<u64> {
        let readable = self.readable_at(position, state);
        let offset = match self.buffer.widths().offset(position) {
            0 => 0,
            _ => self.record_behind(position, readable.len)?,
        };
        let begin = self.buffer.widths().at(position, 0);
        self.buffer.record_end(begin, offset).filter(|end| *end <= readable.len)?;
        let mut stamp = Vec::with_capacity(size_of::<u64>());
        self.buffer.data().copy_out(self.buffer.ring_offset(begin) + offset, size_of::<u64>(), &mut stamp);
        stamp.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }
}
