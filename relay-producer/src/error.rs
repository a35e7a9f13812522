//! Errors of opening, of writing without waiting, and of requests with an answer.

use std::io::{self, ErrorKind};

use nix::errno::Errno;
use relay::trace::definition::DefinitionError;
use relay::wire::socket::{ConnectError, Refused, SendError};
use relay::{GeometryError, NameError};
use thiserror::Error;

use crate::options::Counts;

/// The channel has no buffer for a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no buffer for CPU {cpu}: this channel has them for CPUs 0 to {}", n_bufs - 1)]
pub struct NoSuchCpu {
    /// The CPU that was given.
    pub cpu: usize,
    /// Number of the channel's buffers.
    pub n_bufs: usize,
}

/// The error of opening a channel.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The name is not a channel name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The geometry is out of range.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// There is no connection to a daemon.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The daemon refused the channel.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The transport must be shared buffers, and this process cannot have them.
    #[error("cannot write shared buffers: {why}; transport 'auto' or 'socket' works without them")]
    NotShared {
        /// The cause.
        why: String,
    },
}

/// The reason for which a message was not written. No byte of it is in the buffer; `Disconnected` has an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// Every sub-buffer is full because the channel's reader has not kept up.
    /// Or the socket to the daemon is full because messages come faster than the daemon takes them. The loss is
    /// counted.
    #[error(
        "no room: every sub-buffer is full, or the socket is; read the channel more often, or give it more sub-buffers"
    )]
    Full,
    /// The message is longer than any message of this channel can be. The loss is counted.
    #[error("a message of {len} bytes is too big: this channel takes {max}")]
    TooBig {
        /// Length of the message in bytes.
        len: usize,
        /// Longest message of the channel in bytes.
        max: usize,
    },
    /// The message is a record and the channel raw; or it comes with a callback, which no timed channel has.
    #[error("the channel is of the other kind: records need one created with 'timed', callbacks one without")]
    OtherKind,
    /// The daemon has not accepted the event's definition in this channel. The loss is counted.
    #[error(
        "the daemon does not know the event: it has too many, or another channel; define the event again"
    )]
    NotDefined,
    /// The values are not those of the event's fields.
    #[error("the values do not fit the event: give one of the right type for each field")]
    Mismatch,
    /// The channel has no buffer for this CPU.
    #[error(transparent)]
    NoSuchCpu(#[from] NoSuchCpu),
    /// The daemon has gone away, or the channel has ended. Later calls look for a new one.
    /// If the daemon went away before its answer, for which few messages wait, the message may have been written: see
    /// [`Channel::write`](crate::Channel::write).
    #[error("the daemon has gone away")]
    Disconnected,
    /// The daemon refused the message: it cannot run on the CPU, or the channel is broken.
    #[error("the daemon refused the message: {}; flush the channel for its reason", Errno::from_raw(*errno).desc())]
    Refused {
        /// The daemon's errno.
        errno: i32,
    },
}

/// Converts the error for code that writes to any file. The kind says what to do; the inner error is this one.
impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> io::Error {
        let kind = match error {
            WriteError::Full => ErrorKind::StorageFull,
            WriteError::TooBig { .. } | WriteError::Mismatch | WriteError::NoSuchCpu(_) => {
                ErrorKind::InvalidInput
            }
            WriteError::OtherKind => ErrorKind::Unsupported,
            WriteError::NotDefined => ErrorKind::NotFound,
            WriteError::Disconnected => ErrorKind::NotConnected,
            WriteError::Refused { errno } => io::Error::from_raw_os_error(errno).kind(),
        };
        io::Error::new(kind, error)
    }
}

/// The error of a request that waits for its answer.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The channel has no buffer for this CPU.
    #[error(transparent)]
    NoSuchCpu(#[from] NoSuchCpu),
    /// The daemon refused the request.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The definition of an event is not possible.
    #[error("the event cannot be defined: {0}")]
    Definition(#[from] DefinitionError),
    /// The channel is raw: it has no events.
    #[error("the channel is raw: events and levels need one created with 'timed'")]
    NotTimed,
    /// The daemon has gone away. Later calls look for a new one.
    #[error("the daemon has gone away")]
    Disconnected,
    /// The daemon has gone away with messages that were sent to it.
    /// Later messages are not among them.
    #[error("the daemon has gone away with {messages} messages: they may have been written or not")]
    Unanswered {
        /// Number of messages without an answer.
        messages: u64,
    },
    /// The daemon had gone away, and there is no new one.
    #[error("the daemon has gone away: {0}")]
    Reopen(#[source] OpenError),
    /// The answer did not come in time: 10 s if the call names no time, and as long besides as messages may wait for room.
    /// The daemon may still carry out the request. Or the socket had no room for the request in that time, since the
    /// daemon takes nothing from it; then the daemon has not got it. A batch's messages without an answer may be written
    /// or lost. [`Channel::write`](crate::Channel::write) has no such error: it says what it does instead.
    #[error("the daemon does not answer")]
    NoReply,
    /// The packet is not a valid answer; the connection was closed.
    #[error("the daemon's answer makes no sense: {0}")]
    Garbled(String),
}

/// The reason for which a batch ended early.
#[derive(Debug, Error)]
#[error("{cause}")]
pub struct BatchError {
    /// Results of the messages that the daemon had answered for. Those of the others are unknown.
    pub counts: Counts,
    /// The error that ended the batch.
    #[source]
    pub cause: RequestError,
}

/// Converts the error of a sender that waited for room.
impl From<SendError> for RequestError {
    fn from(error: SendError) -> RequestError {
        match error {
            SendError::Full => RequestError::NoReply,
            SendError::Gone => RequestError::Disconnected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_error_has_a_kind_and_the_error_itself() {
        for (error, kind) in [
            (WriteError::Full, ErrorKind::StorageFull),
            (WriteError::TooBig { len: 9, max: 8 }, ErrorKind::InvalidInput),
            (WriteError::OtherKind, ErrorKind::Unsupported),
            (WriteError::Disconnected, ErrorKind::NotConnected),
            (WriteError::Refused { errno: Errno::EACCES as i32 }, ErrorKind::PermissionDenied),
        ] {
            let text = error.to_string();
            let found = io::Error::from(error);
            assert_eq!((found.kind(), found.to_string()), (kind, text));
            assert_eq!(found.downcast::<WriteError>().unwrap(), error);
        }
    }
}
