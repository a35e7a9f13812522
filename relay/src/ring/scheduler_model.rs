//! Scheduling of a model's threads: kills before any store, preemption at any load.
//!
//! A thread can be killed before any of its stores. Threads of one CPU can preempt each other at any load, but not
//! within a sequence.
//!
//! Both need points where they can happen: the atomics of `sync.rs`, which [`AtomicU64`] replaces. The code under test
//! is the real code.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;

use loom::sync::atomic::{AtomicU64 as Word, Ordering};
use loom::sync::{Mutex, MutexGuard};

use crate::layout::position::Position;
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Appended, Executor, Sequence, SoleWriter};

loom::lazy_static! {
    /// The only CPU of a model; the thread that runs on it holds this.
    static ref CPU: Mutex<()> = Mutex::new(());
}

loom::thread_local! {
    /// Stores that this thread may still make before it is killed.
    static LEFT: Cell<Option<u32>> = Cell::new(None);
    /// The CPU, if this thread runs on it and may be preempted.
    static HELD: RefCell<Option<MutexGuard<'static, ()>>> = RefCell::new(None);
}

/// The panic payload that unwinds a killed thread.
struct Killed;

/// Runs `act`, and kills the thread before store number `stores`, counted from 0.
/// `None`: it was killed.
pub fn dies_at<T>(stores: u32, act: impl FnOnce() -> T) -> Option<T> {
    LEFT.with(|left| left.set(Some(stores)));
    // Only shared memory is looked at afterwards. Changes that the killed thread left half done there are the subject of the
    // test.
    let result = catch_unwind(AssertUnwindSafe(act));
    LEFT.with(|left| left.set(None));
    match result {
        Ok(value) => Some(value),
        Err(cause) if cause.is::<Killed>() => None,
        Err(cause) => resume_unwind(cause),
    }
}

/// Runs `act` on the CPU. Other threads on it may run at each load, and before each sequence.
pub fn on_cpu<T>(act: impl FnOnce() -> T) -> T {
    take_cpu();
    let result = catch_unwind(AssertUnwindSafe(act));
    drop(HELD.with(RefCell::take));
    result.unwrap_or_else(|cause| resume_unwind(cause))
}

/// Kills the thread if its stores are used up. Called before each store.
pub(crate) fn before_store() {
    let left = LEFT.with(Cell::get);
    if left == Some(0) {
        resume_unwind(Box::new(Killed));
    }
    LEFT.with(|cell| cell.set(left.map(|left| left - 1)));
}

/// Lets other threads of the CPU run.
fn preempt() {
    if HELD.with(RefCell::take).is_some() {
        take_cpu();
    }
}

fn take_cpu() {
    // Poisoned by a thread that was killed with it, which does not concern the next.
    let guard = CPU.lock().unwrap_or_else(PoisonError::into_inner);
    HELD.with(|held| held.replace(Some(guard)));
}

/// Runs `act` without preemption.
fn uninterrupted<T>(act: impl FnOnce() -> T) -> T {
    preempt();
    let guard = HELD.with(RefCell::take);
    let result = act();
    HELD.with(|held| held.replace(guard));
    result
}

/// The executor of a thread in [`on_cpu`]; it behaves like restartable sequences.
#[derive(Clone, Copy, Debug)]
pub struct RseqExecutor;

impl Executor for RseqExecutor {
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        uninterrupted(|| SoleWriter.append(buffer, message))
    }

    fn append_record(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        uninterrupted(|| SoleWriter.append_record(buffer, head, payload))
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

/// loom's atomic with points of preemption and of kills.
#[derive(Debug, Default)]
pub struct AtomicU64(Word);

/// Each method works as the standard library's.
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
