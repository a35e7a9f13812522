//! What a channel lost, from its file `stats`: lines such as `cpu1.dropped 3`.
//!
//! Counters never decrease while a channel lives. One that did starts again from zero: the daemon is another
//! one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::iter::Sum;
use std::path::Path;
use std::sync::atomic::Ordering;

use relay::reader::Reader;

use crate::output;

/// One buffer's losses, or those of several.
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
    /// What the counters of a buffer say that is looked at without its daemon.
    pub(crate) fn of(reader: &Reader) -> Losses {
        let block = reader.buffer().block();
        // Relaxed: the counts say nothing about other memory.
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let overwritten = get(&block.overwritten_bytes).saturating_add(reader.overwritten_unread().bytes);
        Losses {
            dropped: get(&block.dropped).saturating_add(get(&block.dropped_elsewhere)),
            too_big: get(&block.too_big),
            contended: get(&block.contended),
            overwritten_bytes: overwritten,
        }
    }

    /// How many of what, by cause, without those of which there are none; and what may help.
    fn causes(&self) -> impl Iterator<Item = (String, &'static str)> {
        let cause = |count: u64, unit: &str, what: &str, advice| {
            let s = if count == 1 { "" } else { "s" };
            (count > 0).then(|| (format!("{count} {unit}{s} {what}"), advice))
        };
        [
            cause(self.dropped, "message", "dropped", "; raise --n-subbufs"),
            cause(self.too_big, "message", "too big", "; raise --subbuf-size"),
            cause(self.contended, "message", "interrupted each time", ""),
            cause(self.overwritten_bytes, "byte", "overwritten before they were read", "; raise --n-subbufs"),
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

/// The counters of one look, by the buffer's number.
type Counters = BTreeMap<usize, Losses>;

/// Adds up what is lost from one look at the counters to the next.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    last: Counters,
    total: Counters,
}

impl Tally {
    /// Of what was lost altogether, by the buffers' numbers.
    pub(crate) fn of_all(total: BTreeMap<usize, Losses>) -> Tally {
        Tally { last: Counters::new(), total }
    }

    /// What the counters say now was lost before our time. Does nothing if they cannot be read.
    pub(crate) fn forgive(&mut self, stats: &Path) {
        if let Some(now) = read(stats) {
            self.last = now;
        }
    }

    /// Adds what was lost since the last look: everything, if there was none. Does nothing if the counters
    /// cannot be read.
    pub(crate) fn add(&mut self, stats: &Path) {
        if let Some(now) = read(stats) {
            self.add_counters(now);
        }
    }

    fn add_counters(&mut self, now: Counters) {
        for (&cpu, now) in &now {
            let last = self.last.get(&cpu).copied().unwrap_or_default();
            let grown = |last: u64, now: u64| now.checked_sub(last).unwrap_or(now);
            self.total.entry(cpu).or_default().add(Losses {
                dropped: grown(last.dropped, now.dropped),
                too_big: grown(last.too_big, now.too_big),
                contended: grown(last.contended, now.contended),
                overwritten_bytes: grown(last.overwritten_bytes, now.overwritten_bytes),
            });
        }
        self.last = now;
    }

    /// Tells the losses of all CPUs, or of one, on standard error. Silent if there are none.
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

    /// What one CPU's buffer lost.
    pub(crate) fn of(&self, cpu: usize) -> Losses {
        self.total.get(&cpu).copied().unwrap_or_default()
    }
}

/// The losses of several buffers together.
impl Sum for Losses {
    fn sum<I: Iterator<Item = Losses>>(all: I) -> Losses {
        all.fold(Losses::default(), |mut sum, losses| {
            sum.add(losses);
            sum
        })
    }
}

/// `None` if the file cannot be read: then there is nothing to tell.
fn read(stats: &Path) -> Option<Counters> {
    fs::read_to_string(stats).ok().map(|text| parse(&text))
}

/// Lines of other forms, and names that we do not know, are for others.
fn parse(text: &str) -> Counters {
    let mut counters = Counters::new();
    for line in text.lines() {
        let Some((cpu, name, value)) = split(line) else { continue };
        let losses = counters.entry(cpu).or_default();
        match name {
            "dropped" => losses.dropped = value,
            "too_big" => losses.too_big = value,
            "contended" => losses.contended = value,
            "overwritten_bytes" => losses.overwritten_bytes = value,
            _ => {}
        }
    }
    counters
}

/// `cpu1.dropped 3`
fn split(line: &str) -> Option<(usize, &str, u64)> {
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
    fn losses_are_told_by_cpu_and_cause() {
        let mut tally = Tally::default();
        tally.add_counters(parse(STATS));
        let expected = [
            "cpu0: 1 message too big; raise --subbuf-size",
            "cpu1: 12 messages dropped; raise --n-subbufs",
            "cpu1: 4096 bytes overwritten before they were read; raise --n-subbufs",
            "cpu10: 1 message dropped; raise --n-subbufs",
        ];
        assert_eq!(tally.lines(None), expected);
        assert_eq!(tally.lines(Some(1)), expected[1..3]);
        assert!(tally.lines(Some(2)).is_empty());
    }

    #[test]
    fn losses_add_up_and_are_said_in_one_line() {
        let mut tally = Tally::default();
        tally.add_counters(parse(STATS));
        assert_eq!(tally.of(2).to_string(), "nothing lost");
        let all: Losses = [0, 1, 10].map(|cpu| tally.of(cpu)).into_iter().sum();
        let expected = "13 messages dropped, 1 message too big, 4096 bytes overwritten before they were read";
        assert_eq!(all.to_string(), expected);
    }

    #[test]
    fn what_is_malformed_or_unknown_is_skipped() {
        let text = "\ncpu\ncpu0\ncpu0.dropped\ncpu0.dropped x\ncpu0.dropped -1\ncpux.dropped 1\ncpu.dropped 1\n\
                    0.dropped 1\ncpu0.dropped.max 7\ncpu99999999999999999999.dropped 1\ncpu0.new_one 5\n";
        let mut tally = Tally::default();
        tally.add_counters(parse(text));
        assert!(tally.lines(None).is_empty());
    }

    #[test]
    fn only_growth_counts_after_the_first_look() {
        let mut tally = Tally { last: parse(STATS), ..Tally::default() };
        tally.add_counters(parse(STATS));
        assert!(tally.lines(None).is_empty());
        tally.add_counters(parse("cpu1.dropped 14\n"));
        assert_eq!(tally.lines(None), ["cpu1: 2 messages dropped; raise --n-subbufs"]);
    }

    #[test]
    fn counters_that_went_back_started_again() {
        let mut tally = Tally { last: parse("cpu0.dropped 100\n"), ..Tally::default() };
        tally.add_counters(parse("cpu0.dropped 103\n"));
        tally.add_counters(parse("cpu0.dropped 2\n"));
        tally.add_counters(parse("cpu0.dropped 2\n"));
        assert_eq!(tally.lines(None), ["cpu0: 5 messages dropped; raise --n-subbufs"]);
    }

    #[test]
    fn unreadable_counters_change_nothing() {
        let mut tally = Tally::default();
        tally.add(Path::new("/nonexistent/stats"));
        tally.forgive(Path::new("/nonexistent/stats"));
        assert!(tally.lines(None).is_empty());
    }
}
