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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLockWriteGuard};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use rustix::io::{fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::net::sockopt::socket_cookie;
use rustix::stdio::{stderr, stdin, stdout};

use crate::system::process_lock::ProcessLock;

/// The lowest number behind those of the standard streams.
const FIRST: RawFd = 3;
/// Flag that marks an eventfd or a timerfd as the library's.
/// It has no effect there, so programs do not set it.
const MARK: OFlag = OFlag::O_APPEND;
/// Flags that mark a socket as the library's, in the same way. Two, since each look at them counts alone.
const SOCKET_MARKS: OFlag = OFlag::O_APPEND.union(OFlag::O_NOATIME);

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
        if cookie.is_some() {
            // Without the marks each check asks for the cookie.
            let _ = fcntl(fd, FcntlArg::F_SETFL(flags(fd.as_fd())? | SOCKET_MARKS));
        }
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
    /// Whether the library has got the number again, so that the program took it from this holder.
    is_lost: Arc<AtomicBool>,
    /// The kernel's tick in which a socket's cookie was last found right; 0: never.
    checked: AtomicU64,
}

impl HeldFd {
    /// Takes a descriptor, and moves it to 3 or above.
    pub fn new(fd: OwnedFd) -> io::Result<HeldFd> {
        let fd = above_stdio(fd)?;
        let identity = Identity::make(&fd)?;
        let is_lost = Arc::default();
        let serial = holders().add(fd.as_raw_fd(), &is_lost);
        Ok(HeldFd { fd: Some(fd), identity, serial, is_lost, checked: AtomicU64::new(0) })
    }

    /// Returns the descriptor, if it is still the library's.
    pub fn get(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.fd.as_ref()?.as_fd();
        let is_ours = match self.identity {
            Identity::Socket(_) => self.is_socket(fd),
            identity => identity.is_of(fd),
        };
        is_ours.then_some(fd)
    }

    /// Returns whether a descriptor is still the library's socket.
    ///
    /// The cookie is certain. It costs a third of sending a packet, and the marks half of that. So within a tick of the
    /// kernel the marks suffice: no program's socket has them. Another socket with them is one of this library, and if it
    /// has the number, this holder has lost it.
    fn is_socket(&self, fd: BorrowedFd<'_>) -> bool {
        let now = tick();
        // Relaxed, all: a late answer is one from before the program took the number, see the race above.
        let is_recent = self.checked.load(Ordering::Relaxed) == now && !self.is_lost.load(Ordering::Relaxed);
        if is_recent && flags(fd).is_ok_and(|flags| flags.contains(SOCKET_MARKS)) {
            return true;
        }
        let is_ours = self.identity.is_of(fd);
        if is_ours {
            self.checked.store(now, Ordering::Relaxed);
        }
        is_ours
    }
}

/// Returns the time of the kernel's last tick in nanoseconds, at most some milliseconds ago. Never 0.
fn tick() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    time.map_or(1, |time| time.num_nanoseconds().unsigned_abs().max(1))
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
    latest: BTreeMap<RawFd, (u64, Arc<AtomicBool>)>,
}

static HOLDERS: ProcessLock<Holders> =
    ProcessLock::new(Holders { last_serial: 0, latest: BTreeMap::new() }, Holders::clone);

fn holders() -> RwLockWriteGuard<'static, Holders> {
    // No panic leaves the table half changed.
    HOLDERS.write()
}

impl Holders {
    fn add(&mut self, number: RawFd, is_lost: &Arc<AtomicBool>) -> u64 {
        self.last_serial += 1;
        if let Some((_, earlier)) = self.latest.insert(number, (self.last_serial, Arc::clone(is_lost))) {
            earlier.store(true, Ordering::Relaxed); // as in `HeldFd::is_socket`
        }
        self.last_serial
    }

    /// Removes a holder, and returns whether it was the latest.
    fn remove(&mut self, number: RawFd, serial: u64) -> bool {
        let is_latest = self.latest.get(&number).is_some_and(|(latest, _)| *latest == serial);
        if is_latest {
            self.latest.remove(&number);
        }
        is_latest
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn sockets() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    /// Puts another open file under the number of a descriptor.
    fn replace(held: &mut HeldFd, by: impl AsFd) {
        rustix::io::dup2(by, held.fd.as_mut().unwrap()).unwrap();
    }

    #[test]
    fn socket_is_known_until_the_program_takes_its_number() {
        let ((ours, _peer), (other, _other_peer)) = (sockets(), sockets());
        let mut held = HeldFd::new(ours).unwrap();
        (0..3).for_each(|_| assert!(held.get().is_some()));
        replace(&mut held, &other);
        (0..3).for_each(|_| assert!(held.get().is_none()));
    }

    /// Both sockets have the marks, and the first one's were looked at a moment ago.
    #[test]
    fn socket_is_lost_to_a_later_one_of_the_library() {
        let ((ours, _peer), (later, _later_peer)) = (sockets(), sockets());
        let mut held = HeldFd::new(ours).unwrap();
        assert!(held.get().is_some());
        let number = held.as_fd().as_raw_fd();
        // As `HeldFd::new` does for a socket that the kernel gives this number.
        let later = HeldFd::new(later).unwrap();
        replace(&mut held, &later);
        holders().add(number, &Arc::default());
        assert!(held.get().is_none());
        assert!(later.get().is_some());
    }

    #[test]
    fn socket_without_marks_is_known_by_its_cookie() {
        let (ours, _peer) = sockets();
        let held = HeldFd::new(ours).unwrap();
        assert!(held.get().is_some());
        fcntl(held.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (0..3).for_each(|_| assert!(held.get().is_some()));
    }
}
