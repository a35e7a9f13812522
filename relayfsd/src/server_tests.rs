//! The socket protocol from a peer's side: what it is answered, and that nothing it does harms anybody else.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, bind, connect,
    listen, recv, send, sendmsg, setsockopt, shutdown, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use relay::GeometrySpec;
use relay::frame::{self, Body, Frame, FrameType, Open, OpenReply, Refusal, Write, WriteReply};
use relay::frame::{
    ALL_CPUS, Close, Flush, HEADER_DEFAULT, Hello, HelloReply, OPEN_CREATE, WAIT_FOREVER, WRITE_MORE,
    WRITE_REPLY,
};
use relay::geometry::MESSAGE_MAX;
use tempfile::TempDir;

use super::Server;
use crate::adopt::Legacy;
use crate::registry::{Limits, Registry};
use crate::sharing::{Shared, Sharing};
use crate::writers::reset_all;

/// Nothing here takes that long; a test that is wrong ends nevertheless.
const PATIENCE: Duration = Duration::from_secs(20);
const SHARING: Sharing = Sharing { with: Shared::Owner, gid: None, owner: (0, 0), mode: 0o400 };
const CONNECTIONS_MAX: usize = 100;
/// Only CPU 0 is sure to be there; the daemon never runs on the others here.
const N_CPUS: usize = 2;

/// A daemon without a mount. Fields drop in order: the server before the directory.
struct Daemon {
    server: Option<Server>,
    registry: std::sync::Arc<Registry>,
    path: PathBuf,
    _dir: TempDir,
}

impl Daemon {
    fn new() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(
            dir.path().to_owned(),
            N_CPUS,
            Limits { memory: 256 << 20, channels: 100 },
            GeometrySpec::default(),
            Legacy::default(),
        )
        .unwrap();
        let path = dir.path().join("socket");
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(128).unwrap()).unwrap();
        let server = Server::start(listener, registry.clone(), CONNECTIONS_MAX, SHARING).unwrap();
        Daemon { server: Some(server), registry, path, _dir: dir }
    }

    /// A producer that has not said hello.
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

    /// A producer, and the number of a channel of this name and geometry in it.
    fn producer_with(&self, name: &str, geometry: &str) -> (Producer, u32) {
        let producer = self.producer();
        let channel = producer.open(name, geometry, OPEN_CREATE).unwrap().channel;
        (producer, channel)
    }

    /// Waits until a channel's counters, (written, dropped), are these.
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

    /// The next packet; none if the daemon has hung up.
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

#[test]
fn versions_are_agreed_on_or_both_ranges_told() {
    let daemon = Daemon::new();
    let newer = daemon.stranger();
    newer.send(&Hello { min_version: 1, max_version: 9, features: !0 }.frame(0, 5));
    let reply: HelloReply = newer.reply(5).unwrap();
    assert_eq!((reply.version, reply.features), (1, 0));
    assert_eq!((reply.frame_max as usize, reply.message_max as usize), (frame::FRAME_MAX, MESSAGE_MAX));

    let too_new = daemon.stranger();
    too_new.send(&Hello { min_version: 7, max_version: 9, features: 0 }.frame(0, 5));
    too_new.dropped(5, Errno::EPROTONOSUPPORT, "7 to 9, this daemon 1 to 1");
}

#[test]
fn who_does_not_say_hello_first_and_once_is_dropped() {
    let daemon = Daemon::new();
    let rude = daemon.stranger();
    rude.send(&Close { channel: 0 }.frame(0, 3));
    rude.dropped(3, Errno::EPROTO, "HELLO");
    let stranger = daemon.stranger();
    stranger.send(b"GET / HTTP/1.1\r\n\r\n");
    stranger.dropped(u32::from_le_bytes(*b"TP/1"), Errno::EPROTO, "bytes");
    let twice = daemon.producer();
    twice.send(&Hello { min_version: 1, max_version: 1, features: 0 }.frame(0, 8));
    twice.dropped(8, Errno::EPROTO, "second HELLO");
}

#[test]
fn channels_are_opened_attached_to_and_closed() {
    let daemon = Daemon::new();
    let producer = daemon.producer();
    let unknown = producer.open("app/log", "", 0).unwrap_err();
    assert_eq!(unknown.errno, libc::ENOENT);
    let bad = producer.open("no good", "", OPEN_CREATE).unwrap_err();
    assert_eq!(bad.errno, libc::EINVAL);
    let geometry = "subbuf-size=64K:n-subbufs=8:overwrite:header=16";
    let made = producer.open("app/log", geometry, OPEN_CREATE).unwrap();
    assert_eq!((made.subbuf_size, made.n_subbufs, made.header), (65536, 8, 16));
    assert_eq!((made.mode, made.scope, made.created, made.n_bufs as usize), (2, 1, 1, N_CPUS));
    let global = producer.open("all", "subbuf-size=4K:global", OPEN_CREATE).unwrap();
    assert_eq!((global.mode, global.scope, global.created, global.n_bufs), (1, 2, 1, 1));

    let other = daemon.producer();
    let attached = other.open("app/log", "subbuf-size=4K", OPEN_CREATE).unwrap();
    assert_eq!((attached.subbuf_size, attached.mode, attached.created), (65536, 2, 0));

    producer.send(&Close { channel: made.channel }.frame(0, 4));
    producer.done(FrameType::Close, 4);
    producer.send(&write(made.channel, b"").frame(WRITE_REPLY, 5));
    producer.refused(5, Errno::EBADF, "no channel");
    producer.send(&Close { channel: made.channel }.frame(0, 6));
    producer.refused(6, Errno::EBADF, "no channel");
    let again = producer.open("app/log", "", 0).unwrap();
    assert_ne!(again.channel, made.channel, "numbers are not used again");
}

#[test]
fn a_connection_holds_a_limited_number_of_channels() {
    let daemon = Daemon::new();
    let (producer, _) = daemon.producer_with("log", "subbuf-size=4K:n-subbufs=1:global");
    let opens = (1..).find_map(|opens| producer.open("log", "", 0).err().map(|error| (opens, error)));
    let (opens, error) = opens.unwrap();
    assert_eq!((opens, error.errno), (1024, libc::EMFILE), "{}", error.text);
    producer.alive();
}

#[test]
fn messages_are_counted_and_losses_told() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=2");
    let batch = messages(&[b"one", &[7; 65], b"", &[8; 61], &[9; 64], b"full"]);
    producer.send(&Write { lost: 5, ..write(channel, &batch) }.frame(WRITE_REPLY, 3));
    assert_eq!(producer.reply(3), counts(4, 1, 1));
    // Without being asked, the daemon says nothing.
    producer.send(&write(channel, &messages(&[b"full", b"still"])).frame(0, 4));
    producer.alive();
    daemon.await_counts("log", 4, 1 + 5 + 2);
}

#[test]
fn the_buffer_is_checked() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "");
    let bad = Write { cpu: N_CPUS as u32, ..write(channel, b"\x01\0\0\0x") };
    producer.send(&bad.frame(0, 3));
    producer.send(&bad.frame(WRITE_REPLY, 4));
    producer.refused(4, Errno::EINVAL, "channel 'log' has no cpu 2: there are 0 to 1");
    producer.send(&Flush { channel, cpu: 7 }.frame(0, 5));
    producer.refused(5, Errno::EINVAL, "no cpu 7");
    let global = producer.open("all", "global", OPEN_CREATE).unwrap().channel;
    producer.send(&Write { channel: global, ..bad }.frame(WRITE_REPLY, 6));
    assert_eq!(producer.reply(6), counts(1, 0, 0));
    daemon.await_counts("log", 0, 0);
}

#[test]
fn broken_lengths_write_nothing_and_end_the_connection() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "");
    let (_holder, _) = daemon.producer_with("log", "");
    producer.send(&write(channel, b"\x01\0\0\0x\xff\xff\xff\xffy").frame(0, 3));
    producer.dropped(3, Errno::EPROTO, "malformed write");
    daemon.await_counts("log", 0, 0);

    let (short, _) = daemon.producer_with("log", "");
    let mut frame = Flush { channel, cpu: 0 }.frame(0, 4);
    frame.pop();
    short.send(&frame);
    short.dropped(4, Errno::EPROTO, "20 bytes, the packet has 19");

    let (long, _) = daemon.producer_with("log", "");
    long.send(&vec![1; frame::FRAME_MAX + 1]);
    long.dropped(0, Errno::EMSGSIZE, "65537");
}

/// The frames of one message, `room` bytes in each.
fn long_frames(channel: u32, message: &[u8], room: usize, flags: u16, id: u32) -> Vec<Vec<u8>> {
    let bytes = messages(&[message]);
    let pieces: Vec<_> = bytes.chunks(room).collect();
    let last = pieces.len() - 1;
    let flags_of = |index| flags | if index < last { WRITE_MORE } else { 0 };
    pieces.iter().enumerate().map(|(i, piece)| write(channel, piece).frame(flags_of(i), id)).collect()
}

#[test]
fn long_messages_are_written_whole_or_not_at_all() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=1M:n-subbufs=4:global");
    let whole = vec![b'x'; 1 << 20];
    for frame in long_frames(channel, &whole, frame::WRITE_ROOM, WRITE_REPLY, 3) {
        producer.send(&frame);
    }
    assert_eq!(producer.reply(3), counts(1, 0, 0));

    // Given up for another one, and for another request.
    producer.send(&long_frames(channel, &whole, 1000, 0, 4)[0]);
    for frame in long_frames(channel, &whole[..5000], 1000, WRITE_REPLY, 5) {
        producer.send(&frame);
    }
    assert_eq!(producer.reply(5), counts(1, 0, 0));
    producer.send(&long_frames(channel, &whole, 1000, 0, 6)[0]);
    producer.send(&Flush { channel, cpu: 0 }.frame(0, 7));
    producer.done(FrameType::Flush, 7);

    // Refused once, its other frames thrown away.
    for frame in long_frames(channel, &vec![0; MESSAGE_MAX + 1], frame::WRITE_ROOM, WRITE_REPLY, 8) {
        producer.send(&frame);
    }
    producer.refused(8, Errno::EMSGSIZE, "1048577");
    producer.alive();
    daemon.await_counts("log", 2, 0);

    // More than it announced.
    producer.send(&write(channel, b"\x02\0\0\0a").frame(WRITE_MORE, 9));
    producer.send(&write(channel, b"bc").frame(0, 9));
    producer.dropped(9, Errno::EPROTO, "long write");
}

#[test]
fn unfinished_messages_share_a_limited_memory() {
    const ENOUGH: usize = (64 << 20) / MESSAGE_MAX;
    let daemon = Daemon::new();
    let begin = |(producer, channel): &(Producer, u32)| {
        let whole = (MESSAGE_MAX as u32).to_le_bytes();
        producer.send(&write(*channel, &whole).frame(WRITE_MORE | WRITE_REPLY, 3));
    };
    let producers: Vec<_> = (0..ENOUGH).map(|_| daemon.producer_with("log", "global")).collect();
    for _ in 0..2 {
        producers.iter().for_each(begin);
        producers.iter().for_each(|(producer, _)| producer.alive()); // which gives up the message
    }
    producers.iter().for_each(begin);
    let one_more = daemon.producer_with("log", "");
    begin(&one_more);
    one_more.0.refused(3, Errno::ENOBUFS, "64M for all connections");
    daemon.await_counts("log", 0, 1);
    one_more.0.alive();
}

#[test]
fn flush_answers_when_all_is_done() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=4:global");
    for cpu in [0, 5, ALL_CPUS] {
        producer.send(&write(channel, &messages(&[b"x"])).frame(0, 3));
        producer.send(&Flush { channel, cpu }.frame(0, 4));
        producer.done(FrameType::Flush, 4);
    }
    assert_eq!(daemon.registry.hold("log").unwrap().total().produced, 3);
}

#[test]
fn what_is_not_known_is_refused_and_the_connection_goes_on() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "");
    producer.refused_request(0x33);
    producer.send(&frame::done(FrameType::Flush, 6));
    producer.refused(6, Errno::EOPNOTSUPP, "only the daemon");
    producer.send(&Refusal { errno: 1, text: "no, you".into() }.frame(0, 7));
    producer.refused(7, Errno::EOPNOTSUPP, "only the daemon");
    producer.send(&write(channel, b"").frame(WRITE_REPLY, 8));
    assert_eq!(producer.reply(8), counts(0, 0, 0));
}

#[test]
fn an_empty_packet_is_a_hang_up() {
    let daemon = Daemon::new();
    let producer = daemon.producer();
    producer.send(b"");
    assert_eq!(producer.receive(), None);
}

#[test]
fn what_a_dead_producer_sent_is_written() {
    let daemon = Daemon::new();
    let (_holder, _) = daemon.producer_with("log", "");
    for round in 1..=20 {
        let (producer, channel) = daemon.producer_with("log", "");
        // Replies that nobody takes: the daemon's next recv() fails with ECONNRESET, before what is still there.
        for _ in 0..50 {
            producer.send(&write(channel, &messages(&[b"last words"])).frame(WRITE_REPLY, 3));
        }
        if round % 2 == 0 {
            shutdown(producer.socket.as_raw_fd(), Shutdown::Both).unwrap();
        }
        drop(producer);
        daemon.await_counts("log", round * 50, 0);
    }
}

#[test]
fn who_does_not_take_replies_is_dropped() {
    let daemon = Daemon::new();
    let (deaf, channel) = daemon.producer_with("log", "");
    let frame = write(channel, b"").frame(WRITE_REPLY, 3);
    let end = (0..1_000_000).find_map(|_| deaf.try_send(&frame, MsgFlags::empty()).err());
    assert_eq!(end, Some(Errno::EPIPE));
    daemon.producer();
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let daemon = Daemon::new();
    let mut idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| daemon.stranger()).collect();
    let beyond = daemon.stranger();
    let hello = Hello { min_version: 1, max_version: 1, features: 0 }.frame(0, 1);
    // Nobody may be there to take it any more, but the reason is.
    let _ = beyond.try_send(&hello, MsgFlags::empty());
    beyond.dropped(0, Errno::EUSERS, "--max-connections");
    idle.pop();
    let welcome = || {
        let producer = daemon.stranger();
        let _ = producer.try_send(&hello, MsgFlags::empty());
        producer.receive().is_some_and(|packet| Frame::decode(&packet).unwrap().kind == FrameType::Hello)
    };
    await_that(welcome, || "no place became free".into());
}

#[test]
fn descriptors_from_a_peer_are_not_kept() {
    let daemon = Daemon::new();
    let producer = daemon.producer();
    let (mut end, other_end) = pipe();
    let frame = Close { channel: 0 }.frame(0, 5);
    let descriptors = [other_end.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(
        producer.socket.as_raw_fd(),
        &[IoSlice::new(&frame)],
        &control,
        MsgFlags::empty(),
        None,
    );
    drop(other_end);
    if sent == Err(Errno::EPERM) {
        return producer.alive(); // Linux 6.16: not even taken
    }
    producer.refused(5, Errno::EBADF, "no channel");
    assert_eq!(end.read(&mut [0]).unwrap(), 0, "the other end is closed");
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe().unwrap();
    (read.into(), write)
}

#[test]
fn a_producer_that_waits_is_held_up_and_loses_nothing() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=1:global");
    let held = daemon.registry.hold("log").unwrap();
    // Two of them fit.
    let batch = messages(&[&[b'x'; 32 << 10]]);
    let frame = Write { wait_ms: WAIT_FOREVER, ..write(channel, &batch) }.frame(WRITE_REPLY, 3);
    let mut sent = 0;
    while producer.try_send(&frame, MsgFlags::MSG_DONTWAIT).is_ok() {
        sent += 1;
        assert!(sent < 1000, "everything is taken, although nobody makes room");
    }
    assert!(sent > 2);
    for answered in 0..sent {
        if answered % 2 == 0 {
            reset_all(daemon.registry.writers(), &held, |failed| assert!(failed.is_empty()));
        }
        assert_eq!(producer.reply(3), counts(1, 0, 0));
    }
    daemon.await_counts("log", sent, 0);
}

#[test]
fn a_dead_producer_waits_no_longer() {
    let daemon = Daemon::new();
    let (other, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=1:global");
    let (waiting, same) = daemon.producer_with("log", "");
    let batch = messages(&[&[b'x'; 32 << 10]]);
    let frame = Write { wait_ms: WAIT_FOREVER, ..write(same, &batch) }.frame(0, 3);
    let mut sent = 0;
    while waiting.try_send(&frame, MsgFlags::MSG_DONTWAIT).is_ok() {
        sent += 1;
    }
    drop(waiting);
    daemon.await_counts("log", 2, sent - 2);
    other.send(&write(channel, &messages(&[b"x"])).frame(WRITE_REPLY, 4));
    assert_eq!(other.reply(4), counts(0, 1, 0));
}

#[test]
fn many_producers_share_one_writer() {
    const FRAMES: u64 = 300;
    let daemon = Daemon::new();
    let (_holder, _) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=2:overwrite:global");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let (producer, channel) = daemon.producer_with("log", "");
                let batch = messages(&[&b"0123456789abcdef"[..]; 1000]);
                for _ in 1..FRAMES {
                    producer.send(&write(channel, &batch).frame(0, 3));
                }
                producer.send(&write(channel, &batch).frame(WRITE_REPLY, 4));
                assert_eq!(producer.reply(4), counts(1000, 0, 0));
            });
        }
    });
    daemon.await_counts("log", 8 * FRAMES * 1000, 0);
}

#[test]
fn stop_takes_what_is_in_the_sockets() {
    let mut daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=2:overwrite:global");
    let mut sent = 0;
    while sent < 2000
        && producer.try_send(&write(channel, &messages(&[b"x"])).frame(0, 3), MsgFlags::MSG_DONTWAIT).is_ok()
    {
        sent += 1;
    }
    let held = daemon.registry.hold("log").unwrap();
    daemon.server.take().unwrap().stop();
    daemon.await_counts("log", sent, 0);
    assert_eq!(producer.receive(), None);
    drop(held);
}

#[test]
fn garbage_harms_nobody() {
    let daemon = Daemon::new();
    let (good, own) = daemon.producer_with("log", "");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for round in 0..200 {
        let (bad, channel) = daemon.producer_with("log", "");
        for _ in 0..20 {
            let body: Vec<u8> =
                (0..next(60)).map(|_| if next(2) == 0 { 0 } else { next(256) as u8 }).collect();
            let mut packet = write(channel, &body).frame(next(4) as u16, next(3) as u32);
            packet[4] = next(7) as u8; // any type
            match next(4) {
                0 => packet.truncate(next(packet.len() as u64) as usize),
                1 => packet[next(30) as usize % 28] ^= 1 << next(8),
                _ => {}
            }
            let _ = bad.try_send(&packet, MsgFlags::MSG_DONTWAIT);
        }
        if round % 10 == 0 {
            good.send(&write(own, b"").frame(WRITE_REPLY, round));
            assert_eq!(good.reply(round), counts(0, 0, 0));
        }
    }
}
