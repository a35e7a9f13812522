//! The way of almost every message, by itself.

use std::sync::Arc;

use crate::direct::buffers::DirectBuffers;

/// Appends to a channel's first buffers, and does nothing else: for callers to whom an instruction matters, and for those who
/// cannot keep the channel alive while they write. It may outlive it: what is written then nobody reads.
#[derive(Debug)]
pub struct Appender(Arc<DirectBuffers>);

impl Appender {
    pub(crate) fn new(first: &Arc<DirectBuffers>) -> Appender {
        Appender(Arc::clone(first))
    }

    /// Writes a message of at most [`DIRECT_MAX`](crate::DIRECT_MAX) bytes directly behind the last one, as most are. False: it
    /// takes more than that, and nothing was done; [`Channel::write`](crate::Channel::write) will do it.
    #[inline(always)]
    pub fn append(&self, message: &[u8]) -> bool {
        self.0.append(message)
    }

    /// Drops, and counts, a message that was not appended, if one before it has found all sub-buffers full. False: nothing was
    /// done.
    pub fn drop_if_full(&self, message: &[u8]) -> bool {
        self.0.drop_if_full(message)
    }
}
