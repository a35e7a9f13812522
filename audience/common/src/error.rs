//! The reasons why printing or recording stops early.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A signal's number.
pub type Signal = i32;

/// Why something that both programs do has failed. All reasons except the first two are printed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The reader of our output has gone.
    #[error("the reader of the output has gone")]
    OutputClosed,
    /// A signal asked the process to end.
    #[error("interrupted by signal {0}")]
    Interrupted(Signal),
    /// Standard output is closed; nothing was read.
    #[error("{0}: nothing was read; redirect it, for instance to /dev/null")]
    NoOutput(#[from] relay_stdio::StreamError),
    /// Writing failed in another way.
    #[error("cannot write to standard output: {source}")]
    Output {
        /// Why.
        source: io::Error,
        /// Bytes that were read and not written.
        lost: usize,
    },
    /// A system call that should always succeed.
    #[error("cannot {what}: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file or directory of a trace cannot be opened.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A recording's file or directory cannot be written.
    #[error("cannot write {}: {source}", .path.display())]
    Record {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory is another recording's.
    #[error("{} holds a recording already; name another directory, or remove it", .0.display())]
    Recorded(PathBuf),
    /// The time that an option names has no number.
    #[error("{0}: the time is outside of the calendar")]
    OutsideOfCalendar(&'static str),
}

impl Failure {
    /// A failure to open a file of a trace.
    pub fn open(path: &Path, source: io::Error) -> Failure {
        Failure::Open { path: path.to_owned(), source }
    }

    /// A failure of a recording's file or directory.
    pub fn record(path: &Path, source: impl Into<io::Error>) -> Failure {
        Failure::Record { path: path.to_owned(), source: source.into() }
    }

    /// A failure of a system call.
    pub fn system(what: &'static str, source: impl Into<io::Error>) -> Failure {
        Failure::System { what, source: source.into() }
    }
}
