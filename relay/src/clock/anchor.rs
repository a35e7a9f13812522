//! One moment by all clocks.

/// One moment by all clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// Ticks of the channel's clock.
    pub ticks: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub monotonic: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub realtime: u64,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boottime: u64,
    /// Number of the clock epoch; anchors of different epochs are not interpolated.
    pub epoch: u64,
}

impl Anchor {
    /// Nanoseconds by which CLOCK_MONOTONIC of two processes may seem apart. Only another time namespace makes it more.
    pub const APART_MAX: u64 = 1_000_000_000;

    /// Returns CLOCK_REALTIME at the zero of CLOCK_MONOTONIC.
    pub fn real_zero(&self) -> u64 {
        self.realtime.wrapping_sub(self.monotonic)
    }

    /// Returns by how many nanoseconds CLOCK_MONOTONIC of another anchor is another clock; `None` if it is the same.
    /// CLOCK_REALTIME is the same in all time namespaces.
    pub fn apart(&self, other: &Anchor) -> Option<u64> {
        let apart = self.real_zero().wrapping_sub(other.real_zero()).cast_signed().unsigned_abs();
        Some(apart).filter(|apart| *apart > Anchor::APART_MAX)
    }
}
