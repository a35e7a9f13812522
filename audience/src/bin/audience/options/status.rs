//! The options of `audience status`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use relay::ChannelName;
use relay::cli::duration::parse_duration;
use relay::layout::paths::mount_by_environment;

use super::WHAT;

/// Shortest time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Heading of the options about looks and output.
const LOOKS: &str = "Looks";

/// The options of a status.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Mount point [$RELAYFS or /mnt/relay]
    #[arg(short, long, value_name = "PATH", default_value_os_t = mount_by_environment(), hide_default_value = true,
          help_heading = WHAT)]
    pub(crate) mount: PathBuf,

    /// A channel, repeatable [default: all]
    #[arg(short, long, value_name = "NAME", help_heading = WHAT)]
    channel: Vec<ChannelName>,

    /// Channels, as with -c
    #[arg(value_name = "CHANNEL", help_heading = WHAT)]
    channels: Vec<ChannelName>,

    /// Print one line of JSON
    #[arg(long, help_heading = LOOKS)]
    pub(crate) json: bool,

    /// Print again until interrupted
    ///
    /// At each interval. Without a daemon it waits for the next one.
    #[arg(short, long, help_heading = LOOKS)]
    pub(crate) watch: bool,

    /// Time between two looks
    ///
    /// Rates are made of two looks.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval, help_heading = LOOKS)]
    pub(crate) interval: Duration,
}

impl Status {
    /// Returns the channels that the caller has named, in either way. None: all.
    pub(crate) fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.channel.iter().chain(&self.channels)
    }
}

/// The options of a live view.
#[cfg(feature = "top")]
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Mount point [$RELAYFS or /mnt/relay]
    #[arg(short, long, value_name = "PATH", default_value_os_t = mount_by_environment(), hide_default_value = true,
          help_heading = WHAT)]
    pub(crate) mount: PathBuf,

    /// Time between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval, help_heading = LOOKS)]
    pub(crate) interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(time) if time < INTERVAL_MIN => Err(format!("less than {INTERVAL_MIN:?}")),
        other => other.map_err(|error| error.to_string()),
    }
}
