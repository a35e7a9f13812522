//! Bounds the messages that the writers have of a connection, by not reading its socket.
//!
//! The bounded queues of the writers are not enough: batches that wait for room leave the queues, and readers may never
//! make room.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes with the writers above which a connection is not read. One message may exceed this.
const IN_FLIGHT_MAX: usize = 256 << 10;
/// Bytes of all connections with the writers above which each connection may have one batch.
///
/// Batches for full buffers without readers stay there, and there may be thousands of connections.
const ALL_IN_FLIGHT_MAX: usize = 64 << 20;
/// Bytes with the writers at which a connection is read again.
///
/// The lower limit makes the socket's thread wake up less often than once a frame.
const IN_FLIGHT_LOW: usize = IN_FLIGHT_MAX / 2;
/// Bytes that a batch counts besides its messages: small batches take memory too.
const BATCH_COST: usize = 512;

/// Wakes the socket thread, from any thread.
pub(crate) type Ring = Arc<dyn Fn() + Send + Sync>;

/// Bytes that the writers have of all connections.
pub(crate) type AllInFlight = Arc<AtomicUsize>;

/// Counts the bytes that the writers have of one connection.
pub(crate) struct InFlight {
    bytes: AtomicUsize,
    all: AllInFlight,
    /// Set while the connection is not read: `ring` must be called when it can be read again.
    starved: AtomicBool,
    ring: Ring,
    /// Called once, when the writers have nothing of the connection. `has_quiet`: it is there.
    on_quiet: Mutex<Option<OnQuiet>>,
    has_quiet: AtomicBool,
}

/// Called when the writers have nothing more of a connection.
type OnQuiet = Box<dyn FnOnce() + Send>;

impl InFlight {
    pub(crate) fn new(ring: Ring, all: AllInFlight) -> Arc<InFlight> {
        Arc::new(InFlight {
            bytes: AtomicUsize::new(0),
            all,
            starved: AtomicBool::new(false),
            ring,
            on_quiet: Mutex::default(),
            has_quiet: AtomicBool::new(false),
        })
    }

    /// Returns whether the socket may be read. If not, `ring` is called when it may.
    pub(crate) fn has_room(&self) -> bool {
        if self.bytes.load(Ordering::Relaxed) <= self.max(IN_FLIGHT_MAX) {
            return true;
        }
        // Both sides first change one word and then read the other, all in one order (SeqCst). Either this thread
        // sees that a dropped permit leaves LOW, or the thread that dropped it sees `starved`.
        self.starved.store(true, Ordering::SeqCst);
        self.bytes.load(Ordering::SeqCst) <= self.max(IN_FLIGHT_LOW)
    }

    /// Returns `max`, or 0 if all connections together have too much.
    fn max(&self, max: usize) -> usize {
        // Relaxed: the bound need not be exact.
        if self.all.load(Ordering::Relaxed) <= ALL_IN_FLIGHT_MAX { max } else { 0 }
    }

    /// Counts a batch with `len` bytes of messages, until the permit is dropped.
    pub(crate) fn permit(self: &Arc<Self>, len: usize) -> Permit {
        let cost = BATCH_COST + len;
        self.bytes.fetch_add(cost, Ordering::Relaxed);
        self.all.fetch_add(cost, Ordering::Relaxed);
        Permit { in_flight: Arc::clone(self), cost }
    }

    /// Calls `call` when the writers have nothing of the connection, perhaps at once.
    pub(crate) fn when_quiet(&self, call: OnQuiet) {
        *self.on_quiet.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
        // As in `has_room`: either this thread sees that the last permit is gone, or its thread sees the flag.
        self.has_quiet.store(true, Ordering::SeqCst);
        if self.bytes.load(Ordering::SeqCst) == 0 {
            self.quiet();
        }
    }

    fn quiet(&self) {
        let call = self.on_quiet.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(call) = call {
            call();
        }
    }
}

/// The bytes that one batch counts.
pub(crate) struct Permit {
    in_flight: Arc<InFlight>,
    cost: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let all = self.in_flight.all.fetch_sub(self.cost, Ordering::Relaxed);
        if all > ALL_IN_FLIGHT_MAX && all - self.cost <= ALL_IN_FLIGHT_MAX {
            (self.in_flight.ring)();
        }
        let left = self.in_flight.bytes.fetch_sub(self.cost, Ordering::SeqCst) - self.cost;
        if left <= IN_FLIGHT_LOW && self.in_flight.starved.swap(false, Ordering::SeqCst) {
            (self.in_flight.ring)();
        }
        if left == 0 && self.in_flight.has_quiet.load(Ordering::SeqCst) {
            self.in_flight.quiet();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_is_called_once_when_enough_permits_are_dropped() {
        let rings = Arc::new(AtomicUsize::new(0));
        let ring = Arc::clone(&rings);
        let in_flight = InFlight::new(
            Arc::new(move || {
                ring.fetch_add(1, Ordering::Relaxed);
            }),
            AllInFlight::default(),
        );
        let rung = || rings.load(Ordering::Relaxed);

        let quarter = || in_flight.permit(IN_FLIGHT_MAX / 4);
        let mut permits = vec![quarter(), quarter(), quarter()];
        assert!(in_flight.has_room());
        permits.push(quarter());
        assert!(!in_flight.has_room(), "each costs a little more than its length");
        permits.truncate(2);
        assert_eq!(rung(), 0);
        permits.pop();
        assert_eq!(rung(), 1);
        assert!(in_flight.has_room());
        permits.clear();
        assert_eq!(rung(), 1);
    }

    #[test]
    fn quiet_comes_once_behind_the_last_permit() {
        let in_flight = InFlight::new(Arc::new(|| {}), AllInFlight::default());
        let called = Arc::new(AtomicUsize::new(0));
        let call = || {
            let called = Arc::clone(&called);
            Box::new(move || {
                called.fetch_add(1, Ordering::Relaxed);
            })
        };
        let permits = [in_flight.permit(1), in_flight.permit(2)];
        in_flight.when_quiet(call());
        let [first, second] = permits;
        drop(first);
        assert_eq!(called.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!(called.load(Ordering::Relaxed), 1);
        drop(in_flight.permit(1));
        assert_eq!(called.load(Ordering::Relaxed), 1);
        in_flight.when_quiet(call());
        assert_eq!(called.load(Ordering::Relaxed), 2, "at once");
    }

    #[test]
    fn single_long_message_may_exceed_the_limit() {
        let in_flight = InFlight::new(Arc::new(|| {}), AllInFlight::default());
        assert!(in_flight.has_room());
        let permit = in_flight.permit(IN_FLIGHT_MAX * 4);
        assert!(!in_flight.has_room());
        drop(permit);
        assert!(in_flight.has_room());
    }

    #[test]
    fn connections_with_too_much_together_have_one_batch_each() {
        let (all, rings) = (AllInFlight::default(), Arc::new(AtomicUsize::new(0)));
        let ring = Arc::clone(&rings);
        let ring: Ring = Arc::new(move || {
            ring.fetch_add(1, Ordering::Relaxed);
        });
        let (many, one) = (InFlight::new(Arc::clone(&ring), all.clone()), InFlight::new(ring, all));
        let parked = many.permit(ALL_IN_FLIGHT_MAX);
        assert!(one.has_room());
        let permit = one.permit(10);
        assert!(!one.has_room());
        drop(permit);
        assert_eq!(rings.load(Ordering::Relaxed), 1);
        assert!(one.has_room());
        drop(parked);
        let _permit = one.permit(10);
        assert!(one.has_room());
    }
}
