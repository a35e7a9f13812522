//! Checks whether relayfs is mounted, and mounts it if not.

pub(crate) mod start_daemon;
pub(crate) mod unmount;

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{self, Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use relay::system::mountinfo::{self, FS_TYPE};

use crate::error::Failure;
use crate::mount::start_daemon::{DAEMON, appears, run};
use crate::mount::unmount::unmount;
use crate::output;

/// Whether relayfs is mounted at the path.
///
/// A mount whose daemon has gone does not count: relayfsd replaces it.
pub(crate) fn is_mounted(path: &Path) -> Result<bool, Failure> {
    match fs::metadata(path) {
        Ok(what) if what.file_type().is_socket() => return Err(Failure::Socket(path.to_owned())),
        Ok(what) if !what.is_dir() => return Err(Failure::NotDirectory(path.to_owned())),
        // Without allow_other, other users may not even look at the root of the mount.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        Err(_) => return Ok(false),
        Ok(_) => {}
    }
    Ok(fs::read(path.join(".relay/version")).is_ok() || listed_type(path).is_some_and(|kind| kind == FS_TYPE))
}

/// Checks that a path without a mount is an empty directory. The reader mounts over nothing else.
pub(crate) fn check_unused(path: &Path) -> Result<(), Failure> {
    let mut entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            return Err(match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENOTDIR) => Failure::Missing(path.to_owned()),
                Some(Errno::ENOTCONN | Errno::ECONNABORTED) => Failure::Dead(path.to_owned()),
                _ => Failure::open(path, error),
            });
        }
    };
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Failure::NotEmpty(path.to_owned())),
    }
}

/// Whether relayfs is mounted at a path that was checked before.
fn is_usable(path: &Path) -> bool {
    is_mounted(path).unwrap_or(false)
}

/// The type of the mount that the kernel lists at the path; of several mounts, the visible one.
pub(crate) fn listed_type(path: &Path) -> Option<String> {
    let path = mountinfo::resolve(path).unwrap_or_else(|_| absolute(path));
    let entries = mountinfo::read().ok()?;
    mountinfo::topmost(&entries, &path).map(|entry| entry.fs_type.clone())
}

/// The mount that this process made and has to unmount. Shared with the thread that takes signals.
#[derive(Debug, Default)]
pub(crate) struct OwnMount(Mutex<Option<PathBuf>>);

impl OwnMount {
    /// Runs relayfsd to mount the path. A mount that another process makes meanwhile is used, and left mounted.
    pub(crate) fn mount(&self, path: &Path) -> Result<(), Failure> {
        // The lock is held throughout: an unmount at the same time comes after the mount.
        let mut own = self.lock();
        let path = absolute(path);
        match run_daemon(&path) {
            Ok(()) => {
                output::say(format_args!(
                    "nothing was mounted on {}: it is mounted for this reading",
                    path.display()
                ));
                *own = Some(fs::canonicalize(&path).unwrap_or(path));
                Ok(())
            }
            Err(_) if appears(|| is_usable(&path)) => Ok(()),
            Err(reason) => Err(Failure::Mount { mount: path, reason }),
        }
    }

    /// Unmounts the mount that this process made, once, if there is one.
    pub(crate) fn unmount(&self) -> Result<(), Failure> {
        let mut own = self.lock();
        own.take().map_or(Ok(()), |path| unmount(&path))
    }

    fn lock(&self) -> MutexGuard<'_, Option<PathBuf>> {
        // A panic elsewhere leaves the path whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs relayfsd, which returns when the mount is usable. The error is relayfsd's message, in one line.
fn run_daemon(path: &Path) -> Result<(), String> {
    // The relayfsd beside this program fits it; the one in PATH may be another release.
    let program = beside_us().unwrap_or_else(|| DAEMON.into());
    let ended = run(Command::new(&program).arg(path)).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("there is no {DAEMON} beside this program or in PATH"),
        _ => format!("cannot run {}: {error}", program.display()),
    })?;
    if ended.status.map_or_else(|| is_usable(path), |status| status.success()) {
        ended.said.iter().for_each(output::say);
        Ok(())
    } else {
        Err(ended.reason())
    }
}

/// The daemon beside this program.
pub(crate) fn beside_us() -> Option<PathBuf> {
    let path = env::current_exe().ok()?.with_file_name(DAEMON);
    path.is_file().then_some(path)
}

/// Makes a path absolute without resolving links, which needs a path that works. The result never begins with a dash.
fn absolute(path: &Path) -> PathBuf {
    path::absolute(path).unwrap_or_else(|_| {
        // An empty path, or no working directory: the next call that uses the path reports it.
        if path.as_os_str().as_bytes().starts_with(b"-") {
            Path::new(".").join(path)
        } else {
            path.to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_tree_with_a_version_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mounted(dir.path()).unwrap());
        assert!(!is_mounted(&dir.path().join("missing")).unwrap());
        fs::create_dir(dir.path().join(".relay")).unwrap();
        fs::write(dir.path().join(".relay/version"), "1\n").unwrap();
        assert!(is_mounted(dir.path()).unwrap());
    }

    #[test]
    fn path_that_is_no_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("socket"), dir.path().join("file"));
        let _listener = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "").unwrap();
        assert!(matches!(is_mounted(&socket), Err(Failure::Socket(path)) if path == socket));
        assert!(matches!(is_mounted(&file), Err(Failure::NotDirectory(path)) if path == file));
    }
}
