//! The present by a channel's clock, which a reader notes before it makes copies.

use relay::clock::{Anchor, Clock, Timeline};

/// Returns the present ticks of a channel's clock. Nothing is held back without the right to read the
/// clock, or with records of another boot.
///
/// In another time namespace than the daemon's, CLOCK_MONOTONIC is another clock. CLOCK_REALTIME is the same in all of
/// them, and the anchors say how far the daemon's two clocks are apart.
pub fn note(timeline: &Timeline) -> u64 {
    let clock = timeline.clock();
    if !clock.is_readable() {
        return u64::MAX;
    }
    match timeline.anchors().next_back().filter(|anchor| clock == Clock::Monotonic && anchor.realtime > 0) {
        Some(theirs) => by_anchor(&Anchor::take(clock), theirs),
        None => clock.newest_stamp(timeline.anchors()),
    }
}

/// Returns a stamp that no true record exceeds, where no daemon says so: the present, and what clocks may seem apart.
pub fn newest_stamp(timeline: &Timeline) -> u64 {
    note(timeline).saturating_add(Anchor::APART_MAX)
}

/// Returns the daemon's CLOCK_MONOTONIC at the moment of an anchor of this process.
fn by_anchor(ours: &Anchor, theirs: &Anchor) -> u64 {
    match ours.apart(theirs) {
        None => ours.monotonic,
        Some(_) => ours.realtime.saturating_sub(theirs.real_zero()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn present_is_that_of_the_daemons_clock() {
        let anchor =
            |monotonic, realtime| Anchor { ticks: monotonic, monotonic, realtime, ..Anchor::default() };
        let theirs = anchor(100, 1_700_000_000_000_000_000);
        let second = 1_000_000_000;
        let ours = |ahead: u64, passed| anchor(100 + ahead + passed, theirs.realtime + passed);
        for ahead in [0, 7, 100_000 * second] {
            assert_eq!(by_anchor(&ours(ahead, 5 * second), &theirs), 100 + 5 * second + ahead % second);
        }
        let behind = Anchor { monotonic: 3, ..ours(0, 5 * second) };
        assert_eq!(by_anchor(&behind, &theirs), 100 + 5 * second);
    }

    #[test]
    fn present_never_fails_for_any_anchor() {
        for clock in [Clock::Monotonic, Clock::Tsc] {
            for realtime in [0, 1, u64::MAX] {
                let wild = Anchor { ticks: 7, monotonic: u64::MAX, realtime, boottime: 0, epoch: 9 };
                note(&Timeline::new(clock, 1, &[wild]));
            }
            note(&Timeline::new(clock, 0, &[]));
        }
    }
}
