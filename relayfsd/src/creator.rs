//! Makes channels for connections, on a thread of its own: allocating buffers takes as long as they are large, and the socket
//! thread waits for nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

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
    uid: u32,
    made: Arc<Mutex<Option<Made>>>,
    ring: Ring,
}

/// The orders that were given. A connection has one at a time, which bounds them. Users take turns: who has hundreds of
/// connections ask for large channels at once keeps nobody else waiting for more than one of them.
#[derive(Default)]
struct Orders {
    /// Without those who have none.
    by_uid: VecDeque<(u32, VecDeque<Order>)>,
    over: bool,
}

impl Orders {
    fn add(&mut self, order: Order) {
        let uid = order.uid;
        match self.by_uid.iter_mut().find(|(who, _)| *who == uid) {
            Some((_, orders)) => orders.push_back(order),
            None => self.by_uid.push_back((uid, VecDeque::from([order]))),
        }
    }

    fn next(&mut self) -> Option<Order> {
        let (uid, mut orders) = self.by_uid.pop_front()?;
        let order = orders.pop_front();
        if !orders.is_empty() {
            self.by_uid.push_back((uid, orders));
        }
        order
    }
}

/// What the thread and those who give it orders share.
#[derive(Default)]
struct Shared {
    orders: Mutex<Orders>,
    given: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next order. `None`: there will be no more.
    fn next(&self) -> Option<Order> {
        let mut orders = self.lock();
        loop {
            match orders.next() {
                None if !orders.over => {
                    orders = self.given.wait(orders).unwrap_or_else(PoisonError::into_inner);
                }
                next => return next,
            }
        }
    }
}

/// The thread. Dropping it waits for the orders that were given.
pub(crate) struct Creator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Creator {
    pub(crate) fn start(registry: Arc<Registry>) -> io::Result<Creator> {
        let shared = Arc::new(Shared::default());
        let orders = Arc::clone(&shared);
        let thread = thread::Builder::new().name("creator".into()).spawn(move || run(&registry, &orders))?;
        Ok(Creator { shared, thread: Some(thread) })
    }

    /// Has a channel made for a user. `ring` is called when it is known what came of it.
    pub(crate) fn order(&self, name: ChannelName, spec: GeometrySpec, uid: u32, ring: Ring) -> Ordered {
        let made = Arc::default();
        self.shared.lock().add(Order { name, spec, uid, made: Arc::clone(&made), ring });
        self.shared.given.notify_one();
        Ordered(made)
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.given.notify_one();
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

fn run(registry: &Arc<Registry>, orders: &Shared) {
    while let Some(Order { name, spec, uid, made, ring }) = orders.next() {
        // Nobody waits any more.
        if Arc::strong_count(&made) == 1 {
            continue;
        }
        let result = registry.open(&name, spec, Create::ForHolders(uid));
        *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who has ordered much has the next user wait for one of his orders, not for all.
    #[test]
    fn users_take_turns() {
        let mut orders = Orders::default();
        for (uid, name) in [(1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")] {
            let (name, spec) = (name.parse().unwrap(), GeometrySpec::default());
            orders.add(Order { name, spec, uid, made: Arc::default(), ring: Arc::new(|| {}) });
        }
        let names: Vec<String> =
            std::iter::from_fn(|| orders.next()).map(|order| order.name.to_string()).collect();
        assert_eq!(names, ["a", "d", "e", "b", "f", "c"]);
    }
}
