//! Records which bytes of a file processes have got by read(2), to know when all are delivered.
//!
//! Bytes count for the open file that a process got them through, not for all open files together. Some programs divide
//! a file among processes, each of which opens it. Such processes read further than they need. Together they may have
//! read the whole file while some of them have not begun.

use std::collections::HashMap;
use std::ops::Range;

/// Most ranges that are kept for a process. Deliveries beyond that do not count.
///
/// Programs that read a file from end to end, in any order of blocks, need a few ranges.
const RANGES_MAX: usize = 1024;
/// Most pairs of an open file and a process. Deliveries to further processes do not count.
const PROCESSES_MAX: usize = 1024;

/// A set of positions, as ranges that neither overlap nor touch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<Range<u64>>);

/// How a process ends with an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It closed the file, or exited.
    Closed,
    /// A signal killed the process: it may not have used what it got.
    Killed,
}

/// What a process got through an open file.
#[derive(Default)]
struct Got {
    ranges: Ranges,
    /// Whether the process has closed the file since.
    closed: bool,
}

/// The bytes of a file that were delivered.
pub(crate) struct Delivered {
    len: u64,
    /// By open file and process.
    got: HashMap<(u64, u64), Got>,
    /// Whether [`Self::close`] has said that all bytes are delivered.
    is_complete: bool,
}

impl Delivered {
    /// Creates a record for a file of this length, with nothing delivered.
    pub(crate) fn new(len: u64) -> Delivered {
        Delivered { len, got: HashMap::new(), is_complete: false }
    }

    /// Records that a process gets a range of bytes.
    pub(crate) fn add(&mut self, file: u64, process: u64, range: Range<u64>) {
        if self.got.len() >= PROCESSES_MAX && !self.has_read(file, process) {
            return;
        }
        let got = self.got.entry((file, process)).or_default();
        got.closed = false;
        got.ranges.add(range);
    }

    /// Returns whether a process got any bytes through an open file.
    pub(crate) fn has_read(&self, file: u64, process: u64) -> bool {
        self.got.contains_key(&(file, process))
    }

    /// Records that a process closes an open file.
    ///
    /// Returns true once: when all bytes have been delivered through one open file.
    pub(crate) fn close(&mut self, file: u64, process: u64, ended: Ended) -> bool {
        match ended {
            Ended::Killed => drop(self.got.remove(&(file, process))),
            Ended::Closed => self.got.get_mut(&(file, process)).into_iter().for_each(|got| got.closed = true),
        }
        if self.is_complete || self.len == 0 {
            return false;
        }
        let mut all = Ranges::default();
        let closed = self.got.iter().filter(|((of, _), got)| *of == file && got.closed);
        closed.flat_map(|(_, got)| &got.ranges.0).for_each(|range| all.add(range.clone()));
        self.is_complete = matches!(all.0.as_slice(), [all] if *all == (0..self.len));
        self.is_complete
    }

    /// Forgets an open file that is closed.
    pub(crate) fn forget(&mut self, file: u64) {
        self.got.retain(|(of, _), _| *of != file);
    }
}

impl Ranges {
    /// Adds a range, and merges it with those it touches.
    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end < range.start);
        let behind = self.0.partition_point(|other| other.start <= range.end);
        let touched = &self.0[first..behind];
        if touched.is_empty() && self.0.len() >= RANGES_MAX {
            return;
        }
        let start = touched.first().map_or(range.start, |other| other.start.min(range.start));
        let end = touched.last().map_or(range.end, |other| other.end.max(range.end));
        self.0.splice(first..behind, std::iter::once(start..end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_any_order_merge() {
        let mut ranges = Ranges::default();
        for range in [10..20, 30..40, 0..5, 20..25, 7..7, 5..6, 28..29] {
            ranges.add(range);
        }
        assert_eq!(ranges.0, [0..6, 10..25, 28..29, 30..40]);
        ranges.add(24..35);
        assert_eq!(ranges.0, [0..6, 10..40]);
        ranges.add(0..100);
        assert_eq!((ranges.0.len(), &ranges.0[0]), (1, &(0..100)));
    }

    #[test]
    fn file_is_delivered_when_its_reader_closes() {
        let mut delivered = Delivered::new(100);
        delivered.add(1, 7, 50..100);
        delivered.add(1, 7, 0..50);
        assert!(delivered.has_read(1, 7) && !delivered.has_read(1, 8));
        assert!(!delivered.close(1, 8, Ended::Closed), "another process closes");
        assert!(delivered.close(1, 7, Ended::Closed));
        assert!(!delivered.close(1, 7, Ended::Closed), "only once");
    }

    #[test]
    fn reads_of_killed_reader_do_not_count() {
        let mut delivered = Delivered::new(100);
        delivered.add(1, 7, 0..60);
        assert!(!delivered.close(1, 7, Ended::Closed), "a first descriptor");
        delivered.add(1, 7, 60..100);
        assert!(!delivered.close(1, 7, Ended::Killed));
        delivered.forget(1);
        delivered.add(2, 8, 60..100);
        assert!(!delivered.close(2, 8, Ended::Closed));
        delivered.add(2, 8, 0..60);
        assert!(delivered.close(2, 8, Ended::Closed));
    }

    #[test]
    fn processes_of_one_open_file_count_together() {
        let mut delivered = Delivered::new(100);
        delivered.add(1, 7, 0..60);
        delivered.add(2, 7, 60..100);
        assert!(!delivered.close(1, 7, Ended::Closed) && !delivered.close(2, 7, Ended::Closed));
        delivered.add(2, 8, 0..60);
        assert!(delivered.close(2, 8, Ended::Closed));
        delivered.forget(1);
        delivered.forget(2);
        assert!(delivered.got.is_empty());
    }

    #[test]
    fn reads_after_a_close_count_at_the_next_close() {
        let mut delivered = Delivered::new(100);
        delivered.add(1, 7, 0..60);
        assert!(!delivered.close(1, 7, Ended::Closed), "one of two descriptors");
        delivered.add(1, 7, 60..100);
        assert!(!delivered.close(1, 8, Ended::Closed));
        assert!(delivered.close(1, 7, Ended::Closed));
    }

    #[test]
    fn number_of_ranges_and_processes_is_bounded() {
        let mut delivered = Delivered::new(1 << 40);
        for i in 0..10_000 {
            delivered.add(1, 7, 2 * i..2 * i + 1);
            delivered.add(2, i, 0..1);
        }
        assert_eq!(delivered.got.len(), PROCESSES_MAX);
        assert_eq!(delivered.got[&(1, 7)].ranges.0.len(), RANGES_MAX);
        delivered.add(1, 7, 0..1 << 40);
        assert!(delivered.close(1, 7, Ended::Closed), "a range that covers the others is kept");
    }

    #[test]
    fn empty_file_is_never_delivered() {
        let mut delivered = Delivered::new(0);
        delivered.add(1, 7, 0..0);
        assert!(!delivered.close(1, 7, Ended::Closed));
    }
}
