//! Steps of a model's threads: a thread that is killed before any of its stores, and threads of one CPU that come between
//! each other at any load, but never within a sequence.
//!
//! Both need places where something may happen, and these are the atomics of `sync.rs`, whose place [`AtomicU64`] takes.
//! The code that is run remains the real one.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;

use loom::sync::atomic::{AtomicU64 as Word, Ordering};
use loom::sync::{Mutex, MutexGuard};

use crate::layout::position::Position;
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Appended, Executor, Sequence, SoleWriter};

loom::lazy_static! {
    /// Held by the thread that runs on the one CPU that a model has.
    static ref CPU: Mutex<()> = Mutex::new(());
}

loom::thread_local! {
    /// Stores that this thread may still make before it dies.
    static LEFT: Cell<Option<u32>> = Cell::new(None);
    /// The CPU, if this thread has it and may be made to give it up.
    static HELD: RefCell<Option<MutexGuard<'static, ()>>> = RefCell::new(None);
}

/// What unwinds a thread that is killed.
struct Killed;

/// Does something, and dies of it before the store number `stores`, counted from 0. `None`: it died.
pub fn dies_at<T>(stores: u32, act: impl FnOnce() -> T) -> Option<T> {
    LEFT.with(|left| left.set(Some(stores)));
    // Nothing that it leaves half done is looked at, but for what is shared: that is the point.
    let result = catch_unwind(AssertUnwindSafe(act));
    LEFT.with(|left| left.set(None));
    match result {
        Ok(value) => Some(value),
        Err(cause) if cause.is::<Killed>() => None,
        Err(cause) => resume_unwind(cause),
    }
}

/// Does something on the CPU, which other threads that do so may take over at each load, and before each sequence.
pub fn on_cpu<T>(act: impl FnOnce() -> T) -> T {
    take_cpu();
    let result = catch_unwind(AssertUnwindSafe(act));
    drop(HELD.with(RefCell::take));
    result.unwrap_or_else(|cause| resume_unwind(cause))
}

/// A store is about to be made.
pub(crate) fn before_store() {
    let left = LEFT.with(Cell::get);
    if left == Some(0) {
        resume_unwind(Box::new(Killed));
    }
    LEFT.with(|cell| cell.set(left.map(|left| left - 1)));
}

/// Others may run now.
fn preempt() {
    if HELD.with(RefCell::take).is_some() {
        take_cpu();
    }
}

fn take_cpu() {
    // Poisoned by one that was killed with it, which is nothing to the next.
    let guard = CPU.lock().unwrap_or_else(PoisonError::into_inner);
    HELD.with(|held| held.replace(Some(guard)));
}

/// Does something that is not interrupted.
fn uninterrupted<T>(act: impl FnOnce() -> T) -> T {
    preempt();
    let guard = HELD.with(RefCell::take);
    let result = act();
    HELD.with(|held| held.replace(guard));
    result
}

/// A thread in [`on_cpu`]: what restartable sequences amount to.
#[derive(Clone, Copy, Debug)]
pub struct RseqExecutor;

impl Executor for RseqExecutor {
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        uninterrupted(|| SoleWriter.append(buffer, message))
    }

    fn locate(&self, _: &Buffer, _: Position) {}

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        uninterrupted(|| is_at(buffer, sequence.from.0) && SoleWriter.switch(buffer, sequence))
    }

    fn count(&self, counter: &AtomicU64, n: u64) -> bool {
        uninterrupted(|| SoleWriter.count(counter, n))
    }
}

fn is_at(buffer: &Buffer, state: u64) -> bool {
    buffer.block().state.load(Ordering::Relaxed) == state
}

/// loom's, with places where something may happen.
#[derive(Debug, Default)]
pub struct AtomicU64(Word);

/// As the standard library's.
#[allow(missing_docs)]
impl AtomicU64 {
    pub fn load(&self, order: Ordering) -> u64 {
        preempt();
        self.0.load(order)
    }

    pub fn store(&self, value: u64, order: Ordering) {
        before_store();
        self.0.store(value, order);
    }

    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        before_store();
        self.0.fetch_add(value, order)
    }

    pub fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        before_store();
        self.0.fetch_max(value, order)
    }

    pub fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        before_store();
        self.0.fetch_update(set, fetch, update)
    }

    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        before_store();
        self.0.compare_exchange(current, new, success, failure)
    }
}
