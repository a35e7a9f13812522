//! The socket that producers connect to: its file, who may connect, and its removal.

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

/// Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Why there is no socket.
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

/// The socket's file. Dropping it, before the socket is closed, removes it, and its directory if that is ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    name: PathBuf,
    dir: Dir,
    /// Device and inode: a file that somebody else put there meanwhile is not removed. As long as the socket is
    /// open its inode's number is not given to another.
    id: (u64, u64),
}

/// Where the socket is: as named, or where producers look for it.
pub(crate) fn place(named: Option<&Path>, point: &Path, uid: u32) -> (PathBuf, Place) {
    if let Some(path) = named {
        return (path.to_owned(), Place::shared(path.parent().unwrap_or(path)));
    }
    // As the XDG rules have it, a relative path counts as none.
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let path = paths::socket_path(point, uid, runtime_dir.as_deref());
    let bases: Vec<&Path> =
        runtime_dir.as_deref().into_iter().chain([Path::new("/run"), Path::new("/dev/shm")]).collect();
    let place = Place::below(&bases, path.parent().unwrap_or(&path));
    (path, place)
}

/// Creates the socket at `path`, in the directory `place`, and listens. Nobody can connect before group and mode are set.
///
/// To be called with the lock on the mount point held: a dead daemon's socket is replaced.
pub(crate) fn create(
    path: &Path,
    place: &Place,
    mode: u32,
    gid: Option<u32>,
) -> Result<(OwnedFd, SocketFile), ListenError> {
    let dir = Dir::open(place, 0o755)?;
    let name = PathBuf::from(path.file_name().unwrap_or_default());
    let fail = |errno: Errno| ListenError::Io { path: path.to_owned(), source: errno.into() };
    // Longer paths than the kernel takes go by the open directory.
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

/// Whether anybody listens at an existing socket file. One of another type has an owner, too.
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
    fn a_socket_is_created_with_its_mode_and_removed_with_its_directory() {
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
    fn paths_may_be_longer_than_the_kernel_takes() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("d".repeat(120));
        let (_fd, file) = create_in(&dir, "socket").unwrap();
        assert!(fs::symlink_metadata(dir.join("socket")).is_ok());
        drop(file);
        assert!(!dir.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_or_foreign_file_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("socket");
        let other = UnixListener::bind(&path).unwrap();
        assert!(matches!(create_in(base.path(), "socket"), Err(ListenError::InUse(_))));
        drop(other);
        let (_fd, file) = create_in(base.path(), "socket").unwrap();

        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(file);
        assert!(path.exists());
        assert!(matches!(create_in(base.path(), "socket"), Err(ListenError::NotSocket(_))));
    }
}
