//! Creates, checks, locks and removes the daemon's directories, for buffers and socket.
//!
//! They are below directories where every user may create names (`/dev/shm`). Other daemons of the user create and
//! remove directories there at the same time. So every component is checked: it may not be a symbolic link, belong to
//! another user, or be writable for others.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::geteuid;
use relay::layout::channel_files::{LOCK_FILE, id_of_control};
use relay::layout::paths::shell_word;
use relay::layout::state_file::STATE_FILE;
use rustix::fs::{RawDir, SeekFrom, seek};
use thiserror::Error;

use crate::kill_point;
use crate::process::host_limits;

/// Most tries to open a directory that an ending daemon removes at the same time.
const RETRIES_MAX: usize = 16;
/// Begin of [`LOCK_FILE`], before the process id. The daemon clears no directory without it.
const LOCK_MAGIC: &str = "relayfsd ";
/// Begin of the names of quarantine directories, before a number.
const QUARANTINE: &str = "quarantine-";
/// Begin of such names in earlier versions. Their directories are kept like the others.
const OLD_QUARANTINE: &str = "refused-";
/// Asks an unmounted daemon that serves open files to release the directory.
const WANTED_FILE: &str = "wanted";

/// Why a directory cannot be used.
#[derive(Debug, Error)]
pub(crate) enum DirError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is a symbolic link or no directory", .0.display())]
    NotDirectory(PathBuf),
    #[error("{} belongs to user {uid}, not to the user who runs relayfsd", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    #[error("{} is writable for others", .0.display())]
    Writable(PathBuf),
    #[error("{} holds files that are not relayfsd's: name an empty directory", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "{}: its file {LOCK_FILE} was removed; if no relayfsd uses the directory: echo '{LOCK_MAGIC}0' >{}",
        .0.display(), shell_word(&.0.join(LOCK_FILE))
    )]
    NoLock(PathBuf),
    #[error("another relayfsd{} uses {}", .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), path.display())]
    Locked { path: PathBuf, pid: Option<u32> },
}

impl DirError {
    /// Returns what the administrator can do, where `option` names another directory.
    pub(crate) fn remedy(&self, option: &str) -> String {
        match self {
            // The daemon adds its own advice about a limit of the process. Another directory has the same limit.
            DirError::Io { source, .. } if !host_limits::advice(source).is_empty() => String::new(),
            _ => format!("; {option} names another"),
        }
    }
}

/// A directory's path: a trusted base, and the names below, which are the daemon's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    base: PathBuf,
    own: Vec<OsString>,
    /// Whether the user chose the directory.
    ///
    /// The daemon then does not remove one that was there before.
    named: bool,
}

impl Place {
    /// Returns a place that the daemon chose: all names below the first fitting base are its own.
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

    /// Returns a place that the user named: the last name is the daemon's, created if missing.
    pub(crate) fn named(path: &Path) -> Place {
        let own = path.file_name().map(OsStr::to_owned).into_iter().collect();
        Place { base: path.parent().unwrap_or(path).to_owned(), own, named: true }
    }

    /// Returns a place that the user named, and that may be another user's if it exists.
    pub(crate) fn shared(path: &Path) -> Place {
        if path.is_dir() {
            Place { base: path.to_owned(), own: Vec::new(), named: true }
        } else {
            Place::named(path)
        }
    }

    /// Returns another directory with the same parent.
    pub(crate) fn beside(&self, path: &Path) -> Place {
        let mut place = self.clone();
        place.own.pop();
        place.own.extend(path.file_name().map(OsStr::to_owned));
        place
    }

    /// Returns the whole path.
    pub(crate) fn path(&self) -> PathBuf {
        self.own.iter().fold(self.base.clone(), |path, name| path.join(name))
    }
}

/// Asks the daemon that has the directory to release it, if it was unmounted.
///
/// Repeat until locked.
pub(crate) fn want(place: &Place) {
    // If this fails, the caller's time runs out.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(place.path().join(WANTED_FILE));
}

/// Takes back the request of [`want`].
pub(crate) fn unwant(place: &Place) {
    let _ = std::fs::remove_file(place.path().join(WANTED_FILE));
}

/// A directory that was checked, and is held open.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    fd: OwnedFd,
    /// Directories to remove at the end, if empty then; the deepest last.
    removable: Vec<PathBuf>,
}

impl Dir {
    /// Opens the directory, and creates missing components with the given permission bits.
    pub(crate) fn open(place: &Place, mode: u32) -> Result<Dir, DirError> {
        let mut removable = Vec::new();
        for _ in 0..RETRIES_MAX {
            if let Some(fd) = Dir::try_open(place, mode, &mut removable)? {
                return Ok(Dir { path: place.path(), fd, removable });
            }
        }
        Err(DirError::Io { path: place.path(), source: Errno::ENOENT.into() })
    }

    /// `None`: another process has just removed a component.
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
                // The daemon's umask has removed bits that other users need.
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

    /// Returns whether the directory has an entry of that name.
    fn has(&self, name: &str) -> bool {
        fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Removes the directory and the daemon's directories above, as far as they are empty.
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

/// The state directory, locked.
///
/// A drop removes it with all contents except quarantine directories, unless it is kept.
#[derive(Debug)]
pub(crate) struct StateDir {
    dir: Dir,
    _lock: File,
    keep: Cell<bool>,
}

impl StateDir {
    /// Creates or takes over the directory, and locks it until the drop.
    ///
    /// A failure leaves no directory behind that this call made.
    pub(crate) fn claim(place: &Place) -> Result<StateDir, DirError> {
        for _ in 0..RETRIES_MAX {
            let mut dir = Dir::open(place, 0o700)?;
            match lock(&dir) {
                Ok(Some(lock)) => {
                    // If this start fails later, the contents of an earlier daemon stay.
                    let keep = Cell::new(!dir_is_empty(&dir)?);
                    return Ok(StateDir { dir, _lock: lock, keep });
                }
                Ok(None) => {}
                Err(error) => {
                    dir.remove_if_empty();
                    return Err(error);
                }
            }
        }
        Err(DirError::Locked { path: place.path(), pid: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Returns whether the path still leads to the directory, which other programs may remove or rename.
    pub(crate) fn is_in_place(&self) -> bool {
        let id = |status: FileStat| (status.st_dev, status.st_ino);
        let named = fstatat(AT_FDCWD, self.path(), AtFlags::AT_SYMLINK_NOFOLLOW).map(id);
        named.is_ok() && named == fstat(&self.dir).map(id)
    }

    /// Sets whether the directory and its contents stay for the next daemon.
    pub(crate) fn set_keep(&self, keep: bool) {
        self.keep.set(keep);
    }

    /// Returns whether a daemon has left channels in the directory.
    pub(crate) fn holds_channels(&self) -> Result<bool, DirError> {
        let is_control = |path: &PathBuf| path.file_name()?.to_str().and_then(id_of_control);
        let is_state = |path: &PathBuf| path.file_name().is_some_and(|name| name == STATE_FILE);
        Ok(self.entries()?.iter().any(|path| is_state(path) || is_control(path).is_some()))
    }

    /// Exchanges the names of two locked directories with the same parent.
    ///
    /// Processes with open files in them do not notice.
    pub(crate) fn exchange(&mut self, other: &mut StateDir) -> Result<(), DirError> {
        let (path, others) = (&mut self.dir.path, &mut other.dir.path);
        renameat2(AT_FDCWD, path.as_path(), AT_FDCWD, others.as_path(), RenameFlags::RENAME_EXCHANGE)
            .map_err(|errno| DirError::Io { path: others.clone(), source: errno.into() })?;
        std::mem::swap(path, others);
        std::mem::swap(&mut self.dir.removable, &mut other.dir.removable);
        Ok(())
    }

    /// Moves the quarantine directories to another state directory.
    pub(crate) fn give_quarantines_to(&self, other: &StateDir) -> Result<(), DirError> {
        for path in entries(&self.dir)?.iter().filter(|path| is_quarantine(path)) {
            // The new directory is empty, so the rename replaces it.
            let to = other.new_quarantine()?;
            std::fs::rename(path, to).map_err(|source| DirError::Io { path: path.clone(), source })?;
        }
        self.keep.set(false);
        Ok(())
    }

    /// Returns whether the next daemon has asked for the directory since the last call.
    pub(crate) fn is_wanted(&self) -> bool {
        std::fs::remove_file(self.dir.path.join(WANTED_FILE)).is_ok()
    }

    /// Returns the paths in the directory, without the lock and quarantine directories.
    pub(crate) fn entries(&self) -> Result<Vec<PathBuf>, DirError> {
        let mut paths = entries(&self.dir)?;
        paths.retain(|path| !is_quarantine(path));
        Ok(paths)
    }

    /// Creates a new quarantine directory.
    pub(crate) fn new_quarantine(&self) -> Result<PathBuf, DirError> {
        for number in 1.. {
            let path = self.dir.path.join(format!("{QUARANTINE}{number}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(DirError::Io { path, source }),
                Ok(()) => return Ok(path),
            }
        }
        unreachable!("there are more numbers than files")
    }

    /// Removes a path in the directory, if it still exists.
    ///
    /// A start that waits no more removes its [`WANTED_FILE`].
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

/// Locks a state directory by a file in it. `None`: an ending daemon has removed the directory, or the file.
fn lock(dir: &Dir) -> Result<Option<File>, DirError> {
    let path = || dir.path.clone();
    let fail = |source| DirError::Io { path: dir.path.join(LOCK_FILE), source };
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let (lock, is_new) = match openat(dir, LOCK_FILE, flags, Mode::empty()) {
        Err(Errno::ENOENT) => match dir_is_empty(dir) {
            Ok(true) => (openat(dir, LOCK_FILE, flags | OFlag::O_CREAT, Mode::S_IRUSR | Mode::S_IWUSR), true),
            // Another daemon may be at work there, with a lock that no longer has a name.
            Ok(false) if dir.has(STATE_FILE) => return Err(DirError::NoLock(path())),
            Ok(false) => return Err(DirError::NotEmpty(path())),
            Err(DirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        },
        result => (result, false),
    };
    let mut lock = match lock {
        Ok(lock) => File::from(lock),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(fail(errno.into())),
    };
    let mut text = String::new();
    lock.read_to_string(&mut text).map_err(fail)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let pid = text.strip_prefix(LOCK_MAGIC).and_then(|pid| pid.trim().parse().ok());
            return Err(DirError::Locked { path: path(), pid });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
    }
    // An ending daemon removes the file before it releases the lock.
    if lock.metadata().map_err(fail)?.nlink() == 0 {
        return Ok(None);
    }
    if !is_new && !text.starts_with(LOCK_MAGIC) && !dir_is_empty(dir)? {
        return Err(DirError::NotEmpty(path()));
    }
    lock.set_len(0).and_then(|()| lock.rewind()).map_err(fail)?;
    lock.write_all(format!("{LOCK_MAGIC}{}\n", std::process::id()).as_bytes()).map_err(fail)?;
    Ok(Some(lock))
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // After a panic, the producers' data must stay.
        if self.keep.get() || std::thread::panicking() {
            return;
        }
        let lock = self.dir.path.join(LOCK_FILE);
        let result = self.entries().and_then(|mut paths| {
            // The state file last: it names no channels then, so the next start does not take the rest over.
            paths.sort_by_key(|path| path.file_name().is_some_and(|name| name == STATE_FILE));
            for path in &paths {
                self.remove_entry(path)?;
                kill_point!("end-removed");
            }
            if !dir_is_empty(&self.dir)? {
                return Ok(()); // the lock file says whose directory this is
            }
            std::fs::remove_file(&lock).map_err(|source| DirError::Io { path: lock, source })
        });
        match result {
            Ok(()) => self.dir.remove_if_empty(),
            Err(error) => log::warn!("cannot remove the state directory: {error}"),
        }
    }
}

/// Returns whether the path is a quarantine directory.
fn is_quarantine(path: &Path) -> bool {
    path.file_name().is_some_and(|name| {
        [QUARANTINE, OLD_QUARANTINE].iter().any(|begin| name.as_bytes().starts_with(begin.as_bytes()))
    })
}

/// Returns the paths in the directory, without the lock.
///
/// Takes no descriptor: a start that fails for want of them must still remove what it has made.
fn entries(dir: &Dir) -> Result<Vec<PathBuf>, DirError> {
    let fail = |errno: rustix::io::Errno| DirError::Io { path: dir.path.clone(), source: errno.into() };
    seek(dir, SeekFrom::Start(0)).map_err(fail)?;
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut listing = RawDir::new(dir, &mut space);
    let mut paths = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(fail)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." && name != LOCK_FILE {
            paths.push(dir.path.join(name));
        }
    }
    Ok(paths)
}

/// Returns whether the directory has nothing except the lock and [`WANTED_FILE`].
///
/// A start that waits for an ending daemon may create [`WANTED_FILE`] when that daemon has just removed everything.
fn dir_is_empty(dir: &Dir) -> Result<bool, DirError> {
    Ok(entries(dir)?.iter().all(|path| path.file_name().is_some_and(|name| name == WANTED_FILE)))
}

#[cfg(test)]
mod tests;
