//! The options of `audience report`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use relay::ChannelName;
use relay::cli::duration::parse_duration;
use relay::layout::paths::mount_by_environment;

use super::WHAT;

/// Heading of the options about the page.
const PAGE: &str = "Page";

/// The options of a report.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Mount point [$RELAYFS or /mnt/relay]
    #[arg(short, long, value_name = "PATH", default_value_os_t = mount_by_environment(), hide_default_value = true,
          help_heading = WHAT)]
    pub(crate) mount: PathBuf,

    /// A channel, repeatable [default: all]
    #[arg(short, long, value_name = "NAME", help_heading = WHAT)]
    pub(crate) channel: Vec<ChannelName>,

    /// File for the page; - is standard output
    ///
    /// The file is replaced when it is complete.
    #[arg(short, long, value_name = "FILE", help_heading = PAGE)]
    pub(crate) output: PathBuf,

    /// Report what the buffers hold now
    ///
    /// It consumes nothing.
    #[arg(long, help_heading = WHAT)]
    pub(crate) snapshot: bool,

    /// Watch the channels for this time
    ///
    /// It consumes nothing.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration,
          conflicts_with = "snapshot", help_heading = WHAT)]
    pub(crate) duration: Duration,

    /// Most messages, the newest
    #[arg(long, value_name = "COUNT", default_value = "100000", help_heading = PAGE)]
    pub(crate) messages: usize,

    /// Directory of a recording, or of several
    ///
    /// Several are in one as 'audience record --all' makes them.
    #[arg(value_name = "DIR", help_heading = WHAT, conflicts_with_all = ["mount", "channel", "snapshot", "duration"])]
    pub(crate) dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::options::Options;

    #[test]
    fn a_report_has_one_source() {
        let parse = |args: &[&str]| Options::try_parse_from([&["audience", "report"], args].concat());
        for right in [&["-o", "f"][..], &["-o", "f", "dir"], &["-o", "f", "--snapshot", "-c", "a", "-c", "b"]]
        {
            assert!(parse(right).is_ok(), "{right:?}");
        }
        for wrong in [
            &["dir"][..],
            &["-o", "f", "dir", "-c", "a"],
            &["-o", "f", "dir", "--snapshot"],
            &["-o", "f", "--snapshot", "--duration", "1s"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
