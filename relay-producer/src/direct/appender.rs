//! Appending to a channel's first buffers: the path that almost every message takes.

use std::sync::Arc;

use crate::direct::buffers::DirectBuffers;

/// Appends to a channel's first buffers, and does nothing else.
/// It is for callers that count instructions, or that cannot keep the channel alive while they write. It may outlive
/// the channel: no reader gets messages written afterwards.
#[derive(Debug)]
pub struct Appender(Arc<DirectBuffers>);

impl Appender {
    pub(crate) fn new(first: &Arc<DirectBuffers>) -> Appender {
        Appender(Arc::clone(first))
    }

    /// Appends a message that fits directly behind the last one.
    /// It has at most [`DIRECT_MAX`](crate::DIRECT_MAX) bytes. False: nothing was done, and the caller should use
    /// [`Channel::write`](crate::Channel::write).
    #[inline(always)]
    pub fn append(&self, message: &[u8]) -> bool {
        self.0.append(message)
    }

    /// Drops and counts a message that was not appended, if the buffer is known to be full.
    /// An earlier message has found it full. False: nothing was done.
    pub fn drop_if_full(&self, message: &[u8]) -> bool {
        self.0.drop_if_full(message)
    }
}
