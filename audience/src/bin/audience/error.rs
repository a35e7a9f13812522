//! The reasons why the reader stops early.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audience_common::error::{self as common, Signal};
use nix::errno::Errno;
use relay::ChannelName;
use relay::layout::paths::shell_word;
use relay::trace::metadata::MetadataError;
use relay::trace::packet::{PacketError, ReadError};
use thiserror::Error;

/// Time without an answer after which a daemon is said to stand still.
pub(crate) const SILENT: Duration = Duration::from_secs(5);
/// Most channels that a message lists.
const LISTED_MAX: usize = 20;

/// Why the reader stops early. All reasons except the first two are printed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The reader of our output has gone.
    #[error("the reader of the output has gone")]
    OutputClosed,
    /// A signal asked the process to end.
    #[error("interrupted by signal {0}")]
    Interrupted(Signal),
    /// Standard output is closed; nothing was read.
    #[error("{0}: nothing was read; redirect it, for instance to /dev/null")]
    NoOutput(#[from] relay_stdio::StreamError),
    /// Writing failed in another way. `lost` is the number of bytes that were read and not written.
    #[error("cannot write to standard output: {source}{}", kept(*.lost, ""))]
    Output { source: io::Error, lost: usize },
    /// A live view has nowhere to be shown.
    #[cfg(feature = "top")]
    #[error("audience top needs a terminal; audience status --watch prints to any output")]
    NoTerminal,
    /// A system call that should always succeed.
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error("{} is a socket, and sockets are for producers; name the mount point: -m MOUNTPOINT", .0.display())]
    Socket(PathBuf),
    #[error("{} is not a directory; name the mount point: -m MOUNTPOINT", .0.display())]
    NotDirectory(PathBuf),
    #[error("{path}: there is no such directory; name the mount point: -m MOUNTPOINT", path = .0.display())]
    Missing(PathBuf),
    #[error(
        "{path}: no relayfs is mounted there, and it holds other files; name the mount point: -m MOUNTPOINT",
        path = .0.display()
    )]
    NotEmpty(PathBuf),
    #[error(
        "{path}: its relayfsd was killed or crashed, and what it left is another user's, or gone: see audience --state, \
         start relayfsd {word} again, or umount {word}",
        path = .0.display(), word = shell_word(.0)
    )]
    Dead(PathBuf),
    #[error("no channel '{channel}' in {}{}", .mount.display(), listed(.channel, .known))]
    NoChannel { channel: ChannelName, mount: PathBuf, known: Vec<String> },
    #[error("channel '{channel}' in {} has no file for CPU {cpu}, only for {}", .mount.display(), ranges(.has))]
    NoCpu { channel: ChannelName, mount: PathBuf, cpu: usize, has: Vec<usize> },
    #[error("cannot open {}: {source}{}", .path.display(), advice(.source))]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}{}", .path.display(), advice(.source))]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "cannot open {}: {source}; a state directory is /dev/shm/relayfs-UID/NAME, for the user relayfsd runs as",
        .path.display()
    )]
    StateDir { path: PathBuf, source: io::Error },
    #[error(
        "{} is no state directory: there are no channels in it; relayfsd's are below /dev/shm/relayfs-UID, or where its \
         --state-dir says, and one that ended with nothing unread has left none; --state without a path lists them", .0.display()
    )]
    NoState(PathBuf),
    /// Nothing of a left channel can be read.
    #[error("{0}")]
    Left(String),
    #[error("the channel's files in {} are damaged, see above; the rest was read", .0.display())]
    Damaged(PathBuf),
    #[error("{} holds a recording already; name another directory, or remove it", .0.display())]
    Recorded(PathBuf),
    #[error("cannot record into {} any more: the directory was replaced; what is not recorded is still in the buffers", .0.display())]
    Replaced(PathBuf),
    #[error("cannot record into {}: another recorder writes there", .0.display())]
    RecorderAtWork(PathBuf),
    #[error("channel '{0}' was raw and is timed now, or the other way around; start audience again")]
    KindChanged(ChannelName),
    #[error(
        "channel '{channel}' has the clock '{now}' now, and the recording has '{before}'; record into another directory"
    )]
    ClockChanged { channel: ChannelName, before: &'static str, now: &'static str },
    #[error("{}: {error}", .path.display())]
    Metadata { path: PathBuf, error: MetadataError },
    #[error("cannot write {}: {source}; the recording is as it was", .path.display())]
    Convert { path: PathBuf, source: io::Error },
    #[error("cannot save a trace in {}: {source}", .path.display())]
    Save { path: PathBuf, source: io::Error },
    #[error("{} is damaged, see above; the rest was converted", .0.display())]
    PartlyConverted(PathBuf),
    #[error("{} is no recording of a timed channel: there is no file 'metadata' in it", .0.display())]
    NoTrace(PathBuf),
    #[error("{}: {error}", .path.display())]
    Packets { path: PathBuf, error: PacketError },
    #[error("{0}: the time is outside of the calendar")]
    OutsideOfCalendar(&'static str),
    #[error(
        "channel '{channel}' is raw: {option} needs a timed channel; relayfsd --channel {channel}:timed makes one"
    )]
    Raw { channel: ChannelName, option: &'static str },
    #[error("cannot write {}: {source}{}", .path.display(), kept(*.lost, "; what is not recorded is still in the buffers"))]
    Record { path: PathBuf, source: io::Error, lost: usize },
    #[error("{} is not mounted (-m names another place), and relayfsd cannot mount it: {reason}", .mount.display())]
    Mount { mount: PathBuf, reason: String },
    #[error(
        "{path}: no relayfs is mounted there; start relayfsd {word}, or name the mount point: -m MOUNTPOINT",
        path = .0.display(), word = shell_word(.0)
    )]
    NotMounted(PathBuf),
    #[error("{}: its relayfsd is of an older release, which has no .relay/status; update it", .0.display())]
    NoStatus(PathBuf),
    #[error(
        "{path}: its relayfsd does not answer within {SILENT:?}: see relayfsd doctor {word}",
        path = .0.display(), word = shell_word(.0)
    )]
    Silent(PathBuf),
    #[error("cannot unmount {}: {reason}", .mount.display())]
    Unmount { mount: PathBuf, reason: String },
}

impl Failure {
    /// The same failure for a read that consumes nothing, so that no bytes are lost.
    pub(crate) fn without_loss(self) -> Failure {
        match self {
            Failure::Output { source, .. } => Failure::Output { source, lost: 0 },
            other => other,
        }
    }

    /// Whether the daemon has no memory for a copy.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        matches!(self, Failure::Open { source, .. } if source.kind() == io::ErrorKind::OutOfMemory)
    }

    /// Whether a file of the channel could not be opened or read since the channel, or the whole mount, has gone.
    pub(crate) fn means_gone(&self) -> bool {
        matches!(self, Failure::Open { source, .. } | Failure::Read { source, .. } if means_gone(source))
    }

    pub(crate) fn open(path: &Path, source: io::Error) -> Failure {
        Failure::Open { path: path.to_owned(), source }
    }

    /// A failure of a recording's file or directory, without lost bytes.
    pub(crate) fn record(path: &Path, source: impl Into<io::Error>) -> Failure {
        Failure::Record { path: path.to_owned(), source: source.into(), lost: 0 }
    }

    /// A failure to write what a recording is converted to.
    pub(crate) fn convert(path: &Path, source: io::Error) -> Failure {
        Failure::Convert { path: path.to_owned(), source }
    }

    /// A failure to save a trace.
    pub(crate) fn save(path: &Path, source: io::Error) -> Failure {
        Failure::Save { path: path.to_owned(), source }
    }

    pub(crate) fn system(what: &'static str, source: impl Into<io::Error>) -> Failure {
        Failure::System { what, source: source.into() }
    }

    /// A failure to read packets.
    pub(crate) fn packets(path: &Path, error: ReadError) -> Failure {
        match error {
            ReadError::Io(source) => Failure::read(path, source),
            ReadError::Packet(error) => Failure::Packets { path: path.to_owned(), error },
        }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Failure {
        Failure::Read { path: path.to_owned(), source }
    }
}

impl From<common::Failure> for Failure {
    fn from(failure: common::Failure) -> Failure {
        match failure {
            common::Failure::OutputClosed => Failure::OutputClosed,
            common::Failure::Interrupted(signal) => Failure::Interrupted(signal),
            common::Failure::NoOutput(error) => Failure::NoOutput(error),
            common::Failure::Output { source, lost } => Failure::Output { source, lost },
            common::Failure::System { what, source } => Failure::System { what, source },
            common::Failure::Open { path, source } => Failure::Open { path, source },
            common::Failure::Record { path, source } => Failure::Record { path, source, lost: 0 },
            common::Failure::Recorded(path) => Failure::Recorded(path),
            common::Failure::OutsideOfCalendar(option) => Failure::OutsideOfCalendar(option),
        }
    }
}

/// Whether an error means that a file's daemon, or a path's mount, has gone.
pub(crate) fn means_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENODEV, Errno::ENOTCONN, Errno::ECONNABORTED, Errno::ENOENT, Errno::ESTALE];
    error.raw_os_error().is_some_and(|raw| gone.contains(&Errno::from_raw(raw)))
}

/// The other channels, in parentheses; empty if there are none or they may not be listed.
fn listed(missing: &ChannelName, known: &[String]) -> String {
    // A channel that was created since the failed look is not listed as another channel.
    let others: Vec<&str> =
        known.iter().map(String::as_str).filter(|name| *name != missing.as_str()).collect();
    match others.len() {
        0 => String::new(),
        n if n <= LISTED_MAX => format!(" (existing: {})", others.join(", ")),
        n => format!(" (existing: {} and {} more)", others[..LISTED_MAX].join(", "), n - LISTED_MAX),
    }
}

/// `0-3, 5` for 0, 1, 2, 3, 5.
fn ranges(sorted: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &n in sorted {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => parts.push((n, n)),
        }
    }
    let part = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    parts.into_iter().map(part).collect::<Vec<_>>().join(", ")
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; its files are for the user who mounted it, root, and the group that relayfsd --group names"
        }
        io::ErrorKind::OutOfMemory => "; raise relayfsd --max-memory",
        _ if error.raw_os_error() == Some(Errno::EIO as i32) => {
            "; its channel is broken: relayfsd's log has the reason"
        }
        _ => "",
    }
}

/// What happened to data that could not be written. `unlost` is the text if no bytes are lost.
fn kept(lost: usize, unlost: &str) -> String {
    match lost {
        0 => unlost.to_owned(),
        _ => format!("; {lost} bytes that were read are lost, the rest is still in the buffers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_short() {
        assert_eq!(ranges(&[0]), "0");
        assert_eq!(ranges(&[0, 1, 2, 3, 5, 7, 8]), "0-3, 5, 7-8");
    }

    #[test]
    fn unknown_channel_is_reported_with_existing_channels() {
        let failure = |known: Vec<String>| {
            let channel = "app/log".parse().unwrap();
            Failure::NoChannel { channel, mount: "/mnt/relay".into(), known }.to_string()
        };
        assert_eq!(failure(vec![]), "no channel 'app/log' in /mnt/relay");
        let two = vec!["app/err".to_owned(), "cpu".to_owned()];
        assert_eq!(failure(two), "no channel 'app/log' in /mnt/relay (existing: app/err, cpu)");
        let itself = vec!["app/log".to_owned()];
        assert_eq!(failure(itself), "no channel 'app/log' in /mnt/relay", "it has just been created");
        let many = (0..25).map(|n| format!("c{n}x")).collect();
        assert!(failure(many).ends_with("c19x and 5 more)"));
    }
}
