//! Takes the mount point over from an earlier daemon.
//!
//! A start waits for an earlier daemon that is just ending, and fails if that daemon is running.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use relay::system::proc_stat;
use thiserror::Error;

use crate::mount::{self, MountError};
use crate::state::state_dir::{self, DirError, Place, StateDir};

/// Longest time that an ending or killed daemon may take to release the mount point.
///
/// The kernel frees the memory of a killed process before it closes its files.
const PREDECESSOR_MAX: Duration = Duration::from_secs(5);
/// Longest time that a daemon may live on after it has released the state directory.
const DYING_MAX: Duration = Duration::from_secs(1);
/// Time between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// Why the state directory and the mount point cannot be taken over.
#[derive(Debug, Error)]
pub(crate) enum TakeoverError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("state directory: {0}; --state-dir names another")]
    State(#[from] DirError),
}

/// Locks the state directory, and with it the mount point.
///
/// Waits for a daemon that was just unmounted, told to end, or killed. Asks a daemon that serves open files after
/// `umount -l` to end. A dead mount is in the table of mounts too, so the process that holds the lock decides.
pub(crate) fn claim(point: &Path, place: &Place) -> Result<StateDir, TakeoverError> {
    let deadline = Instant::now() + PREDECESSOR_MAX;
    let claimed = loop {
        let (locked, pid) = match StateDir::claim(place) {
            Err(DirError::Locked { path, pid }) => (DirError::Locked { path, pid }, pid),
            result => break result.map_err(TakeoverError::from),
        };
        let is_late = Instant::now() >= deadline;
        if mount::is_listed_as_relayfs(point)? {
            if is_late || pid.is_none_or(is_running) {
                break Err(MountError::AlreadyMounted(point.to_owned()).into());
            }
        } else {
            state_dir::want(place);
        }
        if is_late {
            break Err(locked.into());
        }
        thread::sleep(RETRY);
    };
    state_dir::unwant(place);
    claimed
}

/// Clears the mount point. The caller has the lock of the state directory.
///
/// So a daemon that seems to be alive there is just dying, or has another state directory.
pub(crate) fn clear(point: &Path) -> Result<(), MountError> {
    let deadline = Instant::now() + DYING_MAX;
    loop {
        match mount::clear(point) {
            Err(MountError::AlreadyMounted(_)) if Instant::now() < deadline => thread::sleep(RETRY),
            result => return result,
        }
    }
}

/// Returns whether a process runs and was not killed.
///
/// SIGKILL stays among its pending signals until its end.
fn is_running(pid: u32) -> bool {
    let Some(status) = proc_stat::read(pid, "status") else { return false };
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let pending = field("ShdPnd:\t").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    let is_killed = pending & 1 << (Signal::SIGKILL as u32 - 1) != 0;
    let is_zombie = field("State:\t").is_some_and(|state| state.starts_with(['Z', 'X']));
    !is_killed && !is_zombie
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn killed_process_is_not_running() {
        assert!(is_running(std::process::id()));
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        assert!(is_running(child.id()));
        child.kill().unwrap();
        assert!(!is_running(child.id()), "dying, or a zombie");
        child.wait().unwrap();
        assert!(!is_running(child.id()), "gone");
    }
}
