//! Directories of our own, for the buffers and for the socket: created safely, checked, locked, removed.
//!
//! They are below directories where anybody may create names (`/dev/shm`) or where another daemon of ours
//! creates and removes at the same time, so nothing is taken for granted: no component may be a symbolic link,
//! belong to somebody else, or be writable for others.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::geteuid;
use relay::layout::channel_files::{LOCK_FILE, id_of_control};
use relay::layout::state_file::STATE_FILE;
use thiserror::Error;

use crate::kill_point;

/// How often to start again when another daemon, ending, removes a directory that we are about to use.
const RETRIES_MAX: usize = 16;
/// How [`LOCK_FILE`] begins; the process id follows. A directory without it is not ours to clear.
const LOCK_MAGIC: &str = "relayfsd ";
/// Directories for what could not be gone on with; a number follows.
const REFUSED: &str = "refused-";
/// Says to a daemon that was unmounted, and serves open files, that the next one waits for the directory.
const WANTED_FILE: &str = "wanted";

/// Why a directory cannot be used.
#[derive(Debug, Error)]
pub(crate) enum DirError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is a symbolic link or no directory: remove it", .0.display())]
    NotDirectory(PathBuf),
    #[error("{} belongs to user {uid}, not to the user who runs relayfsd", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    #[error("{path} is writable for others: chmod go-w {path}", path = .0.display())]
    Writable(PathBuf),
    #[error("{} holds files that are not relayfsd's: name an empty directory", .0.display())]
    NotEmpty(PathBuf),
    #[error("another relayfsd{} uses {}", .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path.display())]
    Locked { path: PathBuf, pid: Option<u32> },
}

/// A directory's path, divided in the part that is there and trusted, and the names below that are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    base: PathBuf,
    own: Vec<OsString>,
    /// Chosen by the user, who may want to keep the directory if it was there before.
    named: bool,
}

impl Place {
    /// Where we put a directory by ourselves: everything below the first fitting base is ours.
    pub(crate) fn below(bases: &[&Path], path: &Path) -> Place {
        match bases.iter().find_map(|base| Some((base, path.strip_prefix(base).ok()?))) {
            Some((base, rest)) => Place {
                base: base.to_path_buf(),
                own: rest.iter().map(OsStr::to_owned).collect(),
                named: false,
            },
            None => Place::named(path),
        }
    }

    /// A directory that the user named: its last component is ours, and created if need be.
    pub(crate) fn named(path: &Path) -> Place {
        let own = path.file_name().map(OsStr::to_owned).into_iter().collect();
        Place { base: path.parent().unwrap_or(path).to_owned(), own, named: true }
    }

    /// A directory that the user named, and that need not be ours if it is there.
    pub(crate) fn shared(path: &Path) -> Place {
        if path.is_dir() {
            Place { base: path.to_owned(), own: Vec::new(), named: true }
        } else {
            Place::named(path)
        }
    }

    /// Another directory in the same one.
    pub(crate) fn beside(&self, path: &Path) -> Place {
        let mut place = self.clone();
        place.own.pop();
        place.own.extend(path.file_name().map(OsStr::to_owned));
        place
    }

    /// The whole path.
    pub(crate) fn path(&self) -> PathBuf {
        self.own.iter().fold(self.base.clone(), |path, name| path.join(name))
    }
}

/// Asks the daemon that has the directory to let go of it, if it has been unmounted. To be done again and again.
pub(crate) fn want(place: &Place) {
    // Where it cannot be asked, the caller's time runs out.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(place.path().join(WANTED_FILE));
}

/// Asks no more.
pub(crate) fn unwant(place: &Place) {
    let _ = std::fs::remove_file(place.path().join(WANTED_FILE));
}

/// A directory that has been checked, held open.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    fd: OwnedFd,
    /// What to remove at the end, where it is empty then; the deepest last.
    removable: Vec<PathBuf>,
}

impl Dir {
    /// Opens the directory, creating what is missing with the given permission bits.
    pub(crate) fn open(place: &Place, mode: u32) -> Result<Dir, DirError> {
        let mut removable = Vec::new();
        for _ in 0..RETRIES_MAX {
            if let Some(fd) = Dir::try_open(place, mode, &mut removable)? {
                return Ok(Dir { path: place.path(), fd, removable });
            }
        }
        Err(DirError::Io { path: place.path(), source: Errno::ENOENT.into() })
    }

    /// `None`: somebody removed what was just there.
    fn try_open(place: &Place, mode: u32, removable: &mut Vec<PathBuf>) -> Result<Option<OwnedFd>, DirError> {
        let mut path = place.base.clone();
        let io_error =
            |path: &Path, errno: Errno| DirError::Io { path: path.to_owned(), source: errno.into() };
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir =
            open(&path, OFlag::O_PATH | flags, Mode::empty()).map_err(|errno| io_error(&path, errno))?;
        for name in &place.own {
            path.push(name);
            let created = match mkdirat(&dir, name.as_os_str(), Mode::from_bits_truncate(mode)) {
                Ok(()) => true,
                Err(Errno::EEXIST) => false,
                Err(Errno::ENOENT) => return Ok(None),
                Err(errno) => return Err(io_error(&path, errno)),
            };
            dir = match openat(&dir, name.as_os_str(), OFlag::O_NOFOLLOW | flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(DirError::NotDirectory(path)),
                Err(errno) => return Err(io_error(&path, errno)),
            };
            let status = fstat(&dir).map_err(|errno| io_error(&path, errno))?;
            if status.st_uid != geteuid().as_raw() {
                return Err(DirError::Foreign { path, uid: status.st_uid });
            }
            if created {
                // Our umask has taken bits away that others need to come in.
                fchmod(&dir, Mode::from_bits_truncate(mode)).map_err(|errno| io_error(&path, errno))?;
            } else if status.st_mode & 0o022 != 0 {
                return Err(DirError::Writable(path));
            }
            if (created || !place.named) && !removable.contains(&path) {
                removable.push(path.clone());
            }
        }
        Ok(Some(dir))
    }

    /// Removes the directory, and those above that are ours, as far as they are empty.
    pub(crate) fn remove_if_empty(&mut self) {
        for path in std::mem::take(&mut self.removable).iter().rev() {
            match std::fs::remove_dir(path) {
                Ok(()) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                }
                Err(error) => log::warn!("cannot remove {}: {error}", path.display()),
            }
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The state directory, locked. Dropping it removes it with all that is in it but what was set aside, unless it is kept.
#[derive(Debug)]
pub(crate) struct StateDir {
    dir: Dir,
    _lock: File,
    keep: Cell<bool>,
}

impl StateDir {
    /// Creates or takes over the directory. The lock, and with it the mount point, is this process's until the end.
    pub(crate) fn claim(place: &Place) -> Result<StateDir, DirError> {
        for _ in 0..RETRIES_MAX {
            let dir = Dir::open(place, 0o700)?;
            let fail = |source| DirError::Io { path: dir.path.join(LOCK_FILE), source };
            let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let (lock, is_new) = match openat(&dir, LOCK_FILE, flags, Mode::empty()) {
                Err(Errno::ENOENT) => match dir_is_empty(&dir) {
                    Ok(true) => {
                        (openat(&dir, LOCK_FILE, flags | OFlag::O_CREAT, Mode::S_IRUSR | Mode::S_IWUSR), true)
                    }
                    Ok(false) => return Err(DirError::NotEmpty(dir.path)),
                    // Removed since it was opened, by a daemon that ends.
                    Err(DirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                },
                result => (result, false),
            };
            let mut lock = match lock {
                Ok(lock) => File::from(lock),
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(fail(errno.into())),
            };
            let mut text = String::new();
            lock.read_to_string(&mut text).map_err(fail)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => {
                    let pid = text.strip_prefix(LOCK_MAGIC).and_then(|pid| pid.trim().parse().ok());
                    return Err(DirError::Locked { path: dir.path, pid });
                }
                Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
            }
            // A daemon that ends removes the file before it lets go of the lock.
            if lock.metadata().map_err(fail)?.nlink() == 0 {
                continue;
            }
            if !is_new && !text.starts_with(LOCK_MAGIC) && !dir_is_empty(&dir)? {
                return Err(DirError::NotEmpty(dir.path));
            }
            lock.set_len(0).and_then(|()| lock.rewind()).map_err(fail)?;
            lock.write_all(format!("{LOCK_MAGIC}{}\n", std::process::id()).as_bytes()).map_err(fail)?;
            // What a daemon has left stays, should this one come no further.
            let keep = Cell::new(!dir_is_empty(&dir)?);
            return Ok(StateDir { dir, _lock: lock, keep });
        }
        Err(DirError::Locked { path: place.path(), pid: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Whether the directory and what is in it stay for the next daemon.
    pub(crate) fn set_keep(&self, keep: bool) {
        self.keep.set(keep);
    }

    /// Whether a daemon has left channels in it.
    pub(crate) fn holds_channels(&self) -> Result<bool, DirError> {
        let is_control = |path: &PathBuf| path.file_name()?.to_str().and_then(id_of_control);
        let is_state = |path: &PathBuf| path.file_name().is_some_and(|name| name == STATE_FILE);
        Ok(self.entries()?.iter().any(|path| is_state(path) || is_control(path).is_some()))
    }

    /// Exchanges the names of two directories in the same one, both locked. Processes that have files in them open do not
    /// notice.
    pub(crate) fn exchange(&mut self, other: &mut StateDir) -> Result<(), DirError> {
        let (path, others) = (&mut self.dir.path, &mut other.dir.path);
        renameat2(AT_FDCWD, path.as_path(), AT_FDCWD, others.as_path(), RenameFlags::RENAME_EXCHANGE)
            .map_err(|errno| DirError::Io { path: others.clone(), source: errno.into() })?;
        std::mem::swap(path, others);
        std::mem::swap(&mut self.dir.removable, &mut other.dir.removable);
        Ok(())
    }

    /// Moves what was set aside in it to another one.
    pub(crate) fn give_refused_to(&self, other: &StateDir) -> Result<(), DirError> {
        for path in entries(&self.dir)?.iter().filter(|path| is_refused(path)) {
            // The new one is empty, so this takes its place.
            let to = other.new_refused()?;
            std::fs::rename(path, to).map_err(|source| DirError::Io { path: path.clone(), source })?;
        }
        self.keep.set(false);
        Ok(())
    }

    /// Whether the next daemon waits for this one to let go of it, since the last time this was asked.
    pub(crate) fn is_wanted(&self) -> bool {
        std::fs::remove_file(self.dir.path.join(WANTED_FILE)).is_ok()
    }

    /// Everything in the directory but the lock and what was set aside.
    pub(crate) fn entries(&self) -> Result<Vec<PathBuf>, DirError> {
        let mut paths = entries(&self.dir)?;
        paths.retain(|path| !is_refused(path));
        Ok(paths)
    }

    /// A new directory in it, for what cannot be gone on with.
    pub(crate) fn new_refused(&self) -> Result<PathBuf, DirError> {
        for number in 1.. {
            let path = self.dir.path.join(format!("{REFUSED}{number}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(DirError::Io { path, source }),
                Ok(()) => return Ok(path),
            }
        }
        unreachable!("there are more numbers than files")
    }

    /// Removes something in it, unless it is gone already: a start that waits no more removes its [`WANTED_FILE`].
    pub(crate) fn remove_entry(&self, path: &Path) -> Result<(), DirError> {
        let result = match path.symlink_metadata() {
            Ok(status) if status.is_dir() => std::fs::remove_dir_all(path),
            _ => std::fs::remove_file(path),
        };
        match result {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DirError::Io { path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // A bug is no reason to throw away what others have written.
        if self.keep.get() || std::thread::panicking() {
            return;
        }
        let lock = self.dir.path.join(LOCK_FILE);
        let result = self.entries().and_then(|mut paths| {
            // The state file last: it says that the rest is not to be gone on with.
            paths.sort_by_key(|path| path.file_name().is_some_and(|name| name == STATE_FILE));
            for path in &paths {
                self.remove_entry(path)?;
                kill_point!("end-removed");
            }
            if !dir_is_empty(&self.dir)? {
                return Ok(()); // the lock says whose it is
            }
            std::fs::remove_file(&lock).map_err(|source| DirError::Io { path: lock, source })
        });
        match result {
            Ok(()) => self.dir.remove_if_empty(),
            Err(error) => log::warn!("cannot remove the state directory: {error}"),
        }
    }
}

/// Whether it is a directory for what was set aside.
fn is_refused(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(REFUSED.as_bytes()))
}

/// Everything in the directory but the lock.
fn entries(dir: &Dir) -> Result<Vec<PathBuf>, DirError> {
    let fail = |source| DirError::Io { path: dir.path.clone(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir.path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name() != LOCK_FILE {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

/// Returns whether the directory has nothing but the lock and [`WANTED_FILE`]. A start that waits for an ending daemon may make
/// the latter when the ending daemon has just removed everything.
fn dir_is_empty(dir: &Dir) -> Result<bool, DirError> {
    Ok(entries(dir)?.iter().all(|path| path.file_name().is_some_and(|name| name == WANTED_FILE)))
}

#[cfg(test)]
mod tests;
