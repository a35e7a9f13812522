//! Tests that take the machine for themselves: full load, daemons killed again and again, CPUs that go away.
//!
//! A test belongs here if it counts its own process's descriptors, or changes what other tests rely on. Each begins
//! with [`turn`], so that one test runs at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod crashes;
mod crashes_recorded;
mod hotplug;
mod mount_numbers;
mod reader_bell;
mod recorder_killed;
mod recordings_continued;
mod scribbler;
mod soak;
mod stress;

/// Waits until no other test of this room runs.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
