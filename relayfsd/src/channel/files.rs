//! A channel's files in the state directory: creates, finds, marks and removes them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::unistd::geteuid;
use relay::layout::channel_files::{control_name, data_name};
use relay::memory::mapping::Mapping;

/// The paths of a channel's files: the control file, then one data file for each buffer.
#[derive(Debug)]
pub(crate) struct Files(Vec<PathBuf>);

impl Files {
    /// Returns the paths for the channel with number `id`.
    pub(crate) fn of(dir: &Path, id: u32, n_bufs: usize) -> Files {
        let control = dir.join(control_name(id));
        Files([control].into_iter().chain((0..n_bufs).map(|index| dir.join(data_name(id, index)))).collect())
    }

    /// Returns the control file's path.
    pub(crate) fn control(&self) -> &Path {
        &self.0[0]
    }

    /// Returns the data files' paths.
    pub(crate) fn data(&self) -> &[PathBuf] {
        &self.0[1..]
    }

    /// Returns all paths.
    pub(crate) fn all(&self) -> &[PathBuf] {
        &self.0
    }

    /// Removes those of the files that exist.
    pub(crate) fn remove(&self) {
        for path in &self.0 {
            // The daemon reports errors of the directory where it uses the files; a second report here would not help.
            let _ = fs::remove_file(path);
        }
    }
}

/// Files that are being created. Dropping this removes them, unless `keep` was called.
pub(crate) struct Made(Option<Files>);

impl Made {
    pub(crate) fn new(files: Files) -> Made {
        Made(Some(files))
    }

    pub(crate) fn files(&self) -> &Files {
        self.0.as_ref().expect("only `keep` takes them")
    }

    pub(crate) fn keep(mut self) -> Files {
        self.0.take().expect("only `keep` takes them")
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(files) = &self.0 {
            files.remove();
        }
    }
}

/// Creates and maps a file of `len` zero bytes. It allocates all memory now: later there might be none.
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

/// Opens and maps a file that an earlier daemon of this user left. Fails if the file is not as that daemon made it.
pub(crate) fn find(path: &Path, len: u64) -> Result<Mapping, String> {
    let said = |error: io::Error| format!("{}: {error}", path.display());
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(said)?;
    let status = file.metadata().map_err(said)?;
    let wrong = if !status.is_file() {
        "it is no file".to_owned()
    } else if status.uid() != geteuid().as_raw() {
        format!("it belongs to user {}", status.uid())
    } else if status.mode() & 0o077 != 0 || status.nlink() != 1 {
        "others could have written it".to_owned()
    } else if status.len() != len {
        format!("it has {} bytes instead of {len}", status.len())
    } else {
        return Mapping::new(&file, len).map_err(said);
    };
    Err(format!("{}: {wrong}", path.display()))
}

/// Marks a control file as opened for a producer by the daemon of this epoch.
///
/// The mark belongs to the open file, which the daemon then gives to the producer. The mark stays until the last
/// process that has the open file closes it.
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
