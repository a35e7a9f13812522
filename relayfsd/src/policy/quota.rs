//! Per-user quotas for limited resources.
//!
//! A user may have as much as is left for others: a single user gets half of all, two users get a third each, and the
//! next user still finds some. Root and the daemon's own user may have all: they could end the daemon at any time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::geteuid;

/// Returns whether a user could end the daemon anyway: root, or the daemon's own user.
pub(crate) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Checks whether a user with `own` of `max` may have `more`. All users together have `used`.
pub(crate) fn admits(uid: u32, own: u64, used: u64, max: u64, more: u64) -> Result<(), QuotaExceeded> {
    let free = max.saturating_sub(used);
    if more > free {
        return Err(QuotaExceeded::All);
    }
    // The part that is left afterwards counts. The last single one goes to a user without any.
    if !is_trusted(uid) && own + more > free - more + 1 {
        return Err(QuotaExceeded::Yours);
    }
    Ok(())
}

/// Says what to do when the daemon's memory for channels and their copies is used up.
pub(crate) const USED_UP: &str = "all of --max-memory is in use; raise it";

/// Why a user gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaExceeded {
    /// Not enough is left.
    All,
    /// The user has as much as is left for others.
    Yours,
}

/// A limited resource: its maximum, and how much each user has.
pub(crate) struct Quota {
    max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    used: usize,
    /// The users that have some.
    by_uid: HashMap<u32, usize>,
}

impl Quota {
    /// Creates a quota of `max`, all of it free.
    pub(crate) fn new(max: usize) -> Arc<Quota> {
        Arc::new(Quota { max, table: Mutex::default() })
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Returns how much all users have together.
    pub(crate) fn used(&self) -> usize {
        self.lock().used
    }

    /// Returns an empty reservation of a user.
    pub(crate) fn begin(self: &Arc<Self>, uid: u32) -> Reservation {
        Reservation { shares: Arc::clone(self), uid, n: 0 }
    }

    /// Reserves `n` for a user, until the reservation is dropped.
    pub(crate) fn claim(self: &Arc<Self>, uid: u32, n: usize) -> Result<Reservation, QuotaExceeded> {
        let mut claim = self.begin(uid);
        claim.grow(n)?;
        Ok(claim)
    }

    /// Like [`Quota::claim`], but counts `freed` as free already: the caller frees it soon.
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

    /// Like [`Quota::claim`], even beyond the maximum: for resources that are in use already.
    pub(crate) fn claim_anyway(self: &Arc<Self>, uid: u32, n: usize) -> Reservation {
        let mut claim = self.begin(uid);
        claim.add(&mut self.lock(), n);
        claim
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A user's part of a quota, given back when dropped.
pub(crate) struct Reservation {
    shares: Arc<Quota>,
    uid: u32,
    n: usize,
}

impl Reservation {
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// Reserves `n` more, or nothing.
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

    /// Gives back the part beyond `n`.
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

    /// No user runs tests with these numbers.
    const A: u32 = 4_000_000_001;
    const B: u32 = 4_000_000_002;
    const C: u32 = 4_000_000_003;

    fn take(shares: &Arc<Quota>, uid: u32) -> Vec<Reservation> {
        std::iter::from_fn(|| shares.claim(uid, 1).ok()).collect()
    }

    #[test]
    fn next_user_still_finds_some() {
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
    fn reservation_grows_up_to_the_users_quota() {
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
