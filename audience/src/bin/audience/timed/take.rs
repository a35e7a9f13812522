//! A copy of what is unread of a buffer, `take/cpuN`, which is consumed only when the reader says so.
//!
//! The daemon consumes a copy when one open file has delivered all of its bytes and is closed. So this reader gets the
//! last byte by a second open file. To consume the copy it reads the last byte by the first one, too.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::Failure;

/// Tries to open a copy while other readers consume it.
const TRIES_MAX: u32 = 100;

/// An open copy.
#[derive(Debug)]
pub(crate) struct Take {
    path: PathBuf,
    file: File,
    /// The same copy once more, for its last byte.
    last: File,
    len: u64,
}

/// Reads a copy without consuming it.
#[derive(Debug)]
pub(crate) struct Look {
    file: File,
    last: File,
    at: u64,
    len: u64,
}

impl Take {
    /// Opens the copy at a path.
    pub(crate) fn open(path: &Path) -> Result<Take, Failure> {
        for _ in 0..TRIES_MAX {
            match Take::try_open(path) {
                Ok(Some(take)) => return Ok(take),
                Ok(None) => {}
                // The name means another copy by now.
                Err(error) if error.raw_os_error() == Some(Errno::ESTALE as i32) => {}
                Err(error) => return Err(Failure::open(path, error)),
            }
        }
        Err(Failure::open(path, Errno::ESTALE.into()))
    }

    /// Opens both files. `None` if other readers consumed the first one's copy in between.
    fn try_open(path: &Path) -> io::Result<Option<Take>> {
        let (file, last) = (File::open(path)?, File::open(path)?);
        let (found, again) = (file.metadata()?, last.metadata()?);
        let is_same = (found.ino(), found.len()) == (again.ino(), again.len());
        Ok(is_same.then(|| Take { path: path.to_owned(), file, last, len: found.len() }))
    }

    /// Returns the length of the copy in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Returns a reader of the copy.
    pub(crate) fn look(&self) -> Result<Look, Failure> {
        let clone = |file: &File| file.try_clone().map_err(|error| Failure::read(&self.path, error));
        Ok(Look { file: clone(&self.file)?, last: clone(&self.last)?, at: 0, len: self.len })
    }

    /// Consumes the copy. Its readers must have read it to its end.
    pub(crate) fn consume(self) -> Result<(), Failure> {
        let Some(last) = self.len.checked_sub(1) else { return Ok(()) };
        self.file.read_exact_at(&mut [0], last).map_err(|error| Failure::read(&self.path, error))
    }
}

impl Read for Look {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.len - self.at;
        let (from, count) = match left {
            0 => return Ok(0),
            1 => (&self.last, 1),
            _ => (&self.file, left - 1),
        };
        let len = buf.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        loop {
            match from.read_at(&mut buf[..len], self.at) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) if len > 0 => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    self.at += got as u64;
                    return Ok(got);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
