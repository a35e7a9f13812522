//! The options of `relay-producer`.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use relay::cli::duration::parse_duration;
use relay::cli::number::parse_number;
use relay::cli::size::parse_size;
use relay::layout::channel_name::DEFAULT_CHANNEL;
use relay::layout::paths::mount_by_environment;
use relay::trace::definition::PLACE_MAX;
use relay::{ChannelName, GeometrySpec};
use relay_producer::{Level, TransportChoice, Wait};
use relay_stdio::flags::{help, version};

/// Options about messages.
/// A module writes its messages itself, so `--load` excludes these options.
const OF_MESSAGES: [&str; 14] = [
    "channel",
    "create",
    "timed",
    "cpu",
    "no_newline",
    "null",
    "chunk",
    "wait",
    "flush",
    "transport",
    "level",
    "target",
    "exec",
    "messages",
];
/// Options that mean nothing to a program's output: its lines are never waited for.
const NOT_OF_OUTPUT: [&str; 9] =
    ["cpu", "no_newline", "null", "chunk", "wait", "flush", "level", "target", "messages"];

/// Groups of options, in `--help` and in the man page.
const WHERE: &str = "Where to";
const MESSAGES: &str = "Messages";
const FULL: &str = "Full buffers";
const PROGRAMS: &str = "Programs";
const OTHER: &str = "Other";

/// Write messages into a relay channel
///
/// Each MESSAGE, followed by a newline, is one message. Without a MESSAGE, each line of standard input is one, with its
/// newline. In a timed channel each message is a record of text, without the newline.
///
/// A message without room is dropped and counted; --wait waits for a reader instead. Without the daemon at the start the
/// command fails, unless --wait-mount says to wait. If relayfsd ends meanwhile, input from a pipe, a socket or a terminal
/// waits for the next one without limit, so that the program before it gets no SIGPIPE. MESSAGEs and files wait 10 s,
/// beyond --wait.
///
/// Sizes take K, M or G, powers of 1024. Durations are 200ms, 10s, 5m; a number alone is seconds. In every option's name
/// '-' and '_' are the same.
#[derive(Debug, Parser)]
#[command(
    name = "relay-producer",
    version,
    disable_help_flag = true,
    disable_version_flag = true,
    args = [help(OTHER), version(OTHER)],
    override_usage = "relay-producer [OPTIONS] [MESSAGE]...\n       \
                      relay-producer [OPTIONS] --exec PROGRAM [ARG]...\n       \
                      relay-producer [OPTIONS] --load MODULE.so [--for DURATION]",
    after_help = "\
Each MESSAGE is one; without any, each line of standard input.
GEOM is subbuf-size=64K:n-subbufs=8:overwrite:global:timed, or parts of it.
Exit status: 0 all written, 1 error, 2 wrong usage, 3 some messages dropped;
with --exec that of the program, or 126 and 127. See relay-producer(1)."
)]
pub(crate) struct Options {
    /// Mount point or socket [$RELAYFS or /mnt/relay]
    #[arg(short, long, value_name = "PATH", help_heading = WHERE)]
    pub(crate) mount: Option<PathBuf>,

    /// Wait until relayfs is mounted
    ///
    /// Waits for a mount with a daemon that answers, for ever or at most DURATION, and fails then. It is for services that
    /// start with the machine, and for the command before them: relay-producer --wait-mount </dev/null.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = wait,
          default_missing_value = "", help_heading = WHERE)]
    pub(crate) wait_mount: Option<Wait>,

    /// Write to this channel
    #[arg(short, long, value_name = "NAME", default_value = DEFAULT_CHANNEL, help_heading = WHERE)]
    pub(crate) channel: ChannelName,

    /// Create the channel if it does not exist
    ///
    /// GEOM is subbuf-size=64K:n-subbufs=8:header=16:overwrite:global:timed, or parts of it; the daemon has defaults for
    /// missing parts. An existing channel keeps its geometry.
    #[arg(long, value_name = "GEOM", num_args = 0..=1, require_equals = true, default_missing_value = "",
          help_heading = WHERE)]
    pub(crate) create: Option<GeometrySpec>,

    /// Create a timed channel
    ///
    /// Each message of a timed channel is a record with its time and thread. An existing channel stays what it is.
    #[arg(long, requires = "create", help_heading = WHERE)]
    pub(crate) timed: bool,

    /// Write to the buffer of this CPU
    ///
    /// By default each message goes to the buffer of the CPU that the command runs on then.
    #[arg(long, value_name = "N", value_parser = parse_number::<usize>, help_heading = WHERE)]
    pub(crate) cpu: Option<usize>,

    /// By auto, shared or socket
    ///
    /// auto writes into shared buffers where the daemon lets it, and else sends to the daemon. shared does the former or
    /// fails, and says why. socket sends to the daemon.
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto", hide_possible_values = true,
          help_heading = WHERE)]
    pub(crate) transport: TransportArg,

    /// Set the level: error, warn, info, debug, trace
    ///
    /// Or 1 to 5. Only records of timed channels have a level.
    #[arg(long, value_name = "LEVEL", help_heading = MESSAGES)]
    pub(crate) level: Option<Level>,

    /// Say which part of a program it is of
    #[arg(long, value_name = "TARGET", requires = "level", value_parser = target, help_heading = MESSAGES)]
    pub(crate) target: Option<String>,

    /// Add no newline to a MESSAGE
    #[arg(short, long, help_heading = MESSAGES)]
    pub(crate) no_newline: bool,

    /// End messages of standard input at a NUL
    ///
    /// The NUL byte is a part of the message.
    #[arg(short = '0', long, conflicts_with_all = ["chunk", "messages"], help_heading = MESSAGES)]
    pub(crate) null: bool,

    /// Cut input into messages of this size
    #[arg(long, value_name = "SIZE", value_parser = chunk_size, conflicts_with = "messages", help_heading = MESSAGES)]
    pub(crate) chunk: Option<usize>,

    /// Wait for room, for ever or for DURATION
    ///
    /// Without it a message without room is dropped and counted.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = wait,
          default_missing_value = "", help_heading = FULL)]
    pub(crate) wait: Option<Wait>,

    /// At the end, finish the current sub-buffers
    ///
    /// Readers in mappings, and poll(2), see finished sub-buffers alone.
    #[arg(long, help_heading = FULL)]
    pub(crate) flush: bool,

    /// Run a program and keep its output
    ///
    /// The output is passed on as it is. Each line of it is kept, in a timed channel as a record with its stream. A
    /// program that fails leaves a record of its end there, too. Signals and the exit status are the program's; 126 and
    /// 127 say that it cannot be run. Without a daemon it runs all the same. All further arguments are the program's.
    #[arg(long, value_name = "PROGRAM [ARG]...", conflicts_with_all = NOT_OF_OUTPUT, help_heading = PROGRAMS)]
    pub(crate) exec: Vec<OsString>,

    /// Run a module written for the kernel
    ///
    /// It is a shared object. init_module runs at the start, and cleanup_module at SIGINT (Ctrl-C) or SIGTERM; a second
    /// signal does not wait for it.
    #[arg(long, value_name = "MODULE.so", conflicts_with_all = OF_MESSAGES, help_heading = PROGRAMS)]
    pub(crate) load: Option<PathBuf>,

    /// End the module after this time
    #[arg(long = "for", value_name = "DURATION", requires = "load", conflicts_with_all = OF_MESSAGES,
          value_parser = parse_duration, help_heading = PROGRAMS)]
    pub(crate) duration: Option<Duration>,

    /// Print channel, geometry and transport
    ///
    /// If the transport is the socket, it says why.
    #[arg(short, long, help_heading = OTHER)]
    pub(crate) verbose: bool,

    /// Messages to write. The usage explains them.
    #[arg(value_name = "MESSAGE", hide = true)]
    pub(crate) messages: Vec<OsString>,
}

/// `--transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportArg {
    /// Write into shared buffers if possible, else send to the daemon
    Auto,
    /// Write into shared buffers, or fail
    Shared,
    /// Send to the daemon
    Socket,
}

impl From<TransportArg> for TransportChoice {
    fn from(arg: TransportArg) -> TransportChoice {
        match arg {
            TransportArg::Auto => TransportChoice::Auto,
            TransportArg::Shared => TransportChoice::Shared,
            TransportArg::Socket => TransportChoice::Socket,
        }
    }
}

impl Options {
    /// Parses the options of this process. Help is an error, too, which prints itself.
    pub(crate) fn read() -> Result<Options, clap::Error> {
        checked(Options::try_parse_from(prepared(env::args_os()))?)
    }

    /// Returns the geometry of the channel, if it may be created.
    pub(crate) fn geometry(&self) -> Option<GeometrySpec> {
        let given = self.create?;
        Some(if self.timed { GeometrySpec { timed: Some(true), ..given } } else { given })
    }

    /// Returns whether a timed channel is asked for, by either option.
    pub(crate) fn asks_for_timed(&self) -> bool {
        self.geometry().is_some_and(|geometry| geometry.timed == Some(true))
    }

    /// Returns the mount point or socket to use.
    pub(crate) fn mount(&self) -> PathBuf {
        self.mount.clone().unwrap_or_else(mount_by_environment)
    }
}

/// Refuses options that the parser cannot compare.
fn checked(options: Options) -> Result<Options, clap::Error> {
    if options.timed && options.create.is_some_and(|given| given.timed == Some(false)) {
        let text = "--timed and 'raw' in --create exclude each other: leave one of them out\n";
        return Err(Options::command().error(ErrorKind::ArgumentConflict, text));
    }
    Ok(options)
}

/// Prepares arguments: `_` in the name of a long option is a `-`, up to the `--` that ends them.
/// What follows `--exec` becomes a value of that option each, whatever it looks like.
fn prepared(mut args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut prepared = Vec::new();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        let is_last = bytes == b"--";
        let is_program = bytes == b"--exec" || bytes.starts_with(b"--exec=");
        let is_alone = bytes == b"--exec";
        let at = prepared.len();
        prepared.push(if is_last || is_program { arg } else { dashed(arg) });
        if is_last {
            prepared.extend(args.by_ref());
        }
        if is_program {
            prepared.extend(args.by_ref().map(|value| {
                let mut arg = OsString::from("--exec=");
                arg.push(value);
                arg
            }));
            if is_alone && prepared.len() > at + 1 {
                prepared.remove(at);
            }
        }
    }
    prepared
}

fn dashed(arg: OsString) -> OsString {
    if !arg.as_bytes().starts_with(b"--") {
        return arg;
    }
    let mut bytes = arg.into_vec();
    let name = bytes.iter_mut().take_while(|byte| **byte != b'=');
    name.filter(|byte| **byte == b'_').for_each(|byte| *byte = b'-');
    OsString::from_vec(bytes)
}

/// Parses a target, which a record has 255 bytes for.
fn target(text: &str) -> Result<String, String> {
    if text.len() > PLACE_MAX {
        return Err(format!("it has {} bytes; a target has at most {PLACE_MAX}", text.len()));
    }
    Ok(text.to_owned())
}

fn chunk_size(text: &str) -> Result<usize, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    usize::try_from(size)
        .ok()
        .filter(|size| *size > 0)
        .ok_or_else(|| format!("chunks of {size} bytes are not possible"))
}

fn wait(text: &str) -> Result<Wait, String> {
    if text.is_empty() {
        return Ok(Wait::Forever);
    }
    parse_duration(text).map(Wait::AtMost).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args = ["relay-producer"].iter().chain(args).map(OsString::from);
        Options::try_parse_from(prepared(args)).and_then(checked).map_err(|error| error.to_string())
    }

    #[test]
    fn manual_is_current() {
        Options::command().debug_assert();
        relayfs_manual::check(Options::command(), 1);
    }

    #[test]
    fn optional_value_never_takes_a_message() {
        let options = parse(&["--create", "--wait", "hello"]).unwrap();
        assert_eq!(options.create, Some(GeometrySpec::default()));
        assert_eq!(options.wait, Some(Wait::Forever));
        assert_eq!(options.messages, ["hello"]);
        let options = parse(&["--create=n_subbufs=8:overwrite", "--wait=2s"]).unwrap();
        assert_eq!(options.create.unwrap().n_subbufs, Some(8));
        assert_eq!(options.wait, Some(Wait::AtMost(Duration::from_secs(2))));
        assert_eq!(parse(&["--wait-mount", "hello"]).unwrap().wait_mount, Some(Wait::Forever));
    }

    #[test]
    fn underscore_is_a_dash_in_option_names_only() {
        let options = parse(&["--no_newline", "--channel=my_log", "a_b", "--", "--c_d"]).unwrap();
        assert!(options.no_newline);
        assert_eq!(options.channel.as_str(), "my_log");
        assert_eq!(options.messages, ["a_b", "--c_d"]);
    }

    #[test]
    fn module_takes_mount_and_time() {
        let options = parse(&["--load", "m.so", "--for=2s", "-v", "-m", "/x"]).unwrap();
        assert_eq!(options.duration, Some(Duration::from_secs(2)));
        assert_eq!(options.mount(), PathBuf::from("/x"));
    }

    #[test]
    fn all_behind_exec_is_the_program() {
        let options = parse(&["-c", "app", "--exec", "sh", "-c", "--no_newline", "--", "--exec"]).unwrap();
        assert_eq!(options.exec, ["sh", "-c", "--no_newline", "--", "--exec"]);
        assert_eq!((options.channel.as_str(), options.no_newline), ("app", false));
        assert_eq!(parse(&["--exec=sh", "-c", "x"]).unwrap().exec, ["sh", "-c", "x"]);
        assert_eq!(parse(&["--exec", ""]).unwrap().exec, [""]);
        assert_eq!(parse(&["--", "--exec", "x"]).unwrap().messages, ["--exec", "x"]);
    }

    #[test]
    fn timed_channel_is_created_with_any_geometry() {
        let geometry = |args: &[&str]| parse(args).unwrap().geometry();
        assert_eq!(geometry(&[]), None);
        assert_eq!(geometry(&["--create", "--timed"]).unwrap().timed, Some(true));
        let timed = geometry(&["--create=n-subbufs=2", "--timed"]).unwrap();
        assert_eq!((timed.n_subbufs, timed.timed), (Some(2), Some(true)));
        assert_eq!(geometry(&["--create=timed"]).unwrap().timed, Some(true));
        let options = parse(&["--level=warn", "--target=app::db"]).unwrap();
        assert_eq!((options.level, options.target.as_deref()), (Some(Level::Warn), Some("app::db")));
    }

    #[test]
    fn contradictory_options_are_refused() {
        for args in [
            &["--chunk=0"][..],
            &["--chunk=1X"],
            &["--chunk=4K", "-0"],
            &["-0", "message"],
            &["--chunk=4K", "message"],
            &["--channel=.hidden"],
            &["--create=size=1"],
            &["--cpu=-1"],
            &["--wait=soon"],
            &["--transport=pigeon"],
            &["--no-such-option"],
            &["--load=m.so", "message"],
            &["--load=m.so", "--channel=app"],
            &["--for=2s", "message"],
            &["--load=m.so", "--for=ever"],
            &["--timed"],
            &["--create=raw", "--timed"],
            &["--create=raw:timed"],
            &["--target=app", "message"],
            &["--level=loud"],
            &["--exec"],
            &["message", "--exec", "sh"],
            &["--wait", "--exec", "sh"],
            &["--level=info", "--exec", "sh"],
            &["--load=m.so", "--exec", "sh"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
