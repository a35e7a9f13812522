//! What root's daemon gives up once it has started: every capability but the one that unmounting, and letting the kernel map
//! files, takes.
//!
//! Capabilities are each thread's own, and new threads have those of who starts them: it is done before there are any.

use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::prctl;
use nix::unistd::{AccessFlags, faccessat, geteuid};

/// What stays.
const KEPT: Capability = Capability::CAP_SYS_ADMIN;
/// What stays as well, where directories that are needed to the end are somebody else's, who shuts even root out.
const KEPT_FOR_DIRS: Capability = Capability::CAP_DAC_OVERRIDE;

/// Gives up what is not needed any more, for this thread and those it will start. To the end `point` will have to be found, and
/// files in the directories of `files` made and removed. A user's daemon has nothing to give up.
pub(crate) fn give_up(point: &Path, files: &[Option<&Path>]) {
    if !geteuid().is_root() {
        return;
    }
    // Programs that the daemon runs get no more than it has; to root that is no loss, not even with fusermount3.
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
    // Tried out: no others count from here on.
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
        // It takes CAP_SETPCAP, which a container may not have. No program that is run gets more than we have all the same.
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

/// Whether this thread, as it is, may not find what is in a directory, or not do what else is wanted there.
fn is_closed(dir: &Path, access: AccessFlags) -> bool {
    let wanted = access | AccessFlags::X_OK;
    // A file system that cannot be written is so for whatever capabilities.
    matches!(faccessat(AT_FDCWD, dir, wanted, AtFlags::AT_EACCESS), Err(Errno::EACCES))
}
