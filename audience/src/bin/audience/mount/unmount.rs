//! Unmounting what we mounted.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::Failure;
use crate::mount::listed_type;
use crate::mount::start_daemon::{Ended, FUSERMOUNT, run};

/// How long we wait for others who use the mount, before we unmount it under them.
const BUSY_MAX: Duration = Duration::from_secs(2);
/// Time between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// What one try came to.
enum Tried {
    Done,
    Busy(String),
    Refused(String),
}

/// Unmounts. While somebody uses the mount, tries again for some time; then detaches it, so that it is gone
/// from the tree at once and ends when they do.
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
        // EINVAL: no mount there, any more.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Tried::Done,
        Err(Errno::EPERM) => by_helper(path, lazy),
        Err(errno @ Errno::EBUSY) => Tried::Busy(errno.desc().to_owned()),
        Err(errno) => Tried::Refused(errno.desc().to_owned()),
    }
}

/// For those who may not unmount.
fn by_helper(path: &Path, lazy: bool) -> Tried {
    match run(Command::new(FUSERMOUNT).arg("-u").args(lazy.then_some("-z")).arg("--").arg(path)) {
        Ok(Ended { status: Some(status), .. }) if status.success() => Tried::Done,
        Ok(_) if listed_type(path).is_none() => Tried::Done,
        // Its exit status does not tell why; to be busy is the usual reason.
        Ok(ended) => Tried::Busy(ended.reason()),
        Err(error) => Tried::Refused(format!("cannot run {FUSERMOUNT} (package fuse3): {error}")),
    }
}
