//! What a buffer lost lately: the change since a look that is one or two minutes old, if there was one.
//!
//! Nothing runs for that. Each look at `status` or `metrics` is compared with earlier ones.

use std::time::{Duration, Instant};

use super::stats::Counts;

/// Shortest time between two looks that are kept.
const APART: Duration = Duration::from_secs(60);

/// The numbers of one look.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    full: u64,
    dropped: u64,
    dropped_bytes: u64,
    overwritten_bytes: u64,
}

/// The last two looks that are kept, the older one first.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    looks: Option<(Look, Look)>,
}

/// What changed in a time that ends now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) time: Duration,
    pub(crate) full: u64,
    pub(crate) dropped: u64,
    pub(crate) dropped_bytes: u64,
    pub(crate) overwritten_bytes: u64,
}

impl Recent {
    /// Compares the counts of now with those of the older look, and keeps them if the newer look is old enough.
    /// `None` at the first look.
    pub(crate) fn since(&mut self, counts: &Counts) -> Option<Change> {
        self.since_at(counts, Instant::now())
    }

    fn since_at(&mut self, counts: &Counts, at: Instant) -> Option<Change> {
        let now = Look {
            at,
            full: counts.full,
            dropped: counts.dropped,
            dropped_bytes: counts.dropped_bytes,
            overwritten_bytes: counts.overwritten_bytes,
        };
        let Some((older, newer)) = self.looks else {
            self.looks = Some((now, now));
            return None;
        };
        if at.saturating_duration_since(newer.at) >= APART {
            self.looks = Some((newer, now));
        }
        Some(Change {
            time: at.saturating_duration_since(older.at),
            full: now.full.wrapping_sub(older.full),
            dropped: now.dropped.wrapping_sub(older.dropped),
            dropped_bytes: now.dropped_bytes.wrapping_sub(older.dropped_bytes),
            overwritten_bytes: now.overwritten_bytes.wrapping_sub(older.overwritten_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_compared_with_one_of_a_minute_or_two_ago() {
        let begin = Instant::now();
        let mut recent = Recent::default();
        let mut look = |second, full| {
            let counts = Counts { full, ..Counts::default() };
            recent.since_at(&counts, begin + Duration::from_secs(second))
        };
        assert_eq!(look(0, 5), None);
        let change = |time, full| Some(Change { time: Duration::from_secs(time), full, ..Change::default() });
        assert_eq!(look(10, 6), change(10, 1));
        assert_eq!(look(60, 7), change(60, 2));
        assert_eq!(look(61, 8), change(61, 3));
        assert_eq!(look(120, 9), change(120, 4));
        assert_eq!(look(121, 9), change(61, 2), "since the look at 60");
    }
}
