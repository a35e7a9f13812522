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

/// A CPU, and the bytes recorded from it.
pub(crate) type Recorded = (usize, u64);

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
    pub(crate) fn report(&mut self, recorded: Vec<Recorded>, tally: &Tally) {
        let time = self.last.0.elapsed();
        let before = |cpu| self.last.1.iter().find(|(c, _)| *c == cpu).map_or(0, |(_, bytes)| *bytes);
        let grown: Vec<u64> =
            recorded.iter().map(|(cpu, bytes)| bytes.saturating_sub(before(*cpu))).collect();
        let line = |bytes: u64, grown: u64, losses: Losses| {
            format!("{}, {}/s, {losses}", amount(bytes as f64), amount(grown as f64 / time.as_secs_f64()))
        };
        let mut lines = Vec::new();
        if !self.terminal || recorded.len() <= LINES_MAX {
            for ((cpu, bytes), grown) in recorded.iter().zip(&grown) {
                lines.push(format!("cpu{cpu}: {}", line(*bytes, *grown, tally.of(*cpu))));
            }
        }
        let (total, losses) = sum(&recorded, tally);
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
    pub(crate) fn end(&mut self, dir: &Path, recorded: &[Recorded], tally: &Tally) {
        self.clear();
        for (cpu, bytes) in recorded {
            say(format_args!("cpu{cpu}: {bytes} bytes recorded, {}", tally.of(*cpu)));
        }
        let (total, losses) = sum(recorded, tally);
        say(format_args!("total: {total} bytes recorded in {}, {losses}", dir.display()));
    }
}

fn sum(recorded: &[Recorded], tally: &Tally) -> (u64, Losses) {
    (recorded.iter().map(|(_, bytes)| bytes).sum(), recorded.iter().map(|(cpu, _)| tally.of(*cpu)).sum())
}
