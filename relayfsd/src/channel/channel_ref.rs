//! Keeps a channel from being removed.

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::Channel;

/// Removes channels that have no holder any more.
pub(crate) trait Release: Send + Sync {
    /// Called after the last holder's drop. The channel may have a new holder by now, see [`Channel::is_held`].
    fn release(&self, channel: &Arc<Channel>);
}

/// Holds a channel, for a producer's connection, an open file, or a message in flight.
pub(crate) struct ChannelRef {
    channel: Arc<Channel>,
    /// Does not upgrade when the daemon ends: channels are not removed then.
    release: Weak<dyn Release>,
}

impl ChannelRef {
    /// Begins to hold a channel. The caller has the lock that [`Release::release`] takes, or holds the channel already.
    pub(crate) fn new(channel: Arc<Channel>, release: Weak<dyn Release>) -> ChannelRef {
        // Relaxed: the lock orders it, see `Channel::is_held`.
        channel.holders.fetch_add(1, Ordering::Relaxed);
        ChannelRef { channel, release }
    }
}

impl Channel {
    /// Returns whether the channel has a holder.
    ///
    /// For a caller with the lock that [`Release::release`] takes, the answer "no" stays true until the caller unlocks.
    pub(crate) fn is_held(&self) -> bool {
        // Acquire, with the Release in `drop`: this thread sees what earlier holders wrote before they were dropped.
        self.holders.load(Ordering::Acquire) > 0
    }
}

impl Clone for ChannelRef {
    fn clone(&self) -> ChannelRef {
        ChannelRef::new(self.channel.clone(), self.release.clone())
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
        // AcqRel: the last holder, which looks, sees what all earlier holders wrote before they were dropped.
        if self.channel.holders.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(release) = self.release.upgrade()
        {
            release.release(&self.channel);
        }
    }
}
