//! What ends the program.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the program ends.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A file does not have what an option promises.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, without the content.
        why: String,
    },
    /// Something that is needed at the start is not there, and will not be unless the operator does something.
    #[error("{0}")]
    Start(String),
    /// Two forwarders would overwrite each other's account of what is stored.
    #[error(
        "another forwarder writes to {0}: end one of the two, or give each mount point a name of a host by --host"
    )]
    Another(String),
    /// Signals cannot be caught.
    #[error(transparent)]
    Signals(#[from] audience_common::error::Failure),
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    System {
        /// What failed, as a verb.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl Failure {
    pub(crate) fn file(path: &Path, source: io::Error) -> Failure {
        Failure::File { path: path.to_owned(), source }
    }

    pub(crate) fn content(path: &Path, why: impl Into<String>) -> Failure {
        Failure::Content { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn system(doing: &'static str, source: impl Into<io::Error>) -> Failure {
        Failure::System { doing, source: source.into() }
    }
}
