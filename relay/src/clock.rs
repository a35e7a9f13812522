//! Clocks of timed channels: which clock stamps, how it is read, and what its ticks mean.
//!
//! A stamp is a number of ticks of the channel's clock. Anchors say what time ticks mean: each is one moment by all
//! clocks. `relay/docs/TIMED.md` has the rules. The ring, the daemon and producers read clocks; readers convert stamps.
//! The room may not know buffers, files or the protocol.

mod anchor;
mod source;
mod timeline;

pub use anchor::Anchor;
pub use source::realtime_tick;
pub use timeline::{NotAClock, Segment, Timeline};

/// How much younger a stamp may be than the clock read behind it, in ticks: some milliseconds. The clocks of two CPUs
/// differ by less.
pub(crate) const SLACK: u64 = 1 << 22;

/// The clock that stamps a channel's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Clock {
    /// CLOCK_MONOTONIC, in nanoseconds.
    Monotonic = 1,
    /// The processor's time stamp counter.
    Tsc = 2,
}

impl Clock {
    /// Returns the clock with this number in the control file.
    pub fn of_number(number: u32) -> Option<Clock> {
        match number {
            1 => Some(Clock::Monotonic),
            2 => Some(Clock::Tsc),
            _ => None,
        }
    }

    /// Returns the clock with this name.
    pub fn of_name(name: &str) -> Option<Clock> {
        [Clock::Monotonic, Clock::Tsc].into_iter().find(|clock| clock.name() == name)
    }

    /// Returns the clock's name in `clock` and `metadata`.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Monotonic => "monotonic",
            Clock::Tsc => "tsc",
        }
    }
}
