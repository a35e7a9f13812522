//! Gives up root's capabilities that a started daemon does not need.
//!
//! The daemon keeps the one for unmounting and for files that the kernel maps. Each thread has its capabilities, and a
//! new thread inherits those of the thread that starts it. So this is done before there are other threads.

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::prctl;
use nix::unistd::{AccessFlags, faccessat, geteuid};

/// The capability that stays.
const KEPT: Capability = Capability::CAP_SYS_ADMIN;
/// Stays as well, if a needed directory belongs to another user and shuts root out.
const KEPT_FOR_DIRS: Capability = Capability::CAP_DAC_OVERRIDE;

/// Gives up unneeded capabilities, for this thread and those that it will start.
///
/// To its end, the daemon has to find `point`, and to create and remove files in the directories of `files`. The daemon
/// of an ordinary user has nothing to give up.
pub(crate) fn give_up(point: &Path, files: &[Option<&Path>]) {
    if !geteuid().is_root() {
        return;
    }
    // Programs that the daemon runs get no more than the daemon has. Root loses nothing, even with fusermount3.
    if let Err(errno) = prctl::set_no_new_privs() {
        log::warn!("cannot renounce new privileges: {}", errno.desc());
    }
    let changed =
        files.iter().copied().flatten().filter_map(Path::parent).map(|dir| (dir, AccessFlags::W_OK));
    let found = point.parent().map(|dir| (dir, AccessFlags::empty()));
    if let Err(error) = keep_needed(changed.chain(found)) {
        log::warn!("cannot give up capabilities: {error}");
    }
}

fn keep_needed<'a>(mut dirs: impl Iterator<Item = (&'a Path, AccessFlags)>) -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let only = |wanted: &[Capability]| permitted.iter().copied().filter(|cap| wanted.contains(cap)).collect();
    // To try: only these capabilities are in effect from here on.
    caps::set(None, CapSet::Effective, &only(&[KEPT, Capability::CAP_SETPCAP]))?;
    let closed = dirs.find(|(dir, access)| is_closed(dir, *access));
    let kept: CapsHashSet = match closed {
        None => only(&[KEPT]),
        Some((dir, _)) => {
            log::info!("{}: root needs CAP_DAC_OVERRIDE there, and keeps it", dir.display());
            only(&[KEPT, KEPT_FOR_DIRS])
        }
    };
    for cap in caps::read(None, CapSet::Bounding)?.difference(&kept) {
        // This takes CAP_SETPCAP, which a container may not have. Programs still get no more than the daemon has.
        if let Err(error) = caps::drop(None, CapSet::Bounding, *cap) {
            log::debug!("{error}");
            break;
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &only(&[KEPT]))?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Effective, &kept)
}

/// Returns whether this thread's capabilities do not allow a use of a directory.
fn is_closed(dir: &Path, access: AccessFlags) -> bool {
    let wanted = access | AccessFlags::X_OK;
    // Other errors do not depend on capabilities, such as that of a read-only file system.
    matches!(faccessat(AT_FDCWD, dir, wanted, AtFlags::AT_EACCESS), Err(Errno::EACCES))
}
