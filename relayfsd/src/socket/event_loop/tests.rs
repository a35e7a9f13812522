//! The socket protocol from a peer's side: its answers, and that no peer harms another one.

mod channels;
mod connections;
mod ending;
mod here;
mod long_writes;
mod writes;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use relay::GeometrySpec;
use relay::layout::geometry::MESSAGE_MAX;
use relay::wire::frame::{self, Body, Frame, FrameType, Open, OpenReply, Refusal, Write, WriteReply};
use relay::wire::frame::{
    ALL_CPUS, Close, Flush, HEADER_DEFAULT, Hello, HelloReply, OPEN_CREATE, WAIT_FOREVER, WRITE_HAND_BACK,
    WRITE_MORE, WRITE_REPLY,
};
use tempfile::TempDir;

use super::Server;
use crate::policy::share_policy::{Shared, Sharing};
use crate::registry::{Limits, Registry};
use crate::state::recovery::Recovered;
use crate::writers::Writers;

/// No wait here takes that long. The deadline ends a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);
const SHARING: Sharing = Sharing { with: Shared::Owner, gid: None, owner: (0, 0), mode: 0o400 };
const CONNECTIONS_MAX: usize = 100;
/// Only CPU 0 is sure to exist. The daemon never runs on the other one here.
const N_CPUS: usize = 2;

/// A daemon without a mount. Fields drop in order: the server before the directory.
struct Daemon {
    server: Option<Server>,
    registry: Arc<Registry>,
    writers: Arc<Writers>,
    path: PathBuf,
    _dir: TempDir,
}

impl Daemon {
    fn new() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let writers = Arc::new(Writers::new(N_CPUS));
        let registry = Registry::new(
            dir.path().to_owned(),
            N_CPUS,
            Limits { memory: 256 << 20, channels: 100 },
            GeometrySpec::default(),
            Recovered::default(),
            writers.clone(),
        )
        .unwrap();
        let path = dir.path().join("socket");
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(128).unwrap()).unwrap();
        let server =
            Server::start(listener, registry.clone(), writers.clone(), CONNECTIONS_MAX, SHARING, false)
                .unwrap();
        Daemon { server: Some(server), registry, writers, path, _dir: dir }
    }

    /// A producer that has not sent a HELLO.
    fn stranger(&self) -> Producer {
        let socket = seqpacket();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs() as i64)).unwrap();
        // The listening socket is non-blocking, the peers' are not: that makes connect() wait for its turn.
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.path).unwrap()).unwrap();
        Producer { socket }
    }

    fn producer(&self) -> Producer {
        let producer = self.stranger();
        producer.send(&Hello { min_version: 1, max_version: 1, features: 0 }.frame(0, 1));
        let reply: HelloReply = producer.reply(1).unwrap();
        assert_eq!((reply.version, reply.n_cpus as usize), (1, N_CPUS));
        producer
    }

    /// A producer, and the number of its channel with this name and geometry.
    fn producer_with(&self, name: &str, geometry: &str) -> (Producer, u32) {
        let producer = self.producer();
        let channel = producer.open(name, geometry, OPEN_CREATE).unwrap().channel;
        (producer, channel)
    }

    /// Waits until a channel has counted `written` and `dropped` messages.
    fn await_counts(&self, name: &str, written: u64, dropped: u64) {
        let counts = || self.registry.hold(name).map(|held| held.total()).map(|t| (t.written, t.dropped));
        await_that(|| counts() == Some((written, dropped)), || format!("{name}: {:?}", counts()));
    }
}

fn seqpacket() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap()
}

fn await_that(condition: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{}", otherwise());
        std::thread::yield_now();
    }
}

/// A peer that knows the protocol, and may break it.
struct Producer {
    socket: OwnedFd,
}

impl Producer {
    fn try_send(&self, packet: &[u8], flags: MsgFlags) -> nix::Result<usize> {
        send(self.socket.as_raw_fd(), packet, flags | MsgFlags::MSG_NOSIGNAL)
    }

    fn send(&self, packet: &[u8]) {
        assert_eq!(self.try_send(packet, MsgFlags::empty()), Ok(packet.len()));
    }

    /// Receives the next packet; `None` if the daemon has hung up.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; frame::FRAME_MAX];
        let len = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()).expect("an answer in time");
        packet.truncate(len);
        (len > 0).then_some(packet)
    }

    fn reply<B: for<'a> Body<'a>>(&self, id: u32) -> Result<B, Refusal> {
        let packet = self.receive().expect("an answer, not a hang-up");
        let frame = Frame::decode(&packet).unwrap();
        assert_eq!(frame.id, id);
        match frame.kind {
            FrameType::Error => Err(Refusal::decode(frame.body).unwrap()),
            kind => {
                assert_eq!((kind, frame.reply), (B::KIND, true));
                Ok(B::decode(frame.body).unwrap())
            }
        }
    }

    fn refused(&self, id: u32, errno: Errno, text: &str) {
        let refusal = self.reply::<Refusal>(id).unwrap_err();
        assert_eq!(
            (Errno::from_raw(refusal.errno), refusal.text.contains(text)),
            (errno, true),
            "{}",
            refusal.text
        );
    }

    fn dropped(&self, id: u32, errno: Errno, text: &str) {
        self.refused(id, errno, text);
        assert_eq!(self.receive(), None);
    }

    fn done(&self, kind: FrameType, id: u32) {
        assert_eq!(self.receive(), Some(frame::done(kind, id)));
    }

    fn open(&self, name: &str, geometry: &str, flags: u16) -> Result<OpenReply, Refusal> {
        let spec: GeometrySpec = geometry.parse().unwrap();
        let open = Open {
            subbuf_size: spec.subbuf_size.unwrap_or(0) as u32,
            n_subbufs: spec.n_subbufs.unwrap_or(0) as u32,
            header: spec.header.map_or(HEADER_DEFAULT, |header| header as u32),
            mode: spec.mode.map_or(0, |mode| mode as u8 + 1),
            scope: spec.global.map_or(0, |global| u8::from(global) + 1),
            name: name.as_bytes(),
        };
        self.send(&open.frame(flags, 2));
        self.reply(2)
    }

    fn alive(&self) {
        self.refused_request(0x55);
    }

    fn refused_request(&self, kind: u8) {
        let mut unknown = Close { channel: 0 }.frame(0, 99);
        unknown[4] = kind;
        self.send(&unknown);
        self.refused(99, Errno::EOPNOTSUPP, "unknown frame type");
    }
}

fn messages(list: &[&[u8]]) -> Vec<u8> {
    list.iter().flat_map(|m| [&(m.len() as u32).to_le_bytes()[..], m].concat()).collect()
}

fn write(channel: u32, messages: &[u8]) -> Write<'_> {
    Write { channel, cpu: 0, wait_ms: 0, lost: 0, messages }
}

fn counts(written: u64, dropped: u64, too_big: u64) -> Result<WriteReply, Refusal> {
    Ok(WriteReply { written, dropped, too_big })
}
