//! Options of `--from`.

use std::path::PathBuf;
use std::time::Duration;

use audience_common::options::Show;
use clap::Args;
use relay::cli::duration::parse_duration;

use super::{DIRECTION, READING, Servers, ServersParser};

/// How long records wait for older ones of other hosts, if the caller says nothing.
const HOLD: Duration = Duration::from_secs(1);

/// How channels are read.
#[derive(Clone, Debug, Args)]
#[group(id = "reading")]
pub(crate) struct Read {
    /// Print channels that these servers have
    ///
    /// Several URLs of one cluster are separated by commas. Nothing is consumed: the stream stays as it is.
    #[arg(long, value_name = "URL[,URL]...", group = "direction", value_parser = ServersParser,
          help_heading = DIRECTION)]
    pub(crate) from: Option<Servers>,

    /// Read until interrupted
    ///
    /// Hosts and channels that are new are read, too. A server that is away is waited for; without --follow, for 30
    /// seconds.
    #[arg(short, long, requires = "from", help_heading = READING)]
    pub(crate) follow: bool,

    /// With --follow: wait this long for other hosts, or 1s
    ///
    /// Records of other hosts that come later than this are marked 'late'.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "follow", help_heading = READING)]
    pub(crate) hold: Option<Duration>,

    /// Write recordings below DIR, as DIR/HOST/CHANNEL
    ///
    /// They are as those of audience record: a CTF trace of a timed channel, and the bytes of a raw one.
    #[arg(long, value_name = "DIR", requires = "from", conflicts_with = "Show", help_heading = READING)]
    pub(crate) record: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) show: Show,
}

impl Read {
    /// Returns how long a record waits for older ones of other hosts.
    pub(crate) fn hold(&self) -> Duration {
        self.hold.unwrap_or(HOLD)
    }
}
