//! Creates channels on a separate thread.
//!
//! Allocating large buffers takes long. The socket's thread and the threads of the mounted files must not wait for
//! that.

use std::sync::{Arc, Mutex, PoisonError};

use relay::{ChannelName, GeometrySpec};

use crate::channel::ChannelRef;
use crate::registry::{Create, OpenError, Registry};

/// The result of an open: the channel, and whether it is new.
pub(crate) type Opened = Result<(ChannelRef, bool), OpenError>;

impl Registry {
    /// Has the creator's thread open or create a channel for a user, see [`Registry::open`].
    ///
    /// The creator's thread calls `ring` when the result is there.
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
            // If this fails, the caller does not wait any more.
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

/// A channel that is being created. If this is dropped, the new channel has no holder.
pub(crate) struct PendingCreate(Arc<Mutex<Option<Opened>>>);

impl PendingCreate {
    /// Returns the result, if it is there.
    pub(crate) fn take(&self) -> Option<Opened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
