//! Keeps a channel from being removed.

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::Channel;

/// Removes channels that have no holder any more.
pub(crate) trait Release: Send + Sync {
    /// The last holder of a channel has let go. Another one may hold the channel again by now, see [`Channel::is_held`].
    fn release(&self, channel: &Arc<Channel>);
}

/// Holds a channel: for a producer's connection, an open file, a message under way.
pub(crate) struct ChannelRef {
    channel: Arc<Channel>,
    /// Gone at the daemon's end, when nothing is removed any more.
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
    /// Whether there is a holder. With the lock that [`Release::release`] takes, the answer stays true as long as that is no.
    pub(crate) fn is_held(&self) -> bool {
        // Acquire, with the Release in `drop`: what those wrote who left before is seen.
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
        // AcqRel: the last holder, which looks, sees what all wrote that let go before.
        if self.channel.holders.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(release) = self.release.upgrade()
        {
            release.release(&self.channel);
        }
    }
}
