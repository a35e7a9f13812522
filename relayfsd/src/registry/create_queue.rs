//! Makes channels, on a thread of its own: allocating buffers takes as long as they are large, and neither the socket thread nor
//! those of the mounted files wait for anything.

use std::sync::{Arc, Mutex, PoisonError};

use relay::{ChannelName, GeometrySpec};

use crate::channel::ChannelRef;
use crate::registry::{Create, OpenError, Registry};

/// What came of it: the channel, and whether it is new.
pub(crate) type Made = Result<(ChannelRef, bool), OpenError>;

impl Registry {
    /// Opens a channel as [`Registry::open`] does, or makes it for a user, on the creator's thread. The
    /// creator's thread calls `ring` when the result is there.
    pub(crate) fn order(
        self: &Arc<Self>,
        name: ChannelName,
        spec: GeometrySpec,
        uid: u32,
        ring: impl FnOnce() + Send + 'static,
    ) -> PendingCreate {
        let ordered = Arc::new(Mutex::new(None));
        let (registry, made) = (self.clone(), Arc::downgrade(&ordered));
        let order = move || {
            // Otherwise nobody waits any more.
            if let Some(made) = made.upgrade() {
                let result = registry.open(&name, spec, Create::ForHolders(uid));
                *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                ring();
            }
        };
        self.creator.order(uid, Box::new(order));
        PendingCreate(ordered)
    }
}

/// A channel that is being made. Dropped, the channel is nobody's once it is there.
pub(crate) struct PendingCreate(Arc<Mutex<Option<Made>>>);

impl PendingCreate {
    /// What came of it, if that is known.
    pub(crate) fn take(&self) -> Option<Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
