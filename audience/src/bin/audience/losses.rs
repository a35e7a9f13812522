//! The losses of a channel, from its file `stats`: lines such as `cpu1.dropped 3`.
//!
//! `stats` also has each count as it was when the buffer was last read: `cpu1.old_dropped 2`. A reader reports the
//! difference. So each loss is reported once, by the next reader.
//!
//! Counters never decrease while a channel lives. A counter that did has started again from zero, with another daemon.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::iter::Sum;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use relay::ring::reader::Reader;

use crate::output;

/// Why messages are dropped, and the remedy.
const NO_ROOM: &str = ": the buffer was full; read more often, or raise --n-subbufs";
/// Why messages are too big, and the remedy.
const TOO_BIG: &str =
    ": longer than a sub-buffer or than 1 MiB; write shorter messages, or raise --subbuf-size";

/// The losses of a buffer, or of several buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Messages refused because all sub-buffers were full.
    dropped: u64,
    /// Messages longer than any message may be.
    too_big: u64,
    /// Messages whose writer was interrupted each time it tried.
    contended: u64,
    /// Unread bytes that gave way to new ones in overwrite mode.
    overwritten_bytes: u64,
}

impl Losses {
    /// Losses of messages.
    #[cfg(test)]
    pub(crate) fn new(dropped: u64, too_big: u64, contended: u64) -> Losses {
        Losses { dropped, too_big, contended, overwritten_bytes: 0 }
    }

    /// The losses by a buffer's counters, read without its daemon.
    pub(crate) fn of(reader: &Reader) -> Losses {
        let block = reader.buffer().block();
        // Relaxed: the counts say nothing about other memory.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let overwritten = get(&block.overwritten_bytes).saturating_add(reader.overwritten_unread().bytes);
        Losses {
            dropped: get(&block.dropped).saturating_add(get(&block.dropped_elsewhere)),
            too_big: get(&block.too_big),
            contended: get(&block.contended),
            overwritten_bytes: overwritten,
        }
    }

    /// The losses that the last reader of the buffer has seen.
    pub(crate) fn before(reader: &Reader) -> Losses {
        let block = reader.buffer().block();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Losses {
            dropped: get(&block.old_dropped),
            too_big: get(&block.old_too_big),
            contended: get(&block.old_contended),
            overwritten_bytes: get(&block.old_overwritten_bytes),
        }
    }

    /// Messages that were refused, for all causes.
    pub(crate) fn messages(&self) -> u64 {
        self.dropped.saturating_add(self.too_big).saturating_add(self.contended)
    }

    /// Messages that were too big.
    pub(crate) fn too_big(&self) -> u64 {
        self.too_big
    }

    /// Messages whose writer was interrupted each time it tried.
    pub(crate) fn contended(&self) -> u64 {
        self.contended
    }

    /// The losses since an earlier look. A counter that decreased has started again from zero.
    pub(crate) fn since(&self, last: &Losses) -> Losses {
        let grown = |last: u64, now: u64| now.checked_sub(last).unwrap_or(now);
        Losses {
            dropped: grown(last.dropped, self.dropped),
            too_big: grown(last.too_big, self.too_big),
            contended: grown(last.contended, self.contended),
            overwritten_bytes: grown(last.overwritten_bytes, self.overwritten_bytes),
        }
    }

    /// The counts that are not zero, by cause, each with advice if there is any.
    fn causes(&self) -> impl Iterator<Item = (String, &'static str)> {
        let cause = |count: u64, unit: &str, what: &str, advice| {
            let s = if count == 1 { "" } else { "s" };
            (count > 0).then(|| (format!("{count} {unit}{s} {what}"), advice))
        };
        [
            cause(self.dropped, "message", "dropped", NO_ROOM),
            cause(self.too_big, "message", "too big", TOO_BIG),
            cause(self.contended, "message", "interrupted each time", ""),
            // A channel in overwrite mode overwrites on purpose, so there is no advice.
            cause(self.overwritten_bytes, "byte", "overwritten before they were read", ""),
        ]
        .into_iter()
        .flatten()
    }

    fn add(&mut self, other: Losses) {
        self.dropped = self.dropped.saturating_add(other.dropped);
        self.too_big = self.too_big.saturating_add(other.too_big);
        self.contended = self.contended.saturating_add(other.contended);
        self.overwritten_bytes = self.overwritten_bytes.saturating_add(other.overwritten_bytes);
    }
}

/// `12 messages dropped, 4096 bytes overwritten before they were read`, or `nothing lost`.
impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causes: Vec<String> = self.causes().map(|(count, _)| count).collect();
        f.write_str(if causes.is_empty() { "nothing lost" } else { "" })?;
        f.write_str(&causes.join(", "))
    }
}

/// Losses by CPU.
pub(crate) type Counters = BTreeMap<usize, Losses>;

/// One look at the counters.
#[derive(Debug, Default)]
struct Look {
    now: Counters,
    /// The losses that each buffer's last reader has seen.
    before: Counters,
}

/// Adds up the losses from one look at the counters to the next.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    last: Counters,
    total: Counters,
}

impl Tally {
    /// A tally with known losses, by CPU.
    pub(crate) fn of_all(total: BTreeMap<usize, Losses>) -> Tally {
        Tally { last: Counters::new(), total }
    }

    /// Makes the tally count from the time at which the buffers were last read.
    ///
    /// For a reader that has read nothing yet. Does nothing if the counters cannot be read.
    pub(crate) fn begin(&mut self, stats: &Path) {
        if let Some(look) = read(stats) {
            self.last = look.before;
        }
    }

    /// Adds the losses since the last look, or all losses if there was none.
    ///
    /// Does nothing if the counters cannot be read.
    pub(crate) fn add(&mut self, stats: &Path) {
        if let Some(look) = read(stats) {
            self.add_counters(look.now);
        }
    }

    fn add_counters(&mut self, now: Counters) {
        for (&cpu, now) in &now {
            let last = self.last.get(&cpu).copied().unwrap_or_default();
            self.total.entry(cpu).or_default().add(now.since(&last));
        }
        self.last = now;
    }

    /// Prints the losses of all CPUs, or of one, on standard error. Prints nothing if there are none.
    pub(crate) fn tell(&self, only: Option<usize>) {
        self.lines(only).iter().for_each(output::say);
    }

    fn lines(&self, only: Option<usize>) -> Vec<String> {
        let wanted = self.total.iter().filter(|(cpu, _)| only.is_none_or(|only| only == **cpu));
        wanted
            .flat_map(|(cpu, losses)| {
                losses.causes().map(move |(count, advice)| format!("cpu{cpu}: {count}{advice}"))
            })
            .collect()
    }

    /// The losses of one CPU's buffer.
    pub(crate) fn of(&self, cpu: usize) -> Losses {
        self.total.get(&cpu).copied().unwrap_or_default()
    }
}

/// Adds the losses of several buffers.
impl Sum for Losses {
    fn sum<I: Iterator<Item = Losses>>(all: I) -> Losses {
        all.fold(Losses::default(), |mut sum, losses| {
            sum.add(losses);
            sum
        })
    }
}

/// The losses of each CPU so far. Empty if they cannot be read.
pub(crate) fn now(stats: &Path) -> Counters {
    read(stats).map(|look| look.now).unwrap_or_default()
}

/// The losses of each CPU so far, by the text of `stats`.
pub(crate) fn of_text(stats: &str) -> Counters {
    parse(stats).now
}

/// The losses that each buffer's last reader has seen. Empty if they cannot be read.
pub(crate) fn before(stats: &Path) -> Counters {
    read(stats).map(|look| look.before).unwrap_or_default()
}

/// Reads `stats`. `None` if the file cannot be read: then there is nothing to report.
fn read(stats: &Path) -> Option<Look> {
    fs::read_to_string(stats).ok().map(|text| parse(&text))
}

/// Parses the text of `stats`. Skips unknown names and lines of another form.
fn parse(text: &str) -> Look {
    let mut look = Look::default();
    for line in text.lines() {
        let Some((cpu, name, value)) = split(line) else { continue };
        let (counters, name) = match name.strip_prefix("old_") {
            Some(name) => (&mut look.before, name),
            None => (&mut look.now, name),
        };
        let losses = counters.entry(cpu).or_default();
        match name {
            "dropped" => losses.dropped = value,
            "too_big" => losses.too_big = value,
            "contended" => losses.contended = value,
            "overwritten_bytes" => losses.overwritten_bytes = value,
            _ => {}
        }
    }
    look
}

/// Splits `cpu1.dropped 3` into CPU, name and value. `None` if the line has another form.
pub(crate) fn split(line: &str) -> Option<(usize, &str, u64)> {
    let (name, value) = line.split_once(' ')?;
    let (cpu, name) = name.split_once('.')?;
    Some((cpu.strip_prefix("cpu")?.parse().ok()?, name, value.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "cpu0.produced 12\ncpu0.dropped 0\ncpu0.too_big 1\ncpu1.dropped 12\ncpu1.overwritten_bytes 4096\n\
                         cpu10.dropped 1\ntotal.dropped 13\n";

    #[test]
    fn losses_are_reported_by_cpu_and_cause() {
        let mut tally = Tally::default();
        tally.add_counters(parse(STATS).now);
        let expected = [
            format!("cpu0: 1 message too big{TOO_BIG}"),
            format!("cpu1: 12 messages dropped{NO_ROOM}"),
            "cpu1: 4096 bytes overwritten before they were read".to_owned(),
            format!("cpu10: 1 message dropped{NO_ROOM}"),
        ];
        assert_eq!(tally.lines(None), expected);
        assert_eq!(tally.lines(Some(1)), expected[1..3]);
        assert!(tally.lines(Some(2)).is_empty());
    }

    #[test]
    fn losses_add_up_in_one_line() {
        let mut tally = Tally::default();
        tally.add_counters(parse(STATS).now);
        assert_eq!(tally.of(2).to_string(), "nothing lost");
        let all: Losses = [0, 1, 10].map(|cpu| tally.of(cpu)).into_iter().sum();
        let expected = "13 messages dropped, 1 message too big, 4096 bytes overwritten before they were read";
        assert_eq!(all.to_string(), expected);
    }

    #[test]
    fn malformed_or_unknown_lines_are_skipped() {
        let text = "\ncpu\ncpu0\ncpu0.dropped\ncpu0.dropped x\ncpu0.dropped -1\ncpux.dropped 1\ncpu.dropped 1\n\
                    0.dropped 1\ncpu0.dropped.max 7\ncpu99999999999999999999.dropped 1\ncpu0.new_one 5\n";
        let mut tally = Tally::default();
        tally.add_counters(parse(text).now);
        assert!(tally.lines(None).is_empty());
    }

    #[test]
    fn only_growth_counts_after_the_first_look() {
        let mut tally = Tally { last: parse(STATS).now, ..Tally::default() };
        tally.add_counters(parse(STATS).now);
        assert!(tally.lines(None).is_empty());
        tally.add_counters(parse("cpu1.dropped 14\n").now);
        assert_eq!(tally.lines(None), [format!("cpu1: 2 messages dropped{NO_ROOM}")]);
    }

    #[test]
    fn losses_before_last_reading_are_not_reported_again() {
        let dir = tempfile::tempdir().unwrap();
        let stats = dir.path().join("stats");
        let text =
            "cpu0.dropped 12\ncpu0.too_big 1\ncpu1.dropped 4\ncpu0.old_dropped 10\ncpu0.old_too_big 1\n";
        fs::write(&stats, text).unwrap();
        let mut tally = Tally::default();
        tally.begin(&stats);
        tally.add(&stats);
        let expected =
            [format!("cpu0: 2 messages dropped{NO_ROOM}"), format!("cpu1: 4 messages dropped{NO_ROOM}")];
        assert_eq!(tally.lines(None), expected);
    }

    #[test]
    fn decreased_counters_count_from_zero() {
        let mut tally = Tally { last: parse("cpu0.dropped 100\n").now, ..Tally::default() };
        tally.add_counters(parse("cpu0.dropped 103\n").now);
        tally.add_counters(parse("cpu0.dropped 2\n").now);
        tally.add_counters(parse("cpu0.dropped 2\n").now);
        assert_eq!(tally.lines(None), [format!("cpu0: 5 messages dropped{NO_ROOM}")]);
    }

    #[test]
    fn unreadable_counters_change_nothing() {
        let mut tally = Tally::default();
        tally.add(Path::new("/nonexistent/stats"));
        tally.begin(Path::new("/nonexistent/stats"));
        assert!(tally.lines(None).is_empty());
    }
}
