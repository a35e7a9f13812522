//! Appending to a channel's first buffers: the path that almost every message takes.

use std::sync::Arc;

use relay::trace::event::id;
use relay::trace::level::Level;

use crate::direct::buffers::DirectBuffers;
use crate::levels::Levels;
use crate::record;

/// Appends to a channel's first buffers, and does nothing else.
/// It is for callers that count instructions, or that cannot keep the channel alive while they write. It may outlive
/// the channel: no reader gets messages written afterwards.
#[derive(Debug)]
pub struct Appender(Arc<DirectBuffers>, Arc<Levels>);

impl Appender {
    pub(crate) fn new(first: &Arc<DirectBuffers>, levels: &Arc<Levels>) -> Appender {
        Appender(Arc::clone(first), Arc::clone(levels))
    }

    /// Appends a message that fits directly behind the last one.
    /// It has at most [`DIRECT_MAX`](crate::DIRECT_MAX) bytes. False: nothing was done, and the caller should use
    /// [`Channel::write`](crate::Channel::write).
    #[inline(always)]
    pub fn append(&self, message: &[u8]) -> bool {
        self.0.append(message)
    }

    /// Returns the buffers, for [`DirectBuffers::write_quick`].
    #[doc(hidden)]
    pub fn buffers(&self) -> &DirectBuffers {
        &self.0
    }

    /// Appends like [`Self::append`], if the C library has not registered the calling thread.
    pub fn append_otherwise(&self, message: &[u8]) -> bool {
        self.0.append_otherwise(message)
    }

    /// Returns whether messages with this level and target are written, like
    /// [`Channel::enabled`](crate::Channel::enabled).
    #[inline(always)]
    pub fn enabled(&self, level: Level, target: &[u8]) -> bool {
        self.1.enabled(level, target)
    }

    /// Appends a `log` record like [`Channel::log_bytes`](crate::Channel::log_bytes).
    /// False: nothing was done, and the caller should use that function, which also looks whether it is enabled.
    #[inline(always)]
    pub fn log(&self, level: Level, target: &[u8], text: &[u8]) -> bool {
        let max = self.0.record_max();
        max != 0
            && record::with_log(level, target, text, max, |payload| self.0.append_record(id::LOG, payload))
    }

    /// Drops and counts a message that was not appended, if the buffer is known to be full.
    /// An earlier message has found it full. False: nothing was done.
    pub fn drop_if_full(&self, message: &[u8]) -> bool {
        self.0.drop_if_full(message)
    }
}
