//! Threads that take orders, of users in turn: what takes long is done there, so that neither the socket's thread nor those
//! of the mounted files wait for it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Does something that takes long, and tells the result to the waiting caller.
pub(crate) type CreateJob = Box<dyn FnOnce() + Send>;

/// The orders that were given. Connections have one at a time, and file operations wait for theirs, which bounds them. Users take
/// turns: a user with hundreds of large orders keeps others waiting for one of them at most.
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
    orders: Mutex<Orders<CreateJob>>,
    given: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Orders<CreateJob>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next order. `None`: there will be no more.
    fn next(&self) -> Option<CreateJob> {
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

/// A thread. It takes orders one after another, until this is dropped and it has done all.
pub(crate) struct Turns(Arc<Shared>);

impl Turns {
    pub(crate) fn start(name: &str) -> io::Result<Turns> {
        let shared = Arc::new(Shared { orders: Mutex::new(Orders::new()), given: Condvar::new() });
        let orders = shared.clone();
        let run = move || std::iter::from_fn(|| orders.next()).for_each(|order| order());
        thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Turns(shared))
    }

    /// Has something done for a user.
    pub(crate) fn order(&self, uid: u32, order: CreateJob) {
        self.0.lock().add(uid, order);
        self.0.given.notify_one();
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.given.notify_one();
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
