//! How many messages of a subject may be on the way, behind each other.
//!
//! A message is stored only if the last message of the stream is the one before it in its subject. So it is worth
//! sending if no other connection writes to the stream at the same time, and else it is refused and sent again.

/// Fewest messages in a row that are stored next to each other before the depth grows.
const STREAK_MIN: usize = 8;
/// Most of them, for a depth of one.
const STREAK_MAX: usize = 1024;

/// The depth, which all subjects of a connection share.
#[derive(Debug)]
pub(crate) struct Depth {
    now: usize,
    max: usize,
    /// How many messages in a row were stored next to each other.
    streak: usize,
    /// How many of them it takes to begin with two.
    need: usize,
}

impl Depth {
    /// Begins with one message, and grows to `max`.
    pub(crate) fn new(max: usize) -> Depth {
        Depth { now: 1, max, streak: 0, need: STREAK_MIN }
    }

    /// Returns how many messages of a subject may be on the way.
    pub(crate) fn get(&self) -> usize {
        self.now
    }

    /// Notes that a message is stored: in the stream behind the one before it on the connection, or farther on.
    pub(crate) fn note_stored(&mut self, is_next: bool) {
        if !is_next {
            self.streak = 0;
            return;
        }
        self.streak += 1;
        let need = if self.now == 1 { self.need } else { self.now.max(STREAK_MIN) };
        if self.streak >= need {
            self.streak = 0;
            self.now = (2 * self.now).min(self.max);
            if self.now >= STREAK_MIN {
                self.need = STREAK_MIN;
            }
        }
    }

    /// Notes that a message was refused because of what is stored between it and the one before.
    pub(crate) fn note_refused(&mut self) {
        self.streak = 0;
        if self.now <= 2 {
            // Two are too many most of the time: others write to the stream, too.
            self.need = (2 * self.need).min(STREAK_MAX);
        }
        self.now = (self.now / 2).max(1);
    }

    /// Begins with one message again.
    pub(crate) fn reset(&mut self) {
        (self.now, self.streak) = (1, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(depth: &mut Depth, n: usize) -> usize {
        (0..n).for_each(|_| depth.note_stored(true));
        depth.get()
    }

    #[test]
    fn depth_grows_while_nothing_comes_between() {
        let mut depth = Depth::new(50);
        assert_eq!(depth.get(), 1);
        assert_eq!(stored(&mut depth, STREAK_MIN - 1), 1);
        depth.note_stored(false);
        assert_eq!(stored(&mut depth, STREAK_MIN - 1), 1, "in a row");
        for expected in [2, 4, 8, 16] {
            assert_eq!(stored(&mut depth, if expected == 2 { 1 } else { STREAK_MIN }), expected);
        }
        assert_eq!((stored(&mut depth, 16), stored(&mut depth, 32), stored(&mut depth, 1000)), (32, 50, 50));
        depth.note_refused();
        assert_eq!(depth.get(), 25);
        depth.reset();
        assert_eq!((depth.get(), stored(&mut depth, STREAK_MIN)), (1, 2));
        assert_eq!(stored(&mut Depth::new(1), 5000), 1);
    }

    /// Then two messages are tried ever less often, until they succeed.
    #[test]
    fn stream_with_other_writers_costs_little() {
        let mut depth = Depth::new(64);
        let mut refused = 0;
        for _ in 0..100_000 {
            depth.note_stored(true);
            if depth.get() > 1 {
                depth.note_refused();
                refused += 1;
            }
        }
        assert!((50..150).contains(&refused), "{refused}");
        depth.reset();
        assert_eq!(stored(&mut depth, STREAK_MAX - 1), 1);
        assert_eq!(stored(&mut depth, 1 + 3 * STREAK_MIN), 16);
        (0..3).for_each(|_| depth.note_refused());
        assert_eq!(depth.get(), 2);
        depth.note_refused();
        assert_eq!(stored(&mut depth, 2 * STREAK_MIN), 2, "the others have gone meanwhile");
    }
}
