//! Reading clocks: which clock a new channel gets, its ticks now, and how many of them are a second.
#![allow(unsafe_code)]

#[cfg(not(loom))]
use std::sync::OnceLock;
#[cfg(not(loom))]
use std::time::Duration;

use super::{Anchor, Clock, SLACK};

/// Where the kernel says which clock source it uses.
#[cfg(not(loom))]
const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
/// Time over which the ticks of a second are measured first.
#[cfg(not(loom))]
const MEASURED_FOR: Duration = Duration::from_millis(10);
/// Tries for two clocks read at nearly the same moment; the closest counts.
const TRIES: usize = 10;
/// Nanoseconds of a second.
#[cfg(not(loom))]
const NANOSECONDS: u64 = 1_000_000_000;

impl Clock {
    /// Returns the clock for a new channel on this machine.
    /// It is the TSC if the kernel itself counts by it, the processor says that it never stops or changes its rate,
    /// and this process may read it.
    #[cfg(not(loom))]
    pub fn choose() -> Clock {
        let counts_by_tsc = || std::fs::read(CLOCK_SOURCE).is_ok_and(|name| name.trim_ascii() == b"tsc");
        if tsc::is_invariant() && tsc::is_allowed() && counts_by_tsc() {
            Clock::Tsc
        } else {
            Clock::Monotonic
        }
    }

    /// Returns whether the calling thread can read this clock with the ticks that all processes see.
    /// A process can be forbidden to read the TSC, see PR_SET_TSC in prctl(2).
    #[cfg(not(loom))]
    pub fn is_readable(self) -> bool {
        self == Clock::Monotonic || tsc::is_allowed()
    }

    /// Returns the clock's ticks. Loads before the call come before the look at the clock.
    pub fn now(self) -> u64 {
        match self {
            Clock::Monotonic => nanoseconds(libc::CLOCK_MONOTONIC),
            Clock::Tsc => tsc::read_behind_loads(),
        }
    }

    /// Returns a stamp that no true record exceeds by more than the difference of two CPUs' clocks: the ticks now.
    /// Loads before the call come before the look at the clock.
    ///
    /// It is `u64::MAX` if that is not known: the calling thread may not read the clock, or the clock is behind one of
    /// the `anchors`. Then the records are of another boot or another machine, or the clock has begun again.
    #[cfg(not(loom))]
    pub fn newest_stamp<'a>(self, anchors: impl IntoIterator<Item = &'a Anchor>) -> u64 {
        let now = if self.is_readable() { self.now() } else { u64::MAX };
        let is_behind = anchors.into_iter().any(|anchor| anchor.ticks > now.saturating_add(SLACK));
        if is_behind { u64::MAX } else { now }
    }

    /// Waits until loads before the call are done, so that a look at the clock behind it comes after them.
    /// [`Clock::now`] does so itself; this is for stamps that a restartable sequence takes.
    pub fn wait_for_loads() {
        tsc::wait_for_loads();
    }

    /// Returns how many ticks are a second.
    /// The first call measures the TSC, and takes 10 ms. Anchors later give a better number.
    #[cfg(not(loom))]
    pub fn ticks_per_second(self) -> u64 {
        static TSC: OnceLock<u64> = OnceLock::new();
        match self {
            Clock::Monotonic => NANOSECONDS,
            Clock::Tsc => *TSC.get_or_init(|| {
                let begin = Anchor::take(self);
                std::thread::sleep(MEASURED_FOR);
                rate(&begin, &Anchor::take(self))
            }),
        }
    }
}

impl Anchor {
    /// Takes an anchor now, of epoch 0: the caller knows the epoch.
    ///
    /// No two clocks can be read at the same moment. Each is read between two looks at CLOCK_MONOTONIC, some times, and
    /// the reading with the closest looks counts.
    pub fn take(clock: Clock) -> Anchor {
        let (monotonic, ticks) = match clock {
            // Nothing lies between a clock and itself.
            Clock::Monotonic => {
                let now = clock.now();
                (now, now)
            }
            Clock::Tsc => closest(|| clock.now()),
        };
        // The same clocks at the moment of `monotonic`: the kernel runs all three at the same rate.
        let at_that_moment = |clock| {
            let (then, value) = closest(|| nanoseconds(clock));
            value.wrapping_sub(then.wrapping_sub(monotonic))
        };
        Anchor {
            ticks,
            monotonic,
            realtime: at_that_moment(libc::CLOCK_REALTIME),
            boottime: at_that_moment(libc::CLOCK_BOOTTIME),
            epoch: 0,
        }
    }
}

/// Returns CLOCK_MONOTONIC at a reading of another clock, and that reading.
fn closest(read: impl Fn() -> u64) -> (u64, u64) {
    let tries = (0..TRIES).map(|_| {
        let before = nanoseconds(libc::CLOCK_MONOTONIC);
        let value = read();
        let width = nanoseconds(libc::CLOCK_MONOTONIC).wrapping_sub(before);
        (width, before.wrapping_add(width / 2), value)
    });
    let (_, monotonic, value) = tries.min_by_key(|(width, ..)| *width).expect("at least one try");
    (monotonic, value)
}

/// Returns the ticks of a second between two anchors; at least 1.
#[cfg(not(loom))]
fn rate(begin: &Anchor, end: &Anchor) -> u64 {
    let ticks = u128::from(end.ticks.saturating_sub(begin.ticks)) * u128::from(NANOSECONDS);
    let nanoseconds = end.monotonic.saturating_sub(begin.monotonic).max(1);
    u64::try_from(ticks / u128::from(nanoseconds)).unwrap_or(u64::MAX).max(1)
}

/// Returns the present in nanoseconds since 1970, as of the kernel's last tick: some milliseconds late, and cheap.
pub fn realtime_tick() -> u64 {
    nanoseconds(libc::CLOCK_REALTIME_COARSE)
}

/// Returns a clock of the kernel in nanoseconds; 0 before its zero.
#[cfg(not(loom))]
fn nanoseconds(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place, and stays 0 if the kernel does not know the clock.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.wrapping_mul(NANOSECONDS).wrapping_add(time.tv_nsec as u64)
}

/// Returns a number that no call returned before: in a model, that is what a clock must do.
#[cfg(loom)]
fn nanoseconds(_: libc::clockid_t) -> u64 {
    static LAST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    // Not loom's: loom runs one thread at a time, so the numbers grow in the order of the run.
    LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// The processor's time stamp counter.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
mod tsc {
    use std::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};

    /// Leaf of cpuid with the properties of power management, and its bit for an invariant TSC.
    const POWER_LEAF: u32 = 0x8000_0007;
    const LEAVES: u32 = 0x8000_0000;
    const INVARIANT: u32 = 1 << 8;

    /// Whether the TSC never stops and never changes its rate.
    pub(super) fn is_invariant() -> bool {
        __cpuid(LEAVES).eax >= POWER_LEAF && __cpuid(POWER_LEAF).edx & INVARIANT != 0
    }

    /// Whether the calling thread may read the TSC: elsewhere the instruction raises SIGSEGV.
    pub(super) fn is_allowed() -> bool {
        let mut state: libc::c_int = 0;
        // SAFETY: the kernel stores an int at the address.
        let result = unsafe { libc::prctl(libc::PR_GET_TSC, &raw mut state) };
        result == 0 && state == libc::PR_TSC_ENABLE
    }

    #[inline(always)]
    pub(super) fn read_behind_loads() -> u64 {
        wait_for_loads();
        // SAFETY: a thread that may not read it gets a signal, as documented; it touches no memory.
        unsafe { _rdtsc() }
    }

    #[inline(always)]
    pub(super) fn wait_for_loads() {
        // SAFETY: the instruction belongs to SSE2, which every processor of this architecture has.
        unsafe { _mm_lfence() }
    }
}

/// Machines without a time stamp counter, or without sequences that could use one.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(loom))))]
mod tsc {
    #[cfg(not(loom))]
    pub(super) fn is_invariant() -> bool {
        false
    }

    #[cfg(not(loom))]
    pub(super) fn is_allowed() -> bool {
        false
    }

    /// Such a machine has no channel with this clock; CLOCK_MONOTONIC grows, too.
    pub(super) fn read_behind_loads() -> u64 {
        super::nanoseconds(libc::CLOCK_MONOTONIC)
    }

    pub(super) fn wait_for_loads() {}
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const CLOCKS: [Clock; 2] = [Clock::Monotonic, Clock::Tsc];

    fn readable() -> impl Iterator<Item = Clock> {
        CLOCKS.into_iter().filter(|clock| clock.is_readable())
    }

    #[test]
    fn chosen_clock_is_readable_and_never_goes_back() {
        assert!(Clock::choose().is_readable());
        for clock in readable() {
            let mut last = clock.now();
            for _ in 0..100_000 {
                let now = clock.now();
                assert!(now >= last, "{clock:?}: {now} after {last}");
                last = now;
            }
        }
    }

    #[test]
    fn anchor_lies_between_looks_at_the_clocks() {
        for clock in readable() {
            let now = || [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME].map(nanoseconds);
            let (ticks, before) = (clock.now(), now());
            let anchor = Anchor::take(clock);
            let (after, ticks_after) = (now(), clock.now());
            assert!((ticks..=ticks_after).contains(&anchor.ticks), "{clock:?}");
            let taken = [anchor.monotonic, anchor.realtime, anchor.boottime];
            for ((taken, before), after) in taken.iter().zip(before).zip(after) {
                // A clock that is set in between, or half the distance of two looks.
                let slack = 1_000_000;
                assert!(*taken + slack >= before && *taken <= after + slack, "{clock:?}: {anchor:?}");
            }
            assert_eq!(anchor.epoch, 0);
        }
        let anchor = Anchor::take(Clock::Monotonic);
        assert_eq!(anchor.ticks, anchor.monotonic);
    }

    #[test]
    fn second_has_as_many_ticks_as_anchors_say() {
        assert_eq!(Clock::Monotonic.ticks_per_second(), NANOSECONDS);
        let at = |ticks, monotonic| Anchor { ticks, monotonic, ..Anchor::default() };
        assert_eq!(rate(&at(5, 1000), &at(35, 1010)), 3 * NANOSECONDS);
        // Anchors that are equal, go back, or are a lifetime apart.
        assert_eq!(rate(&at(5, 7), &at(5, 7)), 1);
        assert_eq!(rate(&at(5, 7), &at(4, 6)), 1);
        assert_eq!(rate(&at(0, 0), &at(u64::MAX, 1)), u64::MAX);
        if Clock::Tsc.is_readable() {
            let measured = Clock::Tsc.ticks_per_second();
            assert!((100_000_000..20_000_000_000).contains(&measured), "{measured}");
            assert_eq!(measured, Clock::Tsc.ticks_per_second(), "measured once");
        }
    }
}
