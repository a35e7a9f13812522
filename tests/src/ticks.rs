//! A timer that interrupts one thread again and again, as signals do in programs.

use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

/// Sends the calling thread SIGUSR1 at every interval, until the timer is dropped.
pub fn ticks(interval: Duration) -> Timer {
    let notify =
        SigevNotify::SigevThreadId { signal: Signal::SIGUSR1, thread_id: gettid().as_raw(), si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).expect("a timer");
    let interval = Expiration::Interval(TimeSpec::from_duration(interval));
    timer.set(interval, TimerSetTimeFlags::empty()).expect("setting a timer");
    timer
}
