//! What there is only so much of, divided among users: nobody uses up what others need.
//!
//! A user may have as much as is left: one alone gets half of all, two get a third each, and whoever comes next finds some.
//! Root and the daemon's own user, who could end the daemon at any time, may have all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::geteuid;

/// Whether a user may do with the daemon whatever he likes anyway.
pub(crate) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Whether somebody who has `own` of `max` may have `more`, of which `used` are in use by all.
pub(crate) fn admits(uid: u32, own: u64, used: u64, max: u64, more: u64) -> Result<(), QuotaExceeded> {
    let free = max.saturating_sub(used);
    if more > free {
        return Err(QuotaExceeded::All);
    }
    // What is left afterwards counts; but the last one goes to who has none.
    if !is_trusted(uid) && own + more > free - more + 1 {
        return Err(QuotaExceeded::Yours);
    }
    Ok(())
}

/// Why somebody gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaExceeded {
    /// There is none left.
    All,
    /// He has as much as is left for others.
    Yours,
}

/// How much is in use, and by whom.
pub(crate) struct Quota {
    max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    used: usize,
    /// Without those who have nothing.
    by_uid: HashMap<u32, usize>,
}

impl Quota {
    /// `max` of something, all of it free.
    pub(crate) fn new(max: usize) -> Arc<Quota> {
        Arc::new(Quota { max, table: Mutex::default() })
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Returns how much is in use, by all users.
    pub(crate) fn used(&self) -> usize {
        self.lock().used
    }

    /// A claim of a user's to nothing yet.
    pub(crate) fn begin(self: &Arc<Self>, uid: u32) -> Reservation {
        Reservation { shares: Arc::clone(self), uid, n: 0 }
    }

    /// Takes `n` for a user, until the claim is dropped.
    pub(crate) fn claim(self: &Arc<Self>, uid: u32, n: usize) -> Result<Reservation, QuotaExceeded> {
        let mut claim = self.begin(uid);
        claim.grow(n)?;
        Ok(claim)
    }

    /// Like [`Quota::claim`], as if `freed` of what is in use were free already: the caller is about to free that.
    pub(crate) fn claim_replacing(
        self: &Arc<Self>,
        uid: u32,
        n: usize,
        freed: usize,
    ) -> Result<Reservation, QuotaExceeded> {
        let mut claim = self.begin(uid);
        claim.grow_if_freed(n, freed)?;
        Ok(claim)
    }

    /// Like [`Quota::claim`], even if that exceeds the maximum: for what is in use already.
    pub(crate) fn claim_anyway(self: &Arc<Self>, uid: u32, n: usize) -> Reservation {
        let mut claim = self.begin(uid);
        claim.add(&mut self.lock(), n);
        claim
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody's part, given back when dropped.
pub(crate) struct Reservation {
    shares: Arc<Quota>,
    uid: u32,
    n: usize,
}

impl Reservation {
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// Takes `n` more, or nothing.
    pub(crate) fn grow(&mut self, n: usize) -> Result<(), QuotaExceeded> {
        self.grow_if_freed(n, 0)
    }

    fn grow_if_freed(&mut self, n: usize, freed: usize) -> Result<(), QuotaExceeded> {
        let shares = Arc::clone(&self.shares);
        let mut table = shares.lock();
        let own = table.by_uid.get(&self.uid).copied().unwrap_or(0);
        let used = table.used.saturating_sub(freed);
        admits(self.uid, own as u64, used as u64, shares.max as u64, n as u64)?;
        self.add(&mut table, n);
        Ok(())
    }

    fn add(&mut self, table: &mut Table, n: usize) {
        table.used += n;
        *table.by_uid.entry(self.uid).or_default() += n;
        self.n += n;
    }

    /// Gives back what is beyond `n`.
    pub(crate) fn shrink(&mut self, n: usize) {
        let more = self.n.saturating_sub(n);
        self.n -= more;
        let mut table = self.shares.lock();
        table.used -= more;
        if let Some(own) = table.by_uid.get_mut(&self.uid) {
            *own -= more;
            if *own == 0 {
                table.by_uid.remove(&self.uid);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody runs tests as these.
    const A: u32 = 4_000_000_001;
    const B: u32 = 4_000_000_002;
    const C: u32 = 4_000_000_003;

    fn take(shares: &Arc<Quota>, uid: u32) -> Vec<Reservation> {
        std::iter::from_fn(|| shares.claim(uid, 1).ok()).collect()
    }

    #[test]
    fn whoever_comes_next_finds_some() {
        let shares = Quota::new(12);
        let of_a = take(&shares, A);
        assert_eq!(of_a.len(), 6);
        assert_eq!(shares.claim(A, 1).err(), Some(QuotaExceeded::Yours));
        let of_b = take(&shares, B);
        assert_eq!(of_b.len(), 3);
        assert_eq!(take(&shares, C).len(), 2);
        drop(of_a);
        assert_eq!(take(&shares, C).len(), 5);
        drop(of_b);
        let table = shares.lock();
        assert_eq!((table.used, table.by_uid.len()), (0, 0));
    }

    #[test]
    fn root_may_have_all() {
        let shares = Quota::new(12);
        let of_a = take(&shares, A);
        assert_eq!(take(&shares, 0).len(), 6);
        let mut all = take(&shares, 0);
        assert_eq!(shares.claim(0, 7).err(), Some(QuotaExceeded::All));
        drop(of_a);
        all.extend(take(&shares, 0));
        assert_eq!((all.len(), shares.claim(A, 1).err()), (12, Some(QuotaExceeded::All)));
    }

    #[test]
    fn a_claim_grows_as_far_as_one_could_be_made() {
        let shares = Quota::new(12);
        let mut claim = shares.claim(A, 4).unwrap();
        assert_eq!(claim.grow(3), Err(QuotaExceeded::Yours));
        assert_eq!((claim.len(), claim.grow(2), claim.len()), (4, Ok(()), 6));
    }

    #[test]
    fn shrunk_reservation_leaves_the_rest_to_others() {
        let shares = Quota::new(12);
        let mut reservation = shares.claim(0, 12).unwrap();
        reservation.shrink(20);
        assert_eq!((reservation.len(), shares.used()), (12, 12));
        reservation.shrink(5);
        assert_eq!((reservation.len(), shares.used()), (5, 5));
        assert_eq!(shares.claim(0, 8).err(), Some(QuotaExceeded::All));
        let rest = shares.claim(0, 7).unwrap();
        drop((reservation, rest));
        assert_eq!(shares.used(), 0);
    }

    #[test]
    fn successor_may_have_what_its_predecessor_frees() {
        let shares = Quota::new(12);
        let old = shares.claim_anyway(0, 20);
        assert_eq!(shares.claim_replacing(0, 1, 8).err(), Some(QuotaExceeded::All));
        let new = shares.claim_replacing(0, 12, old.len()).unwrap();
        drop(old);
        assert_eq!((new.len(), shares.used()), (12, 12));
    }
}
