//! Notes about losses, for reports: when the last was, and how much room was missing.
//!
//! No code of the ring depends on these words. Several processes may write them at once, and the last one wins.

use super::{Buffer, add};
use crate::clock::realtime_tick;
use crate::memory::sync::{AtomicU64, Ordering};

/// Messages that are dropped in such intervals are a burst, in nanoseconds. Two ticks of the slowest kernel.
const BURST: u64 = 20_000_000;

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

    /// Counts a message of `len` bytes that was refused for lack of room, from any CPU.
    pub fn count_full_elsewhere(&self, len: usize) {
        self.count_dropped_elsewhere(1);
        note_len(&self.block().longest_dropped, len);
        self.note_bytes_dropped_elsewhere(len);
    }

    /// Counts the bytes of a message that was refused for lack of room, from any CPU.
    pub(crate) fn note_bytes_dropped_elsewhere(&self, len: usize) {
        if !cfg!(loom) {
            add(&self.block().dropped_bytes_elsewhere, len as u64);
        }
    }

    /// Notes time and length of a message that was refused for lack of room. The caller counts it, and its bytes.
    /// Returns whether the last one before was less than [`BURST`] ago.
    pub(crate) fn note_dropped(&self, len: usize) -> bool {
        let block = self.block();
        note_len(&block.longest_dropped, len);
        // Relaxed, as in `note_time`.
        let before = if cfg!(loom) { 0 } else { block.last_dropped.load(Ordering::Relaxed) };
        let now = note_time(&block.last_dropped);
        now.wrapping_sub(before) < BURST
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

/// Stores the present, and returns it. Models leave it out: they need not watch what no code depends on.
fn note_time(word: &AtomicU64) -> u64 {
    if cfg!(loom) {
        return 0;
    }
    let now = realtime_tick();
    // Relaxed: the time says nothing about other memory.
    word.store(now, Ordering::Relaxed);
    now
}

/// Raises a longest length.
fn note_len(word: &AtomicU64, len: usize) {
    // Relaxed, as above. A look first: almost always the word stays.
    if !cfg!(loom) && word.load(Ordering::Relaxed) < len as u64 {
        word.fetch_max(len as u64, Ordering::Relaxed);
    }
}
