//! Gives back sub-buffers that a reader has read from a mapping.

use relay::ring::reader::ConsumeError;

use super::Channel;

impl Channel {
    /// Gives back `count` sub-buffers of a buffer. With `from`, the first of them must have that number.
    ///
    /// Returns whether a batch waits for the room that this makes.
    pub(crate) fn give_back(&self, cpu: usize, from: Option<u64>, count: u64) -> Result<bool, ConsumeError> {
        let mut side = self.read_side(cpu);
        let freed = side.reader.consume(from, count)?;
        side.reader.note_losses();
        Ok(freed && std::mem::take(&mut side.parked))
    }
}

/// Returns the errno for sub-buffers that cannot be given back.
pub(crate) fn errno(error: &ConsumeError) -> i32 {
    match error {
        ConsumeError::Stale { .. } => libc::ESTALE,
        ConsumeError::TooMany { .. } => libc::EINVAL,
    }
}
