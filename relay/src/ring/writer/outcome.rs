//! What a try at a write, a write, and many tries end with.

use thiserror::Error;

/// The result of writing a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// The message is in the buffer.
    Written,
    /// Every sub-buffer is full.
    Full,
    /// No sub-buffer can ever hold the message.
    TooBig,
    /// The channel has ended.
    Closed,
}

/// The effect of a write or flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The result for the message. If it was not written, no counter has it yet.
    pub placed: WriteResult,
    /// Whether a sub-buffer was finished, so that pollers must be woken.
    pub switched: bool,
}

/// The result of one try at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The write is done, or refused.
    Done(Outcome),
    /// Something came in between. Nothing was changed: try again.
    Interrupted,
    /// The message fits the current sub-buffer, and the writer knows now where that is. Nothing was changed: append it.
    Located,
}

impl Attempt {
    /// Returns the outcome, or nothing if the caller has to try again.
    pub fn done(self) -> Option<Outcome> {
        match self {
            Attempt::Done(outcome) => Some(outcome),
            Attempt::Interrupted | Attempt::Located => None,
        }
    }

    /// Returns the attempt that ended without a switch.
    pub(super) fn done_without_switch(placed: WriteResult) -> Attempt {
        Attempt::Done(Outcome { placed, switched: false })
    }
}

/// Every try of a change was interrupted, or the thread is not on the buffer's CPU.
/// Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("interrupted each time, or not on the buffer's CPU")]
pub struct RetriesExhausted;
