//! The command line.
//!
//! In the option names of all our programs, `-` and `_` are equivalent.

use std::ffi::OsString;
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use relay::ChannelName;
use relay::cli::duration::parse_duration;
use relay::cli::size::parse_size;
use relay::layout::channel_name::DEFAULT_CHANNEL;
use relay::layout::paths::mount_by_environment;

use crate::channel_files::Place;

/// Shortest time between two readings, in seconds: poll(2) counts milliseconds.
const INTERVAL_MIN: f64 = 0.001;
/// Longest time between two readings, in seconds: a day.
const INTERVAL_MAX: f64 = 86_400.0;

/// The option after which all arguments belong to a program.
const EXEC: &str = "--exec";
const EXEC_WITH_VALUE: &str = "--exec=";

/// Read a relay channel to standard output, CPU by CPU, and consume what is read.
///
/// Data that one reader has read is gone for all readers. The output is ordered by CPU, not by time: first all of CPU
/// 0's file, then CPU 1's, and so on. Messages of one CPU stay in the order in which they were written.
///
/// If nothing is mounted, audience prints what the last daemon left, as --state does, and consumes nothing. If nothing
/// is left either, and the directory is empty, audience runs relayfsd to mount it, and unmounts it at the end. With
/// --follow it waits for the mount instead. At the end it reports on standard error what the channel lost since it was
/// last read.
///
/// `audience record` records a channel into files, one for each CPU; see `audience record --help`.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) what: What,

    /// Read until interrupted; wait for a channel that does not exist or has gone
    ///
    /// audience waits after any end of the daemon, reports that it waits, and continues when another daemon is started
    /// on the mount point. Messages that a daemon was delivering when it died may be printed twice.
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// With --follow: look for new messages at least this often
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = interval, requires = "follow")]
    pub(crate) interval: Duration,

    /// Print the content of the buffers, and consume nothing
    #[arg(long, conflicts_with = "follow")]
    pub(crate) snapshot: bool,

    /// Print what a dead daemon left, by mount point or state directory; consume nothing
    ///
    /// Without a path: list what daemons left, also for mount points that are gone. No daemon is needed, and none is
    /// asked. It prints unread data, or in overwrite mode all data that is still in the buffers. A state directory is
    /// /dev/shm/relayfs-UID/NAME, or the directory that relayfsd --state-dir names. A directory refused-N in it works
    /// too: the next daemon puts there what it does not trust. Channels without a name are named by number: -c 1.
    #[arg(long, value_name = "PATH", num_args = 0..=1, conflicts_with_all = ["follow", "snapshot", "mount"])]
    pub(crate) state: Option<Option<PathBuf>>,

    /// Run a program for which mount(2) knows the type relayfs
    ///
    /// For programs that were written for a relayfs in the kernel. If a relayfs is mounted already, mount(2) fails with
    /// EBUSY, umount(2) fails with EINVAL, and the mount stays. Otherwise relayfsd is started, and ends at the
    /// program's umount(2). All further arguments belong to the program, and its exit status is the result. Exit status
    /// 127: the program does not exist; 126: it cannot be run. Statically linked and set-user-ID programs cannot be
    /// helped this way.
    #[arg(long, value_name = "PROGRAM [ARG]...", exclusive = true)]
    pub(crate) exec: Option<OsString>,

    /// The program of `--exec` and its arguments; empty without `--exec`.
    #[arg(skip)]
    pub(crate) program: Vec<OsString>,

    #[command(subcommand)]
    pub(crate) action: Option<Action>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Record a channel into files, one for each CPU
    ///
    /// The files are DIR/cpu0, DIR/cpu1, and so on. What is recorded is consumed. The recording ends at SIGINT
    /// (Ctrl-C), at SIGTERM or after --duration. It then includes what the buffers hold at that moment; a second signal
    /// ends it at once. It waits for a channel that does not exist or has gone. The files hold the messages as they
    /// were written, back to back; only their owner can read them.
    ///
    /// When the disk is full the recording ends with an error. The files keep their content, and everything else is
    /// still in the buffers. At the end it reports what was recorded, and what the channel lost since it was last read.
    /// Exit status: 0 after a normal end, even with losses; 1 after an error; 2 for wrong usage. status: 0 when it
    /// ended as it was told to, whatever was lost; 1 after an error; 2 for wrong usage.
    Record(Record),
}

/// The options of a recording.
#[derive(Debug, Args)]
pub(crate) struct Record {
    #[command(flatten)]
    pub(crate) what: What,

    /// Directory for the files, created if missing; refused if it holds a recording
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,

    /// Begin another file at this size: cpu0.000000, cpu0.000001, ... [units: K, M, G]
    ///
    /// A file ends with a whole message, so it may be a little longer. If the reader falls behind for so long that a
    /// file reaches twice the size, a message may continue in the next file.
    #[arg(long, alias = "rotate_size", value_name = "SIZE", value_parser = nonzero_size)]
    pub(crate) rotate_size: Option<u64>,

    /// With --rotate-size: keep this many files of each CPU, and remove the oldest
    #[arg(long, alias = "rotate_count", value_name = "COUNT", requires = "rotate_size")]
    pub(crate) rotate_count: Option<NonZero<u64>>,

    /// End after this time: 500ms, 10s, 5m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,

    /// Time between two reports, 0 for none [default: 1s on a terminal, otherwise 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) progress: Option<Duration>,
}

/// The options that say what is read.
#[derive(Debug, Args)]
pub(crate) struct What {
    /// Where relayfs is mounted [default: $RELAYFS, or /mnt/relay]
    #[arg(short, long, value_name = "MOUNTPOINT", default_value_os_t = mount_by_environment(), hide_default_value = true)]
    pub(crate) mount: PathBuf,

    /// The channel, such as app/log for the files app/log0, app/log1, ...
    #[arg(short, long, default_value = DEFAULT_CHANNEL)]
    pub(crate) channel: ChannelName,

    /// Read only this CPU's file
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,
}

impl Options {
    /// Parses the options of this process. A request for help is an error too, which prints itself.
    pub(crate) fn read() -> Result<Options, clap::Error> {
        Options::parse_all(std::env::args_os().collect())
    }

    /// Parses options; hides the arguments after `--exec` from the parser, since they are not ours.
    fn parse_all(mut args: Vec<OsString>) -> Result<Options, clap::Error> {
        let is_exec = |arg: &OsString| arg == EXEC || arg.as_bytes().starts_with(EXEC_WITH_VALUE.as_bytes());
        let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
        let Some(at) = args[..end].iter().position(is_exec) else { return Options::try_parse_from(args) };
        // `--exec PROGRAM` or `--exec=PROGRAM`.
        let n_ours = (at + if args[at] == EXEC { 2 } else { 1 }).min(args.len());
        let rest = args.split_off(n_ours);
        if args.len() == at + 2 {
            // Joined, because the program's name may begin with a dash.
            let program = args.remove(at + 1);
            args[at] = [EXEC_WITH_VALUE.as_ref(), program.as_os_str()].into_iter().collect();
        }
        let mut options = Options::try_parse_from(args)?;
        options.program = options.exec.take().into_iter().chain(rest).collect();
        Ok(options)
    }
}

impl What {
    pub(crate) fn place(&self) -> Place {
        Place { mount: self.mount.clone(), channel: self.channel.clone() }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("not between {INTERVAL_MIN} and {INTERVAL_MAX} seconds"))
    }
}

fn nonzero_size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a file needs a size of at least 1 byte".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn every_dash_may_be_an_underscore() {
        let command = Options::command();
        for command in command.get_subcommands().chain([&command]) {
            for arg in command.get_arguments() {
                let name = arg.get_long().expect("an option");
                let other = name.replace('-', "_");
                let aliases = arg.get_all_aliases().unwrap_or_default();
                assert!(name == other || aliases.contains(&other.as_str()), "--{name}");
            }
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
        assert!(Options::try_parse_from(["audience", "-f", "--snapshot"]).is_err());
    }

    #[test]
    fn state_conflicts_with_options_of_a_mount() {
        let parse = |args: &[&str]| Options::try_parse_from([&["audience", "--state", "d"], args].concat());
        assert!(parse(&["-c", "app/log", "--cpu", "1"]).is_ok());
        let listing = Options::try_parse_from(["audience", "--state"]).unwrap();
        assert_eq!(listing.state, Some(None));
        for args in [&["-f"][..], &["--snapshot"], &["-m", "/mnt"], &["record", "-o", "d"]] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn record_has_separate_options() {
        let parse = |args: &[&str]| Options::try_parse_from([&["audience"], args].concat());
        assert!(parse(&["record", "-o", "d", "-c", "app/log", "--cpu", "1", "--rotate_size=1M"]).is_ok());
        assert!(parse(&["record"]).is_err(), "no directory");
        assert!(parse(&["-f", "record", "-o", "d"]).is_err());
        assert!(parse(&["record", "-o", "d", "-f"]).is_err());
        assert!(parse(&["record", "-o", "d", "--rotate-count=3"]).is_err(), "of which size?");
        assert!(parse(&["record", "-o", "d", "--rotate-size=0"]).is_err());
        assert!(parse(&["record", "-o", "d", "--rotate-size=1", "--rotate-count=0"]).is_err());
    }

    #[test]
    fn arguments_after_exec_belong_to_the_program() {
        let parse = |args: &[&str]| {
            let args = ["audience"].iter().chain(args).map(OsString::from).collect();
            Options::parse_all(args).map(|options| options.program)
        };
        for args in [&["p", "-f", "--exec", "--", "q"][..], &["-p"], &["p", ""], &["--help"], &["--"]] {
            assert_eq!(parse(&[&["--exec"], args].concat()).unwrap(), args);
        }
        assert_eq!(parse(&["--exec=p=q", "-m"]).unwrap(), ["p=q", "-m"]);
        assert!(parse(&["-f"]).unwrap().is_empty());
        for wrong in
            [&["--exec"][..], &["-f", "--exec", "p"], &["-m", "/x", "--exec", "p"], &["--", "--exec", "p"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
