//! Bounds the messages that the writers have of a connection, by not reading its socket.
//!
//! The bounded queues of the writers are not enough: batches that wait for room leave the queues, and readers may never
//! make room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes with the writers above which a connection is not read. One message may exceed this.
const UNDER_WAY_MAX: usize = 256 << 10;
/// Bytes of all connections with the writers above which each connection may have one batch.
///
/// Batches for full buffers without readers stay there, and there may be thousands of connections.
const ALL_UNDER_WAY_MAX: usize = 64 << 20;
/// Bytes with the writers at which a connection is read again.
///
/// The lower limit makes the socket's thread wake up less often than once a frame.
const UNDER_WAY_LOW: usize = UNDER_WAY_MAX / 2;
/// Bytes that a batch counts besides its messages: small batches take memory too.
const BATCH_COST: usize = 512;

/// Wakes the socket thread, from any thread.
pub(crate) type Ring = Arc<dyn Fn() + Send + Sync>;

/// Bytes that the writers have of all connections.
pub(crate) type AllUnderWay = Arc<AtomicUsize>;

/// Counts the bytes that the writers have of one connection.
pub(crate) struct InFlight {
    bytes: AtomicUsize,
    all: AllUnderWay,
    /// Set while the connection is not read: `ring` must be called when it can be read again.
    starved: AtomicBool,
    ring: Ring,
}

impl InFlight {
    pub(crate) fn new(ring: Ring, all: AllUnderWay) -> Arc<InFlight> {
        Arc::new(InFlight { bytes: AtomicUsize::new(0), all, starved: AtomicBool::new(false), ring })
    }

    /// Returns whether the socket may be read. If not, `ring` is called when it may.
    pub(crate) fn has_room(&self) -> bool {
        if self.bytes.load(Ordering::Relaxed) <= self.max(UNDER_WAY_MAX) {
            return true;
        }
        // Both sides first change one word and then read the other, all in one order (SeqCst). Either this thread
        // sees that a dropped permit leaves LOW, or the thread that dropped it sees `starved`.
        self.starved.store(true, Ordering::SeqCst);
        self.bytes.load(Ordering::SeqCst) <= self.max(UNDER_WAY_LOW)
    }

    /// Returns `max`, or 0 if all connections together have too much.
    fn max(&self, max: usize) -> usize {
        // Relaxed: the bound need not be exact.
        if self.all.load(Ordering::Relaxed) <= ALL_UNDER_WAY_MAX { max } else { 0 }
    }

    /// Counts a batch with `len` bytes of messages, until the permit is dropped.
    pub(crate) fn permit(self: &Arc<Self>, len: usize) -> Permit {
        let cost = BATCH_COST + len;
        self.bytes.fetch_add(cost, Ordering::Relaxed);
        self.all.fetch_add(cost, Ordering::Relaxed);
        Permit { under_way: Arc::clone(self), cost }
    }
}

/// The bytes that one batch counts.
pub(crate) struct Permit {
    under_way: Arc<InFlight>,
    cost: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let all = self.under_way.all.fetch_sub(self.cost, Ordering::Relaxed);
        if all > ALL_UNDER_WAY_MAX && all - self.cost <= ALL_UNDER_WAY_MAX {
            (self.under_way.ring)();
        }
        let left = self.under_way.bytes.fetch_sub(self.cost, Ordering::SeqCst) - self.cost;
        if left <= UNDER_WAY_LOW && self.under_way.starved.swap(false, Ordering::SeqCst) {
            (self.under_way.ring)();
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
        let under_way = InFlight::new(
            Arc::new(move || {
                ring.fetch_add(1, Ordering::Relaxed);
            }),
            AllUnderWay::default(),
        );
        let rung = || rings.load(Ordering::Relaxed);

        let quarter = || under_way.permit(UNDER_WAY_MAX / 4);
        let mut permits = vec![quarter(), quarter(), quarter()];
        assert!(under_way.has_room());
        permits.push(quarter());
        assert!(!under_way.has_room(), "each costs a little more than its length");
        permits.truncate(2);
        assert_eq!(rung(), 0);
        permits.pop();
        assert_eq!(rung(), 1);
        assert!(under_way.has_room());
        permits.clear();
        assert_eq!(rung(), 1);
    }

    #[test]
    fn single_long_message_may_exceed_the_limit() {
        let under_way = InFlight::new(Arc::new(|| {}), AllUnderWay::default());
        assert!(under_way.has_room());
        let permit = under_way.permit(UNDER_WAY_MAX * 4);
        assert!(!under_way.has_room());
        drop(permit);
        assert!(under_way.has_room());
    }

    #[test]
    fn connections_with_too_much_together_have_one_batch_each() {
        let (all, rings) = (AllUnderWay::default(), Arc::new(AtomicUsize::new(0)));
        let ring = Arc::clone(&rings);
        let ring: Ring = Arc::new(move || {
            ring.fetch_add(1, Ordering::Relaxed);
        });
        let (many, one) = (InFlight::new(Arc::clone(&ring), all.clone()), InFlight::new(ring, all));
        let parked = many.permit(ALL_UNDER_WAY_MAX);
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
