//! Keeps a timed channel's anchors: takes them, and finds out when a clock epoch begins.
//!
//! Anchors that stay are at least [`APART_MIN`] apart. The last one is replaced until it is, so that many looks at the
//! clocks do not use up the table.

use std::time::{Duration, Instant};

use relay::clock::{Anchor, Clock};
use relay::layout::abi::{AnchorTable, Anchors};
use relay::trace::event::Reason;

/// Shortest time between two anchors that stay, in nanoseconds.
const APART_MIN: u64 = 900_000_000;
/// How far the rates of two clocks may be apart, in millionths, and how inexact one look may be, in nanoseconds.
const RATE_MAX: u64 = 500;
const LOOK_MAX: u64 = 1_000_000;
/// Shortest time between two looks at the kernel's clock source, which read a small file.
const SOURCE_INTERVAL: Duration = Duration::from_secs(1);
const NANOSECONDS: u128 = 1_000_000_000;

/// The anchors of a channel.
#[derive(Debug)]
pub(super) struct Keeper {
    clock: Clock,
    ticks_per_second: u64,
    anchors: Anchors,
    /// The clock for a new channel as last chosen, and when that was.
    source: (Clock, Instant),
}

impl Keeper {
    /// Continues with these anchors.
    pub(super) fn new(clock: Clock, ticks_per_second: u64, anchors: Anchors) -> Keeper {
        Keeper { clock, ticks_per_second, anchors, source: (Clock::choose(), Instant::now()) }
    }

    /// Takes an anchor now. Returns it with the reason if a clock epoch begins with it.
    pub(super) fn take(&mut self, table: &AnchorTable) -> Option<(Anchor, Reason)> {
        let anchor = Anchor::take(self.clock);
        let changed = self.source_changed();
        self.add(table, anchor, changed)
    }

    /// Returns the anchors so far.
    pub(super) fn anchors(&self) -> &[Anchor] {
        self.anchors.as_slice()
    }

    fn source_changed(&mut self) -> bool {
        if self.source.1.elapsed() < SOURCE_INTERVAL {
            return false;
        }
        let before = std::mem::replace(&mut self.source, (Clock::choose(), Instant::now())).0;
        before != self.source.0
    }

    fn add(&mut self, table: &AnchorTable, mut anchor: Anchor, changed: bool) -> Option<(Anchor, Reason)> {
        let [.., last] = *self.anchors.as_slice() else {
            self.anchors.add(table, anchor);
            return None;
        };
        let reason = step(&last, &anchor, self.ticks_per_second).or(changed.then_some(Reason::Source));
        anchor.epoch = last.epoch.saturating_add(u64::from(reason.is_some()));
        let is_close = |before: &Anchor| {
            before.epoch == last.epoch && last.monotonic.saturating_sub(before.monotonic) < APART_MIN
        };
        match self.anchors.as_slice() {
            [.., before, _] if reason.is_none() && is_close(before) => {
                self.anchors.replace_last(table, anchor)
            }
            _ => self.anchors.add(table, anchor),
        };
        reason.map(|reason| (anchor, reason))
    }
}

/// Returns why a clock epoch begins with `now`, if one does.
fn step(before: &Anchor, now: &Anchor, ticks_per_second: u64) -> Option<Reason> {
    let monotonic = now.monotonic.checked_sub(before.monotonic);
    let Some(passed) = monotonic.filter(|_| now.ticks >= before.ticks) else { return Some(Reason::Source) };
    let ticks = u128::from(now.ticks - before.ticks);
    let by_ticks =
        u64::try_from(ticks * NANOSECONDS / u128::from(ticks_per_second.max(1))).unwrap_or(u64::MAX);
    let may_differ = passed / 1_000_000 * RATE_MAX + LOOK_MAX;
    let differs = |other: i128| (other - i128::from(passed)).unsigned_abs() > u128::from(may_differ);
    let difference = |now: u64, before: u64| i128::from(now) - i128::from(before);
    if differs(difference(now.boottime, before.boottime)) {
        // First: the processor's counter may count while the machine sleeps, and CLOCK_MONOTONIC does not.
        Some(Reason::Suspend)
    } else if differs(i128::from(by_ticks)) {
        Some(Reason::Source)
    } else if differs(difference(now.realtime, before.realtime)) {
        Some(Reason::Step)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use relay::layout::abi::ANCHORS_MAX;

    use super::*;

    const RATE: u64 = 3_000_000_000;

    /// An anchor some nanoseconds after the begin, by clocks that agree.
    fn at(passed: u64) -> Anchor {
        Anchor {
            ticks: 5 + passed * 3,
            monotonic: 7 + passed,
            realtime: 10_000_000_000_000_000 + passed,
            boottime: 9 + passed,
            epoch: 0,
        }
    }

    #[test]
    fn clocks_that_disagree_begin_an_epoch() {
        let second = 1_000_000_000;
        let reason = |change: &dyn Fn(&mut Anchor)| {
            let mut now = at(10 * second);
            change(&mut now);
            step(&at(0), &now, RATE)
        };
        assert_eq!(reason(&|_| {}), None);
        assert_eq!(reason(&|now| now.realtime += 5_900_000), None, "NTP slews");
        assert_eq!(reason(&|now| now.realtime += 6_100_000), Some(Reason::Step));
        assert_eq!(reason(&|now| now.realtime -= 3600 * second), Some(Reason::Step));
        assert_eq!(reason(&|now| now.realtime = 0), Some(Reason::Step));
        assert_eq!(reason(&|now| now.realtime = u64::MAX), Some(Reason::Step));
        assert_eq!(reason(&|now| now.boottime += second), Some(Reason::Suspend));
        let slept = |now: &mut Anchor| (now.boottime, now.ticks) = (now.boottime + second, now.ticks + RATE);
        assert_eq!(reason(&slept), Some(Reason::Suspend));
        assert_eq!(reason(&|now| now.ticks += RATE), Some(Reason::Source));
        assert_eq!(reason(&|now| now.ticks = 0), Some(Reason::Source));
        assert_eq!(reason(&|now| now.monotonic = 0), Some(Reason::Source));
        assert_eq!(reason(&|now| now.ticks = u64::MAX), Some(Reason::Source));
    }

    #[test]
    fn anchors_stay_a_second_apart_and_the_table_stays_bounded() {
        let table = AnchorTable::default();
        let mut keeper = Keeper::new(Clock::Tsc, RATE, Anchors::default());
        let n = 10_000;
        for tenth in 0..n {
            assert_eq!(keeper.add(&table, at(tenth * 100_000_000), false), None);
        }
        assert_eq!(table.read(), keeper.anchors());
        let anchors = keeper.anchors();
        assert!(anchors.len() > ANCHORS_MAX / 2 && anchors.len() <= ANCHORS_MAX, "{}", anchors.len());
        assert_eq!((anchors[0], anchors[anchors.len() - 1]), (at(0), at((n - 1) * 100_000_000)));
        let mut pairs = anchors[..anchors.len() - 1].windows(2);
        assert!(pairs.all(|pair| pair[1].monotonic - pair[0].monotonic >= APART_MIN));
    }

    #[test]
    fn begins_of_epochs_stay_as_long_as_there_is_room() {
        let table = AnchorTable::default();
        let mut keeper = Keeper::new(Clock::Tsc, RATE, Anchors::default());
        let shifted = |passed: u64, by: u64| {
            let anchor = at(passed);
            Anchor { realtime: anchor.realtime + by, ..anchor }
        };
        keeper.add(&table, at(0), false);
        let begun = keeper.add(&table, shifted(2_000_000_000, 1 << 40), false);
        assert_eq!(begun.map(|(anchor, reason)| (anchor.epoch, reason)), Some((1, Reason::Step)));
        for second in 3..1000 {
            assert_eq!(keeper.add(&table, shifted(second * 1_000_000_000, 1 << 40), false), None);
        }
        let first = keeper.anchors().iter().find(|anchor| anchor.epoch == 1).unwrap();
        assert_eq!(first.monotonic, 7 + 2_000_000_000);
        assert!(
            keeper.add(&table, shifted(1000 * 1_000_000_000, 1 << 40), true).is_some(),
            "another clock source"
        );
        for second in 1001..2000u64 {
            keeper.add(&table, shifted(second * 1_000_000_000, second << 40), false);
        }
        assert!(keeper.anchors().len() <= ANCHORS_MAX);
        assert_eq!(keeper.anchors().last().unwrap().epoch, 1001);
    }
}
