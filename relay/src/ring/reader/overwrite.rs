//! Reading in overwrite mode: copies bytes, then checks by `begun` that they were whole.

use super::{Reader, TRIES_MAX};
use crate::memory::sync::{Ordering, fence};
use crate::ring::buffer::add;

/// The unread part that the writer has overwritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overwritten {
    /// Number of bytes.
    pub bytes: u64,
    /// Number of sub-buffers, partly read ones included.
    pub subbufs: u64,
}

impl Reader {
    /// Returns the overwritten part that no read has noticed and no counter has yet.
    ///
    /// The next read counts at least as much. Bytes in a kept copy are not lost: the next read delivers them first.
    pub fn overwritten_unread(&self) -> Overwritten {
        let mut seen = Overwritten::default();
        for _ in 0..TRIES_MAX {
            if !self.lapped() {
                break;
            }
            let state = self.state();
            let oldest = self.buffer.oldest_whole();
            // While a writer begins the only sub-buffer, all before the writer's position is lost, and no more is
            // known.
            let first = if self.buffer.widths().before(state, oldest) { state } else { oldest };
            let begin = self.buffer.record(first).begin.load(Ordering::Relaxed);
            let kept = (self.pending.len() - self.pending_at) as u64;
            seen = Overwritten {
                bytes: begin.saturating_sub(self.stream.saturating_add(kept)),
                subbufs: self.buffer.widths().count(self.cursor, first).max(0).cast_unsigned(),
            };
            // F, pairs with E: the record is that of `first` unless the writer has moved on by then. The record
            // of the writer's own sub-buffer is written again before `begun` moves, but behind `state`.
            fence(Ordering::Acquire);
            let is_old = first != oldest && self.buffer.widths().before(state, self.state());
            if self.buffer.oldest_whole() == oldest && !is_old {
                break;
            }
        }
        seen
    }

    /// Applies R1-R3 to a ring that the writer may overwrite at any moment.
    /// Fills `out`, which is empty, up to `count`.
    pub(super) fn read_copied(&mut self, count: usize, out: &mut Vec<u8>) {
        self.deliver_pending(count, out);
        let mut lapped = 0;
        for _ in 0..self.steps_max() {
            if out.len() >= count || lapped >= TRIES_MAX {
                break;
            }
            let at = self.stream;
            if !self.catch_up() {
                return;
            }
            if self.skipping && self.stream != at {
                return; // `count` no longer is the distance to the target
            }
            let readable = self.readable();
            let len = readable.len.saturating_sub(self.buffer.widths().offset(self.cursor));
            if len > count - out.len() {
                let mut rest = std::mem::take(&mut self.pending);
                rest.clear();
                if self.copy_whole(len, &mut rest) {
                    (self.pending, self.pending_at) = (rest, 0);
                    return self.deliver_pending(count, out);
                }
            } else if self.copy_whole(len, out) {
                self.advance(len);
                if !readable.finished {
                    return;
                }
                self.give_back();
                continue;
            }
            lapped += 1;
        }
    }

    /// Appends the `len` bytes at the cursor to `out`, and returns whether they are whole.
    /// False: the writer has begun to overwrite their sub-buffer, and nothing was appended.
    pub(super) fn copy_whole(&self, len: usize, out: &mut Vec<u8>) -> bool {
        let old_len = out.len();
        let copied = self.buffer.data().copy_out(self.buffer.ring_offset(self.cursor), len, out);
        let whole = copied && !self.lapped();
        if !whole {
            out.truncate(old_len);
        }
        whole
    }

    /// Moves bytes of an earlier copy to `out`, until `out` has `count` or the copy is used up.
    pub(super) fn deliver_pending(&mut self, count: usize, out: &mut Vec<u8>) {
        let rest = &self.pending[self.pending_at..];
        let len = rest.len().min(count - out.len());
        out.extend_from_slice(&rest[..len]);
        self.pending_at += len;
        self.advance(len);
        if len > 0 && self.pending_at == self.pending.len() {
            self.drop_pending();
            // Reading the last byte of a finished sub-buffer credits it, if the writer has not overwritten its record.
            let readable = self.readable();
            let read_to_end = readable.finished && self.buffer.widths().offset(self.cursor) == readable.len;
            if read_to_end && !self.lapped() {
                self.give_back();
            }
        }
    }

    /// Frees the kept copy, which may be as large as a sub-buffer.
    pub(super) fn drop_pending(&mut self) {
        (self.pending, self.pending_at) = (Vec::new(), 0);
    }

    /// Moves the cursor to the oldest whole sub-buffer if its own is overwritten (R2).
    /// The kernel gives up a sub-buffer as soon as the next one is begun. False: no sub-buffer is whole.
    pub(super) fn catch_up(&mut self) -> bool {
        if !self.lapped() {
            return true;
        }
        let mut oldest = self.buffer.oldest_whole();
        let mut begin = 0;
        for _ in 0..TRIES_MAX {
            // In a ring of one, the oldest is the sub-buffer that a writer was about to begin. If that writer died,
            // other writers append before it, and where it will begin is not known yet.
            let state = self.state();
            if self.buffer.widths().before(state, oldest) {
                self.check_begun(state, oldest);
                return false;
            }
            begin = self.buffer.record(oldest).begin.load(Ordering::Relaxed);
            // F, pairs with E: the record is that of `oldest` unless the writer has moved on by then.
            fence(Ordering::Acquire);
            let later = self.buffer.oldest_whole();
            if later == oldest {
                break;
            }
            oldest = later;
        }
        if self.buffer.widths().before(oldest, self.cursor) {
            self.check_back(); // a correct writer never moves `begun` back
            return false;
        }
        let block = self.buffer.block();
        add(&block.overwritten_bytes, begin.saturating_sub(self.stream));
        add(
            &block.overwritten_subbufs,
            self.buffer.widths().count(self.cursor, oldest).max(0).cast_unsigned(),
        );
        self.cursor = oldest;
        self.stream = begin;
        true
    }

    /// Returns whether the writer has begun to overwrite the cursor's sub-buffer.
    pub(super) fn lapped(&self) -> bool {
        self.buffer.lapped(self.cursor)
    }
}
