//! Options of `--to`.

use std::path::PathBuf;

use clap::Args;
use relay::cli::flush_interval::{FlushInterval, parse_flush_interval};
use relay::cli::number::parse_number;
use relay::layout::paths::mount_by_environment;

use super::{SENDING, WHAT};

/// Most messages that may be on the way to the server.
const WINDOW_MAX: usize = 65_536;
/// Most copies of a stream that a server accepts.
const REPLICAS_MAX: usize = 5;

/// How channels are forwarded.
#[derive(Clone, Debug, Args)]
pub(crate) struct Send {
    /// Mount point [$RELAYFS or /mnt/relay]
    #[arg(short, long, value_name = "PATH", default_value_os_t = mount_by_environment(), hide_default_value = true,
          help_heading = WHAT)]
    pub(crate) mount: PathBuf,

    /// Forward small parts this often
    ///
    /// Data that has waited so long is forwarded, in a sub-buffer that is not full. 'never' waits for full ones, or for
    /// those that the daemon finishes by its own --flush-interval.
    #[arg(long, alias = "flush_interval", value_name = "DURATION", default_value = "1s",
          value_parser = parse_flush_interval, help_heading = SENDING)]
    pub(crate) flush_interval: FlushInterval,

    /// Most unacknowledged messages
    ///
    /// All together have at most 32 MiB, or one sub-buffer that is larger. A buffer has one at a time if the stream has
    /// copies, or if other forwarders write to it.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = window, help_heading = SENDING)]
    pub(crate) window: usize,

    /// Create the stream if it is missing, in files
    #[arg(long, help_heading = SENDING)]
    pub(crate) create: bool,

    /// Copies of the created stream
    ///
    /// As many servers of the cluster keep the stream.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = replicas, requires = "create",
          help_heading = SENDING)]
    pub(crate) replicas: usize,
}

fn window(text: &str) -> Result<usize, String> {
    within(text, WINDOW_MAX)
}

fn replicas(text: &str) -> Result<usize, String> {
    within(text, REPLICAS_MAX)
}

fn within(text: &str, max: usize) -> Result<usize, String> {
    let number = parse_number::<usize>(text).map_err(|error| error.to_string())?;
    if (1..=max).contains(&number) { Ok(number) } else { Err(format!("1 to {max}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(window("1"), Ok(1));
        for bad in ["", "0", "-1", "65537", "x"] {
            assert!(window(bad).is_err(), "{bad}");
        }
        assert!(replicas("5").is_ok() && replicas("6").is_err());
    }
}
