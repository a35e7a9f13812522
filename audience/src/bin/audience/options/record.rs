//! The options of `audience record`.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use relay::cli::duration::parse_duration;
use relay::cli::number::parse_number;
use relay::cli::size::parse_size;

use super::{WHAT, What};

/// Groups of options, besides that of the channel.
const FILES: &str = "Files";
const RUN: &str = "Running";

/// The options of a recording.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("rotation").args(["rotate_size", "rotate_interval", "total_size"]).multiple(true)))]
pub(crate) struct Record {
    #[command(flatten)]
    pub(crate) what: What,

    /// Record every channel
    ///
    /// Also those made later, each into DIR/CHANNEL. A channel that has gone and comes again continues in the same directory.
    #[arg(long, conflicts_with_all = ["channel", "cpu"], help_heading = WHAT)]
    pub(crate) all: bool,

    /// Directory for the files
    ///
    /// It is created if it is missing, and refused if it holds a recording.
    #[arg(short, long, value_name = "DIR", help_heading = FILES)]
    pub(crate) output: PathBuf,

    /// Continue the recording in DIR
    ///
    /// Nothing is lost or comes twice, even if a recorder was killed. A raw channel's files grow. A timed channel begins another piece, DIR/000001.
    #[arg(long, conflicts_with = "dated", help_heading = FILES)]
    pub(crate) append: bool,

    /// Record into a new directory in DIR
    ///
    /// It is called DIR/2026-11-22T18-00-00.123Z, and continues where the one before ended.
    #[arg(long, help_heading = FILES)]
    pub(crate) dated: bool,

    /// Begin another file at this size
    ///
    /// The files are cpu0.000000, cpu0.000001, and so on. A file ends with a whole message, so it may be a little
    /// longer. If the reader falls behind for so long that a file reaches twice the size, a message may continue in
    /// the next file.
    #[arg(long, alias = "rotate_size", value_name = "SIZE", value_parser = nonzero_size, help_heading = FILES)]
    pub(crate) rotate_size: Option<u64>,

    /// Begin another file at this age
    ///
    /// A file that is empty stays.
    #[arg(long, alias = "rotate_interval", value_name = "DURATION", value_parser = nonzero_duration, help_heading = FILES)]
    pub(crate) rotate_interval: Option<Duration>,

    /// Keep this many, remove the oldest
    ///
    /// It counts the files of each CPU, and takes one of --rotate-size, --rotate-interval and --total-size.
    #[arg(long, alias = "rotate_count", value_name = "COUNT", value_parser = parse_number::<NonZero<u64>>,
          requires = "rotation", help_heading = FILES)]
    pub(crate) rotate_count: Option<NonZero<u64>>,

    /// Keep all files below this size
    ///
    /// All in DIR together; the oldest are removed. Files that are being written stay. The files are counted at most
    /// once a second, so there may be as much more as comes in a second. Without --rotate-size, a file is long enough
    /// at a sixteenth of this size. The least is 64K.
    #[arg(long, alias = "total_size", value_name = "SIZE", value_parser = total_size, help_heading = FILES)]
    pub(crate) total_size: Option<u64>,

    /// End after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = RUN)]
    pub(crate) duration: Option<Duration>,

    /// Time between two reports, 0 for none
    ///
    /// By default 1s on a terminal, otherwise 10s.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = RUN)]
    pub(crate) progress: Option<Duration>,
}

/// Least size of all files together.
const TOTAL_MIN: u64 = 64 << 10;

impl Record {
    /// Returns the size at which a file is long enough.
    pub(crate) fn file_size(&self) -> Option<u64> {
        self.rotate_size.or(self.total_size.map(|total| total / 16))
    }

    /// Returns whether the recording has numbered files.
    pub(crate) fn rotates(&self) -> bool {
        self.file_size().is_some() || self.rotate_interval.is_some()
    }

    /// Returns whether the next recorder continues where this one ends.
    pub(crate) fn continues(&self) -> bool {
        self.all || self.append || self.dated
    }
}

fn nonzero_size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a file needs a size of at least 1 byte".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

fn total_size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(size) if size < TOTAL_MIN => Err("less than 64K".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

fn nonzero_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("a file needs some time".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::{Action, Options};

    fn parse(args: &[&str]) -> Result<Record, clap::Error> {
        let options = Options::try_parse_from([&["audience"], args].concat())?;
        match options.action {
            Some(Action::Record(record)) => Ok(record),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn record_has_separate_options() {
        assert!(parse(&["record", "-o", "d", "-c", "app/log", "--cpu", "1", "--rotate_size=1M"]).is_ok());
        assert!(parse(&["record"]).is_err(), "no directory");
        assert!(parse(&["-f", "record", "-o", "d"]).is_err());
        for wrong in ["-f", "--rotate-size=0", "--rotate-count=0", "--rotate-interval=0s", "--total-size=9K"]
        {
            assert!(parse(&["record", "-o", "d", wrong]).is_err(), "{wrong}");
        }
        for wrong in [&["--all", "--cpu=1"][..], &["--all", "-c", "x"], &["--append", "--dated"]] {
            assert!(parse(&[&["record", "-o", "d"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_count_needs_numbered_files() {
        let counts = |args: &[&str]| parse(&[&["record", "-o", "d", "--rotate-count=3"], args].concat());
        assert!(counts(&[]).is_err(), "of which size?");
        for args in ["--rotate-size=1M", "--rotate-interval=60m", "--total-size=1G"] {
            assert!(counts(&[args]).is_ok(), "{args}");
        }
    }

    #[test]
    fn a_file_is_a_sixteenth_of_all() {
        let size = |args: &[&str]| parse(&[&["record", "-o", "d"], args].concat()).unwrap().file_size();
        assert_eq!(size(&[]), None);
        assert_eq!(size(&["--total-size=1M"]), Some(64 << 10));
        assert_eq!(size(&["--total-size=1M", "--rotate-size=1K"]), Some(1 << 10));
    }
}
