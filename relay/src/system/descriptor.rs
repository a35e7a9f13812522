//! Descriptors that a library holds inside a program which gives numbers to descriptors as well.
//!
//! * No descriptor of the library is 0, 1 or 2. A program that was started without standard streams prints all the same, and
//!   what it prints must not land in a socket or in a control file.
//! * A number is no identity. A program that becomes a daemon closes descriptors it never opened, and its own files and
//!   sockets get their numbers. The library knows each of its descriptors by what only that one has, and asks before it
//!   writes to a number or closes it. What is not the library's any more is forgotten.
//!
//! Between the question and the write another thread of the program may still close the descriptor and open another one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use rustix::io::{fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::net::sockopt::socket_cookie;
use rustix::stdio::{stderr, stdin, stdout};

/// The lowest number that is no standard stream's.
const FIRST: RawFd = 3;
/// Marks an eventfd or a timerfd as the library's. It means nothing there, so programs do not set it.
const MARK: OFlag = OFlag::O_APPEND;

/// Runs `make`, which makes descriptors, while 0, 1 and 2 are taken: so none of these is among what it makes.
pub fn away_from_stdio<T>(make: impl FnOnce() -> T) -> T {
    let mut placeholders = Vec::new();
    while [stdin(), stdout(), stderr()].iter().any(|stream| fcntl_getfd(stream).is_err()) {
        // Nothing can be read from it or written to it.
        let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open("/");
        match opened {
            Ok(placeholder) if placeholder.as_raw_fd() < FIRST => placeholders.push(placeholder),
            // Out of descriptors; or another thread has taken the free one meanwhile.
            _ => break,
        }
    }
    make()
}

/// Opens a file under a number that is no standard stream's.
pub fn open(options: &OpenOptions, path: impl AsRef<std::path::Path>) -> io::Result<File> {
    let file = away_from_stdio(|| options.open(path))?;
    above_stdio(file.into()).map(File::from)
}

/// Moves a descriptor to 3 or above, close-on-exec, if it is below.
pub fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= FIRST { Ok(fd) } else { Ok(fcntl_dupfd_cloexec(&fd, FIRST)?) }
}

/// What only one descriptor's open file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// The number that the kernel gives to a socket and never gives again.
    Socket(u64),
    /// Device and inode number.
    Inode(u64, u64),
    /// Device and inode number of all that have no name: eventfds, timerfds and their like share them. Ours has [`MARK`].
    Marked(u64, u64),
}

impl Identity {
    /// Marks what can only be known by a mark.
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

    /// Whether the descriptor has it.
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

/// A descriptor that is kept from one call of the library to the next.
///
/// It is closed with this, if it is still the library's then.
#[derive(Debug)]
pub struct HeldFd {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    identity: Identity,
    /// Tells it from others that had the same number.
    serial: u64,
}

impl HeldFd {
    /// Takes a descriptor, and moves it to 3 or above if it is below.
    pub fn new(fd: OwnedFd) -> io::Result<HeldFd> {
        let fd = above_stdio(fd)?;
        let identity = Identity::make(&fd)?;
        let serial = holders().add(fd.as_raw_fd());
        Ok(HeldFd { fd: Some(fd), identity, serial })
    }

    /// The descriptor, if it is still the library's.
    pub fn get(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd).filter(|fd| self.identity.is_of(*fd))
    }
}

/// The number, whatever it means to the program now. What is written to it, and read from it, goes by [`HeldFd::get`].
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
        // Locked to the end, or the number could be another `HeldFd`'s before it is looked at.
        let mut holders = holders();
        let is_latest = holders.remove(fd.as_raw_fd(), self.serial);
        if !(is_latest && self.identity.is_of(fd.as_fd())) {
            // The program's, or another `HeldFd`'s.
            let _ = fd.into_raw_fd();
        }
    }
}

/// Which numbers are held. A number that is given to the library a second time was taken from the first holder, which may
/// not be able to tell: two connections can have the same control file.
#[derive(Debug)]
struct Holders {
    last_serial: u64,
    /// The latest holder of each number.
    latest: BTreeMap<RawFd, u64>,
}

static HOLDERS: Mutex<Holders> = Mutex::new(Holders { last_serial: 0, latest: BTreeMap::new() });

fn holders() -> MutexGuard<'static, Holders> {
    // Whatever panicked, the table is whole.
    HOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holders {
    fn add(&mut self, number: RawFd) -> u64 {
        self.last_serial += 1;
        self.latest.insert(number, self.last_serial);
        self.last_serial
    }

    /// Whether it was the latest.
    fn remove(&mut self, number: RawFd, serial: u64) -> bool {
        let is_latest = self.latest.get(&number) == Some(&serial);
        if is_latest {
            self.latest.remove(&number);
        }
        is_latest
    }
}
