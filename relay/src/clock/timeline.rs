//! What time a stamp means.
//!
//! Anchors come from memory and files that hostile processes can write. So their order and their rates are checked;
//! no anchor can make the conversion fail.

mod text;

use std::cmp::Reverse;

pub use text::NotAClock;

use crate::clock::{Anchor, Clock};

/// Bits behind the binary point of a rate.
const SHIFT: u32 = 50;
/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;
/// The frequencies that a clock may have.
const TICKS_PER_SECOND: std::ops::RangeInclusive<u64> = 1_000_000..=1_000_000_000_000;
/// How much faster or slower than expected a clock may run between two anchors of an epoch.
const FACTOR_MAX: u64 = 4;
/// The most anchors that are looked at; the last ones count. The table in the control file has fewer.
const ANCHORS_MAX: usize = 1024;

/// Converts stamps into times.
#[derive(Clone, Debug)]
pub struct Timeline {
    clock: Clock,
    ticks_per_second: u64,
    /// In order; the first begins at 0, each ends where the next begins.
    segments: Vec<Segment>,
}

/// A span of stamps in which the clock runs evenly.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    from: u64,
    last: u64,
    anchor: Anchor,
    /// Nanoseconds of a tick, with [`SHIFT`] bits behind the binary point.
    monotonic: u64,
    realtime: u64,
    boottime: u64,
}

impl Segment {
    /// Returns whether the segment has this stamp.
    #[inline]
    pub fn contains(&self, stamp: u64) -> bool {
        (self.from..=self.last).contains(&stamp)
    }

    /// Returns CLOCK_REALTIME at a stamp, in nanoseconds since 1970.
    #[inline]
    pub fn realtime(&self, stamp: u64) -> u64 {
        self.at(stamp, self.anchor.realtime, self.realtime)
    }

    /// Returns CLOCK_MONOTONIC at a stamp, in nanoseconds.
    #[inline]
    pub fn monotonic(&self, stamp: u64) -> u64 {
        self.at(stamp, self.anchor.monotonic, self.monotonic)
    }

    /// Returns CLOCK_BOOTTIME at a stamp, in nanoseconds.
    #[inline]
    pub fn boottime(&self, stamp: u64) -> u64 {
        self.at(stamp, self.anchor.boottime, self.boottime)
    }

    #[inline]
    fn at(&self, stamp: u64, base: u64, rate: u64) -> u64 {
        let time = |ticks: u64| u64::try_from((u128::from(ticks) * u128::from(rate)) >> SHIFT);
        match stamp.checked_sub(self.anchor.ticks) {
            Some(ticks) => base.saturating_add(time(ticks).unwrap_or(u64::MAX)),
            None => base.saturating_sub(time(self.anchor.ticks - stamp).unwrap_or(u64::MAX)),
        }
    }
}

impl Timeline {
    /// Makes the timeline of these anchors. Anchors that contradict the others do not count.
    pub fn new(clock: Clock, ticks_per_second: u64, anchors: &[Anchor]) -> Timeline {
        let ticks_per_second = match clock {
            Clock::Monotonic => NANOS,
            Clock::Tsc if TICKS_PER_SECOND.contains(&ticks_per_second) => ticks_per_second,
            Clock::Tsc => NANOS,
        };
        let mut anchors = in_order(&anchors[anchors.len().saturating_sub(ANCHORS_MAX)..]);
        if anchors.is_empty() {
            anchors.push(Anchor::default());
        }
        let nominal = (u128::from(NANOS) << SHIFT) / u128::from(ticks_per_second);
        let segment = |i: usize| {
            let anchor = anchors[i];
            let same = |j: usize| anchors.get(j).filter(|other| other.epoch == anchor.epoch);
            // Between two anchors; behind the last of an epoch, as between the two before.
            let pair = same(i + 1).map(|next| (anchor, *next));
            let pair = pair.or_else(|| Some((*same(i.checked_sub(1)?)?, anchor)));
            let rate = |of: fn(&Anchor) -> u64| pair.map_or(nominal as u64, |pair| rate(pair, of, nominal));
            Segment {
                from: if i == 0 { 0 } else { anchor.ticks },
                last: anchors.get(i + 1).map_or(u64::MAX, |next| next.ticks - 1),
                anchor,
                monotonic: rate(|anchor| anchor.monotonic),
                realtime: rate(|anchor| anchor.realtime),
                boottime: rate(|anchor| anchor.boottime),
            }
        };
        let segments = (0..anchors.len()).map(segment).collect();
        Timeline { clock, ticks_per_second, segments }
    }

    /// Returns the clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Returns the clock's frequency, as first measured.
    pub fn ticks_per_second(&self) -> u64 {
        self.ticks_per_second
    }

    /// Iterates over the anchors that count, in order.
    pub fn anchors(&self) -> impl DoubleEndedIterator<Item = &Anchor> {
        self.segments.iter().map(|segment| &segment.anchor)
    }

    /// Returns the segment with a stamp, for the conversion of many stamps.
    pub fn segment(&self, stamp: u64) -> &Segment {
        let behind = self.segments.partition_point(|segment| segment.from <= stamp);
        // The first segment begins at 0.
        &self.segments[behind.saturating_sub(1)]
    }

    /// Returns CLOCK_REALTIME at a stamp, in nanoseconds since 1970.
    pub fn realtime(&self, stamp: u64) -> u64 {
        self.segment(stamp).realtime(stamp)
    }

    /// Returns CLOCK_MONOTONIC at a stamp, in nanoseconds.
    pub fn monotonic(&self, stamp: u64) -> u64 {
        self.segment(stamp).monotonic(stamp)
    }

    /// Returns CLOCK_BOOTTIME at a stamp, in nanoseconds.
    pub fn boottime(&self, stamp: u64) -> u64 {
        self.segment(stamp).boottime(stamp)
    }

    /// Returns how many ticks this many nanoseconds have at the clock's first frequency.
    pub fn ticks_of(&self, nanos: u64) -> u64 {
        let ticks = u128::from(nanos) * u128::from(self.ticks_per_second) / u128::from(NANOS);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// The rate between two anchors, if a clock can have it.
fn rate((first, second): (Anchor, Anchor), of: fn(&Anchor) -> u64, nominal: u128) -> u64 {
    let ticks = u128::from(second.ticks - first.ticks);
    let nanos = u128::from(of(&second).saturating_sub(of(&first)));
    let factor = u128::from(FACTOR_MAX);
    let rate = (nanos << SHIFT) / ticks;
    // The nominal rate and its multiples fit, since the frequency is limited.
    if (nominal / factor..=nominal * factor).contains(&rate) { rate as u64 } else { nominal as u64 }
}

/// The longest sequence of anchors in which ticks rise and no other clock nor epoch goes back, CLOCK_REALTIME apart.
fn in_order(anchors: &[Anchor]) -> Vec<Anchor> {
    let follows = |before: &Anchor, anchor: &Anchor| {
        before.ticks < anchor.ticks
            && before.epoch <= anchor.epoch
            && before.monotonic <= anchor.monotonic
            && before.boottime <= anchor.boottime
    };
    // For each anchor, the length of the longest sequence up to it, and the anchor before.
    let mut best: Vec<(usize, Option<usize>)> = Vec::new();
    for (i, anchor) in anchors.iter().enumerate() {
        let before =
            (0..i).filter(|j| follows(&anchors[*j], anchor)).max_by_key(|j| (best[*j].0, Reverse(*j)));
        best.push((before.map_or(1, |j| best[j].0 + 1), before));
    }
    let mut at = (0..anchors.len()).max_by_key(|i| best[*i].0);
    let mut found = Vec::new();
    while let Some(i) = at {
        found.push(anchors[i]);
        at = best[i].1;
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FREQUENCY: u64 = 2_994_373_000;

    fn anchor(seconds: u64, epoch: u64) -> Anchor {
        let monotonic = seconds * NANOS;
        Anchor {
            ticks: seconds * FREQUENCY,
            monotonic,
            realtime: 1_700_000_000 * NANOS + monotonic,
            boottime: monotonic + 5,
            epoch,
        }
    }

    #[test]
    fn times_lie_between_anchors_and_outside() {
        let timeline = Timeline::new(Clock::Tsc, FREQUENCY, &[anchor(10, 0), anchor(20, 0)]);
        for seconds in [0, 5, 10, 15, 20, 1000] {
            let stamp = seconds * FREQUENCY;
            let off = |time: u64, expected: u64| time.abs_diff(expected) <= 1;
            assert!(off(timeline.monotonic(stamp), seconds * NANOS), "{seconds}");
            assert!(off(timeline.realtime(stamp), (1_700_000_000 + seconds) * NANOS), "{seconds}");
            assert!(off(timeline.boottime(stamp), seconds * NANOS + 5), "{seconds}");
        }
        assert_eq!(timeline.monotonic(20 * FREQUENCY), 20 * NANOS);
    }

    #[test]
    fn epochs_are_not_mixed() {
        let mut set = anchor(20, 1);
        set.realtime += 3600 * NANOS;
        let timeline = Timeline::new(Clock::Tsc, FREQUENCY, &[anchor(10, 0), anchor(11, 0), set]);
        let (before, behind) = (20 * FREQUENCY - 1, 20 * FREQUENCY);
        let epoch = |stamp| timeline.segment(stamp).anchor.epoch;
        assert_eq!((epoch(0), epoch(before), epoch(behind)), (0, 0, 1));
        assert!(timeline.realtime(before).abs_diff(anchor(20, 0).realtime) < 5);
        assert_eq!(timeline.realtime(behind), set.realtime);
    }

    #[test]
    fn anchors_that_contradict_the_others_do_not_count() {
        let mut wild = anchor(1, 0);
        wild.ticks = u64::MAX;
        let mut still = anchor(30, 0);
        still.ticks = anchor(20, 0).ticks;
        let good = [anchor(10, 0), anchor(20, 0), anchor(40, 1), anchor(60, 1)];
        let all = [wild, good[0], good[1], still, anchor(15, 0), good[2], anchor(50, 0), good[3]];
        let timeline = Timeline::new(Clock::Tsc, FREQUENCY, &all);
        assert!(timeline.anchors().eq(&good));
    }

    #[test]
    fn an_absurd_rate_is_replaced() {
        let mut slow = anchor(20, 0);
        slow.ticks = 10 * FREQUENCY + 3;
        let timeline = Timeline::new(Clock::Tsc, FREQUENCY, &[anchor(10, 0), slow]);
        let second = timeline.monotonic(11 * FREQUENCY) - timeline.monotonic(10 * FREQUENCY + 3);
        assert!(second.abs_diff(NANOS) < 5, "{second}");
        let timeline = Timeline::new(Clock::Tsc, 0, &[]);
        assert_eq!(timeline.monotonic(7), 7);
    }

    fn any_anchor() -> impl Strategy<Value = Anchor> {
        let number = || prop_oneof![any::<u64>(), 0u64..100, Just(u64::MAX)];
        (number(), number(), number(), number(), 0u64..4).prop_map(
            |(ticks, monotonic, realtime, boottime, epoch)| Anchor {
                ticks,
                monotonic,
                realtime,
                boottime,
                epoch,
            },
        )
    }

    proptest! {
        #[test]
        fn any_anchors_give_times(anchors in proptest::collection::vec(any_anchor(), 0..12), frequency: u64, stamps: [u64; 4], tsc: bool) {
            let clock = if tsc { Clock::Tsc } else { Clock::Monotonic };
            let timeline = Timeline::new(clock, frequency, &anchors);
            let ends = [0, 1, u64::MAX];
            for stamp in stamps.into_iter().chain(ends).chain(anchors.iter().map(|anchor| anchor.ticks)) {
                timeline.boottime(stamp);
                timeline.monotonic(stamp);
                timeline.ticks_of(stamp);
                timeline.realtime(stamp);
                prop_assert!(timeline.segment(stamp).contains(stamp));
            }
        }

        #[test]
        fn time_does_not_go_back_within_an_epoch(seconds in proptest::collection::btree_set(0u64..1000, 1..10), stamps: [u64; 2]) {
            let anchors: Vec<_> = seconds.into_iter().map(|seconds| anchor(seconds, 0)).collect();
            let timeline = Timeline::new(Clock::Tsc, FREQUENCY, &anchors);
            let [a, b] = stamps.map(|stamp| stamp % (2000 * FREQUENCY));
            prop_assert!(timeline.realtime(a.min(b)) <= timeline.realtime(a.max(b)));
        }
    }
}
