//! What a batch is asked to do, and what it answers.

use std::time::{Duration, Instant};

use relay::wire::frame::WAIT_FOREVER;
use relay::wire::socket::Deadline;

/// How long the daemon may take to answer, beyond what it was asked to wait.
pub(crate) const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// What to do when the channel's buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Drop the message.
    #[default]
    No,
    /// Wait for a reader to make room, but not longer than this; then drop the message.
    AtMost(Duration),
    /// Wait for a reader to make room.
    Forever,
}

impl Wait {
    pub(crate) fn millis(self) -> u32 {
        match self {
            Wait::No => 0,
            Wait::AtMost(wait) => {
                u32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX).min(WAIT_FOREVER - 1)
            }
            Wait::Forever => WAIT_FOREVER,
        }
    }

    /// Until when there may be room for a message that finds none now.
    pub(crate) fn until(self) -> Deadline {
        match self {
            Wait::No => Some(Instant::now()),
            Wait::AtMost(wait) => Instant::now().checked_add(wait),
            Wait::Forever => None,
        }
    }

    /// When an answer to what is sent now is overdue.
    pub(crate) fn deadline(self) -> Deadline {
        let wait = match self {
            Wait::No => Duration::ZERO,
            Wait::AtMost(wait) => wait,
            Wait::Forever => return None,
        };
        Instant::now().checked_add(wait.saturating_add(REPLY_LIMIT))
    }
}

/// How a batch is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchOptions {
    /// The CPU whose buffer is meant. Without it, each frame of messages goes to the buffer of the CPU on which the
    /// caller runs when it is sent.
    pub cpu: Option<usize>,
    /// What to do when the buffer is full.
    pub wait: Wait,
}

/// What became of the messages of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages now in the buffers.
    pub written: u64,
    /// Messages dropped because every sub-buffer was full.
    pub dropped: u64,
    /// Messages dropped because they are longer than any of this channel can be.
    pub too_big: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up_and_never_become_for_ever() {
        for (wait, millis) in [
            (Wait::No, 0),
            (Wait::AtMost(Duration::ZERO), 0),
            (Wait::AtMost(Duration::from_nanos(1)), 1),
            (Wait::AtMost(Duration::from_secs(2)), 2000),
            (Wait::AtMost(Duration::MAX), WAIT_FOREVER - 1),
            (Wait::Forever, WAIT_FOREVER),
        ] {
            assert_eq!(wait.millis(), millis, "{wait:?}");
        }
    }
}
