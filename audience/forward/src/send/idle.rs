//! How long a channel may have no data before its buffers are closed: they may be all that keeps the channel.

use std::time::Duration;

/// Shortest and longest time without data.
const LIMITS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(60)];

/// The time without data after which the buffers are closed. It grows while there is none.
#[derive(Debug)]
pub(crate) struct Idle(Duration);

impl Idle {
    pub(crate) fn new() -> Idle {
        Idle(LIMITS[0])
    }

    /// Takes note of data. A producer that goes soon has its channel gone soon.
    pub(crate) fn note_data(&mut self) {
        self.0 = LIMITS[0];
    }

    /// Returns whether this is long enough. The next time is longer then.
    pub(crate) fn is_over(&mut self, without: Duration) -> bool {
        let is_over = without >= self.0;
        if is_over {
            self.0 = (self.0 * 2).min(LIMITS[1]);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_makes_the_time_short_again() {
        let mut idle = Idle::new();
        let second = Duration::from_secs(1);
        let mut without = |n: u32, expected: bool| assert_eq!(idle.is_over(n * second), expected, "{n}");
        for (n, expected) in
            [(1, false), (2, true), (3, false), (4, true), (60, true), (60, true), (15, false)]
        {
            without(n, expected);
        }
        idle.note_data();
        assert!(!idle.is_over(second) && idle.is_over(2 * second));
    }
}
