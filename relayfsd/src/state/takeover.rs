//! The daemon that was on this mount point before: waited for where it is just ending, left in peace where it is at work.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use thiserror::Error;

use crate::mount::{self, MountError};
use crate::state::state_dir::{self, DirError, Place, StateDir};

/// How long a daemon that is just ending, or was killed, may take to let go of the mount point: the kernel takes its memory apart
/// before it closes its files.
const PREDECESSOR_MAX: Duration = Duration::from_secs(5);
/// How long a daemon that has let go of the state directory may take to be gone altogether.
const DYING_MAX: Duration = Duration::from_secs(1);
/// Time between two tries of the above.
const RETRY: Duration = Duration::from_millis(20);

/// Why the state directory and the mount point cannot be taken over.
#[derive(Debug, Error)]
pub(crate) enum TakeoverError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("state directory: {0}; --state-dir names another")]
    State(#[from] DirError),
}

/// Locks the state directory, and with it the mount point. A daemon that was just unmounted, told to end or killed gets the
/// time to do it, and one that serves open files after `umount -l` is asked to; one that is at work is in the table of mounts.
pub(crate) fn claim(point: &Path, place: &Place) -> Result<StateDir, TakeoverError> {
    let deadline = Instant::now() + PREDECESSOR_MAX;
    let claimed = loop {
        let (locked, pid) = match StateDir::claim(place) {
            Err(DirError::Locked { path, pid }) => (DirError::Locked { path, pid }, pid),
            result => break result.map_err(TakeoverError::from),
        };
        let is_late = Instant::now() >= deadline;
        if mount::is_mounted(point)? {
            if is_late || pid.is_none_or(is_at_work) {
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

/// Has nothing on the mount point. With the state directory's lock, a daemon that seems to be alive there is one that is just
/// dying, or one with another state directory.
pub(crate) fn clear(point: &Path) -> Result<(), MountError> {
    let deadline = Instant::now() + DYING_MAX;
    loop {
        match mount::clear(point) {
            Err(MountError::AlreadyMounted(_)) if Instant::now() < deadline => thread::sleep(RETRY),
            result => return result,
        }
    }
}

/// Whether a process is there, and nobody has killed it. What kills it stays among its pending signals until it is gone.
fn is_at_work(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
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
    fn who_is_killed_is_not_at_work_from_then_on() {
        assert!(is_at_work(std::process::id()));
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        assert!(is_at_work(child.id()));
        child.kill().unwrap();
        assert!(!is_at_work(child.id()), "dying, or a zombie");
        child.wait().unwrap();
        assert!(!is_at_work(child.id()), "gone");
    }
}
