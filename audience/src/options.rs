//! The command line.
//!
//! In all our programs `-` and `_` mean the same in the names of options. Here no name has either.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use relay::ChannelName;
use relay::name::DEFAULT_CHANNEL;
use relay::paths::{MOUNT_DEFAULT, MOUNT_ENV};

/// Shortest time between two readings, in seconds: poll(2) counts milliseconds.
const INTERVAL_MIN: f64 = 0.001;
/// Longest time between two readings, in seconds: a day.
const INTERVAL_MAX: f64 = 86_400.0;

/// Reads a relay channel, CPU by CPU, onto standard output; what was read is consumed.
///
/// What was read is gone, for every reader. The output goes CPU by CPU, not by time: first all that CPU 0's
/// file holds, then CPU 1's, and so on; messages of one CPU stay in the order in which they were written.
///
/// If nothing is mounted there, relayfsd is run to mount it, and unmounted again at the end; with --follow
/// the mount is waited for instead. At the end, what the channel lost is told on standard error.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// Where relayfs is mounted [default: $RELAYFS, or /mnt/relay]
    #[arg(short, long, value_name = "MOUNTPOINT", default_value_os_t = mount_default(), hide_default_value = true)]
    pub(crate) mount: PathBuf,

    /// The channel, such as app/log for the files app/log0, app/log1, ...
    #[arg(short, long, default_value = DEFAULT_CHANNEL)]
    pub(crate) channel: ChannelName,

    /// Read only this CPU's file
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,

    /// Go on reading until interrupted; wait for a channel that is not there, or goes away
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// With --follow: look for new messages at least this often
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = interval, requires = "follow")]
    pub(crate) interval: Duration,
}

/// The mount point where none is named: an empty variable counts as none.
fn mount_default() -> PathBuf {
    std::env::var_os(MOUNT_ENV)
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| MOUNT_DEFAULT.into())
        .into()
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("not between {INTERVAL_MIN} and {INTERVAL_MAX} seconds"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    /// Then `-` and `_` are equal in all of them without further ado.
    #[test]
    fn no_option_name_has_a_dash_or_an_underscore() {
        let command = Options::command();
        for name in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(!name.contains(['-', '_']), "--{name}: make its other spelling an alias");
        }
    }

    #[test]
    fn intervals_are_seconds_with_a_fraction() {
        assert_eq!(interval("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("3"), Ok(Duration::from_secs(3)));
        for bad in ["", "x", "0", "0.0001", "-1", "nan", "inf", "1e9", "0.2s"] {
            assert!(interval(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_interval_needs_follow() {
        assert!(Options::try_parse_from(["audience", "--interval", "1"]).is_err());
        assert!(Options::try_parse_from(["audience", "-f"]).is_ok());
        assert!(Options::try_parse_from(["audience", "-c", "../etc"]).is_err());
    }
}
