//! Errors of mounting.

use std::io;
use std::path::PathBuf;

use relay::layout::paths::shell_word;
use thiserror::Error;

use super::{FUSE_DEVICE, fusermount};

/// Why the file system cannot be mounted there.
#[derive(Debug, Error)]
pub(crate) enum MountError {
    #[error("mount point {path}: there is no such directory; create it: mkdir -p {word}", path = .0.display(), word = shell_word(.0))]
    Missing(PathBuf),
    #[error("mount point {}: not a directory", .0.display())]
    NotDirectory(PathBuf),
    #[error("mount point {}: {source}", path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("{} is already mounted, and its relayfsd is alive; umount it first", .0.display())]
    AlreadyMounted(PathBuf),
    #[error(
        "mount point {} is busy: {fs_type} from {source_name} is mounted there; umount it, or choose another directory",
        path.display()
    )]
    Foreign { path: PathBuf, fs_type: String, source_name: String },
    #[error("cannot detach the dead mount on {}: {source}", path.display())]
    Stale { path: PathBuf, source: io::Error },
    #[error("{FUSE_DEVICE} is missing: modprobe fuse; in a container, add it: --device {FUSE_DEVICE}")]
    NoDevice,
    #[error("cannot open {FUSE_DEVICE}: {source}{}", for_users(.source))]
    Device { source: io::Error },
    #[error("mounting on {} is not permitted: it takes CAP_SYS_ADMIN; in a container: --cap-add SYS_ADMIN", .0.display())]
    NotPermitted(PathBuf),
    #[error("{}", fusermount::MISSING)]
    NoFusermount,
    #[error("cannot mount on {}: {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
    #[error("cannot mount on {}: {}: {source}", path.display(), fusermount::FUSERMOUNT)]
    Helper { path: PathBuf, source: io::Error },
    #[error(
        "{option} {}: it would be below the mount point {}, out of reach once relayfsd has mounted there; name a place outside",
        path.display(), point.display()
    )]
    Covered { option: &'static str, path: PathBuf, point: PathBuf },
    #[error(
        "mount point {}: it is inside of the relayfs that is mounted on {}; choose a directory outside",
        path.display(), outer.display()
    )]
    Inside { path: PathBuf, outer: PathBuf },
    #[error("{} was unmounted while it was being mounted", .0.display())]
    Gone(PathBuf),
    #[error("cannot read the table of mounts: {0}")]
    Table(#[source] io::Error),
}

/// Says what to do if only root may open /dev/fuse.
fn for_users(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; to let users mount: chmod 666 /dev/fuse",
        _ => "",
    }
}
