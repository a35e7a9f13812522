//! The options of `audience watch`.

use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use regex::bytes::Regex;
use relay::ChannelName;
use relay::cli::duration::parse_duration;
use relay::cli::number::parse_number;
use relay::layout::channel_name::DEFAULT_CHANNEL;
use relay::layout::paths::mount_by_environment;
use relay::trace::level::Level;

/// Shortest time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Groups of options.
const WHEN: &str = "When to save";
const TRACES: &str = "What to save";

/// The options of a watch.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Mount point [$RELAYFS or /mnt/relay]
    #[arg(short, long, value_name = "PATH", default_value_os_t = mount_by_environment(), hide_default_value = true,
          help_heading = WHEN)]
    pub(crate) mount: PathBuf,

    /// The channel, as app/log
    #[arg(short, long, value_name = "NAME", default_value = DEFAULT_CHANNEL, help_heading = WHEN)]
    pub(crate) channel: ChannelName,

    /// Save at level>=LEVEL, match=REGEX or exit
    ///
    /// May be given several times: any of them. level>=error: a record of this level or a more severe one. match=REGEX: a record whose text matches. exit: a
    /// process of the channel ended by a signal, or with another status than 0. Root's relayfsd knows that on Linux 6.15
    /// and later; relay-producer --exec reports how its program ended on every kernel.
    #[arg(long, value_name = "CONDITION", required = true, help_heading = WHEN)]
    pub(crate) on: Vec<Condition>,

    /// Directory for the traces
    ///
    /// It is created if it is missing.
    #[arg(short, long, value_name = "DIR", help_heading = TRACES)]
    pub(crate) output: PathBuf,

    /// Save what is this much older
    ///
    /// As far as the buffers still hold it.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, help_heading = TRACES)]
    pub(crate) last: Duration,

    /// Keep this many, remove the oldest
    ///
    /// Only the channel's traces count. A trace in which other files lie is never removed.
    #[arg(long, value_name = "COUNT", default_value = "20", value_parser = parse_number::<NonZero<usize>>,
          help_heading = TRACES)]
    pub(crate) keep: NonZero<usize>,

    /// Save at most one in this time
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration, help_heading = TRACES)]
    pub(crate) every: Duration,

    /// Look this often
    ///
    /// Each finished sub-buffer also causes a look.
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = interval, help_heading = WHEN)]
    pub(crate) interval: Duration,
}

/// What a record has to be for a trace to be saved.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    /// Of this level, or a more severe one.
    Level(Level),
    /// With a text that matches.
    Match(Regex),
    /// The end of a process by a signal, or with a status other than 0.
    Exit,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Condition, String> {
        if let Some(level) = text.strip_prefix("level>=") {
            return level.parse().map(Condition::Level).map_err(|error| format!("'{level}': {error}"));
        }
        if let Some(regex) = text.strip_prefix("match=") {
            return Regex::new(regex).map(Condition::Match).map_err(|error| error.to_string());
        }
        match text {
            "exit" => Ok(Condition::Exit),
            _ => Err("not a condition; use level>=LEVEL, match=REGEX or exit".to_owned()),
        }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(time) if time < INTERVAL_MIN => Err(format!("less than {INTERVAL_MIN:?}")),
        other => other.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::Options;

    #[test]
    fn conditions_are_read() {
        assert!(matches!("level>=ERROR".parse(), Ok(Condition::Level(Level::Error))));
        assert!(matches!("level>=warn".parse(), Ok(Condition::Level(Level::Warn))));
        assert!(matches!("match=a|b=c".parse(), Ok(Condition::Match(regex)) if regex.as_str() == "a|b=c"));
        assert!(matches!("exit".parse(), Ok(Condition::Exit)));
        for wrong in ["", "level", "level=error", "level>=", "level>=loud", "match", "match=(", "exit=1"] {
            assert!(wrong.parse::<Condition>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_watch_needs_a_condition_and_a_directory() {
        let parse = |args: &[&str]| Options::try_parse_from([&["audience", "watch"], args].concat());
        assert!(parse(&["--on", "exit", "--on", "level>=warn", "-o", "d"]).is_ok());
        for wrong in [
            &["-o", "d"][..],
            &["--on", "exit"],
            &["--on", "exit", "-o", "d", "--keep", "0"],
            &["--on", "exit", "-o", "d", "--interval", "0s"],
            &["--on", "exit", "-o", "d", "-f"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
