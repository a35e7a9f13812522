//! Pauses between tries to store something.

use crate::server::pause;

/// Tries of a first attempt to store something.
pub(crate) const TRIES: u32 = 3;

/// Pauses between tries, which grow, to a number of tries.
#[derive(Debug)]
pub(crate) struct Pauses {
    tries: u32,
    max: u32,
}

impl Pauses {
    /// Pauses between this many tries.
    pub(crate) fn new(max: u32) -> Pauses {
        Pauses { tries: 0, max }
    }

    /// Returns how many tries there are.
    pub(crate) fn max(&self) -> u32 {
        self.max
    }

    /// Returns whether this is a first attempt.
    pub(crate) fn are_first(&self) -> bool {
        self.max >= TRIES
    }

    /// Waits: the first time not at all, then 100 ms, and twice as much each time, to a bound.
    /// Returns false at once if there are no more tries.
    pub(crate) async fn pause(&mut self) -> bool {
        self.tries = self.tries.saturating_add(1);
        if self.tries >= self.max {
            return false;
        }
        tokio::time::sleep(pause(self.tries)).await;
        true
    }

    /// Begins again with no pause. With `is_new`, what comes now was not tried before.
    pub(crate) fn reset(&mut self, is_new: bool) {
        (self.tries, self.max) = (0, if is_new { self.max.max(TRIES) } else { self.max });
    }
}
