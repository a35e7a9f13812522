//! Descriptors of a library inside a program that uses descriptor numbers too.
//!
//! * No descriptor of the library is 0, 1 or 2. A program started without standard streams prints all the same, and its
//!   output must not land in a socket or in a control file.
//! * A number is not an identity. A program that becomes a daemon closes descriptors it never opened, and its own files
//!   and sockets get their numbers. The library therefore remembers a property that only its own descriptor has, and
//!   checks it before it writes to the number or closes it. A descriptor that fails the check is forgotten.
//!
//! Between check and write, another thread of the program may still close the descriptor and open another one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::RwLockWriteGuard;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use rustix::io::{fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::net::sockopt::socket_cookie;
use rustix::stdio::{stderr, stdin, stdout};

use crate::system::process_lock::ProcessLock;

/// The lowest number behind those of the standard streams.
const FIRST: RawFd = 3;
/// Flag that marks an eventfd or a timerfd as the library's.
/// It has no effect there, so programs do not set it.
const MARK: OFlag = OFlag::O_APPEND;

/// Runs `make` while 0, 1 and 2 are in use.
/// None of the descriptors that it makes gets these numbers.
pub fn away_from_stdio<T>(make: impl FnOnce() -> T) -> T {
    let mut placeholders = Vec::new();
    while [stdin(), stdout(), stderr()].iter().any(|stream| fcntl_getfd(stream).is_err()) {
        // O_PATH: no process can read from it or write to it.
        let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open("/");
        match opened {
            Ok(placeholder) if placeholder.as_raw_fd() < FIRST => placeholders.push(placeholder),
            // No descriptor is left; or another thread has taken the free number.
            _ => break,
        }
    }
    make()
}

/// Opens a file under a number above the standard streams.
pub fn open(options: &OpenOptions, path: impl AsRef<std::path::Path>) -> io::Result<File> {
    let file = away_from_stdio(|| options.open(path))?;
    above_stdio(file.into()).map(File::from)
}

/// Moves a descriptor below 3 to 3 or above, close-on-exec.
pub fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= FIRST { Ok(fd) } else { Ok(fcntl_dupfd_cloexec(&fd, FIRST)?) }
}

/// A property that only one descriptor's open file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// The cookie that the kernel gives to a socket and never reuses.
    Socket(u64),
    /// Device and inode number.
    Inode(u64, u64),
    /// Device and inode number of a file without a name; ours also has [`MARK`].
    /// All eventfds, timerfds and the like share these numbers.
    Marked(u64, u64),
}

impl Identity {
    /// Returns the descriptor's identity, and marks the descriptor if it has no other.
    fn make(fd: &OwnedFd) -> io::Result<Identity> {
        let found = fstat(fd)?;
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        if kind.is_empty() {
            fcntl(fd, FcntlArg::F_SETFL(flags(fd.as_fd())? | MARK))?;
            return Ok(Identity::Marked(found.st_dev, found.st_ino));
        }
        let cookie = if kind == SFlag::S_IFSOCK { socket_cookie(fd).ok() } else { None };
        Ok(cookie.map_or(Identity::Inode(found.st_dev, found.st_ino), Identity::Socket))
    }

    /// Returns whether the descriptor has this identity.
    fn is_of(self, fd: BorrowedFd<'_>) -> bool {
        let inode = || fstat(fd).ok().map(|found| (found.st_dev, found.st_ino));
        match self {
            Identity::Socket(cookie) => socket_cookie(fd).is_ok_and(|found| found == cookie),
            Identity::Inode(device, number) => inode() == Some((device, number)),
            Identity::Marked(device, number) => {
                inode() == Some((device, number)) && flags(fd).is_ok_and(|flags| flags.contains(MARK))
            }
        }
    }
}

fn flags(fd: BorrowedFd<'_>) -> nix::Result<OFlag> {
    fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
}

/// A descriptor that the library keeps from one call to the next.
///
/// `drop` closes it if it is still the library's.
#[derive(Debug)]
pub struct HeldFd {
    /// `None` only during `drop`.
    fd: Option<OwnedFd>,
    identity: Identity,
    /// Distinguishes it from earlier holders of the same number.
    serial: u64,
}

impl HeldFd {
    /// Takes a descriptor, and moves it to 3 or above.
    pub fn new(fd: OwnedFd) -> io::Result<HeldFd> {
        let fd = above_stdio(fd)?;
        let identity = Identity::make(&fd)?;
        let serial = holders().add(fd.as_raw_fd());
        Ok(HeldFd { fd: Some(fd), identity, serial })
    }

    /// Returns the descriptor, if it is still the library's.
    pub fn get(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd).filter(|fd| self.identity.is_of(*fd))
    }
}

/// Returns the number, even if the program uses it for another file now.
/// Reads and writes use [`HeldFd::get`].
impl AsFd for HeldFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            None => unreachable!("it is there until this is dropped"),
        }
    }
}

impl Drop for HeldFd {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        // Locked to the end: otherwise another `HeldFd` could take the number before the check.
        let mut holders = holders();
        let is_latest = holders.remove(fd.as_raw_fd(), self.serial);
        if !(is_latest && self.identity.is_of(fd.as_fd())) {
            // It belongs to the program, or to another `HeldFd`.
            let _ = fd.into_raw_fd();
        }
    }
}

/// The numbers that are held.
/// If the library gets a number again, the program took it from the first holder. The first holder may not notice: two
/// connections can have the same control file.
#[derive(Clone, Debug, Default)]
struct Holders {
    last_serial: u64,
    /// The latest holder of each number.
    latest: BTreeMap<RawFd, u64>,
}

static HOLDERS: ProcessLock<Holders> =
    ProcessLock::new(Holders { last_serial: 0, latest: BTreeMap::new() }, Holders::clone);

fn holders() -> RwLockWriteGuard<'static, Holders> {
    // No panic leaves the table half changed.
    HOLDERS.write()
}

impl Holders {
    fn add(&mut self, number: RawFd) -> u64 {
        self.last_serial += 1;
        self.latest.insert(number, self.last_serial);
        self.last_serial
    }

    /// Removes a holder, and returns whether it was the latest.
    fn remove(&mut self, number: RawFd, serial: u64) -> bool {
        let is_latest = self.latest.get(&number) == Some(&serial);
        if is_latest {
            self.latest.remove(&number);
        }
        is_latest
    }
}
