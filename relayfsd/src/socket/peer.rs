//! The other end of a connection: receiving from it and answering it, without ever waiting for it.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, Shutdown, UnixCredentials, getsockopt, recv, sendmsg, setsockopt, shutdown,
    sockopt,
};

/// Not in the `libc` crate yet for most platforms.
const SO_PASSRIGHTS: libc::c_int = 83;

#[derive(Clone, Copy)]
struct PassRights;
nix::setsockopt_impl!(PassRights, libc::SOL_SOCKET, SO_PASSRIGHTS, bool, sockopt::SetBool);

/// Not in the `libc` crate yet, nor its first three words: what a socket has received, may receive, and has sent that was not
/// taken yet, in bytes.
const SO_MEMINFO: libc::c_int = 55;

#[derive(Clone, Copy)]
struct MemInfo;
nix::getsockopt_impl!(MemInfo, libc::SOL_SOCKET, SO_MEMINFO, [u32; 3], sockopt::GetStruct<[u32; 3]>);

/// Makes a listening socket, and those it will accept, refuse descriptors, of which this protocol takes none. Without
/// that they would only be closed unseen when their packet is received, and closing can take arbitrarily long: a
/// TCP socket with a linger time, a file of a server that hangs. Kernels before 6.16 cannot.
pub(crate) fn refuse_descriptors(listener: &impl AsFd) {
    if let Err(error) = setsockopt(listener, PassRights, &false) {
        debug!("the socket cannot refuse descriptors: {error}");
    }
}

/// A connected socket. Shared with the writers' threads, which answer through it: a packet is sent whole or not at
/// all, so nobody needs a lock, and the descriptor lives as long as somebody may still answer.
pub(crate) struct Peer {
    socket: OwnedFd,
    number: u64,
    /// Who it is, as the kernel knows it.
    who: Option<UnixCredentials>,
}

impl Peer {
    /// `number` tells the connections apart in the log.
    pub(crate) fn new(socket: OwnedFd, number: u64) -> Peer {
        let who = getsockopt(&socket, sockopt::PeerCredentials);
        match &who {
            Ok(who) => debug!("connection {number}: from uid {}, pid {}", who.uid(), who.pid()),
            Err(error) => debug!("connection {number}: from nobody knows whom: {error}"),
        }
        Peer { socket, number, who: who.ok() }
    }

    /// What tells it apart.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Who it is, as the kernel knows it.
    pub(crate) fn who(&self) -> Option<&UnixCredentials> {
        self.who.as_ref()
    }

    /// The user it runs as. Who is not known is nobody we know.
    pub(crate) fn uid(&self) -> u32 {
        self.who.as_ref().map_or(u32::MAX, UnixCredentials::uid)
    }

    /// Takes the next packet and gives its length in bytes, which exceeds `packet`'s if it did not fit; 0 when the
    /// peer has hung up, [`Errno::EAGAIN`] when there is none. There is no buffer for descriptors that come with a
    /// packet, so the kernel closes those.
    pub(crate) fn receive(&self, packet: &mut [u8]) -> nix::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                // Told once when the peer closed before it took all its replies. What it sent is still there.
                Err(Errno::ECONNRESET | Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Sends a frame. A peer that does not take its replies is dropped: its socket is shut down, which the socket
    /// thread sees as a hang-up.
    pub(crate) fn send(&self, frame: &[u8]) {
        // The one error there is needs descriptors.
        let _ = self.send_with(frame, &[]);
    }

    /// Whether the peer has taken all that it was sent.
    pub(crate) fn has_taken_all(&self) -> bool {
        getsockopt(&self.socket, MemInfo).is_ok_and(|[_, _, not_taken]| not_taken == 0)
    }

    /// Sends a frame with descriptors, of which the peer gets copies. It is an error if too many of this user's are under way
    /// to all peers together; then this one has not been sent.
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
                // The only failure is that it is not connected any more, and that is what is wanted.
                let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
            }
        }
        Ok(())
    }

    /// Takes nothing more from the peer, who may still get replies. What has arrived is thrown away: a socket that
    /// is closed with unread packets gives the other end a "connection reset" in place of our last words.
    pub(crate) fn stop_receiving(&self) {
        // As in `send`. Once it is shut down nothing more comes in, so this ends.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Read);
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
