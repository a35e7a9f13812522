//! Marks: where each sub-buffer begins in a copy of a timed channel's buffer.
//!
//! A packet is made of each sub-buffer of a copy. A mark has what the packet's header says and the copy's bytes do not.
//! Callers ask for marks with the lock that they copied with.

use super::{Extent, Reader, Taken};
use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::sync::Ordering;

/// The begin of a sub-buffer's bytes in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Offset in the copy.
    pub at: usize,
    /// Bytes from there to the first record that begins there.
    /// `None`: no record can be found.
    pub skip: Option<usize>,
    /// Number of the sub-buffer.
    pub number: u64,
    /// Messages lost in the buffer up to the end of the sub-buffer, or so far.
    /// It is 0 if the writer has overwritten the number.
    pub lost: u64,
    /// How many of these were too big.
    pub too_big: u64,
}

impl Reader {
    /// Returns the mark of the part that a snapshot copied last.
    /// Parts that were copied for its place or behind it are void.
    pub fn snapshot_mark(&self, extent: &Extent) -> Mark {
        self.mark(extent.last, extent.from)
    }

    /// Returns the marks of the `len` bytes that a take copied last, which end it.
    pub fn take_marks(&self, taken: &Taken, len: usize) -> impl Iterator<Item = Mark> + use<> {
        let from = taken.len() - len;
        let n_kept = if from == 0 { taken.n_kept.min(len) } else { 0 };
        let widths = self.buffer.widths();
        let is_one = widths.at(self.cursor, 0) == widths.at(taken.last, 0);
        let kept = (n_kept > 0).then(|| self.mark(self.cursor, 0));
        let is_copied = len > n_kept || !self.buffer.lapped(taken.last);
        let ring = (is_copied && !(n_kept > 0 && is_one)).then(|| self.mark(taken.last, from + n_kept));
        kept.into_iter().chain(ring)
    }

    /// Returns the number of packets that a snapshot would have now.
    pub fn snapshot_packets(&self) -> u64 {
        self.n_with_data(match self.buffer.geometry().mode() {
            Mode::NoOverwrite => self.cursor,
            Mode::Overwrite => self.snapshot_begin(),
        })
    }

    /// Returns the number of packets that a take would have now.
    pub fn take_packets(&self) -> u64 {
        let kept = u64::from(!self.pending.is_empty() && self.lapped());
        kept + self.n_with_data(if self.lapped() { self.buffer.oldest_whole() } else { self.cursor })
    }

    fn mark(&self, position: Position, at: usize) -> Mark {
        let (widths, state) = (self.buffer.widths(), self.state());
        let offset = widths.offset(position);
        let readable = self.readable_at(position, state);
        let skip = match offset {
            0 => Some(0),
            _ => self.record_behind(position, readable.len).map(|record| record - offset),
        };
        // Relaxed: the load of `state` orders it.
        let record = self.buffer.record(position);
        let (lost, too_big) = match readable.finished {
            true => (record.lost.load(Ordering::Relaxed), record.too_big.load(Ordering::Relaxed)),
            false => (self.buffer.lost(), self.buffer.block().too_big.load(Ordering::Relaxed)),
        };
        let is_old = self.buffer.lapped(position);
        Mark {
            at,
            skip: if is_old && offset > 0 { None } else { skip },
            number: self.number_of(position),
            lost: if is_old { 0 } else { lost },
            too_big: if is_old { 0 } else { too_big },
        }
    }

    /// Returns the offset of the first record of a sub-buffer that begins at `position` or behind it.
    pub(super) fn record_behind(&self, position: Position, len: usize) -> Option<usize> {
        let widths = self.buffer.widths();
        let begin = widths.at(position, 0);
        let mut at = 0;
        while at < widths.offset(position) {
            at = self.buffer.record_end(begin, at).filter(|end| *end <= len)?;
        }
        Some(at)
    }

    /// Returns the number of sub-buffers with data from `first` on.
    fn n_with_data(&self, first: Position) -> u64 {
        let (widths, state) = (self.buffer.widths(), self.state());
        let mut at = first;
        let mut n = 0;
        for _ in 0..=self.buffer.geometry().n_subbufs() {
            if widths.before(state, at) {
                break;
            }
            n += u64::from(self.readable_at(at, state).len > widths.offset(at));
            at = widths.next(at);
        }
        n
    }
}
