//! Unmounts the mount that this process made.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::Failure;
use crate::mount::listed_type;
use crate::mount::start_daemon::{Ended, FUSERMOUNT, run};

/// Longest wait for other processes that use the mount, before it is detached.
const BUSY_MAX: Duration = Duration::from_secs(2);
/// Time between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// Result of one try.
enum Tried {
    Done,
    Busy(String),
    Refused(String),
}

/// Unmounts. While other processes use the mount, tries again for some time, and then detaches it.
///
/// A detached mount is gone from the tree at once, and ends when those processes have closed their files.
pub(crate) fn unmount(path: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        let lazy = Instant::now() >= deadline;
        match try_unmount(path, lazy) {
            Tried::Done => return Ok(()),
            Tried::Busy(_) if !lazy => thread::sleep(TRY_AGAIN),
            Tried::Busy(reason) | Tried::Refused(reason) => {
                return Err(Failure::Unmount { mount: path.to_owned(), reason });
            }
        }
    }
}

fn try_unmount(path: &Path, lazy: bool) -> Tried {
    let flags =
        if lazy { MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH } else { MntFlags::UMOUNT_NOFOLLOW };
    match umount2(path, flags) {
        // EINVAL: nothing is mounted there any more.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Tried::Done,
        Err(Errno::EPERM) => by_helper(path, lazy),
        Err(errno @ Errno::EBUSY) => Tried::Busy(errno.desc().to_owned()),
        Err(errno) => Tried::Refused(errno.desc().to_owned()),
    }
}

/// Unmounts by fusermount3, for a user that may not call umount(2).
fn by_helper(path: &Path, lazy: bool) -> Tried {
    match run(Command::new(FUSERMOUNT).arg("-u").args(lazy.then_some("-z")).arg("--").arg(path)) {
        Ok(Ended { status: Some(status), .. }) if status.success() => Tried::Done,
        Ok(_) if listed_type(path).is_none() => Tried::Done,
        // The exit status does not say why. The usual reason is that the mount is busy.
        Ok(ended) => Tried::Busy(ended.reason()),
        Err(error) => Tried::Refused(format!("cannot run {FUSERMOUNT} (package fuse3): {error}")),
    }
}
