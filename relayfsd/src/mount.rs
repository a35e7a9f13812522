//! Checks the mount point, mounts, and unmounts: the daemon's own mount, and dead ones of earlier daemons.
//!
//! `daemon` mounts with this room, and `state` asks it whether an earlier daemon is mounted. It uses the options of
//! `config`. It may not know the tree, FUSE's requests, channels, or the state directory.
//!
//! fuser could mount by itself. The daemon gives it a mounted /dev/fuse instead, for three reasons. At its end, fuser
//! unmounts whatever is on the path then: after `umount -l`, that may be the next daemon's mount, or another program's.
//! As root, fuser mounts with the type `fuse`, and a dead mount of a relayfsd then looks like any other. And fuser
//! opens the directory first: an automounter makes that open wait for the mount that is being made.

mod error;
mod fusermount;

use std::fs::{File, OpenOptions};
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
use relay::system::mountinfo::{self, Entry, FS_TYPE};

pub(crate) use self::error::MountError;
use crate::config::options::{MountOptions, Options};

/// Exists if the kernel has SELinux, and uses it.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// The device of FUSE.
pub(crate) const FUSE_DEVICE: &str = "/dev/fuse";
/// Most dead mounts of relayfsd, one upon the other, that a start detaches.
const STALE_MAX: usize = 16;

/// Returns the real path of a mount point, without a request to a file system mounted there.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    let path: PathBuf = path.components().collect();
    mountinfo::resolve(&path).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT) => MountError::Missing(path),
        Some(libc::ENOTDIR) => MountError::NotDirectory(path),
        _ => MountError::Unreachable { path, source },
    })
}

/// Checks that the mount point is in no relayfs, and that the mount will cover no path that is needed.
///
/// A mount inside of a relayfs would hide the channels there, and keep that relayfs busy.
pub(crate) fn check_places(options: &Options) -> Result<(), MountError> {
    let point = resolve(&options.mount_point)?;
    let entries = mountinfo::read().map_err(MountError::Table)?;
    if let Some(outer) = relayfs_around(&entries, &point) {
        return Err(MountError::Inside { path: point, outer: outer.to_owned() });
    }
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

/// Returns the mount point of the relayfs that a directory lies in, if it does.
pub(crate) fn relayfs_around<'a>(entries: &'a [Entry], dir: &Path) -> Option<&'a Path> {
    let around = mountinfo::around(entries, dir).filter(|entry| entry.fs_type == FS_TYPE);
    around.map(|entry| entry.point.as_path())
}

/// Returns the path with links resolved, as far as it exists.
fn real_path(path: &Path) -> PathBuf {
    let found =
        path.ancestors().find_map(|part| Some((part.canonicalize().ok()?, path.strip_prefix(part).ok()?)));
    found.map_or_else(|| path.to_owned(), |(real, rest)| real.join(rest))
}

/// Returns whether this is stat(2)'s error for a mount whose daemon is gone.
fn is_dead(error: Option<Errno>) -> bool {
    matches!(error, Some(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Returns whether the daemon of the mount at this path is gone. Waits for the daemon's answer if it is not.
pub(crate) fn is_dead_mount(point: &Path) -> bool {
    is_dead(stat(point).err())
}

/// Returns the path of the set-uid helper that mounts for users.
pub(crate) fn helper() -> Option<PathBuf> {
    fusermount::find()
}

/// Returns whether the table of mounts has a relayfs there. Its daemon may be dead.
pub(crate) fn is_listed_as_relayfs(point: &Path) -> Result<bool, MountError> {
    let entries = mountinfo::read().map_err(MountError::Table)?;
    Ok(mountinfo::topmost(&entries, point).is_some_and(|entry| entry.fs_type == FS_TYPE))
}

/// Detaches dead mounts of relayfsd from `point`, and checks that it is a free directory.
///
/// `point` comes from [`resolve`]. The caller has the lock of the state directory: otherwise a mount that another daemon is
/// just making could look dead.
pub(crate) fn clear(point: &Path) -> Result<(), MountError> {
    for _ in 0..STALE_MAX {
        let entries = mountinfo::read().map_err(MountError::Table)?;
        // Unlike std's, this stat does not trigger an automounter, which would wait for this mount.
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
            // An automounter's placeholder expects this mount.
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

/// Returns the identity of the directory under the mount. Call it after [`clear`].
pub(crate) fn identity(point: &Path) -> Result<Point, MountError> {
    Point::of(point).map_err(|source| MountError::Unreachable { path: point.to_owned(), source })
}

/// Mounts on `point`. From now on, the kernel waits for answers from the returned /dev/fuse.
///
/// A start that fails after this needs descriptors to unmount, even where it fails for want of descriptors. Drop the
/// [`Spare`] ones before the [`Mount`].
pub(crate) fn attach(point: &Path, options: &MountOptions) -> Result<(OwnedFd, Mount, Spare), MountError> {
    let table = mountinfo::open().map_err(MountError::Table)?;
    let spare = Spare::new(&table).map_err(MountError::Table)?;
    let (device, helper) = if options.auto_unmount {
        let (device, helper) = fusermount::mount(point, options)?;
        (device, Some(helper))
    } else {
        match mount_directly(point, options)? {
            Some(device) => (device, None),
            None => {
                let refused = |error| match access(FUSE_DEVICE, AccessFlags::R_OK | AccessFlags::W_OK) {
                    // For root, the helper's error does not help.
                    _ if geteuid().is_root() => MountError::NotPermitted(point.to_owned()),
                    // The helper opens the device as the user, too.
                    Err(errno) => MountError::Device { source: errno.into() },
                    Ok(()) => error,
                };
                (fusermount::mount(point, options).map_err(refused)?.0, None)
            }
        }
    };
    let read = || {
        let entries = mountinfo::read_again(&table).map_err(MountError::Table)?;
        let connection = device.try_clone().map_err(|source| MountError::Device { source })?;
        Ok((entries, connection))
    };
    let (entries, connection) = match read() {
        Ok(read) => read,
        Err(error) => {
            // What was mounted a moment ago must not stay behind, dead.
            drop(spare);
            let _ = unmount(point, How::Lazily);
            return Err(error);
        }
    };
    match mountinfo::topmost(&entries, point) {
        Some(Entry { id, device: number, fs_type, .. }) if fs_type == FS_TYPE => {
            let (point, id, number) = (point.to_owned(), *id, number.clone());
            let mount = Mount { id, device: number, point, gone: false, table, connection, _helper: helper };
            Ok((device, mount, spare))
        }
        _ => Err(MountError::Gone(point.to_owned())),
    }
}

/// Descriptors that fusermount3 takes to unmount: its standard streams, and the pipe that tells whether it started.
pub(crate) struct Spare {
    _descriptors: Vec<File>,
}

impl Spare {
    const COUNT: usize = 8;

    fn new(file: &File) -> io::Result<Spare> {
        let copies = (0..Spare::COUNT).map(|_| file.try_clone());
        Ok(Spare { _descriptors: copies.collect::<io::Result<_>>()? })
    }
}

/// Mounts with mount(2). `None`: this process lacks privileges; try the set-uid helper.
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
    // Without SELinux, the kernel would take these words for FUSE's and refuse them. mount(8) omits them too.
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

/// Returns FUSE's own mount options.
///
/// Without `default_permissions`, the kernel's checks of the files' modes, every admitted user could do everything.
pub(crate) fn words(options: &MountOptions) -> impl Iterator<Item = &'static str> {
    let allow_other = options.allow_other.then_some("allow_other");
    allow_other.into_iter().chain(["default_permissions"])
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Only if no process uses the mount.
    IfIdle,
    /// Out of sight at once, and completely after the last use.
    Lazily,
}

/// The daemon's mount. A drop detaches it lazily.
#[derive(Debug)]
pub(crate) struct Mount {
    id: u64,
    device: String,
    /// Where it was mounted.
    point: PathBuf,
    /// Whether it is known to be unmounted.
    gone: bool,
    /// The table of mounts. The end can need it when the process has no more descriptors.
    table: File,
    /// The mounted /dev/fuse.
    connection: OwnedFd,
    /// When this closes, a waiting fusermount3 unmounts.
    _helper: Option<UnixStream>,
}

impl Mount {
    /// Unmounts this mount and no other. Succeeds if it is unmounted already.
    pub(crate) fn detach(&self, how: How) -> io::Result<()> {
        let entries = mountinfo::read_again(&self.table)?;
        // The mount may have been moved; its number stays.
        let Some(ours) = self.find(&entries) else { return Ok(()) };
        match mountinfo::topmost(&entries, &ours.point) {
            Some(top) if top.id == self.id => unmount(&ours.point, how),
            _ => Err(io::Error::other("something else is mounted over it")),
        }
    }

    /// Notes that the mount is gone, whichever process unmounted it.
    ///
    /// A mount in its place from now on is another program's, even with the same numbers.
    pub(crate) fn let_go(&mut self) {
        self.gone = true;
    }

    /// Returns whether the mount is still in the table of mounts.
    pub(crate) fn is_attached(&self) -> io::Result<bool> {
        Ok(self.find(&mountinfo::read_again(&self.table)?).is_some())
    }

    /// Finds this mount in a table of mounts that was read just now.
    ///
    /// When the file system is gone, the kernel gives both numbers to another mount, but not before it has cut the
    /// connection. An administrator can have it cut the connection while the mount stays. Then the mount in this place
    /// is dead, as this one would be.
    fn find<'a>(&self, entries: &'a [Entry]) -> Option<&'a Entry> {
        if self.gone {
            return None;
        }
        let connected = self.is_connected();
        let here = |entry: &Entry| connected || entry.point == self.point && is_dead(stat(&self.point).err());
        entries.iter().find(|entry| entry.id == self.id && entry.device == self.device && here(entry))
    }

    /// Returns whether the kernel would still send requests.
    fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(self.connection.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }

    /// Returns a function that blocks until the mount is gone, unmounted lazily or not.
    pub(crate) fn watch(&self) -> io::Result<impl FnOnce() -> io::Result<()> + use<>> {
        let (table, id, device) = (mountinfo::open()?, self.id, self.device.clone());
        Ok(move || mountinfo::wait_until_gone(&table, id, &device))
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
    fn unusable_mount_points_have_different_errors() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(clear(base.path()).is_ok());
        assert!(matches!(clear(&file), Err(MountError::NotDirectory(_))));
        assert!(matches!(clear(&base.path().join("none")), Err(MountError::Missing(_))));
        assert!(
            matches!(clear(Path::new("/proc")), Err(MountError::Foreign { fs_type, .. }) if fs_type == "proc")
        );
        assert!(!is_listed_as_relayfs(base.path()).unwrap());
    }
}
