//! The mount point: what may be there before, mounting, and unmounting what is ours and nothing else.
//!
//! fuser could mount by itself. We hand it a mounted /dev/fuse instead, for three reasons. At its end it
//! unmounts whatever is on the path by then: after `umount -l` that may be our successor's mount, or anybody's.
//! Mounting as root it calls the type plain `fuse`, and then a dead mount of ours looks like everybody's. And
//! it opens the directory first, which an automounter answers by waiting for the mount that is being made.

pub(crate) mod fusermount;
pub(crate) mod takeover;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, access, getegid, geteuid};
use relay::layout::mount_point::Point;
use relay::layout::paths::shell_word;
use relay::system::mountinfo::{self, Entry, FS_TYPE};
use thiserror::Error;

use crate::config::options::{MountOptions, Options};

/// Is there if the kernel has SELinux, and uses it.
const SELINUX: &str = "/sys/fs/selinux/enforce";
const FUSE_DEVICE: &str = "/dev/fuse";
/// Dead mounts of ours, one upon the other, that a start clears away.
const STALE_MAX: usize = 16;

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
    #[error(
        "{option} {}: it would be below the mount point {}, out of reach once relayfsd has mounted there; name a place outside",
        path.display(), point.display()
    )]
    Covered { option: &'static str, path: PathBuf, point: PathBuf },
    #[error("{} was unmounted while it was being mounted", .0.display())]
    Gone(PathBuf),
    #[error("cannot read the table of mounts: {0}")]
    Table(#[source] io::Error),
}

/// What to do where only root may open /dev/fuse.
fn for_users(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; to let users mount: chmod 666 /dev/fuse",
        _ => "",
    }
}

/// The real path of a mount point, without asking anything that is mounted there.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    let path: PathBuf = path.components().collect();
    mountinfo::resolve(&path).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT) => MountError::Missing(path),
        Some(libc::ENOTDIR) => MountError::NotDirectory(path),
        _ => MountError::Unreachable { path, source },
    })
}

/// Checks that the mount will not cover what the daemon or its clients have to reach by a path.
pub(crate) fn check_places(options: &Options) -> Result<(), MountError> {
    let point = resolve(&options.mount_point)?;
    let places = [
        ("--socket", &options.socket),
        ("--state-dir", &options.state_dir),
        ("--log-file", &options.log_file),
    ];
    for (option, path) in places {
        if let Some(path) = path
            && real_path(path).starts_with(&point)
        {
            return Err(MountError::Covered { option, path: path.clone(), point });
        }
    }
    Ok(())
}

/// The path without links, as far as it is there.
fn real_path(path: &Path) -> PathBuf {
    let found =
        path.ancestors().find_map(|part| Some((part.canonicalize().ok()?, path.strip_prefix(part).ok()?)));
    found.map_or_else(|| path.to_owned(), |(real, rest)| real.join(rest))
}

/// Whether this is what stat(2) says of a mount whose daemon is gone.
fn is_dead(error: Option<Errno>) -> bool {
    matches!(error, Some(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Whether the table has a mount of our type there, dead or alive.
pub(crate) fn is_mounted(point: &Path) -> Result<bool, MountError> {
    let entries = mountinfo::read().map_err(MountError::Table)?;
    Ok(mountinfo::topmost(&entries, point).is_some_and(|entry| entry.fs_type == FS_TYPE))
}

/// Checks that `point`, from [`resolve`], is a directory with nothing on it, after detaching dead mounts of ours.
/// To be called with the lock on the mount point: a mount that another is just making must not be taken for dead.
pub(crate) fn clear(point: &Path) -> Result<(), MountError> {
    for _ in 0..STALE_MAX {
        let entries = mountinfo::read().map_err(MountError::Table)?;
        // Unlike std's, this stat does not set off an automounter, who would wait for us.
        let status = stat(point);
        match mountinfo::topmost(&entries, point) {
            Some(entry) if entry.fs_type == FS_TYPE => {
                if !is_dead(status.err()) {
                    return Err(MountError::AlreadyMounted(point.to_owned()));
                }
                let stale = |source| MountError::Stale { path: point.to_owned(), source };
                unmount(point, How::Lazily).map_err(stale)?;
                log::warn!("{}: detached what a dead relayfsd had left", point.display());
            }
            // An automounter's placeholder is there to be mounted on.
            Some(entry) if entry.fs_type != "autofs" => {
                return Err(MountError::Foreign {
                    path: point.to_owned(),
                    fs_type: entry.fs_type.clone(),
                    source_name: entry.source.clone(),
                });
            }
            _ => {
                let path = point.to_owned();
                return match status {
                    Ok(status)
                        if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR =>
                    {
                        Ok(())
                    }
                    Ok(_) => Err(MountError::NotDirectory(path)),
                    Err(Errno::ENOENT) => Err(MountError::Missing(path)),
                    Err(errno) => Err(MountError::Unreachable { path, source: errno.into() }),
                };
            }
        }
    }
    Err(MountError::Stale { path: point.to_owned(), source: Errno::EBUSY.into() })
}

/// The directory that is mounted on. To be called after [`clear`].
pub(crate) fn identity(point: &Path) -> Result<Point, MountError> {
    Point::of(point).map_err(|source| MountError::Unreachable { path: point.to_owned(), source })
}

/// Mounts on `point`. The kernel waits for answers from the returned /dev/fuse from now on.
pub(crate) fn attach(point: &Path, options: &MountOptions) -> Result<(OwnedFd, Mount), MountError> {
    let (device, helper) = if options.auto_unmount {
        let (device, helper) = fusermount::mount(point, options)?;
        (device, Some(helper))
    } else {
        match mount_directly(point, options)? {
            Some(device) => (device, None),
            None => {
                let refused = |error| match access(FUSE_DEVICE, AccessFlags::R_OK | AccessFlags::W_OK) {
                    // To root the helper's refusal says nothing that helps.
                    _ if geteuid().is_root() => MountError::NotPermitted(point.to_owned()),
                    // The helper opens it as the user, too.
                    Err(errno) => MountError::Device { source: errno.into() },
                    Ok(()) => error,
                };
                (fusermount::mount(point, options).map_err(refused)?.0, None)
            }
        }
    };
    let entries = mountinfo::read().map_err(|error| {
        // What was mounted a moment ago must not stay behind, dead.
        let _ = unmount(point, How::Lazily);
        MountError::Table(error)
    })?;
    match mountinfo::topmost(&entries, point) {
        Some(Entry { id, device: number, fs_type, .. }) if fs_type == FS_TYPE => {
            let connection = device.try_clone().map_err(|source| MountError::Device { source })?;
            let (point, id, number) = (point.to_owned(), *id, number.clone());
            Ok((device, Mount { id, device: number, point, gone: false, connection, _helper: helper }))
        }
        _ => Err(MountError::Gone(point.to_owned())),
    }
}

/// Mounts with mount(2). `None`: that takes privileges; try the set-uid helper.
fn mount_directly(point: &Path, options: &MountOptions) -> Result<Option<OwnedFd>, MountError> {
    let may_ask_helper = fusermount::is_installed();
    let device = match OpenOptions::new().read(true).write(true).open(FUSE_DEVICE) {
        Ok(device) => OwnedFd::from(device),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => return Err(MountError::NoDevice),
            Some(libc::EACCES | libc::EPERM) if may_ask_helper => return Ok(None),
            _ => return Err(MountError::Device { source: error }),
        },
    };
    let (uid, gid) = (geteuid(), getegid());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    for word in words(options) {
        data.push(',');
        data.push_str(word);
    }
    // Without SELinux the kernel would take them for FUSE's, and refuse them; mount(8) leaves them out as well.
    if Path::new(SELINUX).exists() {
        for word in &options.contexts {
            data.push(',');
            data.push_str(word);
        }
    }
    let path = point.to_owned();
    match nix::mount::mount(
        Some(options.fsname.as_str()),
        point,
        Some(FS_TYPE),
        options.flags,
        Some(data.as_str()),
    ) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::EPERM) if may_ask_helper => Ok(None),
        Err(Errno::EPERM) if uid.is_root() => Err(MountError::NotPermitted(path)),
        Err(Errno::EPERM) => Err(MountError::NoFusermount),
        Err(Errno::ENODEV) => Err(MountError::NoDevice),
        Err(errno) => Err(MountError::Refused { path, reason: errno.desc().to_owned() }),
    }
}

/// FUSE's own mount options. Without the kernel's checks of the files' modes everybody who is let in could do everything.
pub(crate) fn words(options: &MountOptions) -> impl Iterator<Item = &'static str> {
    let allow_other = options.allow_other.then_some("allow_other");
    allow_other.into_iter().chain(["default_permissions"])
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Only if nobody uses it.
    IfIdle,
    /// From sight at once, for good when the last user has gone.
    Lazily,
}

/// Our mount. Detached, lazily if need be, when dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    id: u64,
    device: String,
    /// Where it was mounted.
    point: PathBuf,
    /// Known to be unmounted.
    gone: bool,
    /// The mounted /dev/fuse.
    connection: OwnedFd,
    /// Its closing tells a waiting fusermount3 to unmount.
    _helper: Option<UnixStream>,
}

impl Mount {
    /// Unmounts it, and nothing else. Nothing to do is success.
    pub(crate) fn detach(&self, how: How) -> io::Result<()> {
        let entries = mountinfo::read()?;
        // It may have been moved; its number stays.
        let Some(ours) = self.find(&entries) else { return Ok(()) };
        match mountinfo::topmost(&entries, &ours.point) {
            Some(top) if top.id == self.id => unmount(&ours.point, how),
            _ => Err(io::Error::other("something else is mounted over it")),
        }
    }

    /// It has been unmounted, by whomever: a mount that is found in its place from now on, be it with its numbers, is
    /// somebody else's.
    pub(crate) fn let_go(&mut self) {
        self.gone = true;
    }

    /// Whether it still is where users find it.
    pub(crate) fn is_attached(&self) -> io::Result<bool> {
        Ok(self.find(&mountinfo::read()?).is_some())
    }

    /// Our line of a table that was read just now.
    ///
    /// Both numbers are given to somebody else as soon as the file system is gone, but not before the kernel has cut the
    /// connection. It cuts it also when it is told to while the mount stays: then what is in its place is dead, as ours would be.
    fn find<'a>(&self, entries: &'a [Entry]) -> Option<&'a Entry> {
        if self.gone {
            return None;
        }
        let connected = self.is_connected();
        let here = |entry: &Entry| connected || entry.point == self.point && is_dead(stat(&self.point).err());
        entries.iter().find(|entry| entry.id == self.id && entry.device == self.device && here(entry))
    }

    /// Whether the kernel would still send requests.
    fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(self.connection.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }

    /// Blocks until it has been unmounted, by whomever, lazily or not.
    pub(crate) fn watch(&self) -> impl FnOnce() -> io::Result<()> + use<> {
        let (id, device) = (self.id, self.device.clone());
        move || mountinfo::wait_until_gone(id, &device)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.detach(How::Lazily) {
            log::error!("cannot unmount: {error}");
        }
    }
}

fn unmount(point: &Path, how: How) -> io::Result<()> {
    let lazily = match how {
        How::IfIdle => MntFlags::empty(),
        How::Lazily => MntFlags::MNT_DETACH,
    };
    match umount2(point, MntFlags::UMOUNT_NOFOLLOW | lazily) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => fusermount::unmount(point, how),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_resolved_with_their_links() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().canonicalize().unwrap();
        std::fs::create_dir(base.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("dir", base.path().join("link")).unwrap();
        for name in ["dir", "dir/", "dir/.", "link", "link/", "./link/."] {
            assert_eq!(resolve(&base.path().join(name)).unwrap(), real.join("dir"), "{name}");
        }
        assert!(matches!(resolve(&base.path().join("none")), Err(MountError::Missing(_))));
    }

    #[test]
    fn what_cannot_be_mounted_on_is_told_apart() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(clear(base.path()).is_ok());
        assert!(matches!(clear(&file), Err(MountError::NotDirectory(_))));
        assert!(matches!(clear(&base.path().join("none")), Err(MountError::Missing(_))));
        assert!(
            matches!(clear(Path::new("/proc")), Err(MountError::Foreign { fs_type, .. }) if fs_type == "proc")
        );
        assert!(!is_mounted(base.path()).unwrap());
    }
}
