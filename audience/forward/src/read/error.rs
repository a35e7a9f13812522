//! Why reading a stream ends early.

use audience_common::error as common;
use thiserror::Error;

use crate::options::stream_option;

/// Why reading a stream ends early.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// Printing or recording failed.
    #[error(transparent)]
    Common(#[from] common::Failure),
    /// A connection cannot be prepared.
    #[error(transparent)]
    Server(Box<crate::error::Failure>),
    /// The server cannot be reached, or does not let us in.
    #[error("cannot read from {server}: {reason}")]
    Connect {
        /// Addresses of the servers.
        server: String,
        /// Why.
        reason: String,
    },
    /// The stream cannot be read any more.
    #[error("{0}")]
    GivenUp(String),
    /// There is no such stream.
    #[error(
        "{server} has no stream '{stream}': relay-forward --to {server}{} --create makes it, --stream names another",
        stream_option(stream)
    )]
    NoStream {
        /// Addresses of the servers.
        server: String,
        /// Name of the stream.
        stream: String,
    },
    /// Nothing in the stream is what the options ask for.
    #[error("{0}")]
    Nothing(String),
    /// Raw channels have bytes, and no records.
    #[error("{0}")]
    Raw(String),
    /// Another recorder holds the directory.
    #[error("cannot record into {}: another recorder writes there", .0.display())]
    RecorderAtWork(std::path::PathBuf),
    /// The stream was deleted and created again while it was read.
    #[error(
        "stream '{0}' was deleted and created again meanwhile: what it had before is read as far as it was there; read \
         again"
    )]
    CreatedAgain(String),
    /// Some messages could not be used.
    #[error("{0} messages of the stream are refused or incomplete, see above; the rest was read")]
    Refused(u64),
}

impl Failure {
    /// A failure of a system call.
    pub(crate) fn system(what: &'static str, source: impl Into<std::io::Error>) -> Failure {
        common::Failure::system(what, source).into()
    }
}
