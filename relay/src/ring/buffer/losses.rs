//! Notes about losses, for reports: when the last was, and how much room was missing.
//!
//! No code of the ring depends on these words. Several processes may write them at once, and the last one wins.

use super::{Buffer, add};
use crate::clock::realtime_tick;
use crate::memory::sync::{AtomicU64, Ordering};

impl Buffer {
    /// Counts messages whose tries were all interrupted.
    pub fn count_contended(&self, n: u64) {
        add(&self.block().contended, n);
        note_time(&self.block().last_contended);
    }

    /// Counts messages that were lost without a try on their CPU.
    pub fn count_dropped_elsewhere(&self, n: u64) {
        if n > 0 {
            add(&self.block().dropped_elsewhere, n);
            note_time(&self.block().last_dropped);
        }
    }

    /// Notes that a message was refused for lack of room, which would have taken `len` bytes.
    /// The caller counts the message.
    pub fn note_dropped(&self, len: usize) {
        let block = self.block();
        note_time(&block.last_dropped);
        note_len(&block.longest_dropped, len);
        if !cfg!(loom) {
            add(&block.dropped_bytes, len as u64);
        }
    }

    /// Notes that a message was refused because its `len` bytes are too many for any sub-buffer.
    /// The caller counts the message.
    pub fn note_too_big(&self, len: usize) {
        note_time(&self.block().last_too_big);
        note_len(&self.block().longest_too_big, len);
    }

    /// Notes that a writer has found every sub-buffer full, and the next message will not be the first to do so.
    pub(crate) fn note_full(&self) {
        if !cfg!(loom) {
            add(&self.block().full, 1);
        }
    }

    /// Notes that a writer has given up a sub-buffer that no reader has given back.
    pub(crate) fn note_overwritten(&self) {
        note_time(&self.block().last_overwritten);
    }
}

/// Stores the present. Models leave it out: they need not watch what no code depends on.
fn note_time(word: &AtomicU64) {
    if !cfg!(loom) {
        // Relaxed: the time says nothing about other memory.
        word.store(realtime_tick(), Ordering::Relaxed);
    }
}

/// Raises a longest length.
fn note_len(word: &AtomicU64, len: usize) {
    // Relaxed, as above. A look first: almost always the word stays.
    if !cfg!(loom) && word.load(Ordering::Relaxed) < len as u64 {
        word.fetch_max(len as u64, Ordering::Relaxed);
    }
}
