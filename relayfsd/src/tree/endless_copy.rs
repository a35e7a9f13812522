//! Ends copies by programs that ask without end for bytes that other readers consumed.
//!
//! libuv, and node with it, copies a file until as many bytes have come as stat(2) promised. It alternates between
//! sendfile(2), which the daemon refuses, and pread(2), which finds the end of the file. If other readers have read a
//! part of the file, that many bytes never come. After an error libuv would remove the copy that it has made so far. So
//! such a program gets zeroes for the missing bytes, behind all bytes of the file. tar and cpio write such zeroes by
//! themselves.

use std::time::{Duration, Instant};

/// Times in a row that a program asks both ways for a position before it counts as endless.
const TIMES_MAX: u32 = 1000;
/// Longest time between two such requests. Programs that wait for more data sleep for longer.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The last requests to an open file for bytes that it does not have.
#[derive(Default)]
pub(crate) struct Spin {
    /// Whether the daemon refused a page-cache fill since the last read.
    refused: bool,
    /// Position and time of the last read that got nothing.
    last: Option<(u64, Instant)>,
    n_times: u32,
    /// Position where the next read of a program that gets zeroes begins.
    padded_to: Option<u64>,
}

impl Spin {
    /// Notes that the daemon refused a page-cache fill.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    /// Notes that a read got bytes.
    pub(crate) fn clear(&mut self) {
        *self = Spin::default();
    }

    /// Notes a read that finds nothing. Returns how many zeroes it gets instead.
    ///
    /// The read is of `count` bytes at `at`, and other readers have consumed all bytes up to `end`.
    pub(crate) fn end_of_file(&mut self, at: u64, count: usize, end: u64, now: Instant) -> usize {
        let again = self.last.is_some_and(|(last, when)| last == at && now - when <= PAUSE_MAX);
        let refused = std::mem::take(&mut self.refused);
        self.n_times = if again && refused { self.n_times.saturating_add(1) } else { 0 };
        self.last = Some((at, now));
        if self.padded_to != Some(at) && self.n_times < TIMES_MAX {
            return 0;
        }
        let len = (count as u64).min(end.saturating_sub(at));
        self.padded_to = Some(at + len);
        len as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks `n` times at position 100, with `pause` in between.
    ///
    /// Returns the answers that were not 0.
    fn ask(spin: &mut Spin, n: u32, pause: Duration, refused: bool) -> Vec<usize> {
        let mut now = Instant::now();
        let answer = |_| {
            if refused {
                spin.refuse();
            }
            now += pause;
            spin.end_of_file(100, 8192, 10_000, now)
        };
        (0..n).map(answer).filter(|len| *len > 0).collect()
    }

    #[test]
    fn program_that_asks_both_ways_without_a_pause_gets_zeroes() {
        let mut spin = Spin::default();
        assert_eq!(ask(&mut spin, TIMES_MAX, Duration::from_micros(20), true), []);
        assert_eq!(ask(&mut spin, 1, Duration::ZERO, true), [8192]);
        assert_eq!(spin.end_of_file(8292, 8192, 10_000, Instant::now()), 1708);
        assert_eq!(spin.end_of_file(10_000, 8192, 10_000, Instant::now()), 0);
    }

    #[test]
    fn program_that_sleeps_or_only_reads_or_gets_bytes_gets_no_zeroes() {
        for (pause, refused) in [(Duration::from_millis(51), true), (Duration::ZERO, false)] {
            assert_eq!(ask(&mut Spin::default(), 3 * TIMES_MAX, pause, refused), []);
        }
        let mut spin = Spin::default();
        for _ in 0..3 {
            assert_eq!(ask(&mut spin, TIMES_MAX, Duration::ZERO, true), []);
            spin.clear();
        }
    }
}
