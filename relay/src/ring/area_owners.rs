//! The owners of areas for restartable sequences: one word for each area.
//!
//! A thread takes a free area for as long as it lives, and nothing that it does at its end gives the area back. Another
//! thread that needs one asks the kernel which owners have ended. The memory of the words is zero in a forked child.
//! One of the areas there is that of the thread that forked, and only that thread knows which. So no thread takes an
//! area whose word is zero, until the thread that forked has adopted its own and freed the others.
//!
//! Two orderings, defended by the models in `tests/models/areas.rs`:
//!
//! - K - L: a word becomes free: Release. A thread takes the area: Acquire. What the last owner stored to the area comes
//!   before what the next one stores.

use crate::memory::sync::{AtomicU64, Ordering};

/// Bits of a thread's id. Linux gives no thread a longer one (PID_MAX_LIMIT).
const TID_BITS: u32 = 22;

/// The word of an owner: the thread's id, and the number of its claim.
///
/// No two claims have the same number. So a word that was looked at is still the same claim's if it is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u64);

impl Owner {
    /// An area that was in the process's memory when it was forked.
    pub const OF_PARENT: Owner = Owner(0);
    /// An area of no thread.
    pub const FREE: Owner = Owner(1);

    /// Returns the word of a claim, counted from 1. `None`: the id is not one of a thread.
    pub fn new(tid: u32, claim: u64) -> Option<Owner> {
        let is_thread = tid != 0 && tid >> TID_BITS == 0;
        (is_thread && claim != 0).then_some(Owner(claim << TID_BITS | u64::from(tid)))
    }

    /// Returns the thread; `None` if the area is of none, or of one before a fork.
    pub fn tid(self) -> Option<u32> {
        let tid = self.0 & ((1 << TID_BITS) - 1);
        (self.0 >> TID_BITS != 0).then_some(tid as u32)
    }

    /// Returns the word that is in memory.
    pub fn of(word: &AtomicU64) -> Owner {
        // Relaxed: a thread asks for its own area, whose word it has stored, or which is zero since it forked.
        Owner(word.load(Ordering::Relaxed))
    }
}

/// The owners of some areas.
#[derive(Clone, Copy, Debug)]
pub struct Owners<'a>(&'a [AtomicU64]);

impl<'a> Owners<'a> {
    /// Wraps the words of areas.
    pub fn new(words: &'a [AtomicU64]) -> Owners<'a> {
        Owners(words)
    }

    /// Makes all areas free that no other thread knows yet.
    pub fn free_all(self) {
        // Relaxed: the address of the words is released to other threads later.
        self.0.iter().for_each(|word| word.store(Owner::FREE.0, Ordering::Relaxed));
    }

    /// Takes a free area for `owner`, and returns its number. The search begins at area `from`.
    pub fn take(self, from: usize, owner: Owner) -> Option<usize> {
        let from = from.min(self.0.len());
        (from..self.0.len()).chain(0..from).find(|at| {
            let word = &self.0[*at];
            // Relaxed: the exchange decides. L, pairs with K.
            word.load(Ordering::Relaxed) == Owner::FREE.0
                && word.compare_exchange(Owner::FREE.0, owner.0, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })
    }

    /// Gives back an area that the caller has taken.
    pub fn give_back(self, at: usize) {
        // K, pairs with L.
        self.0[at].store(Owner::FREE.0, Ordering::Release);
    }

    /// Frees the areas whose threads have ended, and returns how many are free now, or were at least for a moment.
    /// `has_ended` says so only after the last store of the thread, and of the kernel for it.
    pub fn free_ended(self, mut has_ended: impl FnMut(u32) -> bool) -> usize {
        let is_free = |word: &&AtomicU64| {
            // Relaxed: `has_ended` orders what the thread did.
            let owner = Owner(word.load(Ordering::Relaxed));
            if owner.tid().is_some_and(&mut has_ended) {
                // K, pairs with L. It fails if another thread has freed the area meanwhile, perhaps for a new owner.
                let _ = word.compare_exchange(owner.0, Owner::FREE.0, Ordering::Release, Ordering::Relaxed);
                return true;
            }
            owner == Owner::FREE
        };
        self.0.iter().filter(is_free).count()
    }

    /// Frees the areas of threads before a fork. The caller has adopted its own.
    pub fn free_of_parent(self) {
        for word in self.0 {
            // K, pairs with L. Relaxed: no other thread changes a word that is zero.
            let _ = word.compare_exchange(
                Owner::OF_PARENT.0,
                Owner::FREE.0,
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
    }
}

/// Keeps the caller's area after a fork, as `owner`.
pub fn adopt(word: &AtomicU64, owner: Owner) {
    // Relaxed: only the caller knows that the area is its own, and nothing but its end frees it.
    word.store(owner.0, Ordering::Relaxed);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn words(n: usize) -> Vec<AtomicU64> {
        (0..n).map(|_| AtomicU64::new(0)).collect()
    }

    fn owner(tid: u32, claim: u64) -> Owner {
        Owner::new(tid, claim).unwrap()
    }

    #[test]
    fn word_has_thread_and_claim() {
        assert_eq!(owner((1 << 22) - 1, 1).tid(), Some((1 << 22) - 1));
        assert_eq!(owner(1, (1 << 42) - 1).tid(), Some(1));
        assert_eq!([Owner::FREE.tid(), Owner::OF_PARENT.tid()], [None, None]);
        assert_eq!([Owner::new(0, 1), Owner::new(1 << 22, 1), Owner::new(1, 0)], [None; 3]);
        assert_ne!(owner(7, 1), owner(7, 2));
    }

    #[test]
    fn each_area_is_taken_once_until_its_thread_has_ended() {
        let words = words(3);
        let owners = Owners::new(&words);
        assert_eq!(owners.take(0, owner(10, 1)), None, "of a parent, perhaps in use");
        owners.free_all();
        assert_eq!(owners.take(2, owner(10, 1)), Some(2));
        assert_eq!(owners.take(2, owner(11, 2)), Some(0));
        assert_eq!(owners.take(9, owner(12, 3)), Some(1));
        assert_eq!(owners.take(0, owner(13, 4)), None);
        let mut asked = Vec::new();
        let ended = owners.free_ended(|tid| {
            asked.push(tid);
            tid == 12
        });
        assert_eq!((ended, asked), (1, vec![11, 12, 10]));
        assert_eq!(owners.free_ended(|_| false), 1, "what another thread has freed counts");
        assert_eq!(owners.take(0, owner(13, 4)), Some(1));
        assert_eq!(owners.free_ended(|_| false), 0);
        owners.give_back(0);
        assert_eq!(owners.take(1, owner(14, 5)), Some(0));
    }

    #[test]
    fn area_is_not_freed_for_a_thread_that_has_got_the_same_id() {
        let words = words(1);
        let owners = Owners::new(&words);
        owners.free_all();
        owners.take(0, owner(10, 1)).unwrap();
        // While the caller asks, another thread frees the area, and a new thread 10 takes it.
        let freed = owners.free_ended(|_| {
            owners.give_back(0);
            owners.take(0, owner(10, 2)).is_some()
        });
        assert_eq!((freed, Owner::of(&words[0])), (1, owner(10, 2)), "free for a moment");
    }

    #[test]
    fn forked_child_keeps_one_area_and_frees_the_others() {
        let words = words(3);
        let owners = Owners::new(&words);
        // As a fork leaves them, with an area that the child's other thread took before the first wrote.
        adopt(&words[2], owner(20, 5));
        adopt(&words[1], owner(19, 6));
        owners.free_of_parent();
        assert_eq!(
            words.iter().map(Owner::of).collect::<Vec<_>>(),
            [Owner::FREE, owner(19, 6), owner(20, 5)]
        );
    }
}
