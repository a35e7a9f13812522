//! The anchors of a timed channel's clock in the control file.
//!
//! The daemon is the only writer, and keeps its own list ([`Anchors`]). Readers copy the table ([`AnchorTable::read`]).
//!
//! ```text
//! daemon   version <- odd; release fence                 reader   v <- version (Acquire); odd: once more
//!          count <- what stays; release fence                     copy
//!          anchors behind it; count <- all (Release)              acquire fence; version is still v, or once more
//!          version <- even (Release)
//! ```
//!
//! V: a reader that copied a word of a change also sees the odd version, by the two fences; and one that sees the even
//! version sees the whole change. K: a daemon that dies in between leaves an odd version, and a count that only whole
//! anchors are below.
//!
//! The table is hostile input: other processes map it, too. So a reader takes the anchors that are in order.

use super::{ANCHORS_MAX, Pad};
use crate::clock::Anchor;
use crate::memory::sync::{AtomicU64, Ordering, fence};

/// Copies that a reader makes before it takes one that may be half changed.
const TRIES: usize = 64;

/// Anchors of a timed channel, as they lie in the control file.
#[derive(Debug)]
#[repr(C)]
pub struct AnchorTable {
    /// Odd while the daemon changes the table.
    version: AtomicU64,
    count: AtomicU64,
    reserved: Pad<48>,
    anchors: [AnchorWords; ANCHORS_MAX],
}

/// Words of one anchor.
#[derive(Debug, Default)]
#[repr(C)]
struct AnchorWords {
    ticks: AtomicU64,
    monotonic: AtomicU64,
    realtime: AtomicU64,
    boottime: AtomicU64,
    epoch: AtomicU64,
    reserved: Pad<24>,
}

impl Default for AnchorTable {
    fn default() -> AnchorTable {
        AnchorTable {
            version: AtomicU64::default(),
            count: AtomicU64::default(),
            reserved: Pad::default(),
            anchors: std::array::from_fn(|_| AnchorWords::default()),
        }
    }
}

impl AnchorTable {
    /// Returns the anchors, in order. Whatever is out of order is left out.
    /// If the daemon has died while it changed the table, these are the anchors that it did not change.
    pub fn read(&self) -> Vec<Anchor> {
        let whole = (0..TRIES).find_map(|_| {
            let copy = self.try_read();
            if copy.is_none() {
                std::hint::spin_loop();
            }
            copy
        });
        whole.unwrap_or_else(|| in_order(&self.copy()))
    }

    /// Returns the anchors in order, or `None` if the daemon is changing the table.
    pub fn try_read(&self) -> Option<Vec<Anchor>> {
        // V: Acquire, pairs with the Release behind a change.
        let version = self.version.load(Ordering::Acquire);
        if !version.is_multiple_of(2) {
            return None;
        }
        let copy = self.copy();
        // V: pairs with the fence before a change.
        fence(Ordering::Acquire);
        // Relaxed: the fence orders it.
        (self.version.load(Ordering::Relaxed) == version).then(|| in_order(&copy))
    }

    fn copy(&self) -> Vec<Anchor> {
        // K: Acquire, pairs with the Release of the count: the anchors below it are whole.
        let count = usize::try_from(self.count.load(Ordering::Acquire)).unwrap_or(ANCHORS_MAX);
        let mut copy: Vec<Anchor> =
            self.anchors[..count.min(ANCHORS_MAX)].iter().map(AnchorWords::get).collect();
        // K: pairs with the fence behind a lowered count. What was copied of a change came after the count was lowered.
        fence(Ordering::Acquire);
        let count = usize::try_from(self.count.load(Ordering::Relaxed)).unwrap_or(ANCHORS_MAX);
        copy.truncate(count);
        copy
    }

    /// Makes the table hold these anchors, at most as many as it has room for.
    fn publish(&self, anchors: &[Anchor]) {
        let kept =
            self.anchors.iter().zip(anchors).take_while(|(words, anchor)| words.get() == **anchor).count();
        // Relaxed: the daemon is the only writer. A predecessor may have died at an odd number.
        let odd = self.version.load(Ordering::Relaxed) | 1;
        self.version.store(odd, Ordering::Relaxed);
        // V: pairs with the reader's fence. The words below are not seen before the odd number.
        fence(Ordering::Release);
        // K: the anchors that stay, until the others are whole again.
        self.count.store(kept as u64, Ordering::Relaxed);
        fence(Ordering::Release);
        for (words, anchor) in self.anchors.iter().zip(anchors).skip(kept) {
            words.set(anchor);
        }
        // K: Release, pairs with Acquire in `copy`.
        self.count.store(anchors.len().min(ANCHORS_MAX) as u64, Ordering::Release);
        // V: Release, pairs with Acquire in `try_read`.
        self.version.store(odd.wrapping_add(1), Ordering::Release);
    }
}

impl AnchorWords {
    // Relaxed, everywhere: V and K order the words.
    fn get(&self) -> Anchor {
        Anchor {
            ticks: self.ticks.load(Ordering::Relaxed),
            monotonic: self.monotonic.load(Ordering::Relaxed),
            realtime: self.realtime.load(Ordering::Relaxed),
            boottime: self.boottime.load(Ordering::Relaxed),
            epoch: self.epoch.load(Ordering::Relaxed),
        }
    }

    fn set(&self, anchor: &Anchor) {
        self.ticks.store(anchor.ticks, Ordering::Relaxed);
        self.monotonic.store(anchor.monotonic, Ordering::Relaxed);
        self.realtime.store(anchor.realtime, Ordering::Relaxed);
        self.boottime.store(anchor.boottime, Ordering::Relaxed);
        self.epoch.store(anchor.epoch, Ordering::Relaxed);
    }
}

/// The anchors that the daemon has taken for a channel. The table in the control file is made equal to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchors {
    list: Vec<Anchor>,
}

impl Anchors {
    /// Returns the anchors in a table that an earlier daemon left, as far as they are in order.
    pub fn resume(table: &AnchorTable) -> Anchors {
        Anchors { list: table.read() }
    }

    /// Returns the anchors, oldest first.
    pub fn as_slice(&self) -> &[Anchor] {
        &self.list
    }

    /// Adds an anchor, and makes the table equal to the list. Thins the list first if it is full.
    /// False, and nothing is changed, if the anchor does not follow the last one; then it needs a new epoch.
    pub fn add(&mut self, table: &AnchorTable, anchor: Anchor) -> bool {
        if self.list.last().is_some_and(|last| !follows(last, &anchor)) {
            return false;
        }
        if self.list.len() >= ANCHORS_MAX {
            thin(&mut self.list);
        }
        self.list.push(anchor);
        table.publish(&self.list);
        true
    }

    /// Replaces the last anchor by a later one of its epoch.
    /// False, and nothing is changed, if there is none, or if the anchor does not follow it.
    pub fn replace_last(&mut self, table: &AnchorTable, anchor: Anchor) -> bool {
        let Some(last) = self.list.last_mut().filter(|last| last.epoch == anchor.epoch) else { return false };
        if !follows(last, &anchor) {
            return false;
        }
        *last = anchor;
        table.publish(&self.list);
        true
    }
}

/// Drops every other anchor of the older half, except those that begin an epoch.
/// If all of them do, they are dropped like others, since the next one needs a place.
fn thin(list: &mut Vec<Anchor>) {
    let half = list.len() / 2;
    let begins = |at: usize| at == 0 || list[at - 1].epoch != list[at].epoch;
    let mut keep: Vec<bool> =
        (0..list.len()).map(|at| at >= half || at.is_multiple_of(2) || begins(at)).collect();
    if keep.iter().all(|keep| *keep) {
        keep = (0..list.len()).map(|at| at >= half || !at.is_multiple_of(2)).collect();
    }
    let mut keep = keep.into_iter();
    list.retain(|_| keep.next().unwrap_or(true));
}

/// Returns whether an anchor can come behind another one: a later moment, or a later epoch.
fn follows(last: &Anchor, next: &Anchor) -> bool {
    next.epoch > last.epoch
        || next.epoch == last.epoch && next.ticks > last.ticks && next.monotonic >= last.monotonic
}

/// Returns the anchors that come behind each other.
fn in_order(anchors: &[Anchor]) -> Vec<Anchor> {
    let mut sound: Vec<Anchor> = Vec::with_capacity(anchors.len());
    for anchor in anchors {
        if sound.last().is_none_or(|last| follows(last, anchor)) {
            sound.push(*anchor);
        }
    }
    sound
}

// loom's atomics are larger, so layouts are asserted outside models only.
#[cfg(not(loom))]
const _: () = {
    use std::mem::offset_of;

    assert!(offset_of!(AnchorTable, version) == 0);
    assert!(offset_of!(AnchorTable, count) == 8);
    assert!(offset_of!(AnchorTable, anchors) == 64);
    assert!(size_of::<AnchorTable>() == 64 + 128 * 64);
    assert!(size_of::<AnchorWords>() == 64);
    assert!(offset_of!(AnchorWords, ticks) == 0);
    assert!(offset_of!(AnchorWords, monotonic) == 8);
    assert!(offset_of!(AnchorWords, realtime) == 16);
    assert!(offset_of!(AnchorWords, boottime) == 24);
    assert!(offset_of!(AnchorWords, epoch) == 32);
};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn anchor(ticks: u64, epoch: u64) -> Anchor {
        Anchor { ticks, monotonic: ticks + 1, realtime: ticks + 2, boottime: ticks + 3, epoch }
    }

    fn ticks(anchors: &[Anchor]) -> Vec<u64> {
        anchors.iter().map(|anchor| anchor.ticks).collect()
    }

    #[test]
    fn table_has_what_was_added_and_the_next_daemon_continues() {
        let (table, mut anchors) = (AnchorTable::default(), Anchors::default());
        assert_eq!(table.read(), []);
        for n in 0..5 {
            assert!(anchors.add(&table, anchor(n * 10, n / 3)));
        }
        assert_eq!(table.read(), anchors.as_slice());
        assert_eq!(Anchors::resume(&table), anchors);
        // The same moment, and an earlier one, need a new epoch.
        assert!(!anchors.add(&table, anchor(40, 1)) && !anchors.add(&table, anchor(39, 1)));
        assert!(!anchors.add(&table, anchor(50, 0)));
        assert_eq!(ticks(&table.read()), [0, 10, 20, 30, 40]);
        assert!(anchors.add(&table, anchor(7, 2)));
        assert_eq!(ticks(&table.read()), [0, 10, 20, 30, 40, 7]);
    }

    #[test]
    fn last_anchor_is_replaced_by_a_later_one_of_its_epoch() {
        let (table, mut anchors) = (AnchorTable::default(), Anchors::default());
        assert!(!anchors.replace_last(&table, anchor(5, 0)), "there is none");
        assert!(anchors.add(&table, anchor(10, 0)) && anchors.add(&table, anchor(20, 0)));
        assert!(anchors.replace_last(&table, anchor(30, 0)));
        assert!(!anchors.replace_last(&table, anchor(30, 0)) && !anchors.replace_last(&table, anchor(40, 1)));
        assert_eq!(ticks(&table.read()), [10, 30]);
        assert_eq!(table.read(), anchors.as_slice());
    }

    #[test]
    fn full_table_loses_every_other_old_anchor_that_begins_no_epoch() {
        let (table, mut anchors) = (AnchorTable::default(), Anchors::default());
        for n in 0..=ANCHORS_MAX as u64 {
            assert!(anchors.add(&table, anchor(n, u64::from(n >= 33))));
        }
        let mut expected: Vec<u64> = (0..64u64).filter(|n| n.is_multiple_of(2) || *n == 33).collect();
        expected.extend(64..=128);
        assert_eq!((ticks(anchors.as_slice()), table.read()), (expected, anchors.as_slice().to_vec()));
        for n in 129..100_000 {
            assert!(anchors.add(&table, anchor(n, 1)));
        }
        assert_eq!(table.read(), anchors.as_slice());
        assert_eq!(ticks(&anchors.as_slice()[..1]), [0]);
        assert!(anchors.as_slice().iter().any(|anchor| anchor.ticks == 33), "it begins an epoch");
    }

    #[test]
    fn full_table_of_epochs_takes_further_ones() {
        let (table, mut anchors) = (AnchorTable::default(), Anchors::default());
        for n in 0..1000 {
            assert!(anchors.add(&table, anchor(5, n)));
        }
        assert_eq!(table.read(), anchors.as_slice());
        assert_eq!(table.read().last().map(|anchor| anchor.epoch), Some(999));
    }

    #[test]
    fn hostile_words_are_clamped_left_out_and_mended() {
        let (table, mut anchors) = (AnchorTable::default(), Anchors::default());
        (1..=5).for_each(|n| assert!(anchors.add(&table, anchor(n * 10, 0))));
        table.anchors[1].ticks.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(ticks(&table.read()), [10, u64::MAX]);
        table.anchors[1].ticks.store(5, Ordering::Relaxed);
        assert_eq!(ticks(&table.read()), [10, 30, 40, 50]);
        table.count.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(ticks(&table.read()), [10, 30, 40, 50]);
        table.version.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(table.try_read(), None);
        assert_eq!(ticks(&table.read()), [10, 30, 40, 50], "an odd version for ever");
        // The daemon's list is its own.
        assert!(anchors.add(&table, anchor(60, 0)));
        assert_eq!(ticks(&table.try_read().unwrap()), [10, 20, 30, 40, 50, 60]);
        table.count.store(0, Ordering::Relaxed);
        assert!(anchors.add(&table, anchor(70, 0)));
        assert_eq!(ticks(&table.read()), [10, 20, 30, 40, 50, 60, 70]);
    }
}
