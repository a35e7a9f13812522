//! A producer's end of the socket, which sends frames and may break the protocol.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use relay::wire::frame::{
    Body, FRAME_MAX, Frame, HEADER_DEFAULT, Hello, HelloReply, Open, OpenReply, Refusal, Write,
};

use crate::{DEADLINE, Mount, exit_code};

/// A connection to the daemon that sends any frames.
#[derive(Debug)]
pub struct Peer(OwnedFd);

impl Peer {
    /// Connects, and sends nothing yet.
    #[track_caller]
    pub fn connect(mount: &Mount) -> Peer {
        Peer::connect_to(&fs::read_link(mount.path(".relay/socket")).unwrap())
    }

    /// Connects to the socket of this path, and sends nothing yet.
    #[track_caller]
    pub fn connect_to(path: &Path) -> Peer {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let limit = TimeVal::seconds(DEADLINE.as_secs().cast_signed());
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit).unwrap();
        setsockopt(&fd, sockopt::SendTimeout, &limit).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        Peer(fd)
    }

    /// Connects and says hello.
    #[track_caller]
    pub fn hello(mount: &Mount) -> Peer {
        let peer = Peer::connect(mount);
        peer.ask::<HelloReply>(&hello(1, 1)).unwrap();
        peer
    }

    /// The descriptor of its socket.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Tries to send a packet.
    pub fn try_send(&self, packet: &[u8], flags: MsgFlags) -> nix::Result<usize> {
        send(self.0.as_raw_fd(), packet, flags | MsgFlags::MSG_NOSIGNAL)
    }

    /// Sends a packet.
    #[track_caller]
    pub fn send(&self, packet: &[u8]) {
        assert_eq!(self.try_send(packet, MsgFlags::empty()), Ok(packet.len()));
    }

    /// Receives the next packet; `None` if the daemon has hung up.
    #[track_caller]
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; FRAME_MAX];
        let len = loop {
            match recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                // A call with a timeout is not restarted when the process was stopped and continued.
                Err(Errno::EINTR) => {}
                received => break received.expect("an answer in time"),
            }
        };
        packet.truncate(len);
        (len > 0).then_some(packet)
    }

    /// Sends a request and receives its reply.
    #[track_caller]
    pub fn ask<B: for<'a> Body<'a>>(&self, request: &[u8]) -> Result<B, Refusal> {
        self.send(request);
        let packet = self.receive().expect("an answer, not a hang-up");
        let frame = Frame::decode(&packet).unwrap();
        assert_eq!(frame.id.to_le_bytes(), request[8..12], "the request's id");
        if frame.kind == Refusal::KIND {
            return Err(Refusal::decode(frame.body).unwrap());
        }
        assert_eq!((frame.kind, frame.reply), (B::KIND, true));
        Ok(B::decode(frame.body).unwrap())
    }

    /// Checks that the answer is this error.
    #[track_caller]
    pub fn assert_refused(&self, errno: Errno, part: &str) {
        let packet = self.receive().expect("an error, not a hang-up");
        let refusal = Refusal::decode(Frame::decode(&packet).unwrap().body).unwrap();
        assert_eq!(Errno::from_raw(refusal.errno), errno, "{}", refusal.text);
        assert!(refusal.text.contains(part), "{}", refusal.text);
    }

    /// Checks that the answer is this error, and that the daemon then closes the connection.
    #[track_caller]
    pub fn assert_dropped(&self, errno: Errno, part: &str) {
        self.assert_refused(errno, part);
        assert_eq!(self.receive(), None);
    }

    /// Checks that the daemon answers requests.
    #[track_caller]
    pub fn assert_served(&self) {
        let refusal = self.ask::<OpenReply>(&open("none", 0, 77)).unwrap_err();
        assert_eq!(refusal.errno, libc::ENOENT);
    }

    /// Opens a channel, and returns its number on this connection.
    #[track_caller]
    pub fn open(&self, name: &str, flags: u16) -> u32 {
        self.ask::<OpenReply>(&open(name, flags, 2)).unwrap().channel
    }
}

/// A HELLO of a producer that supports these versions.
pub fn hello(min_version: u16, max_version: u16) -> Vec<u8> {
    Hello { min_version, max_version, features: 0 }.frame(0, 1)
}

/// An OPEN of a channel; a channel that it creates is global, with two sub-buffers of 4096 bytes.
pub fn open(name: &str, flags: u16, id: u32) -> Vec<u8> {
    let (subbuf_size, n_subbufs, mode, scope) = (4096, 2, 0, 2);
    Open { subbuf_size, n_subbufs, header: HEADER_DEFAULT, mode, scope, name: name.as_bytes() }
        .frame(flags, id)
}

/// Encodes messages for a WRITE.
pub fn messages(list: &[&[u8]]) -> Vec<u8> {
    let one = |message: &&[u8]| [&(message.len() as u32).to_le_bytes(), *message].concat();
    list.iter().flat_map(one).collect()
}

/// A WRITE that waits for nothing.
pub fn write(channel: u32, messages: &[u8]) -> Write<'_> {
    Write { channel, cpu: 0, wait_ms: 0, lost: 0, messages }
}

/// Checks that other clients write and read undisturbed, and ends the daemon.
///
/// At its end the daemon may only report unread data.
#[track_caller]
pub fn assert_unharmed(mut mount: Mount) {
    assert_eq!(mount.send(0, &[b"unharmed"]).written, 1);
    assert_eq!(mount.read("cpu0"), b"unharmed");
    Peer::hello(&mount).assert_served();
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    let told = mount.daemon().stderr();
    assert!(told.lines().all(|line| line.starts_with("relayfsd: unread data stays in ")), "{told}");
}
