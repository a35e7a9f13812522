//! Reports on a recording, during it and at its end: a line for each CPU, and a line for all.
//!
//! On a terminal a report overwrites the last report.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::amount::amount;
use crate::losses::{Losses, Tally};
use crate::output::say;

/// Time between two reports if the caller names none.
const EVERY_ON_TERMINAL: Duration = Duration::from_secs(1);
const EVERY_ELSEWHERE: Duration = Duration::from_secs(10);
/// Most CPUs with separate lines on a terminal.
///
/// Lines that have scrolled off its top cannot be overwritten.
const LINES_MAX: usize = 16;

/// What was recorded of a CPU, or of a channel.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) losses: Losses,
}

/// Returns what was recorded of each CPU.
pub(crate) fn of_cpus(bytes: impl IntoIterator<Item = (usize, u64)>, tally: &Tally) -> Vec<Recorded> {
    let of = |(cpu, bytes)| Recorded { name: format!("cpu{cpu}"), bytes, losses: tally.of(cpu) };
    bytes.into_iter().map(of).collect()
}

/// Prints the reports.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    /// Time between two reports; `None` for no reports.
    every: Option<Duration>,
    since: Instant,
    /// The time of the last report, and what had been recorded then.
    last: (Instant, Vec<Recorded>),
    /// Lines on the terminal that the next report overwrites.
    shown: usize,
}

impl Progress {
    pub(crate) fn new(every: Option<Duration>) -> Progress {
        let terminal = io::stderr().is_terminal();
        let every = every.unwrap_or(if terminal { EVERY_ON_TERMINAL } else { EVERY_ELSEWHERE });
        let now = Instant::now();
        let every = (!every.is_zero()).then_some(every);
        Progress { terminal, every, since: now, last: (now, Vec::new()), shown: 0 }
    }

    /// Time until the next report is due; `None` if none will come.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        self.every.map(|every| every.saturating_sub(self.last.0.elapsed()))
    }

    /// Prints a report.
    pub(crate) fn report(&mut self, recorded: Vec<Recorded>) {
        let time = self.last.0.elapsed();
        let before = |name: &str| self.last.1.iter().find(|of| of.name == name).map_or(0, |of| of.bytes);
        let grown: Vec<u64> = recorded.iter().map(|of| of.bytes.saturating_sub(before(&of.name))).collect();
        let line = |bytes: u64, grown: u64, losses: Losses| {
            format!("{}, {}/s, {losses}", amount(bytes as f64), amount(grown as f64 / time.as_secs_f64()))
        };
        let mut lines = Vec::new();
        if !self.terminal || recorded.len() <= LINES_MAX {
            for (of, grown) in recorded.iter().zip(&grown) {
                lines.push(format!("{}: {}", of.name, line(of.bytes, *grown, of.losses)));
            }
        }
        let (total, losses) = sum(&recorded);
        let since = self.since.elapsed().as_secs();
        lines.push(format!("total: {}, {since} s", line(total, grown.iter().sum(), losses)));
        if self.terminal {
            self.clear();
            // Line wrap is off, so that long lines are cut: a second row would not be overwritten.
            let rows: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let _ = write!(io::stderr(), "\x1b[?7l{rows}\x1b[?7h");
            self.shown = lines.len();
        } else {
            lines.iter().for_each(say);
        }
        self.last = (Instant::now(), recorded);
    }

    /// Prints a message in place of the last report.
    pub(crate) fn say(&mut self, message: impl Display) {
        self.clear();
        say(message);
    }

    /// Removes the last report from the terminal.
    fn clear(&mut self) {
        if self.shown > 0 {
            // From the first column: the terminal may have printed ^C.
            let _ = write!(io::stderr(), "\r\x1b[{}A\x1b[J", self.shown);
            self.shown = 0;
        }
    }

    /// Prints the final report.
    pub(crate) fn end(&mut self, dir: &Path, recorded: &[Recorded]) {
        self.clear();
        for Recorded { name, bytes, losses } in recorded {
            say(format_args!("{name}: {bytes} bytes recorded, {losses}"));
        }
        let (total, losses) = sum(recorded);
        say(format_args!("total: {total} bytes recorded in {}, {losses}", dir.display()));
    }
}

/// Returns the sums of what was recorded.
pub(crate) fn sum(recorded: &[Recorded]) -> (u64, Losses) {
    (recorded.iter().map(|of| of.bytes).sum(), recorded.iter().map(|of| of.losses).sum())
}
