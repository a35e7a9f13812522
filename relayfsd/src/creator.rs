//! Makes channels for connections, on a thread of its own: allocating buffers takes as long as they are large, and the socket
//! thread waits for nothing.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use log::error;
use relay::{ChannelName, GeometrySpec};

use crate::flow::Ring;
use crate::registry::{Create, Held, OpenError, Registry};

/// What came of it: the channel, and whether it is new.
pub(crate) type Made = Result<(Held, bool), OpenError>;

/// A channel that is to be made.
struct Order {
    name: ChannelName,
    spec: GeometrySpec,
    create: Create,
    made: Arc<Mutex<Option<Made>>>,
    ring: Ring,
}

/// The thread. Dropping it waits for the orders that were given. A connection has one at a time, which bounds them.
pub(crate) struct Creator {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Creator {
    pub(crate) fn start(registry: Arc<Registry>) -> io::Result<Creator> {
        let (orders, receiver) = unbounded();
        let thread =
            thread::Builder::new().name("creator".into()).spawn(move || run(&registry, &receiver))?;
        Ok(Creator { orders: Some(orders), thread: Some(thread) })
    }

    /// Has a channel made. `ring` is called when it is known what came of it.
    pub(crate) fn order(&self, name: ChannelName, spec: GeometrySpec, create: Create, ring: Ring) -> Ordered {
        let made = Arc::default();
        let order = Order { name, spec, create, made: Arc::clone(&made), ring };
        if let Some(orders) = &self.orders {
            // The thread takes orders as long as they can be given.
            let _ = orders.send(order);
        }
        Ordered(made)
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        self.orders = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread that makes channels panicked; please report this");
        }
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

fn run(registry: &Arc<Registry>, orders: &Receiver<Order>) {
    for Order { name, spec, create, made, ring } in orders {
        // Nobody waits any more.
        if Arc::strong_count(&made) == 1 {
            continue;
        }
        let result = registry.open(&name, spec, create);
        *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        ring();
    }
}
