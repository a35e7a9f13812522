//! The options of `relay-producer`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use relay::cli::duration::parse_duration;
use relay::cli::size::parse_size;
use relay::layout::channel_name::DEFAULT_CHANNEL;
use relay::layout::paths::mount_by_environment;
use relay::{ChannelName, GeometrySpec};
use relay_producer::{TransportChoice, Wait};

/// Options about messages.
/// A module writes its messages itself, so `--load` excludes these options.
const OF_MESSAGES: [&str; 10] =
    ["channel", "create", "cpu", "no_newline", "null", "chunk", "wait", "flush", "transport", "messages"];

/// Write messages into a relay channel
///
/// Each MESSAGE, followed by a newline, is one message. Without a MESSAGE, each line of standard input is one, with its
/// newline.
#[derive(Debug, Parser)]
#[command(
    name = "relay-producer",
    version,
    after_help = "\
A message without room is dropped and counted; --wait waits for a reader instead.
GEOMETRY is subbuf-size=64K:n-subbufs=8:overwrite:global:header=16; the daemon has
defaults for missing parts. `_` in an option's name counts as `-`.
If relayfsd ends meanwhile, input from a pipe, a socket or a terminal waits for the
next one without limit; MESSAGEs and files wait 10 s, beyond --wait.
--load runs init_module at the start, and cleanup_module at SIGINT (Ctrl-C) or
SIGTERM; a second signal does not wait for it.

Exit status: 0 all written, 1 error, 2 wrong usage, 3 some messages dropped."
)]
pub(crate) struct Options {
    /// Mount point or socket of a relayfs [default: $RELAYFS, else /mnt/relay]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) mount: Option<PathBuf>,

    /// Write to this channel
    #[arg(short, long, value_name = "NAME", default_value = DEFAULT_CHANNEL)]
    pub(crate) channel: ChannelName,

    /// Create the channel if it does not exist
    #[arg(long, value_name = "GEOMETRY", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) create: Option<GeometrySpec>,

    /// Write to the buffer of this CPU [default: the CPU that the command runs on]
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,

    /// Add no newline to a MESSAGE
    #[arg(short, long)]
    pub(crate) no_newline: bool,

    /// End messages on standard input at a NUL byte, which is part of them
    #[arg(short = '0', long, conflicts_with_all = ["chunk", "messages"])]
    pub(crate) null: bool,

    /// Cut standard input into messages of SIZE bytes (K, M, G: powers of 1024)
    #[arg(long, value_name = "SIZE", value_parser = chunk_size, conflicts_with = "messages")]
    pub(crate) chunk: Option<usize>,

    /// Wait for room instead of dropping, at most DURATION: 5, 0.5, 100ms, 2s, 1m
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = wait,
          default_missing_value = "")]
    pub(crate) wait: Option<Wait>,

    /// Finish the current sub-buffer of every CPU at the end
    #[arg(long)]
    pub(crate) flush: bool,

    /// Choose how messages get into the buffers
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    pub(crate) transport: TransportArg,

    /// Print channel, geometry and transport, and why the transport is the socket
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// Run a module written for the kernel, compiled into this shared object
    #[arg(long, value_name = "MODULE.so", conflicts_with_all = OF_MESSAGES)]
    pub(crate) load: Option<PathBuf>,

    /// End the module after this time: 500ms, 10s, 5m
    #[arg(long = "for", value_name = "DURATION", requires = "load", conflicts_with_all = OF_MESSAGES,
          value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,

    /// Messages to write [default: the lines of standard input]
    #[arg(value_name = "MESSAGE")]
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
        Options::try_parse_from(dashed(env::args_os()))
    }

    /// Returns the mount point or socket to use.
    pub(crate) fn mount(&self) -> PathBuf {
        self.mount.clone().unwrap_or_else(mount_by_environment)
    }
}

/// Replaces `_` by `-` in the names of long options, up to the `--` that ends them.
fn dashed(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut ended = false;
    args.map(move |arg| {
        ended |= arg == OsStr::new("--");
        if ended || !arg.as_bytes().starts_with(b"--") {
            return arg;
        }
        let mut bytes = arg.into_vec();
        let name = bytes.iter_mut().take_while(|byte| **byte != b'=');
        name.filter(|byte| **byte == b'_').for_each(|byte| *byte = b'-');
        OsString::from_vec(bytes)
    })
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
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args = ["relay-producer"].iter().chain(args).map(OsString::from);
        Options::try_parse_from(dashed(args)).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_consistent() {
        Options::command().debug_assert();
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
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
