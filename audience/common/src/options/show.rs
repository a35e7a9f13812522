//! The options that timed channels alone have: which records are printed, and how.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use regex::bytes::Regex;
use relay::cli::number::parse_number;
use relay::trace::level::Level;
use relay::trace::text::Format;

use super::when::When;

/// The options of timed channels.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Timed channels")]
pub struct Show {
    /// Print as short-iso, cat, json or others
    ///
    /// short-iso, the default, begins a line with the time. short-monotonic counts from the start of the machine,
    /// short-unix from 1970. cat prints the text alone. json prints an object a line, with nanoseconds as strings.
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,

    /// Leave out what is older: -5min, 10:30, ...
    ///
    /// Other times are today, yesterday, 2026-11-22, "2026-11-22 10:30" and @EPOCH.
    #[arg(short = 'S', long, value_name = "TIME", allow_hyphen_values = true)]
    pub since: Option<When>,

    /// Leave out what is younger
    #[arg(short = 'U', long, value_name = "TIME", allow_hyphen_values = true)]
    pub until: Option<When>,

    /// Only the last N records of all CPUs together
    ///
    /// With --follow: these, and then what comes.
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_number::<usize>)]
    pub lines: Option<usize>,

    /// Only records whose text matches
    ///
    /// REGEX is a regular expression.
    #[arg(short = 'g', long, value_name = "REGEX")]
    pub grep: Option<Regex>,

    /// Only records of this level or a more severe one
    ///
    /// The levels are error, warn, info, debug and trace, or 1 to 5.
    #[arg(short = 'p', long, value_name = "LEVEL")]
    pub level: Option<Level>,

    /// Only records whose target begins with this
    #[arg(long, value_name = "PREFIX")]
    pub target: Option<String>,

    /// Only records of this process or thread
    #[arg(long, value_name = "PID", value_parser = parse_number::<u32>)]
    pub pid: Option<u32>,

    /// Print times in UTC
    ///
    /// --since and --until are then read in UTC, too.
    #[arg(long)]
    pub utc: bool,

    /// Color levels: auto, always, never
    ///
    /// By default they have colors on a terminal, unless the variable NO_COLOR is set.
    #[arg(long, value_name = "WHEN", value_enum, hide_possible_values = true)]
    pub color: Option<Color>,
}

/// When levels have colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Show {
    /// Returns the first option that the caller has given.
    pub fn given(&self) -> Option<&'static str> {
        self.leaves_out().or_else(|| {
            let given =
                [("--output", self.output.is_some()), ("--utc", self.utc), ("--color", self.color.is_some())];
            given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
        })
    }

    /// Returns the first option that leaves records out.
    pub fn leaves_out(&self) -> Option<&'static str> {
        let given = [
            ("--since", self.since.is_some()),
            ("--until", self.until.is_some()),
            ("--lines", self.lines.is_some()),
            ("--grep", self.grep.is_some()),
            ("--level", self.level.is_some()),
            ("--target", self.target.is_some()),
            ("--pid", self.pid.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// Returns whether levels are colored on standard output.
    pub fn is_colored(&self) -> bool {
        match self.color.unwrap_or(Color::Auto) {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
                let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_given_option_is_named() {
        assert_eq!(Show::default().given(), None);
        assert_eq!(Show { utc: true, ..Show::default() }.given(), Some("--utc"));
        let both = Show { utc: true, pid: Some(1), ..Show::default() };
        assert_eq!((both.given(), both.leaves_out()), (Some("--pid"), Some("--pid")));
        assert_eq!(Show { utc: true, ..Show::default() }.leaves_out(), None);
    }

    #[test]
    fn color_can_be_forced() {
        assert!(Show { color: Some(Color::Always), ..Show::default() }.is_colored());
        assert!(!Show { color: Some(Color::Never), ..Show::default() }.is_colored());
    }
}
