//! Creates the socket that producers connect to, with its permissions, and removes it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{Gid, UnlinkatFlags, fchownat, unlinkat};
use relay::layout::paths;
use thiserror::Error;

use crate::state::state_dir::{Dir, DirError, Place};

/// Most connections that wait to be accepted. The kernel lowers this to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Why the socket cannot be created.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    #[error("socket {}: it is in use by another program; --socket names another", .0.display())]
    InUse(PathBuf),
    #[error("socket {}: there is something else of that name; --socket names another", .0.display())]
    NotSocket(PathBuf),
    #[error("socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the socket's group {gid} cannot be set: {source}; relayfsd must run as root or be a member")]
    Group { gid: u32, source: io::Error },
    #[error("socket's directory: {error}{advice}", error = .0, advice = .0.remedy("--socket"))]
    Dir(#[from] DirError),
}

/// The socket's file. A drop, before the socket is closed, removes the file.
///
/// It also removes the directory, if the daemon created it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    name: PathBuf,
    dir: Dir,
    /// Device and inode, so that the drop removes no file of another program with this name.
    ///
    /// While the socket is open, the kernel gives its inode number to no other file.
    id: (u64, u64),
}

/// Returns the socket's path and directory: the named ones, or those where producers look.
pub(crate) fn place(named: Option<&Path>, point: &Path, uid: u32) -> (PathBuf, Place) {
    if let Some(path) = named {
        return (path.to_owned(), Place::shared(path.parent().unwrap_or(path)));
    }
    // The XDG rules say to ignore a relative path.
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let path = paths::socket_path(point, uid, runtime_dir.as_deref());
    let bases: Vec<&Path> =
        runtime_dir.as_deref().into_iter().chain([Path::new("/run"), Path::new("/dev/shm")]).collect();
    let place = Place::below(&bases, path.parent().unwrap_or(&path));
    (path, place)
}

/// Creates the socket at `path`, in the directory `place`, and listens.
///
/// No process can connect before group and mode are set. The caller has the lock on the mount point: this replaces the
/// socket of a dead daemon.
pub(crate) fn create(
    path: &Path,
    place: &Place,
    mode: u32,
    gid: Option<u32>,
) -> Result<(OwnedFd, SocketFile), ListenError> {
    let dir = Dir::open(place, 0o755)?;
    let name = PathBuf::from(path.file_name().unwrap_or_default());
    let fail = |errno: Errno| ListenError::Io { path: path.to_owned(), source: errno.into() };
    // A path that is too long for the kernel is reached through the open directory.
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())).join(&name);
    let address = UnixAddr::new(path).or_else(|_| UnixAddr::new(&short)).map_err(fail)?;

    let status = |name: &Path| fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    match status(&name) {
        Ok(status) if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK => {
            return Err(ListenError::NotSocket(path.to_owned()));
        }
        Ok(_) if is_alive(&address).map_err(fail)? => return Err(ListenError::InUse(path.to_owned())),
        Ok(_) => unlinkat(&dir, &name, UnlinkatFlags::NoRemoveDir).map_err(fail)?,
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(fail(errno)),
    }
    let fd = new_socket().map_err(fail)?;
    bind(fd.as_raw_fd(), &address).map_err(fail)?;
    let bound = status(&name).map_err(fail)?;
    let file = SocketFile { path: path.to_owned(), name, dir, id: (bound.st_dev, bound.st_ino) };

    if let Some(gid) = gid {
        fchownat(&file.dir, &file.name, None, Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| ListenError::Group { gid, source: errno.into() })?;
    }
    fchmodat(&file.dir, &file.name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
        .map_err(fail)?;
    listen(&fd, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN)).map_err(fail)?;
    Ok((fd, file))
}

impl SocketFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fstatat(&self.dir, &self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|status| (status.st_dev, status.st_ino) == self.id);
        if ours && let Err(errno) = unlinkat(&self.dir, &self.name, UnlinkatFlags::NoRemoveDir) {
            log::warn!("cannot remove {}: {}", self.path.display(), errno.desc());
        }
        self.dir.remove_if_empty();
    }
}

fn new_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// Returns whether a process listens at an existing socket file.
///
/// A socket of another type counts, too.
fn is_alive(address: &UnixAddr) -> nix::Result<bool> {
    match connect(new_socket()?.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(true),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn create_in(dir: &Path, name: &str) -> Result<(OwnedFd, SocketFile), ListenError> {
        create(&dir.join(name), &Place::shared(dir), 0o620, None)
    }

    #[test]
    fn socket_is_created_with_its_mode_and_removed_with_its_directory() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("relay");
        let (_fd, file) = create_in(&dir, "socket").unwrap();
        let status = fs::metadata(file.path()).unwrap();
        assert_eq!(status.permissions().mode() & 0o777, 0o620);
        assert!(is_alive(&UnixAddr::new(file.path()).unwrap()).unwrap());
        assert!(matches!(create_in(&dir, "socket"), Err(ListenError::InUse(_))));
        drop(file);
        assert!(!dir.exists());
    }

    #[test]
    fn path_too_long_for_the_kernel_works() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("d".repeat(120));
        let (_fd, file) = create_in(&dir, "socket").unwrap();
        assert!(fs::symlink_metadata(dir.join("socket")).is_ok());
        drop(file);
        assert!(!dir.exists());
    }

    #[test]
    fn dead_socket_is_replaced_and_live_or_foreign_file_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("socket");
        let other = UnixListener::bind(&path).unwrap();
        assert!(matches!(create_in(base.path(), "socket"), Err(ListenError::InUse(_))));
        drop(other);
        let (_fd, file) = create_in(base.path(), "socket").unwrap();

        fs::remove_file(&path).unwrap();
        fs::write(&path, "of another program").unwrap();
        drop(file);
        assert!(path.exists());
        assert!(matches!(create_in(base.path(), "socket"), Err(ListenError::NotSocket(_))));
    }
}
