//! Reading in overwrite mode: the writer asks nobody, so bytes are copied, and then `begun` tells whether they were still whole.

use super::{Reader, TRIES_MAX};
use crate::memory::sync::{Ordering, fence};
use crate::ring::buffer::add;

/// What the writer has overwritten before it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overwritten {
    /// Bytes.
    pub bytes: u64,
    /// Sub-buffers, also those of which a part was read.
    pub subbufs: u64,
}

impl Reader {
    /// What the writer has overwritten and no read has found out yet, so that no counter has it.
    ///
    /// The next read counts at least as much. What is kept of a copy is not lost: the next read delivers that first.
    pub fn overwritten_unread(&self) -> Overwritten {
        let mut seen = Overwritten::default();
        for _ in 0..TRIES_MAX {
            if !self.lapped() {
                break;
            }
            let state = self.state();
            let oldest = self.buffer.oldest_whole();
            // Where a single sub-buffer is being begun, no more is known than that all before the writer's is lost.
            let first = if self.buffer.widths().before(state, oldest) { state } else { oldest };
            let begin = self.buffer.record(first).begin.load(Ordering::Relaxed);
            let kept = (self.pending.len() - self.pending_at) as u64;
            seen = Overwritten {
                bytes: begin.saturating_sub(self.stream.saturating_add(kept)),
                subbufs: self.buffer.widths().count(self.cursor, first).max(0).cast_unsigned(),
            };
            // F, pairs with E: the record is that of `first` unless the writer has gone on by then.
            fence(Ordering::Acquire);
            if self.buffer.oldest_whole() == oldest {
                break;
            }
        }
        seen
    }

    /// R1-R3 for a ring that the writer may overwrite at any moment. Fills `out`, which is empty, up to `count`.
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
                return; // how far there is to go yet, `count` does not say any more
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

    /// Appends the `len` bytes at the cursor to `out`, unless the writer has begun to overwrite their sub-buffer.
    pub(super) fn copy_whole(&self, len: usize, out: &mut Vec<u8>) -> bool {
        let old_len = out.len();
        let copied = self.buffer.data().copy_out(self.buffer.ring_offset(self.cursor), len, out);
        let whole = copied && !self.lapped();
        if !whole {
            out.truncate(old_len);
        }
        whole
    }

    /// Moves bytes kept from an earlier copy to `out`, at most until that has `count`.
    pub(super) fn deliver_pending(&mut self, count: usize, out: &mut Vec<u8>) {
        let rest = &self.pending[self.pending_at..];
        let len = rest.len().min(count - out.len());
        out.extend_from_slice(&rest[..len]);
        self.pending_at += len;
        self.advance(len);
        if len > 0 && self.pending_at == self.pending.len() {
            self.drop_pending();
            // Reading the last byte of a finished sub-buffer credits it, if it is still there to ask.
            let readable = self.readable();
            let read_to_end = readable.finished && self.buffer.widths().offset(self.cursor) == readable.len;
            if read_to_end && !self.lapped() {
                self.give_back();
            }
        }
    }

    /// Frees the copy too: it may be as large as a sub-buffer.
    pub(super) fn drop_pending(&mut self) {
        (self.pending, self.pending_at) = (Vec::new(), 0);
    }

    /// Overwrite mode: goes to the oldest sub-buffer that is still whole, if the cursor's is not (R2). The kernel
    /// gives up that sub-buffer as soon as the next one is begun. False: there is none.
    pub(super) fn catch_up(&mut self) -> bool {
        if !self.lapped() {
            return true;
        }
        let mut oldest = self.buffer.oldest_whole();
        let mut begin = 0;
        for _ in 0..TRIES_MAX {
            // With a single sub-buffer that is the one a writer was about to begin. Should it have died of that, others
            // append before it, and where it will begin is not known yet.
            let state = self.state();
            if self.buffer.widths().before(state, oldest) {
                self.check_begun(state, oldest);
                return false;
            }
            begin = self.buffer.record(oldest).begin.load(Ordering::Relaxed);
            // F, pairs with E: the record is that of `oldest` unless the writer has gone on by then.
            fence(Ordering::Acquire);
            let later = self.buffer.oldest_whole();
            if later == oldest {
                break;
            }
            oldest = later;
        }
        if self.buffer.widths().before(oldest, self.cursor) {
            self.check_back(); // the writer does not go back, so this is not its doing
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

    /// Whether the writer has begun to overwrite the cursor's sub-buffer.
    pub(super) fn lapped(&self) -> bool {
        self.buffer.lapped(self.cursor)
    }
}
