//! Makes channels, on a thread of its own: allocating buffers takes as long as they are large, and neither the socket thread nor
//! those of the mounted files wait for anything.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use relay::{ChannelName, GeometrySpec};

use crate::flow::Ring;
use crate::registry::{Create, Held, OpenError, Registry};

/// What came of it: the channel, and whether it is new.
pub(crate) type Made = Result<(Held, bool), OpenError>;

/// Makes a channel, and tells who wants it.
type Order = Box<dyn FnOnce() + Send>;

/// The orders that were given. A connection has one at a time, and who writes to a file waits for it, which bounds them. Users take
/// turns: who has hundreds of connections ask for large channels at once keeps nobody else waiting for more than one of them.
struct Orders<T> {
    /// Without those who have none.
    by_uid: VecDeque<(u32, VecDeque<T>)>,
    over: bool,
}

impl<T> Orders<T> {
    fn new() -> Orders<T> {
        Orders { by_uid: VecDeque::new(), over: false }
    }

    fn add(&mut self, uid: u32, order: T) {
        match self.by_uid.iter_mut().find(|(who, _)| *who == uid) {
            Some((_, orders)) => orders.push_back(order),
            None => self.by_uid.push_back((uid, VecDeque::from([order]))),
        }
    }

    fn next(&mut self) -> Option<T> {
        let (uid, mut orders) = self.by_uid.pop_front()?;
        let order = orders.pop_front();
        if !orders.is_empty() {
            self.by_uid.push_back((uid, orders));
        }
        order
    }
}

/// What the thread and those who give it orders share.
struct Shared {
    orders: Mutex<Orders<Order>>,
    given: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Orders<Order>> {
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

/// The thread. It takes orders one after another, until this is dropped and it has done all.
pub(crate) struct Creator(Arc<Shared>);

impl Creator {
    pub(crate) fn start() -> io::Result<Creator> {
        let shared = Arc::new(Shared { orders: Mutex::new(Orders::new()), given: Condvar::new() });
        let orders = shared.clone();
        let run = move || std::iter::from_fn(|| orders.next()).for_each(|order| order());
        thread::Builder::new().name("creator".into()).spawn(run)?;
        Ok(Creator(shared))
    }

    /// Has something made for a user.
    pub(crate) fn order(&self, uid: u32, order: Order) {
        self.0.lock().add(uid, order);
        self.0.given.notify_one();
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.given.notify_one();
    }
}

impl Registry {
    /// Opens a channel as [`Registry::open`] does, or makes it for a user, on the creator's thread. `ring` is called when it is known
    /// what came of it.
    pub(crate) fn order(
        self: &Arc<Self>,
        name: ChannelName,
        spec: GeometrySpec,
        uid: u32,
        ring: Ring,
    ) -> Ordered {
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
        self.creator().order(uid, Box::new(order));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Who has ordered much has the next user wait for one of his orders, not for all.
    #[test]
    fn users_take_turns() {
        let mut orders = Orders::new();
        for (uid, order) in [(1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")] {
            orders.add(uid, order);
        }
        let order: Vec<&str> = std::iter::from_fn(|| orders.next()).collect();
        assert_eq!(order, ["a", "d", "e", "b", "f", "c"]);
    }
}
