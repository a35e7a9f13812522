//! A channel's files in the state directory: creates, finds, marks and removes them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::unistd::geteuid;
use relay::layout::channel_files::{control_name, data_name, events_name, levels_name, processes_name};
use relay::memory::mapping::Mapping;
use thiserror::Error;

/// The paths of a channel's files.
#[derive(Debug)]
pub(crate) struct Files {
    /// The control file, then one data file for each buffer.
    mapped: Vec<PathBuf>,
    /// The events, the processes and the levels of a timed channel.
    names: Option<[PathBuf; 3]>,
}

impl Files {
    /// Returns the paths for the channel with number `id`.
    pub(crate) fn of(dir: &Path, id: u32, n_bufs: usize, timed: bool) -> Files {
        let data = (0..n_bufs).map(|index| dir.join(data_name(id, index)));
        Files {
            mapped: [dir.join(control_name(id))].into_iter().chain(data).collect(),
            names: timed
                .then(|| [events_name(id), processes_name(id), levels_name(id)].map(|name| dir.join(name))),
        }
    }

    /// Returns the control file's path.
    pub(crate) fn control(&self) -> &Path {
        &self.mapped[0]
    }

    /// Returns the data files' paths.
    pub(crate) fn data(&self) -> &[PathBuf] {
        &self.mapped[1..]
    }

    /// Returns the paths of the files that processes map: the control file, then the data files.
    pub(crate) fn mapped(&self) -> &[PathBuf] {
        &self.mapped
    }

    /// Returns the paths of a timed channel's events, of its processes and of its levels.
    pub(crate) fn names(&self) -> Option<[&Path; 3]> {
        self.names.as_ref().map(|names| names.each_ref().map(PathBuf::as_path))
    }

    /// Returns all paths.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.mapped.iter().chain(self.names.iter().flatten())
    }

    /// Removes those of the files that exist.
    pub(crate) fn remove(&self) {
        for path in self.all() {
            // The daemon reports errors of the directory where it uses the files; a second report here would not help.
            let _ = fs::remove_file(path);
        }
    }
}

/// Files that are being created. Dropping this removes them, unless `keep` was called.
pub(crate) struct NewFiles(Option<Files>);

impl NewFiles {
    pub(crate) fn new(files: Files) -> NewFiles {
        NewFiles(Some(files))
    }

    pub(crate) fn files(&self) -> &Files {
        self.0.as_ref().expect("only `keep` takes them")
    }

    pub(crate) fn keep(mut self) -> Files {
        self.0.take().expect("only `keep` takes them")
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        if let Some(files) = &self.0 {
            files.remove();
        }
    }
}

/// Creates and maps a file of `len` zero bytes.
///
/// It allocates all memory now: later there might be none.
pub(crate) fn create(path: &Path, len: u64) -> io::Result<Mapping> {
    let file: File = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let len_signed = i64::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // tmpfs gives up for a signal to any thread. The next call starts over.
    while let Err(errno) = fallocate(&file, FallocateFlags::empty(), 0, len_signed) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    Mapping::new(&file, len)
}

/// Why a file that another daemon has left is not used.
#[derive(Debug, Error)]
pub(crate) enum FindError {
    /// This process lacks memory or descriptors, so the file may well be sound.
    #[error("{}: {source}", path.display())]
    Shortage { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Unsound(String),
}

impl FindError {
    /// Makes the error for a failed system call.
    pub(crate) fn of(path: &Path, source: io::Error) -> FindError {
        match is_shortage(&source) {
            true => FindError::Shortage { path: path.to_owned(), source },
            false => FindError::Unsound(format!("{}: {source}", path.display())),
        }
    }
}

/// Returns whether an error is about limits of this process or of the system, not about the request.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN))
}

/// Opens and maps a file that an earlier daemon of this user left.
///
/// Fails if the file is not as that daemon made it.
pub(crate) fn find(path: &Path, len: u64) -> Result<Mapping, FindError> {
    let file = open_own(path)?;
    let found = file.metadata().map_err(|source| FindError::of(path, source))?.len();
    if found != len {
        let path = path.display();
        return Err(FindError::Unsound(format!("{path}: it has {found} bytes instead of {len}")));
    }
    Mapping::new(&file, len).map_err(|source| FindError::of(path, source))
}

/// Opens a file that an earlier daemon of this user left.
///
/// Fails if another process could have made or written it.
pub(crate) fn open_own(path: &Path) -> Result<File, FindError> {
    let said = |source: io::Error| FindError::of(path, source);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(said)?;
    let status = file.metadata().map_err(said)?;
    let wrong = if !status.is_file() {
        "it is no file".to_owned()
    } else if status.uid() != geteuid().as_raw() {
        format!("it belongs to user {}", status.uid())
    } else if status.mode() & 0o077 != 0 || status.nlink() != 1 {
        "others could have written it".to_owned()
    } else {
        return Ok(file);
    };
    Err(FindError::Unsound(format!("{}: {wrong}", path.display())))
}

/// Marks a control file as opened for a producer by the daemon of this epoch.
///
/// The mark belongs to the open file, which the daemon then gives to the producer. The mark stays as long as a
/// descriptor or a mapping of the open file is left in any process.
pub(crate) fn mark(control: &File, epoch: u32) -> nix::Result<()> {
    fcntl(control, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, epoch.into(), 1))).map(drop)
}

/// Returns whether a producer still has the control file from a daemon of an earlier epoch.
pub(crate) fn has_earlier_marks(control: &Path, epoch: u32) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(control)?;
    let mut found = lock(libc::F_WRLCK, 0, epoch.into());
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn lock(kind: i32, start: i64, len: i64) -> libc::flock {
    // l_pid has to be 0 for locks of open files.
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}
