//! The directory of saved traces: names, and how many are kept.
//!
//! ```text
//! DIR/2026-11-22T18-00-00.123Z-error/           a trace
//! DIR/2026-11-22T18-00-00.123Z-error/.watch     says which watch it is of
//! DIR/.PID-N/                                   a trace that is being written; its .watch is locked
//! ```
//!
//! A trace is removed only if it is of a watch of the same channel, and only if nothing else lies in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use audience_common::trace_dir::{self, MODE};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, access};

use crate::channel_files::Place;
use crate::error::Failure;
use crate::output::say;

/// The file that says which watch a trace is of.
const MARKER: &str = ".watch";
/// Longest marker that is read.
const MARKER_MAX: u64 = 1 << 16;
/// Mode of directories.
const DIR_MODE: u32 = 0o700;
/// Most traces of one millisecond.
const SAME_MAX: u32 = 1000;

/// The directory of saved traces.
#[derive(Debug)]
pub(super) struct Kept {
    dir: PathBuf,
    /// What the markers of this watch's traces say.
    marker: String,
    keep: usize,
}

/// A trace that is being written. It is removed unless it gets its name.
#[derive(Debug)]
pub(super) struct Draft {
    dir: PathBuf,
    /// Held while the trace is being written: another watch would remove what a dead one left.
    _marker: Flock<File>,
}

impl Draft {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = remove(&self.dir);
    }
}

impl Kept {
    /// Opens the directory, or creates it. Removes what a killed watch left half written.
    pub(super) fn open(dir: &Path, place: &Place, keep: usize) -> Result<Kept, Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(dir)
            .map_err(|error| Failure::save(dir, error))?;
        // Now, and not when something has happened.
        access(dir, AccessFlags::W_OK | AccessFlags::X_OK)
            .map_err(|errno| Failure::save(dir, errno.into()))?;
        let marker = format!("audience watch: channel {} in {}\n", place.channel, place.mount.display());
        let kept = Kept { dir: dir.to_owned(), marker, keep };
        for path in kept.ours(|name| name.starts_with('.')) {
            if matches!(lock(&path.join(MARKER)), Ok(Some(_))) {
                let _ = remove(&path);
            }
        }
        Ok(kept)
    }

    /// Begins a trace.
    pub(super) fn begin(&self) -> Result<Draft, Failure> {
        let failure = |error| Failure::save(&self.dir, error);
        let mut number = 0;
        let dir = loop {
            let dir = self.dir.join(format!(".{}-{number}", process::id()));
            match DirBuilder::new().mode(DIR_MODE).create(&dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && number < SAME_MAX => number += 1,
                created => break created.map(|()| dir).map_err(failure)?,
            }
        };
        let path = dir.join(MARKER);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path)?;
            file.write_all(self.marker.as_bytes())?;
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
        };
        match write() {
            Ok(marker) => Ok(Draft { dir, _marker: marker }),
            Err(error) => {
                let _ = remove(&dir);
                Err(failure(error))
            }
        }
    }

    /// Gives a trace the name of its moment, in nanoseconds since 1970, and its reason. Returns its path.
    pub(super) fn finish(&self, draft: Draft, moment: u64, reason: &str) -> Result<PathBuf, Failure> {
        let moment = Timestamp::from_nanosecond(moment.into()).unwrap_or_default();
        let name = format!("{}-{reason}", moment.strftime("%Y-%m-%dT%H-%M-%S%.3fZ"));
        let mut number = 1;
        loop {
            let path = match number {
                1 => self.dir.join(&name),
                _ => self.dir.join(format!("{name}-{number}")),
            };
            // A directory without files could be replaced, so a name that is taken is passed over first.
            let renamed = match fs::symlink_metadata(&path) {
                Ok(_) => Err(ErrorKind::AlreadyExists.into()),
                Err(_) => fs::rename(&draft.dir, &path),
            };
            match renamed {
                Ok(()) => return Ok(path),
                Err(error) if is_taken(&error) && number < SAME_MAX => number += 1,
                Err(error) => return Err(Failure::save(&path, error)),
            }
        }
    }

    /// Removes the oldest traces beyond those that are kept; `newest` stays in any case.
    pub(super) fn trim(&self, newest: &Path) {
        let mut traces = self.ours(|name| !name.starts_with('.'));
        traces.retain(|path| path != newest);
        traces.sort_unstable();
        let too_many = (traces.len() + 1).saturating_sub(self.keep);
        for path in traces.into_iter().take(too_many) {
            if let Err(error) = self.give_up(&path) {
                say(Failure::save(&path, error));
            }
        }
    }

    /// Removes a trace. It loses its name first, so that none is seen with a part of its files.
    fn give_up(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = self.dir.join(format!(".{name}"));
        fs::rename(path, &hidden)?;
        remove(&hidden)
    }

    /// The traces of this watch with such names, in which nothing else lies.
    fn ours(&self, is_named: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let named = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&is_named));
        let paths =
            named.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
        paths
            .filter(|path| marker(path).is_some_and(|marker| marker == self.marker) && is_untouched(path))
            .collect()
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory)
}

/// What a directory's marker says.
fn marker(dir: &Path) -> Option<String> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(dir.join(MARKER)).ok()?;
    let mut text = String::new();
    file.take(MARKER_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Whether a directory has only files that a watch writes.
fn is_untouched(dir: &Path) -> bool {
    let is_ours = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_ours))
    };
    fs::read_dir(dir).is_ok_and(|mut entries| entries.all(is_ours))
}

/// Whether a watch writes files of this name into a trace.
fn is_ours(name: &str) -> bool {
    name == MARKER || trace_dir::is_ours(name)
}

/// Removes a directory and the files in it that a watch has written, its marker last.
fn remove(dir: &Path) -> io::Result<()> {
    let remove = |path: &Path| match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() != MARKER && entry.file_name().to_str().is_some_and(is_ours) {
            remove(&entry.path())?;
        }
    }
    remove(&dir.join(MARKER))?;
    fs::remove_dir(dir)
}

/// Locks a marker. `None` if a watch holds it.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use audience_common::trace_dir::{METADATA, PROCESSES};

    fn kept(dir: &Path, channel: &str, keep: usize) -> Kept {
        let place = Place { mount: "/mnt/relay".into(), channel: channel.parse().unwrap() };
        Kept::open(dir, &place, keep).unwrap()
    }

    fn save(kept: &Kept, second: u64) -> PathBuf {
        let draft = kept.begin().unwrap();
        for name in ["cpu0", METADATA, PROCESSES] {
            fs::write(draft.dir().join(name), "x").unwrap();
        }
        let path = kept.finish(draft, second * 1_000_000_000 + 123_456_789, "error").unwrap();
        kept.trim(&path);
        path
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = kept(dir.path(), "app", 2);
        let first = save(&kept, 1_795_370_400);
        assert_eq!(first.file_name().unwrap(), "2026-11-22T18-00-00.123Z-error");
        assert!(save(&kept, 1_795_370_400).ends_with("2026-11-22T18-00-00.123Z-error-2"));
        save(&kept, 1_795_370_401);
        // The clock was set back: the trace that was just saved stays.
        let last = save(&kept, 1_795_370_000);
        assert_eq!(
            names(dir.path()),
            [last.file_name().unwrap().to_str().unwrap(), "2026-11-22T18-00-01.123Z-error"]
        );
    }

    #[test]
    fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let others = save(&kept(dir.path(), "other", 1), 1);
        let kept = kept(dir.path(), "app", 1);
        let touched = save(&kept, 2);
        fs::write(touched.join(".notes"), "mine").unwrap();
        let without = dir.path().join("1970-01-01T00-00-03.123Z-error");
        fs::create_dir(&without).unwrap();
        let linked = dir.path().join("1970-01-01T00-00-04.123Z-error");
        std::os::unix::fs::symlink(&others, &linked).unwrap();
        save(&kept, 5);
        let last = save(&kept, 6);
        assert!([&others, &touched, &without, &linked, &last].iter().all(|path| path.exists()));
        assert_eq!(names(dir.path()).len(), 5);
    }

    #[test]
    fn what_a_killed_watch_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let first = kept(dir.path(), "app", 1);
        let draft = first.begin().unwrap();
        fs::write(draft.dir().join("cpu0"), "x").unwrap();
        kept(dir.path(), "app", 1);
        assert!(draft.dir().exists(), "its watch lives");
        let left = draft.dir().with_file_name(".1-0");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(MARKER), &first.marker).unwrap();
        kept(dir.path(), "app", 1);
        assert!(!left.exists() && draft.dir().exists());
        drop(draft);
        assert!(names(dir.path()).is_empty());
    }
}
