//! The socket, frame by frame: the bytes of each frame, and the answers to bad ones.

use std::fs;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use relay::wire::frame::{
    self, ALL_CPUS, Body, Close, FRAME_MAX, Flush, HEADER_DEFAULT, HelloReply, OPEN_CREATE, Open, OpenReply,
    WRITE_MORE, WRITE_REPLY, Write, WriteReply,
};
use relayfs_tests::Mount;
use relayfs_tests::peer::{Peer, assert_unharmed, hello, messages, open, write};

/// A whole conversation as `relay/docs/PROTOCOL.md` draws it, written by hand.
#[test]
fn frames_have_the_documented_bytes() {
    let mount = Mount::new(&[]);
    let peer = Peer::connect(&mount);
    let n_cpus = (fs::read_dir(mount.point()).unwrap().count() - 1) as u8;
    for (request, reply) in [
        (
            &b"\x24\0\0\0\x01\0\0\0\x07\0\0\0relayfs\n\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0"[..],
            &[
                &b"\x2c\0\0\0\x01\x80\0\0\x07\0\0\0relayfs\n\x01\0\0\0\0\0\x01\0\0\0\x10\0"[..],
                &[n_cpus, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ]
            .concat()[..],
        ),
        (
            b"\x23\0\0\0\x02\0\x01\0\x08\0\0\0\0\x10\0\0\x02\0\0\0\x10\0\0\0\x02\x02\x07\0app/log",
            b"\x24\0\0\0\x02\x80\0\0\x08\0\0\0\0\0\0\0\0\x10\0\0\x02\0\0\0\x10\0\0\0\x02\x02\x01\0\x01\0\0\0",
        ),
        (
            b"\x27\0\0\0\x03\0\x01\0\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\x02\0\0\0hi\x01\0\0\0!",
            b"\x24\0\0\0\x03\x80\0\0\x09\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
        (b"\x14\0\0\0\x04\0\0\0\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff", b"\x0c\0\0\0\x04\x80\0\0\x0a\0\0\0"),
        (b"\x10\0\0\0\x05\0\0\0\x0b\0\0\0\0\0\0\0", b"\x0c\0\0\0\x05\x80\0\0\x0b\0\0\0"),
        (
            b"\x10\0\0\0\x05\0\0\0\x0c\0\0\0\0\0\0\0",
            b"\x37\0\0\0\xff\x7f\0\0\x0c\0\0\0\x09\0\0\0no channel 0 is open on this connection",
        ),
    ] {
        peer.send(request);
        let answer = peer.receive().unwrap();
        assert_eq!(answer[..], reply[..], "{}", answer.escape_ascii());
    }
    assert_eq!(mount.stats("app/log")["total.dropped"], 3);
    // Two sub-buffers, each with its header: FLUSH began the second.
    assert_eq!(mount.read("app/log0"), [&[0; 16][..], b"hi!", &[0; 16]].concat());
    drop(peer);
    assert_unharmed(mount);
}

/// Each prefix of each frame is refused, and ends the connection.
#[test]
fn truncated_frame_ends_connection() {
    let mount = Mount::new(&[]);
    let payload = messages(&[b"one", b"two"]);
    let whole_messages = [28, 35]; // lengths at which a WRITE is just shorter
    for frame in [
        hello(1, 1),
        open("cpu", OPEN_CREATE, 2),
        write(0, &payload).frame(WRITE_REPLY, 3),
        Flush { channel: 0, cpu: 0 }.frame(0, 4),
        Close { channel: 0 }.frame(0, 5),
    ] {
        let connect = || {
            if frame[4] == 1 {
                return Peer::connect(&mount);
            }
            let peer = Peer::hello(&mount);
            assert_eq!(peer.open("cpu", 0), 0);
            peer
        };
        for len in 1..frame.len() {
            let peer = connect();
            peer.send(&frame[..len]);
            peer.assert_dropped(
                Errno::EPROTO,
                if len < 12 { "shorter than a frame header" } else { "frame says" },
            );
            // The same prefix, with a header of its length.
            if len >= 12 && !(frame[4] == 3 && whole_messages.contains(&len)) {
                let peer = connect();
                peer.send(&[&(len as u32).to_le_bytes(), &frame[4..len]].concat());
                peer.assert_dropped(Errno::EPROTO, "malformed");
            }
        }
        // And one byte too many.
        let peer = connect();
        peer.send(&[&(frame.len() as u32 + 1).to_le_bytes(), &frame[4..], b"x"].concat());
        peer.assert_dropped(Errno::EPROTO, "malformed");
    }
    assert_eq!(mount.stats("cpu")["total.bytes"], 0);
    assert_unharmed(mount);
}

/// Too long by the header's length, or by the packet's.
#[test]
fn too_long_frame_is_refused() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = peer.open("cpu", 0);
    let longest = messages(&[&vec![b'x'; FRAME_MAX - 12 - 16 - 4]]);
    let frame = write(channel, &longest).frame(WRITE_REPLY, 1);
    assert_eq!(frame.len(), FRAME_MAX);
    assert_eq!(peer.ask::<WriteReply>(&frame).unwrap().written, 1);
    assert_eq!(mount.read("cpu0").len(), longest.len() - 4);

    let mut lie = frame.clone();
    lie[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    peer.send(&lie);
    peer.assert_dropped(Errno::EPROTO, "frame says 4294967295 bytes, the packet has 65536");
    for len in [FRAME_MAX + 1, 150_000] {
        let peer = Peer::hello(&mount);
        let mut frame = frame.clone();
        frame.resize(len, 0);
        frame::finish(&mut frame);
        peer.send(&frame);
        peer.assert_dropped(Errno::EMSGSIZE, "longer than a frame may be, 65536");
    }
    assert_unharmed(mount);
}

/// The highest version of both is used. If there is none, the error has both ranges.
#[test]
fn highest_common_version_is_used() {
    let mount = Mount::new(&[]);
    for (min, max) in [(1, 1), (1, 7), (0, 65535)] {
        let reply: HelloReply = Peer::connect(&mount).ask(&hello(min, max)).unwrap();
        assert_eq!(reply.version, 1);
    }
    for (min, max, text) in
        [(2, 9, "the producer speaks 2 to 9, this daemon 1 to 1"), (0, 0, "0 to 0"), (1, 0, "1 to 0")]
    {
        let peer = Peer::connect(&mount);
        peer.send(&hello(min, max));
        peer.assert_dropped(Errno::EPROTONOSUPPORT, text);
    }
    let peer = Peer::connect(&mount);
    let mut foreign = hello(1, 1);
    foreign[12..20].copy_from_slice(b"relayfs\r");
    peer.send(&foreign);
    peer.assert_dropped(Errno::EPROTO, "malformed hello");
    assert_unharmed(mount);
}

/// HELLO comes first, and once. A long message that another frame interrupts is given up.
#[test]
fn frame_out_of_order_is_refused() {
    let mount = Mount::new(&[]);
    for first in [open("cpu", 0, 1), write(0, b"").frame(0, 1), frame::done(frame::FrameType::Hello, 1)] {
        let peer = Peer::connect(&mount);
        peer.send(&first);
        peer.assert_dropped(Errno::EPROTO, "the first frame must be a HELLO");
    }
    let peer = Peer::hello(&mount);
    peer.send(&hello(1, 1));
    peer.assert_dropped(Errno::EPROTO, "a second HELLO");

    // A channel that is not open, that was closed, or that another connection opened.
    let peer = Peer::hello(&mount);
    let other = Peer::hello(&mount);
    for name in ["cpu", "cpu", "cpu"] {
        other.open(name, 0);
    }
    let channel = peer.open("cpu", 0);
    peer.send(&Close { channel }.frame(0, 3));
    assert_eq!(peer.receive(), Some(frame::done(frame::FrameType::Close, 3)));
    for number in [channel, 1, 2, u32::MAX] {
        for request in [
            write(number, &messages(&[b"x"])).frame(WRITE_REPLY, 4),
            Flush { channel: number, cpu: ALL_CPUS }.frame(0, 4),
            Close { channel: number }.frame(0, 4),
        ] {
            peer.send(&request);
            peer.assert_refused(Errno::EBADF, &format!("no channel {number} is open on this connection"));
        }
    }

    let channel = peer.open("cpu", 0);
    let begun = [&100_000u32.to_le_bytes()[..], &[b'x'; 60_000]].concat();
    peer.send(&write(channel, &begun).frame(WRITE_MORE | WRITE_REPLY, 5));
    assert_eq!(
        peer.ask::<WriteReply>(&write(channel, &messages(&[b"y"])).frame(WRITE_REPLY, 6)).unwrap().written,
        1
    );
    peer.send(&write(channel, &[b'x'; 40_000]).frame(WRITE_REPLY, 5)); // no message any more
    peer.assert_dropped(Errno::EPROTO, "malformed");
    assert_eq!(mount.read("cpu0"), b"y");
    assert_unharmed(mount);
}

/// An unknown frame type is answered with an error, and the connection stays.
#[test]
fn unknown_frame_type_is_answered_with_error() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    for kind in
        [0u16, 12, 100, 0x7ffe, 0x7fff, 0x8002, 0x8003, 0x8006, 0x8008, 0x8009, 0x800a, 0x800b, 0xffff]
    {
        let mut request = frame::done(frame::FrameType::Close, 9);
        request[4..6].copy_from_slice(&kind.to_le_bytes());
        let refusal = peer.ask::<WriteReply>(&request).unwrap_err();
        assert_eq!(refusal.errno, libc::EOPNOTSUPP, "{kind:#x}");
    }
    peer.assert_served();
    drop(peer);
    assert_unharmed(mount);
}

/// Requests with invalid values are refused, and the connection stays.
#[test]
fn value_out_of_range_is_refused() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = peer.open("cpu", 0);
    for cpu in [4096, u32::MAX - 1, u32::MAX] {
        let request = Write { cpu, ..write(channel, b"") }.frame(WRITE_REPLY, 1);
        let refusal = peer.ask::<WriteReply>(&request).unwrap_err();
        assert_eq!(refusal.errno, libc::EINVAL);
        assert!(
            refusal.text.starts_with(&format!("channel 'cpu' has no cpu {cpu}: there are 0 to ")),
            "{refusal:?}"
        );
    }
    let base = Open { subbuf_size: 0, n_subbufs: 0, header: HEADER_DEFAULT, mode: 0, scope: 0, name: b"new" };
    for (request, errno) in [
        (Open { name: b"", ..base }, libc::EINVAL),
        (Open { name: b"a/../b", ..base }, libc::EINVAL),
        (Open { name: b"nul\0", ..base }, libc::EINVAL),
        (Open { name: b"\xff\xfe", ..base }, libc::EINVAL),
        (Open { name: &[b'x'; 60_000], ..base }, libc::EINVAL),
        (Open { name: b"cpu1", ..base }, libc::EEXIST),
        (Open { subbuf_size: u32::MAX, ..base }, libc::EINVAL),
        (Open { n_subbufs: u32::MAX, ..base }, libc::EINVAL),
        (Open { header: u32::MAX - 1, ..base }, libc::EINVAL),
        (Open { subbuf_size: 64 << 20, n_subbufs: 1 << 16, ..base }, libc::EINVAL),
    ] {
        let refusal = peer.ask::<OpenReply>(&request.frame(OPEN_CREATE, 2)).unwrap_err();
        assert_eq!(refusal.errno, errno, "{}", refusal.text);
        assert!(refusal.text.len() < 500 && !refusal.text.contains(char::is_control), "{refusal:?}");
    }
    peer.assert_served();
    // Modes and scopes that the protocol does not have.
    peer.send(&Open { mode: 3, ..base }.frame(OPEN_CREATE, 2));
    peer.assert_dropped(Errno::EPROTO, "malformed open");
    assert_unharmed(mount);
}

/// Garbage is answered with an error or a hang-up. Nothing of it gets into a buffer.
#[test]
fn garbage_is_refused_and_in_no_buffer() {
    let mount = Mount::new(&[]);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let payload = messages(&[b"one", b"two"]);
    let good = [
        hello(1, 1),
        open("new", OPEN_CREATE, 2),
        write(0, &payload).frame(WRITE_REPLY, 3),
        write(0, &payload).frame(WRITE_MORE, 4),
        Flush { channel: 0, cpu: ALL_CPUS }.frame(0, 5),
        Close { channel: 0 }.frame(0, 6),
    ];
    let mut peer = Peer::hello(&mount);
    for round in 0..3000 {
        let mut packet = good[random() as usize % good.len()].clone();
        match round % 3 {
            0 => packet = (0..random() % 300 + 1).map(|_| random() as u8).collect(),
            1 => {
                let at = random() as usize % packet.len();
                packet[at] ^= 1 << (random() % 8);
            }
            _ => {
                packet.truncate(12 + random() as usize % (packet.len() - 11));
                packet.extend((0..random() % 64).map(|_| random() as u8));
                frame::finish(&mut packet);
            }
        }
        if peer.try_send(&packet, MsgFlags::MSG_DONTWAIT).is_err() {
            peer = Peer::hello(&mount); // dropped for what it has sent before
        }
    }
    drop(peer);
    Peer::hello(&mount).assert_served();
    assert_eq!(mount.stats("cpu")["total.bytes"], 0);
    assert_unharmed(mount);
}
