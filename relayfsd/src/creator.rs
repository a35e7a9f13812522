//! Makes channels, on a thread of its own: allocating buffers takes as long as they are large, and neither the socket thread nor
//! those of the mounted files wait for anything.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Sender, unbounded};
use relay::{ChannelName, GeometrySpec};

use crate::flow::Ring;
use crate::registry::{Create, Held, OpenError, Registry};

/// What came of it: the channel, and whether it is new.
pub(crate) type Made = Result<(Held, bool), OpenError>;

/// Makes a channel, and tells who wants it.
type Order = Box<dyn FnOnce() + Send>;

/// The thread's orders. It takes them one after another, as long as they can be given. A connection has one at a time, and who
/// writes to a file waits for it, which bounds them.
pub(crate) struct Creator(Sender<Order>);

impl Creator {
    pub(crate) fn start() -> io::Result<Creator> {
        let (orders, receiver) = unbounded::<Order>();
        let run = move || receiver.into_iter().for_each(|order| order());
        thread::Builder::new().name("creator".into()).spawn(run)?;
        Ok(Creator(orders))
    }

    /// Has something made.
    pub(crate) fn order(&self, order: Order) {
        // The thread takes orders as long as they can be given.
        let _ = self.0.send(order);
    }
}

impl Registry {
    /// Opens a channel as [`Registry::open`] does, on the creator's thread. `ring` is called when it is known what came of it.
    pub(crate) fn order(
        self: &Arc<Self>,
        name: ChannelName,
        spec: GeometrySpec,
        create: Create,
        ring: Ring,
    ) -> Ordered {
        let ordered = Arc::new(Mutex::new(None));
        let (registry, made) = (self.clone(), Arc::downgrade(&ordered));
        self.creator().order(Box::new(move || {
            // Otherwise nobody waits any more.
            if let Some(made) = made.upgrade() {
                let result = registry.open(&name, spec, create);
                *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                ring();
            }
        }));
        Ordered(ordered)
    }
}

/// A channel that is being made. Dropped, the channel is nobody's once it is there.
pub(crate) struct Ordered(Arc<Mutex<Option<Made>>>);

impl Ordered {
    /// What came of it, if that is known.
    pub(crate) fn take(&self) -> Option<Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
