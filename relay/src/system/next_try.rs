//! When something that has failed may be tried again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time of the next try. It takes no lock, which a forked child could find held.
#[derive(Debug, Default)]
pub struct NextTry {
    /// Nanoseconds of CLOCK_MONOTONIC. Relaxed, all accesses: the number is complete in itself, and orders nothing.
    at: AtomicU64,
}

impl NextTry {
    /// Returns whether a try is due.
    pub fn is_due(&self) -> bool {
        self.at.load(Ordering::Relaxed) <= now()
    }

    /// Begins a try, if one is due, and puts off those of other threads: until [`Self::put_off`], `limit` at most.
    /// Returns whether it has begun.
    pub fn begin(&self, limit: Duration) -> bool {
        let (at, now) = (self.at.load(Ordering::Relaxed), now());
        at <= now
            && self
                .at
                .compare_exchange(at, now + nanoseconds(limit), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Puts the next try off.
    pub fn put_off(&self, pause: Duration) {
        self.at.store(now() + nanoseconds(pause), Ordering::Relaxed);
    }
}

fn now() -> u64 {
    // The clock always exists. Without it each try would be due.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX / 2, |time| nanoseconds(time.into()))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_threads_begins_a_try() {
        const LONG: Duration = Duration::from_secs(3600);
        let next = NextTry::default();
        assert!(next.is_due());
        let begun = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| next.begin(LONG))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|begun| *begun).count()
        });
        assert_eq!((begun, next.is_due()), (1, false));
        next.put_off(Duration::ZERO);
        assert!(next.begin(Duration::ZERO) && next.is_due());
        next.put_off(LONG);
        assert!(!next.begin(LONG) && !next.is_due());
    }
}
