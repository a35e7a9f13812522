//! The command line.
//!
//! In the option names of all our programs, `-` and `_` are equivalent.

pub(crate) mod read;
pub(crate) mod send;
pub(crate) mod server;

use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser};
use relay::ChannelName;
use relay_stdio::flags::{help, version};

pub(crate) use self::read::Read;
pub(crate) use self::send::Send;
pub(crate) use self::server::{Server, Servers, ServersParser};

/// Name of the stream, if none is given.
const STREAM: &str = "relay";
/// Groups of options, in `--help` and in the man page.
const DIRECTION: &str = "Direction";
const WHAT: &str = "What to forward or read";
const SERVER: &str = "Server";
const SENDING: &str = "With --to";
const READING: &str = "With --from";
const OTHER: &str = "Other";

/// The word for all hosts, which no host has for a name.
pub(crate) const ALL_HOSTS: &str = "all";
/// Longest name of a host in bytes, as the kernel's.
const HOST_MAX: usize = 64;

/// Forward relay channels into NATS JetStream
///
/// With --to, each finished sub-buffer of the channels becomes a message in a stream of NATS JetStream. A sub-buffer is
/// given back to the daemon when the server has acknowledged its message, so what the server does not have stays in the
/// buffer. After any end of relay-forward, of the daemon or of the server, each sub-buffer is in the stream once. The
/// daemon must share its buffers with relay-forward: root, the daemon's user and the members of its --group get them.
///
/// If the server is away, slow or full, relay-forward says so once and tries again. It waits for channels and daemons
/// that do not exist yet. At its start it ends with an error at what only the operator can change: a wrong password
/// or certificate, a stream that is missing or keeps nothing, channels that it may not read. Later it waits for that,
/// too. It ends at SIGTERM or SIGINT, after the acknowledgements that are due.
///
/// With --from, the records of all hosts, channels and CPUs in the stream are printed in one order, or written as
/// recordings. The stream stays as it is. What is missing or wrong in it is said where it is. Exit status: 0; 1 after
/// an error, or if messages were refused; 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(
    name = "relay-forward",
    version,
    disable_help_flag = true,
    disable_version_flag = true,
    args = [help(OTHER), version(OTHER)],
    group = ArgGroup::new("direction").required(true),
    after_help = "A URL is nats://HOST:4222 or tls://HOST:4222. See relay-forward(1)."
)]
pub(crate) struct Options {
    /// Forward channels to these servers
    ///
    /// Several URLs of one cluster are separated by commas. A URL has no user and no password: other processes see it.
    #[arg(long, value_name = "URL[,URL]...", group = "direction", value_parser = ServersParser,
          help_heading = DIRECTION)]
    pub(crate) to: Option<Servers>,

    /// The stream; its subjects begin with it
    #[arg(long, value_name = "NAME", default_value = STREAM, value_parser = stream, help_heading = WHAT)]
    pub(crate) stream: String,

    /// A channel, as app/log; may be repeated [default: all]
    #[arg(short, long, value_name = "NAME", help_heading = WHAT)]
    pub(crate) channel: Vec<ChannelName>,

    /// A host in the stream [--to: the hostname, --from: all]
    ///
    /// Each mount point that forwards into a stream needs a name of a host that no other one has there. With --from,
    /// only this host is read, or 'all' of them. So no host can be called 'all'.
    #[arg(long, value_name = "NAME", value_parser = host, help_heading = WHAT)]
    pub(crate) host: Option<String>,

    #[command(flatten)]
    pub(crate) server: Server,

    #[command(flatten)]
    pub(crate) send: Send,

    #[command(flatten)]
    pub(crate) read: Read,
}

impl Options {
    /// Parses the arguments of this process.
    pub(crate) fn of_process() -> Result<Options, clap::Error> {
        Options::try_parse()?.checked()
    }

    /// Refuses what one option alone does not show.
    fn checked(self) -> Result<Options, clap::Error> {
        if self.to.is_some() && self.host.as_deref() == Some(ALL_HOSTS) {
            let why = "--host all: readers take that word for all hosts; give this one another name";
            return Err(Options::command().error(ErrorKind::ValueValidation, why));
        }
        Ok(self)
    }
}

/// Parses the name of a stream, which is one token of a subject too.
fn stream(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !text.is_empty() && text.len() <= 255 && text.bytes().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("a stream's name is 1 to 255 of A-Z a-z 0-9 _ -".to_owned())
    }
}

/// Parses the name of a host.
fn host(text: &str) -> Result<String, String> {
    if (1..=HOST_MAX).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!("a host's name has 1 to {HOST_MAX} bytes, and no control characters"))
    }
}

/// Returns the option that names this stream, behind a space. Nothing, if that needs no option.
pub(crate) fn stream_option(name: &str) -> String {
    if name == STREAM { String::new() } else { format!(" --stream {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args = ["relay-forward"].iter().chain(args);
        Options::try_parse_from(args).and_then(Options::checked).map_err(|error| error.to_string())
    }

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
    fn a_direction_is_needed() {
        assert!(parse(&[]).is_err());
        let options = parse(&["--to", "nats://a:4222", "-c", "cpu", "-c", "app/log"]).unwrap();
        assert_eq!((options.stream.as_str(), options.channel.len()), ("relay", 2));
    }

    #[test]
    fn errors_do_not_repeat_secrets() {
        for secret in ["nats://me:hunter2@a", "nats://hunter2@a", "nats://me:hunter2@a:port"] {
            let said = parse(&["--to", secret]).unwrap_err();
            assert!(said.contains("--to") && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn names_are_checked() {
        for bad in ["--stream=", "--stream=a.b", "--stream=a b", "--stream=>", "--host=", "--host=a\nb"] {
            assert!(parse(&["--to=nats://a", bad]).is_err(), "{bad}");
        }
        assert!(parse(&["--to=nats://a", &format!("--host={}", "h".repeat(65))]).is_err());
        assert!(parse(&["--to=nats://a", "--host=all"]).unwrap_err().contains("another name"));
        assert_eq!(parse(&["--from=nats://a", "--host=all"]).unwrap().host.as_deref(), Some("all"));
        assert_eq!(parse(&["--to=nats://a", "--host=web1.org"]).unwrap().host.as_deref(), Some("web1.org"));
    }
}
