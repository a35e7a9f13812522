//! The buffers of all connections of a channel, for writers.
//!
//! Writers find the latest by loads alone, without a lock or a reference count. So threads on all CPUs and signal
//! handlers can look at any time. The price is that none are freed before the channel. Those of an ended connection
//! stay, retired, see [`DirectBuffers::retire`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use once_cell::race::OnceBox;

use crate::direct::buffers::DirectBuffers;

/// Number of buckets.
/// Each has twice the places of the one before, and the first has one. After a million connections all are taken, and
/// further connections use the socket only.
const BUCKETS: usize = 20;

type Bucket = Box<[OnceBox<Arc<DirectBuffers>>]>;

/// The buffers of each connection that brought some.
#[derive(Debug)]
pub(crate) struct Generations {
    /// The buffers of the first connection, or a placeholder. Most channels never have others.
    first: Arc<DirectBuffers>,
    /// Number of later buffers. Never decreases.
    n_later: AtomicUsize,
    later: [OnceBox<Bucket>; BUCKETS],
}

impl Generations {
    pub(crate) fn new(first: Option<&Arc<DirectBuffers>>) -> Generations {
        let first = first.map_or_else(|| Arc::new(DirectBuffers::none()), Arc::clone);
        Generations { first, n_later: AtomicUsize::new(0), later: [const { OnceBox::new() }; BUCKETS] }
    }

    /// Returns the first buffers. If writing there has ended, [`Self::later`] has newer ones.
    pub(crate) fn first(&self) -> &Arc<DirectBuffers> {
        &self.first
    }

    /// Returns the newest buffers after the first, unless writing there has ended too.
    pub(crate) fn later(&self) -> Option<&DirectBuffers> {
        // Acquire: a thread that sees the number finds the place filled.
        let (bucket, at) = place(self.n_later.load(Ordering::Acquire))?;
        let shared = self.later.get(bucket)?.get()?.get(at)?.get()?;
        (!shared.is_over()).then_some(shared)
    }

    /// Adds the buffers of a new connection. False: no place is left.
    /// Only one thread may call it at a time.
    pub(crate) fn push(&self, shared: &Arc<DirectBuffers>) -> bool {
        // Relaxed: only callers of this function change it.
        let number = self.n_later.load(Ordering::Relaxed) + 1;
        let Some((bucket, at)) = place(number).filter(|(bucket, _)| *bucket < BUCKETS) else { return false };
        let empty = || Box::new((0..1 << bucket).map(|_| OnceBox::new()).collect());
        let is_new = self.later[bucket].get_or_init(empty)[at].set(Box::new(Arc::clone(shared))).is_ok();
        debug_assert!(is_new, "places are taken in turn");
        self.n_later.store(number, Ordering::Release);
        is_new
    }
}

/// Returns bucket and place of the `number`th, counted from 1.
fn place(number: usize) -> Option<(usize, usize)> {
    let bucket = number.checked_ilog2()? as usize;
    Some((bucket, number - (1 << bucket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_another_place() {
        assert_eq!(place(0), None);
        assert_eq!(
            [1, 2, 3, 4, 7, 8].map(|n| place(n).unwrap()),
            [(0, 0), (1, 0), (1, 1), (2, 0), (2, 3), (3, 0)]
        );
    }
}
