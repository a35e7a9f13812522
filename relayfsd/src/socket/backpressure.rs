//! How much of a connection's messages the writers have: bounded, by not reading the connection's socket beyond it.
//!
//! The writers' queues alone would not do: batches that wait for room leave them, and nobody may ever make any.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A connection that has more than this with the writers is not read, in bytes. One message may exceed it.
const UNDER_WAY_MAX: usize = 256 << 10;
/// When all together have more than this with the writers, each may have one batch more and no further, in bytes: those that wait
/// for room nobody makes stay there, and there may be thousands of connections.
const ALL_UNDER_WAY_MAX: usize = 64 << 20;
/// It is read again from here on, so that it wakes up less often than once a frame.
const UNDER_WAY_LOW: usize = UNDER_WAY_MAX / 2;
/// What a batch counts besides its messages, in bytes: small ones are not free either.
const BATCH_COST: usize = 512;

/// Wakes the socket thread, from any thread.
pub(crate) type Ring = Arc<dyn Fn() + Send + Sync>;

/// What the writers have of all connections, in bytes.
pub(crate) type AllUnderWay = Arc<AtomicUsize>;

/// What the writers have of one connection.
pub(crate) struct InFlight {
    bytes: AtomicUsize,
    all: AllUnderWay,
    /// The connection is not read, and wants to be told when it may.
    starved: AtomicBool,
    ring: Ring,
}

impl InFlight {
    pub(crate) fn new(ring: Ring, all: AllUnderWay) -> Arc<InFlight> {
        Arc::new(InFlight { bytes: AtomicUsize::new(0), all, starved: AtomicBool::new(false), ring })
    }

    /// Whether more may be read. If not, the bell rings when it may.
    pub(crate) fn has_room(&self) -> bool {
        if self.bytes.load(Ordering::Relaxed) <= self.max(UNDER_WAY_MAX) {
            return true;
        }
        // Both sides first change one word and then look at the other, all in one order (SeqCst): either this look
        // sees the ticket given back that leaves LOW, or its owner sees `starved`.
        self.starved.store(true, Ordering::SeqCst);
        self.bytes.load(Ordering::SeqCst) <= self.max(UNDER_WAY_LOW)
    }

    /// Nothing, where all together have too much.
    fn max(&self, max: usize) -> usize {
        // Relaxed: a bound that need not be sharp.
        if self.all.load(Ordering::Relaxed) <= ALL_UNDER_WAY_MAX { max } else { 0 }
    }

    /// Counts a batch in, until the ticket is dropped. `len` is that of its messages, in bytes.
    pub(crate) fn ticket(self: &Arc<Self>, len: usize) -> Permit {
        let cost = BATCH_COST + len;
        self.bytes.fetch_add(cost, Ordering::Relaxed);
        self.all.fetch_add(cost, Ordering::Relaxed);
        Permit { under_way: Arc::clone(self), cost }
    }
}

/// One batch's share.
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
    fn the_bell_rings_once_when_enough_came_back() {
        let rings = Arc::new(AtomicUsize::new(0));
        let ring = Arc::clone(&rings);
        let under_way = InFlight::new(
            Arc::new(move || {
                ring.fetch_add(1, Ordering::Relaxed);
            }),
            AllUnderWay::default(),
        );
        let rung = || rings.load(Ordering::Relaxed);

        let quarter = || under_way.ticket(UNDER_WAY_MAX / 4);
        let mut tickets = vec![quarter(), quarter(), quarter()];
        assert!(under_way.has_room());
        tickets.push(quarter());
        assert!(!under_way.has_room(), "each costs a little more than its length");
        tickets.truncate(2);
        assert_eq!(rung(), 0);
        tickets.pop();
        assert_eq!(rung(), 1);
        assert!(under_way.has_room());
        tickets.clear();
        assert_eq!(rung(), 1);
    }

    #[test]
    fn one_long_message_may_exceed_the_limit() {
        let under_way = InFlight::new(Arc::new(|| {}), AllUnderWay::default());
        assert!(under_way.has_room());
        let ticket = under_way.ticket(UNDER_WAY_MAX * 4);
        assert!(!under_way.has_room());
        drop(ticket);
        assert!(under_way.has_room());
    }

    #[test]
    fn where_all_have_too_much_each_has_one_batch() {
        let (all, rings) = (AllUnderWay::default(), Arc::new(AtomicUsize::new(0)));
        let ring = Arc::clone(&rings);
        let ring: Ring = Arc::new(move || {
            ring.fetch_add(1, Ordering::Relaxed);
        });
        let (many, one) = (InFlight::new(Arc::clone(&ring), all.clone()), InFlight::new(ring, all));
        let parked = many.ticket(ALL_UNDER_WAY_MAX);
        assert!(one.has_room());
        let ticket = one.ticket(10);
        assert!(!one.has_room());
        drop(ticket);
        assert_eq!(rings.load(Ordering::Relaxed), 1);
        assert!(one.has_room());
        drop(parked);
        let _ticket = one.ticket(10);
        assert!(one.has_room());
    }
}
