//! Whether relayfs is mounted, and mounting it where it is not.

use std::env;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{self, Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use relay::mountinfo::{self, FS_TYPE};

use crate::failure::Failure;
use crate::output;
use crate::unmount::unmount;

/// The daemon that mounts.
const DAEMON: &str = "relayfsd";
/// How long we give a daemon that was started at the same time as ours, and first, to become usable.
const OTHERS_START_MAX: Duration = Duration::from_millis(250);
/// Time between two looks at whether something has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Whether relayfs is mounted at the path. A mount whose daemon has gone does not count: relayfsd replaces
/// it.
pub(crate) fn is_mounted(path: &Path) -> Result<bool, Failure> {
    match fs::metadata(path) {
        Ok(what) if what.file_type().is_socket() => return Err(Failure::Socket(path.to_owned())),
        Ok(what) if !what.is_dir() => return Err(Failure::NotDirectory(path.to_owned())),
        // Without allow_other nobody else may look even at the root of the mount.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        Err(_) => return Ok(false),
        Ok(_) => {}
    }
    Ok(fs::read(path.join(".relay/version")).is_ok() || listed_type(path).is_some_and(|kind| kind == FS_TYPE))
}

/// The type of the mount that the kernel lists at the path, of several the visible one.
pub(crate) fn listed_type(path: &Path) -> Option<String> {
    let path = mountinfo::resolve(path).unwrap_or_else(|_| absolute(path));
    let entries = mountinfo::read().ok()?;
    mountinfo::topmost(&entries, &path).map(|entry| entry.fs_type.clone())
}

/// What we mounted ourselves, and have to unmount. Shared with the thread that takes signals.
#[derive(Debug, Default)]
pub(crate) struct OwnMount(Mutex<Option<PathBuf>>);

impl OwnMount {
    /// Has relayfsd mount the path. If somebody else does so meanwhile, that is as good, and theirs.
    pub(crate) fn mount(&self, path: &Path) -> Result<(), Failure> {
        // Held all the time: whoever wants to unmount at the same time comes after us.
        let mut own = self.lock();
        let path = absolute(path);
        match run_daemon(&path) {
            Ok(()) => {
                *own = Some(fs::canonicalize(&path).unwrap_or(path));
                Ok(())
            }
            Err(_) if appears(&path)? => Ok(()),
            Err(reason) => Err(Failure::Mount { mount: path, reason }),
        }
    }

    /// Unmounts, once, what we mounted, if we did.
    pub(crate) fn unmount(&self) -> Result<(), Failure> {
        let mut own = self.lock();
        own.take().map_or(Ok(()), |path| unmount(&path))
    }

    fn lock(&self) -> MutexGuard<'_, Option<PathBuf>> {
        // Whatever panicked, the path is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody else's mount becomes usable within a short time.
fn appears(path: &Path) -> Result<bool, Failure> {
    let deadline = Instant::now() + OTHERS_START_MAX;
    loop {
        if is_mounted(path)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Runs relayfsd, which returns when the mount is usable. The error is its own, in one line.
fn run_daemon(path: &Path) -> Result<(), String> {
    // Ours goes with us; another one may be in PATH.
    let program = beside_us().unwrap_or_else(|| DAEMON.into());
    // Nothing of ours must stay open in a daemon: whoever reads our output would wait for its end.
    let mut command = Command::new(&program);
    command.arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("there is no {DAEMON} beside this program or in PATH"),
        _ => format!("cannot run {}: {error}", program.display()),
    })?;
    let stderr = child.stderr.take();
    // First this and then what it said: what it says fits into the pipe, and its daemon may still have the
    // pipe open.
    let status = child.wait().map_err(|error| format!("cannot wait for {}: {error}", program.display()))?;
    let said = stderr.map(said).unwrap_or_default();
    if status.success() {
        said.iter().for_each(output::say);
        Ok(())
    } else if said.is_empty() {
        Err(status.to_string())
    } else {
        Err(said.join("; "))
    }
}

/// The lines that are in the pipe, without waiting for more.
fn said(mut stderr: ChildStderr) -> Vec<String> {
    let mut text = Vec::new();
    if fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok() {
        // What was read before the pipe had no more is there.
        let _ = stderr.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.strip_prefix("relayfsd: ").unwrap_or(line).to_owned()).collect()
}

/// The daemon beside this program.
pub(crate) fn beside_us() -> Option<PathBuf> {
    let path = env::current_exe().ok()?.with_file_name(DAEMON);
    path.is_file().then_some(path)
}

/// Without resolving links, which needs a path that works. Never begins with a dash.
fn absolute(path: &Path) -> PathBuf {
    path::absolute(path).unwrap_or_else(|_| {
        // An empty path, or no working directory: whoever gets it tells.
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
    fn what_is_no_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("socket"), dir.path().join("file"));
        let _listener = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "").unwrap();
        assert!(matches!(is_mounted(&socket), Err(Failure::Socket(path)) if path == socket));
        assert!(matches!(is_mounted(&file), Err(Failure::NotDirectory(path)) if path == file));
    }
}
