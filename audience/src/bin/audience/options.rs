//! The command line.
//!
//! In the option names of all our programs, `-` and `_` are equivalent.

mod convert;
pub(crate) mod record;
mod report;
mod status;
mod watch;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use relay::ChannelName;
use relay::cli::duration::parse_duration;
use relay::cli::number::parse_number;
use relay::layout::channel_name::DEFAULT_CHANNEL;
use relay::layout::paths::mount_by_environment;
use relay_stdio::flags::{help, version};

pub(crate) use audience_common::options::Show;

pub(crate) use self::convert::Convert;
pub(crate) use self::record::Record;
pub(crate) use self::report::Report;
pub(crate) use self::status::Status;
#[cfg(feature = "top")]
pub(crate) use self::status::Top;
pub(crate) use self::watch::{Condition, Watch};
use crate::channel_files::Place;

/// Shortest time between two readings, in seconds: poll(2) counts milliseconds.
const INTERVAL_MIN: f64 = 0.001;
/// Longest time between two readings, in seconds: a day.
const INTERVAL_MAX: f64 = 86_400.0;

/// The option after which all arguments belong to a program.
const EXEC: &str = "--exec";
const EXEC_WITH_VALUE: &str = "--exec=";

/// How long `--follow` waits for records that appear late, if the caller says nothing.
const WINDOW: Duration = Duration::from_millis(100);

/// Groups of options, in `--help` and in the man page.
const WHAT: &str = "What to read";
const HOW: &str = "How to read it";
const TIMED: &str = "Timed channels";
const OTHER: &str = "Other";

/// Read a relay channel, and consume what is read
///
/// audience prints to standard output. Data that one reader has read is gone for all readers. The output of a raw channel
/// is ordered by CPU, not by time: first all of CPU 0's file, then CPU 1's, and so on. Messages of one CPU stay in the
/// order in which they were written. The records of a timed channel are printed in one order over all CPUs. With an
/// option that leaves records out, a single reading consumes nothing; --follow consumes all, also what it leaves out.
///
/// If nothing is mounted, audience prints what the last daemon left, as --state does, and consumes nothing. If nothing
/// is left either, and the directory is empty, audience runs relayfsd to mount it, and unmounts it at the end. With
/// --follow it waits for the mount instead. At the end it reports on standard error what the channel lost since it was
/// last read.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    subcommand_help_heading = "Commands",
    disable_help_flag = true,
    disable_version_flag = true,
    args = [help(OTHER), version(OTHER)],
    override_usage = "audience [OPTIONS]\n       audience COMMAND [OPTIONS]",
    after_help = "A channel is app/log for the files app/log0, app/log1, ... See audience(1)."
)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) what: What,

    /// Read until interrupted
    ///
    /// audience waits for a channel that does not exist or has gone, after any end of the daemon. It reports that it waits,
    /// and continues when another daemon is started on the mount point. Messages that a daemon was delivering when it died
    /// may be printed twice.
    #[arg(short, long, help_heading = HOW)]
    pub(crate) follow: bool,

    /// With --follow: look this often
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = interval, requires = "follow",
          help_heading = HOW)]
    pub(crate) interval: Duration,

    /// Print the buffers, and consume nothing
    #[arg(long, conflicts_with = "follow", help_heading = HOW)]
    pub(crate) snapshot: bool,

    /// Print what a dead daemon left
    ///
    /// PATH is its mount point or its state directory. Without a path: list what daemons left, also for mount points that
    /// are gone. It consumes nothing. No daemon is needed, and none is asked. It prints unread data, or in overwrite mode
    /// all data that is still in the buffers. A state directory is /dev/shm/relayfs-UID/NAME, or the directory that
    /// relayfsd --state-dir names. A directory quarantine-N in it works too: the next daemon puts there what it does not
    /// trust. Channels without a name are named by number: -c 1.
    #[arg(long, value_name = "PATH", num_args = 0..=1, conflicts_with_all = ["follow", "snapshot", "mount"],
          help_heading = HOW)]
    pub(crate) state: Option<Option<PathBuf>>,

    /// Print a recording of a timed channel
    ///
    /// It is a directory of 'audience record' or 'audience watch', or a copy of it.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["follow", "snapshot", "mount", "state", "channel"],
          help_heading = HOW)]
    pub(crate) trace: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) show: Show,

    /// With --follow: wait for other CPUs [100ms]
    ///
    /// Records of other CPUs that come later than this are marked 'late'.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "follow", help_heading = TIMED)]
    pub(crate) window: Option<Duration>,

    /// List the channels with mode and geometry
    ///
    /// It consumes nothing.
    #[arg(long, conflicts_with_all = ["follow", "snapshot", "state", "trace", "channel", "cpu"], help_heading = OTHER)]
    pub(crate) list: bool,

    /// Run a program that mounts relayfs itself
    ///
    /// For programs that were written for a relayfs in the kernel: for them mount(2) knows the type. If a relayfs is
    /// mounted already, mount(2) fails with EBUSY, umount(2) fails with EINVAL, and the mount stays. Otherwise relayfsd is
    /// started, and ends at the program's umount(2). All further arguments belong to the program, and its exit status is
    /// the result. Exit status 127: the program does not exist; 126: it cannot be run. Statically linked and set-user-ID
    /// programs cannot be helped this way.
    #[arg(long, value_name = "PROGRAM [ARG]...", exclusive = true, help_heading = OTHER)]
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
    /// The files are DIR/cpu0, DIR/cpu1, and so on. Of a timed channel they are a CTF trace, with DIR/metadata, which
    /// audience --trace and babeltrace2 read; a piece of --rotate-size is a directory DIR/000000 with all CPUs. What is
    /// recorded is consumed. The recording ends at SIGINT
    /// (Ctrl-C), at SIGTERM or after --duration. It then includes what the buffers hold at that moment; a second signal
    /// ends it at once. It waits for a channel that does not exist or has gone. The files hold the messages as they
    /// were written, back to back; only their owner can read them.
    ///
    /// When the disk is full the recording ends with an error. The files keep their content, and everything else is
    /// still in the buffers. At the end it reports what was recorded, and what the channel lost since it was last read.
    /// Exit status: 0 after a normal end, even with losses; 1 after an error; 2 for wrong usage.
    Record(Record),

    /// Convert a recording of a timed channel
    ///
    /// It makes a file for another program. The recording is a directory of 'audience record' or 'audience watch', or a copy of it. It stays as it is. What
    /// is damaged in it is reported, and all else is converted. Exit status: 0 if all was converted; 1 after an error,
    /// or if something is damaged; 2 for wrong usage.
    Convert(Convert),

    /// Make a page for a browser
    ///
    /// It shows rates, fill and losses over time, the messages, and spans. The page is one file and needs no network.
    /// It shows a recording, or what the buffers hold (--snapshot), or some time with live channels. It consumes
    /// nothing. A raw channel has no times, so a recording of one is left out. A live report looks twice a second, and
    /// has what the buffers held then. Exit status: 0 if all was read; 1 after an error, or if a recording is damaged;
    /// 2 for wrong usage.
    Report(Report),

    /// Save the last seconds of a timed channel when something happens
    ///
    /// It reads copies, and consumes nothing. When a record meets a condition, it saves what the buffers of all CPUs
    /// hold, as a directory that is a CTF trace, and prints its path. It waits for a channel that does not exist or has
    /// gone, and ends at SIGINT (Ctrl-C) or SIGTERM.
    Watch(Watch),

    /// Show how channels fare: rates, fill, losses
    ///
    /// It also shows writers and readers. It looks twice, --interval apart, and consumes nothing. Losses are those
    /// since a channel was created, by cause, with the time since the last. Advice follows from what was measured. A
    /// raw channel does not know where messages end, so it has no message rate. Exit status: 0; 1 after an error; 2
    /// for wrong usage.
    Status(Status),

    /// Show channels live
    ///
    /// It shows rates of the last minute, fill, losses, writers and readers. Keys: arrows choose a channel and Enter
    /// opens it; s sorts; q ends. In a channel: f shows its text, from copies; F flushes; R resets, after a question;
    /// w saves a snapshot into files of this directory; Esc goes back. It looks at copies, and consumes nothing.
    #[cfg(feature = "top")]
    Top(Top),
}

/// The options that say what is read.
#[derive(Debug, Args)]
pub(crate) struct What {
    /// Mount point [$RELAYFS or /mnt/relay]
    #[arg(short, long, value_name = "PATH", default_value_os_t = mount_by_environment(), hide_default_value = true,
          help_heading = WHAT)]
    pub(crate) mount: PathBuf,

    /// The channel, as app/log
    #[arg(short, long, value_name = "NAME", default_value = DEFAULT_CHANNEL, help_heading = WHAT)]
    pub(crate) channel: ChannelName,

    /// Read only this CPU's file
    #[arg(long, value_name = "N", value_parser = parse_number::<usize>, help_heading = WHAT)]
    pub(crate) cpu: Option<usize>,
}

impl Options {
    /// Returns how long a record waits for older ones of other CPUs.
    pub(crate) fn window(&self) -> Duration {
        self.window.unwrap_or(WINDOW)
    }

    /// Returns the first option that the caller has given and that raw channels do not have.
    pub(crate) fn given(&self) -> Option<&'static str> {
        self.show.given().or(self.window.is_some().then_some("--window"))
    }

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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn manual_is_current() {
        Options::command().debug_assert();
        relayfs_manual::check(Options::command(), 1);
    }

    #[test]
    fn every_dash_may_be_an_underscore() {
        relayfs_manual::check_underscores(&Options::command());
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
