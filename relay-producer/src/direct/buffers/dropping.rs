//! Dropping a message that finds every sub-buffer full.
//!
//! Of a burst of them, most are counted by the sequence that would have appended them. The others come here.

use relay::ring::writer::Writer;

use super::DirectBuffers;

impl DirectBuffers {
    /// Drops a message without room, if an earlier message found the buffer blocked. `space` is what it needs in a
    /// sub-buffer.
    #[cold]
    #[inline(never)]
    pub(super) fn drop_here(&self, only: Option<usize>, space: usize) -> bool {
        // Buffers whose writing has ended stay full for ever.
        if self.is_over() {
            return false;
        }
        let Some((cpu_buffer, here)) = self.here(only) else { return false };
        let dropped = Writer::new(&cpu_buffer.buffer, here).drop_if_blocked(space);
        if dropped {
            self.after_refusal(cpu_buffer);
        }
        dropped
    }
}
