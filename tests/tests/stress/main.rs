//! Tests that take the machine for themselves: full load, daemons killed again and again, CPUs that go away.
//!
//! A test belongs here if it measures what a process has, or changes what other tests rely on. Every test of this
//! room begins with [`turn`], so that one runs at a time.

mod crashes;
mod crashes_recorded;
mod direct_writers;
mod hotplug;
mod mount_numbers;
mod scribbler;
mod soak;
