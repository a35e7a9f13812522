//! A text file of a channel that grows by whole entries: `ID.events`, `ID.processes`.
//!
//! An entry is written at the end of the last one, and counts once the client has its answer. A daemon that dies
//! meanwhile leaves a cut entry, which the next daemon overwrites.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::channel::files::{self, FindError};
use crate::kill_point;

/// Longest file that is read, in bytes.
pub(crate) const JOURNAL_MAX: u64 = 16 << 20;

/// A file of entries, and how much of it counts.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    len: u64,
}

impl Journal {
    /// Creates an empty file.
    pub(super) fn create(path: &Path) -> io::Result<Journal> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Journal { path: path.to_owned(), len: 0 })
    }

    /// Reads the file that an earlier daemon of this user left, and creates a missing one.
    ///
    /// The caller checks the bytes, and writes back what counts with [`Self::replace`].
    pub(super) fn find(path: &Path) -> Result<(Journal, Vec<u8>), FindError> {
        let said = |source: io::Error| FindError::of(path, source);
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            log::warn!("{}: it was removed, and is empty from now on", path.display());
            return Ok((Journal::create(path).map_err(said)?, Vec::new()));
        }
        let file = files::open_own(path)?;
        let mut bytes = Vec::new();
        file.take(JOURNAL_MAX).read_to_end(&mut bytes).map_err(said)?;
        Ok((Journal { path: path.to_owned(), len: bytes.len() as u64 }, bytes))
    }

    /// Returns how many bytes count.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Adds an entry. If that fails, nothing is added.
    pub(super) fn append(&mut self, entry: &[u8]) -> io::Result<()> {
        let file = self.open()?;
        let (first, rest) = entry.split_at(entry.len() / 2);
        let written = file.write_all_at(first, self.len).and_then(|()| {
            kill_point!("journal-half");
            file.write_all_at(rest, self.len + first.len() as u64)
        });
        match written {
            Ok(()) => self.len += entry.len() as u64,
            // If this fails too, the next entry overwrites what is there.
            Err(_) => drop(file.set_len(self.len)),
        }
        written
    }

    /// Replaces the contents by `bytes`, in one step.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open()?; // a file that was removed stays so
        let new = self.path.with_extension("new");
        let made = (|| {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all_at(bytes, 0)?;
            fs::rename(&new, &self.path)
        })();
        match made {
            Ok(()) => self.len = bytes.len() as u64,
            Err(_) => drop(fs::remove_file(&new)),
        }
        made
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(&self.path)
    }
}
