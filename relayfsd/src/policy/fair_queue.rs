//! Threads that do long jobs, in which users take turns.
//!
//! The socket's thread and the threads of the mounted files hand long jobs over, and do not wait.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A long job. It passes its result to the waiting caller.
pub(crate) type CreateJob = Box<dyn FnOnce() + Send>;

/// The waiting jobs.
///
/// Their number is bounded: a connection has one at a time, and a file operation waits for its job. Users take turns: a
/// user with hundreds of large jobs keeps other users waiting for one of them at most.
struct Orders<T> {
    /// The users with jobs, in the order of their turns.
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

/// State that the thread shares with its callers.
struct Shared {
    orders: Mutex<Orders<CreateJob>>,
    given: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Orders<CreateJob>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next job. `None`: no more will come.
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

/// A thread that does jobs one after another, until this is dropped and all jobs are done.
pub(crate) struct Turns(Arc<Shared>);

impl Turns {
    pub(crate) fn start(name: &str) -> io::Result<Turns> {
        let shared = Arc::new(Shared { orders: Mutex::new(Orders::new()), given: Condvar::new() });
        let orders = shared.clone();
        let run = move || std::iter::from_fn(|| orders.next()).for_each(|order| order());
        thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Turns(shared))
    }

    /// Hands a user's job to the thread.
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

    /// A user with many jobs keeps the next user waiting for one of them, not for all.
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
