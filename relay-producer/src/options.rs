//! Options and results of a batch.

use std::time::{Duration, Instant};

use relay::wire::frame::WAIT_FOREVER;
use relay::wire::socket::Deadline;

/// Time for the daemon to answer, in addition to the wait it was asked for.
pub(crate) const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// What the daemon does with a message when the channel's buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Drop the message.
    #[default]
    No,
    /// Wait at most this long for a reader to make room; then drop the message.
    AtMost(Duration),
    /// Wait without limit for a reader to make room.
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

    /// Returns the time until which a message without room waits.
    pub(crate) fn until(self) -> Deadline {
        match self {
            Wait::No => Some(Instant::now()),
            Wait::AtMost(wait) => Instant::now().checked_add(wait),
            Wait::Forever => None,
        }
    }

    /// Returns the time at which an answer to a frame sent now is overdue.
    pub(crate) fn deadline(self) -> Deadline {
        let wait = match self {
            Wait::No => Duration::ZERO,
            Wait::AtMost(wait) => wait,
            Wait::Forever => return None,
        };
        Instant::now().checked_add(wait.saturating_add(REPLY_LIMIT))
    }
}

/// Options of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchOptions {
    /// The CPU of the buffer to write to.
    /// Without it, each frame of messages goes to the buffer of the CPU that the caller runs on when it sends the
    /// frame.
    pub cpu: Option<usize>,
    /// What to do when the buffer is full.
    pub wait: Wait,
}

/// The results for the messages of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages now in the buffers.
    pub written: u64,
    /// Messages dropped because every sub-buffer was full.
    pub dropped: u64,
    /// Messages dropped because no message of this channel can be as long.
    pub too_big: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_rounded_up_and_stays_limited() {
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
