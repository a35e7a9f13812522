//! Keeps a channel from going.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Registry;
use crate::channel::Channel;

/// Keeps a channel alive: a producer's connection, an open file, a message under way.
pub(crate) struct ChannelRef {
    pub(super) registry: Arc<Registry>,
    pub(super) channel: Arc<Channel>,
}

impl ChannelRef {
    /// Begins to hold a channel. The caller has the registry's lock, or holds the channel already.
    pub(super) fn new(registry: &Arc<Registry>, channel: Arc<Channel>) -> ChannelRef {
        // Relaxed: the lock orders it, see `let_go`.
        channel.holders.fetch_add(1, Ordering::Relaxed);
        ChannelRef { registry: registry.clone(), channel }
    }
}

impl Clone for ChannelRef {
    fn clone(&self) -> ChannelRef {
        ChannelRef::new(&self.registry, self.channel.clone())
    }
}

impl Deref for ChannelRef {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for ChannelRef {
    fn drop(&mut self) {
        // AcqRel: whoever is last, and looks, sees what all who left before have written.
        if self.channel.holders.fetch_sub(1, Ordering::AcqRel) == 1 && !self.channel.permanent() {
            self.registry.let_go(&self.channel);
        }
    }
}
