//! The clients' end of the socket: finding it, connecting, sending and receiving packets.
//!
//! No call waits longer than its caller says.

use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use thiserror::Error;

use crate::layout::paths::SOCKET_LINK;
use crate::system::descriptor::{self, HeldFd, above_stdio, away_from_stdio};
use crate::wire::frame::{Body, DESCRIPTORS_MAX, Refusal};

/// Size asked for the queue of sent packets, in bytes; the system grants what it allows.
/// The usual default holds fewer than 300 small messages, too few for a burst while the daemon wakes up.
const SEND_QUEUE: usize = 1 << 20;

/// The end of a wait; `None` means no end.
pub type Deadline = Option<Instant>;

/// The reason for which a packet was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The socket has no room now.
    Full,
    /// The connection has ended.
    Gone,
}

/// Cause of [`ConnectError::NotMounted`] for a path where nothing can be mounted.
const NEITHER: &str = "it is neither a directory nor a socket";

/// Returns the advice for a path without a mounted relayfs.
fn advice(path: &str, why: &str) -> String {
    if why == NEITHER {
        "name the mount point or the socket of a relayfs".to_owned()
    } else {
        format!("mount one with 'relayfsd {path}', or name another mount point")
    }
}

/// The reason for which there is no connection to a daemon.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// There is no relayfs at this path.
    #[error(
        "no relayfs is mounted on {path}: {why}; {}", advice(.path, why)
    )]
    NotMounted {
        /// The path that was given as mount point.
        path: String,
        /// Why no relayfs is mounted there.
        why: &'static str,
    },
    /// The mount's daemon has died.
    #[error(
        "the daemon of {path} has died and left its mount behind: start 'relayfsd {path}' again, or umount it"
    )]
    Stale {
        /// The mount point.
        path: String,
    },
    /// No process listens on the socket.
    #[error(
        "no daemon answers on {socket}: it has ended, or the socket's directory is not visible here (a container needs it \
         bind-mounted beside the mount point)"
    )]
    NoDaemon {
        /// The socket.
        socket: String,
    },
    /// The socket's permissions do not let this user in.
    #[error("not permitted to use {socket}: relayfsd's --group or --socket-mode decide which users may send")]
    Forbidden {
        /// The socket.
        socket: String,
    },
    /// A process listens there, but ended the connection.
    #[error("{socket} hung up without an answer: its daemon is ending, or it is not a relayfs socket")]
    HungUp {
        /// The socket.
        socket: String,
    },
    /// A process listens there, but does not answer.
    #[error(
        "no answer within {seconds} seconds on {socket}: its daemon stands still, or it is not a relayfs socket"
    )]
    Silent {
        /// The socket.
        socket: String,
        /// Time spent waiting.
        seconds: u64,
    },
    /// A process listens there, but does not speak the protocol.
    #[error("{socket} is not a relayfs socket: {why}")]
    NotOurs {
        /// The socket.
        socket: String,
        /// Why it is not one.
        why: String,
    },
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The object of the operation.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// The daemon's reason for a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct Refused {
    /// An errno.
    pub errno: i32,
    /// Text for people.
    pub text: String,
}

/// A connected socket. It counts as ended if the program has closed its descriptor.
/// The number may be that of another file then, and no packet is sent or received there.
#[derive(Debug)]
pub struct Socket(HeldFd);

impl Socket {
    /// Connects, and waits at most `wait` for a listener whose queue is full.
    pub fn connect(path: &Path, wait: Duration) -> Result<Socket, ConnectError> {
        let shown = || path.display().to_string();
        try_connect(path, wait).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => ConnectError::NoDaemon { socket: shown() },
            Errno::EACCES => ConnectError::Forbidden { socket: shown() },
            Errno::EPROTOTYPE => {
                ConnectError::NotOurs { socket: shown(), why: "it is of another type".into() }
            }
            errno => ConnectError::Io { doing: "connect to", path: path.into(), source: errno.into() },
        })
    }

    /// Sends one packet at once, or not at all.
    pub fn send(&self, packet: &[u8]) -> Result<(), SendError> {
        let Some(fd) = self.0.get() else { return Err(SendError::Gone) };
        loop {
            match socket::send(fd.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return Err(SendError::Full),
                Err(_) => return Err(SendError::Gone),
            }
        }
    }

    /// Receives one packet, and returns its length; `None` if no packet has arrived.
    /// The length exceeds the buffer's if the packet was cut. It is 0 if the connection has ended.
    pub fn receive(&self, packet: &mut [u8]) -> Option<usize> {
        let Some(fd) = self.0.get() else { return Some(0) };
        // A peer that closes with packets unread leaves one ECONNRESET, which comes before its last packets.
        let mut was_reset = false;
        loop {
            match socket::recv(fd.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Ok(len) => return Some(len),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) if !was_reset => was_reset = true,
                Err(Errno::EAGAIN) => return None,
                Err(_) => return Some(0),
            }
        }
    }

    /// Receives one packet with its descriptors, all of them 3 or above and close-on-exec.
    /// Descriptors that cannot be moved there are left out. Otherwise like [`Self::receive`].
    pub fn receive_with_descriptors(&self, packet: &mut [u8]) -> Option<(usize, Vec<OwnedFd>)> {
        use rustix::io::Errno;
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC | RecvFlags::CMSG_CLOEXEC;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let Some(fd) = self.0.get() else { return Some((0, Vec::new())) };
        let mut was_reset = false;
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received =
                away_from_stdio(|| recvmsg(fd, &mut [IoSliceMut::new(packet)], &mut control, flags));
            match received {
                Ok(received) => {
                    let descriptors = control.drain().flat_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                        _ => None,
                    });
                    let moved = descriptors.flatten().filter_map(|fd| above_stdio(fd).ok());
                    return Some((received.bytes, moved.collect()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) if !was_reset => was_reset = true,
                Err(Errno::AGAIN) => return None,
                Err(_) => return Some((0, Vec::new())),
            }
        }
    }

    /// Returns whether the other end has hung up, even if there are packets left to receive.
    pub fn is_over(&self) -> bool {
        let Some(fd) = self.0.get() else { return true };
        // POLLHUP is always reported. An interruption, the only possible failure, gives no answer.
        let mut fds = [PollFd::new(fd, PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    /// Waits until `events` occur or the connection ends. `false`: the deadline passed.
    pub fn wait(&self, events: PollFlags, deadline: Deadline) -> bool {
        loop {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    // Rounded up: a wait that ends early would be repeated with 0 many times.
                    PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
                }
            };
            let Some(fd) = self.0.get() else { return true };
            match poll(&mut [PollFd::new(fd, events)], timeout) {
                Ok(0) if deadline.is_some_and(|at| at <= Instant::now()) => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return true,
            }
        }
    }

    /// Ends the connection and wakes every thread that waits on it.
    /// Packets that have arrived can still be received.
    pub fn shut_down(&self) {
        if let Some(fd) = self.0.get() {
            // Fails only if the connection has ended anyway.
            let _ = socket::shutdown(fd.as_raw_fd(), Shutdown::Both);
        }
    }
}

fn try_connect(path: &Path, wait: Duration) -> nix::Result<Socket> {
    let mut flags = SockFlag::SOCK_CLOEXEC;
    flags.set(SockFlag::SOCK_NONBLOCK, wait.is_zero());
    let fd = away_from_stdio(|| socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None))?;
    let failed = |error: io::Error| Errno::try_from(error).unwrap_or(Errno::EIO);
    let fd = above_stdio(fd).map_err(failed)?;
    // A smaller queue works too.
    let _ = socket::setsockopt(&fd, sockopt::SndBuf, &SEND_QUEUE);
    match UnixAddr::new(path) {
        Ok(address) => connect_within(&fd, &address, wait)?,
        // An address holds 107 bytes of path; an open directory shortens any path.
        Err(Errno::ENAMETOOLONG) => {
            let (dir, name) = path.parent().zip(path.file_name()).ok_or(Errno::ENAMETOOLONG)?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let dir = descriptor::open(OpenOptions::new().read(true).custom_flags(flags.bits()), dir)
                .map_err(failed)?;
            let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
            connect_within(&fd, &UnixAddr::new(&short)?, wait)?;
        }
        Err(errno) => return Err(errno),
    }
    HeldFd::new(fd).map(Socket).map_err(failed)
}

/// Connects, and waits at most `wait` for a place in the listener's queue.
/// A signal interrupts the call before it has done anything, so it is repeated for the time that is left.
fn connect_within(socket: &OwnedFd, address: &UnixAddr, wait: Duration) -> nix::Result<()> {
    let deadline = Instant::now().checked_add(wait);
    loop {
        if !wait.is_zero() {
            let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            // At least one: zero would mean no limit.
            let micros = if seconds == 0 { left.subsec_micros().max(1) } else { left.subsec_micros() };
            socket::setsockopt(socket, sockopt::SendTimeout, &TimeVal::new(seconds, micros.into()))?;
        }
        match socket::connect(socket.as_raw_fd(), address) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Returns the socket of a mount: the target of the link in its tree.
/// If `mount` is itself a socket, that is returned.
pub fn find(mount: &Path) -> Result<PathBuf, ConnectError> {
    let path = || mount.display().to_string();
    let not_mounted = |why| ConnectError::NotMounted { path: path(), why };
    let failed = |error: io::Error, absent| match error.raw_os_error().map(Errno::from_raw) {
        // ECONNABORTED comes while the daemon is dying.
        Some(Errno::ENOTCONN | Errno::ECONNABORTED) => ConnectError::Stale { path: path() },
        Some(Errno::ENOENT | Errno::ENOTDIR) => not_mounted(absent),
        _ => ConnectError::Io { doing: "look into", path: mount.into(), source: error },
    };
    let kind = fs::metadata(mount).map_err(|error| failed(error, "there is no such path"))?.file_type();
    if kind.is_socket() {
        return Ok(mount.into());
    }
    if !kind.is_dir() {
        return Err(not_mounted(NEITHER));
    }
    let link = mount.join(SOCKET_LINK);
    match fs::read_link(&link) {
        // Relative to the link's own directory; an absolute target replaces that directory.
        Ok(target) => Ok(link.with_file_name(target)),
        // Not a link: the socket itself is bind-mounted there.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(link),
        Err(error) => Err(failed(error, "it is an ordinary directory")),
    }
}

/// Returns the number, for poll(2) only. It may belong to another file of the program.
impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Decodes an `ERROR`, and escapes control characters for the terminal.
pub fn refusal(body: &[u8]) -> Result<Refused, String> {
    let Refusal { errno, text } = Refusal::decode(body).map_err(|error| error.to_string())?;
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Ok(Refused { errno, text: shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_refusal_are_escaped() {
        let mut body = 2u32.to_le_bytes().to_vec();
        body.extend_from_slice("no channel 'ä'\x1b[2J\n".as_bytes());
        assert_eq!(refusal(&body), Ok(Refused { errno: 2, text: "no channel 'ä'\\u{1b}[2J\\n".into() }));
    }
}
