//! The other end of a connection: receives its packets and sends replies, and never waits.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, Shutdown, UnixCredentials, getsockopt, recv, sendmsg, setsockopt, shutdown,
    sockopt,
};

use crate::process::peer_groups;

/// Socket option; the `libc` crate lacks it for most platforms.
const SO_PASSRIGHTS: libc::c_int = 83;

#[derive(Clone, Copy)]
struct PassRights;
nix::setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, sockopt::SetBool);

/// Socket option; the `libc` crate lacks it.
///
/// Its first three words are bytes that a socket has received, may receive, and has sent without a receiver taking
/// them.
const SO_MEMINFO: libc::c_int = 55;

#[derive(Clone, Copy)]
struct MemInfo;
nix::getsockopt_impl!(MemInfo, libc::SOL_SOCKET, SO_MEMINFO, [u32; 3], sockopt::GetStruct<[u32; 3]>);

/// Makes a listening socket, and the sockets that it accepts, refuse descriptors.
///
/// This protocol takes none from peers. Otherwise the kernel closes them when their packet is received, and a close can
/// take arbitrarily long: of a TCP socket with a linger time, or a file of a server that hangs. Kernels before 6.16
/// cannot refuse descriptors.
pub(crate) fn refuse_descriptors(listener: &impl AsFd) {
    if let Err(error) = setsockopt(listener, PassRights, &false) {
        debug!("the socket cannot refuse descriptors: {error}");
    }
}

/// A connected socket, shared with the writers' threads, which send replies through it.
///
/// The kernel sends a packet whole or not at all, so no thread needs a lock. The descriptor lives as long as a thread
/// may still reply.
pub(crate) struct Peer {
    socket: OwnedFd,
    number: u64,
    /// The peer's credentials, as the kernel reports them.
    credentials: Option<UnixCredentials>,
}

impl Peer {
    /// Takes a connected socket. `number` identifies the connection in the log.
    pub(crate) fn new(socket: OwnedFd, number: u64) -> Peer {
        let credentials = getsockopt(&socket, sockopt::PeerCredentials);
        match &credentials {
            Ok(credentials) => {
                debug!("connection {number}: from uid {}, pid {}", credentials.uid(), credentials.pid())
            }
            Err(error) => debug!("connection {number}: unknown peer: {error}"),
        }
        Peer { socket, number, credentials: credentials.ok() }
    }

    /// Returns the number that identifies the connection.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
    /// Returns the peer's process; 0 if it is not known.
    pub(crate) fn pid(&self) -> u32 {
        self.credentials.as_ref().map_or(0, |credentials| credentials.pid().cast_unsigned())
    }

    /// Returns the peer's user. An unknown peer gets a number that is no user's.
    pub(crate) fn uid(&self) -> u32 {
        self.credentials.as_ref().map_or(u32::MAX, UnixCredentials::uid)
    }

    /// Returns whether the peer was in a group when it connected. An unknown peer is in none.
    pub(crate) fn is_member(&self, group: u32) -> bool {
        self.credentials
            .as_ref()
            .is_some_and(|credentials| peer_groups::is_member(&self.socket, credentials, group))
    }

    /// Receives the next packet, and returns its length in bytes.
    ///
    /// The length exceeds `packet`'s if the packet did not fit. 0 means that the peer has hung up, [`Errno::EAGAIN`]
    /// that no packet is there. There is no buffer for descriptors, so the kernel closes those that come with a packet.
    pub(crate) fn receive(&self, packet: &mut [u8]) -> nix::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                // Comes once if the peer closed before it took all replies. The packets that it sent are still there.
                Err(Errno::ECONNRESET | Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Sends a frame.
    ///
    /// Shuts down the socket of a peer that does not take its replies. The socket's thread sees that as a hang-up.
    pub(crate) fn send(&self, frame: &[u8]) {
        // The only error comes from descriptors.
        let _ = self.send_with(frame, &[]);
    }

    /// Returns whether the peer has received everything that was sent to it.
    pub(crate) fn has_taken_all(&self) -> bool {
        getsockopt(&self.socket, MemInfo).is_ok_and(|[_, _, not_taken]| not_taken == 0)
    }

    /// Sends a frame with descriptors, of which the peer gets copies.
    ///
    /// Fails, without sending, if too many descriptors of the daemon's user are in flight to all peers together.
    pub(crate) fn send_with(&self, frame: &[u8], descriptors: &[RawFd]) -> nix::Result<()> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(frame)], rights, flags, None) {
            Ok(_) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => debug!("{self}: gone before its reply"),
            Err(Errno::ETOOMANYREFS) => return Err(Errno::ETOOMANYREFS),
            Err(error) => {
                debug!("{self}: dropped, it does not take its replies: {error}");
                // The only failure is that the socket is not connected any more, which is the aim.
                let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
            }
        }
        Ok(())
    }

    /// Lets the peer send nothing more. What it has sent can be received, and replies can be sent.
    pub(crate) fn close_for_frames(&self) {
        // The only failure is that the socket is not connected any more, and then nothing comes either.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Read);
    }

    /// Receives nothing more from the peer, which may still get replies.
    ///
    /// Discards the packets that have arrived. If the socket were closed with unread packets, the peer would get a
    /// "connection reset" in place of the last replies.
    pub(crate) fn stop_receiving(&self) {
        // After this nothing more comes in, so the loop ends.
        self.close_for_frames();
        while self.receive(&mut [0]).is_ok_and(|len| len > 0) {}
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.number)
    }
}
