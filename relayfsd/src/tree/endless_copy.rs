//! Ends the copying of programs that ask for ever for bytes that others have consumed.
//!
//! libuv, and node with it, copies a file until as many bytes have come as stat(2) promised. It asks by sendfile(2), which
//! is refused, and then by pread(2), which says that the file is at its end, and so on. If others have read a part of the
//! file, that many bytes never come. An error would have libuv remove the copy that it has made so far. So such a program
//! gets zeroes for what is missing, behind all that there was. tar and cpio write such zeroes by themselves.

use std::time::{Duration, Instant};

/// Times in a row that a program asks both ways for the same position before it counts as one that does not end.
const TIMES_MAX: u32 = 1000;
/// Longest time between two of them. Programs that wait for more to come sleep for longer.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How an open file was asked last for bytes that it does not have.
#[derive(Default)]
pub(crate) struct Spin {
    /// Whether a page-cache fill was refused since the last read.
    refused: bool,
    /// The position of the last read, if there was nothing for it.
    last: Option<(u64, Instant)>,
    n_times: u32,
    /// Where the next read of a program that gets zeroes begins.
    padded_to: Option<u64>,
}

impl Spin {
    /// A page-cache fill was refused.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    /// A read got something.
    pub(crate) fn clear(&mut self) {
        *self = Spin::default();
    }

    /// There is nothing for a read of `count` bytes at `at`, where others have consumed all up to `end`. Returns how many
    /// zeroes it gets instead.
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

    /// Asks `n` times at 100, each `pause` after the one before; returns the answers that were not 0.
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
    fn a_program_that_asks_both_ways_without_a_pause_gets_zeroes_up_to_the_end() {
        let mut spin = Spin::default();
        assert_eq!(ask(&mut spin, TIMES_MAX, Duration::from_micros(20), true), []);
        assert_eq!(ask(&mut spin, 1, Duration::ZERO, true), [8192]);
        assert_eq!(spin.end_of_file(8292, 8192, 10_000, Instant::now()), 1708);
        assert_eq!(spin.end_of_file(10_000, 8192, 10_000, Instant::now()), 0);
    }

    #[test]
    fn a_program_that_sleeps_or_only_reads_or_gets_something_is_at_the_end() {
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
