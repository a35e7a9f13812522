//! Where writers find the buffers of the latest connection: by loads alone, no lock and no reference count, so that
//! threads on all CPUs and signal handlers can look at any time. The price is that none are freed before the channel:
//! those of a connection that is over stay, retired, see [`DirectBuffers::retire`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::direct::buffers::DirectBuffers;

/// Each bucket has twice the places of the one before, the first has one. When all are taken, it is the socket for
/// ever: after a million connections.
const BUCKETS: usize = 20;

type Bucket = Box<[OnceLock<Arc<DirectBuffers>>]>;

/// The buffers of each connection that brought some.
#[derive(Debug)]
pub(crate) struct Generations {
    /// Those of the first connection, where most channels ever look, or what stands for them.
    first: Arc<DirectBuffers>,
    /// How many came later. Never decreases.
    n_later: AtomicUsize,
    later: [OnceLock<Bucket>; BUCKETS],
}

impl Generations {
    pub(crate) fn new(first: Option<&Arc<DirectBuffers>>) -> Generations {
        let first = first.map_or_else(|| Arc::new(DirectBuffers::none()), Arc::clone);
        Generations { first, n_later: AtomicUsize::new(0), later: [const { OnceLock::new() }; BUCKETS] }
    }

    /// The first buffers. They may be over; then [`Self::later`] has newer ones.
    pub(crate) fn first(&self) -> &Arc<DirectBuffers> {
        &self.first
    }

    /// The newest buffers but for the first, unless they are over too.
    pub(crate) fn later(&self) -> Option<&DirectBuffers> {
        // Acquire: who sees the number finds the place taken.
        let (bucket, at) = place(self.n_later.load(Ordering::Acquire))?;
        let shared = self.later.get(bucket)?.get()?.get(at)?.get()?;
        (!shared.is_over()).then_some(shared)
    }

    /// Adds the buffers of a new connection. To be called by one thread at a time; false: there is no place left.
    pub(crate) fn push(&self, shared: &Arc<DirectBuffers>) -> bool {
        // Relaxed: only whoever may push has changed it.
        let number = self.n_later.load(Ordering::Relaxed) + 1;
        let Some((bucket, at)) = place(number).filter(|(bucket, _)| *bucket < BUCKETS) else { return false };
        let places = self.later[bucket].get_or_init(|| (0..1 << bucket).map(|_| OnceLock::new()).collect());
        let is_new = places[at].set(Arc::clone(shared)).is_ok();
        debug_assert!(is_new, "places are taken in turn");
        self.n_later.store(number, Ordering::Release);
        is_new
    }
}

/// Bucket and place of the `number`th, counted from 1.
fn place(number: usize) -> Option<(usize, usize)> {
    let bucket = number.checked_ilog2()? as usize;
    Some((bucket, number - (1 << bucket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own() {
        assert_eq!(place(0), None);
        assert_eq!(
            [1, 2, 3, 4, 7, 8].map(|n| place(n).unwrap()),
            [(0, 0), (1, 0), (1, 1), (2, 0), (2, 3), (3, 0)]
        );
    }
}
