//! How connections begin and end, and requests that are refused, apart from writes.

use std::fs::File;
use std::io::{IoSlice, Read};

use nix::sys::socket::{ControlMessage, sendmsg};

use super::*;

#[test]
fn hello_agrees_on_a_version_or_reports_both_ranges() {
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
fn peer_without_a_single_first_hello_is_dropped() {
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
fn connection_beyond_the_limit_gets_an_error() {
    let daemon = Daemon::new();
    let mut idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| daemon.stranger()).collect();
    let beyond = daemon.stranger();
    let hello = Hello { min_version: 1, max_version: 1, features: 0 }.frame(0, 1);
    // The daemon may have closed its end already, but the reason is there to be received.
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
fn unknown_request_is_refused_and_the_connection_continues() {
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
fn empty_packet_is_a_hang_up() {
    let daemon = Daemon::new();
    let producer = daemon.producer();
    producer.send(b"");
    assert_eq!(producer.receive(), None);
}

#[test]
fn peer_that_takes_no_replies_is_dropped() {
    let daemon = Daemon::new();
    let (deaf, channel) = daemon.producer_with("log", "");
    let frame = write(channel, b"").frame(WRITE_REPLY, 3);
    let end = (0..1_000_000).find_map(|_| deaf.try_send(&frame, MsgFlags::empty()).err());
    assert_eq!(end, Some(Errno::EPIPE));
    daemon.producer();
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
fn garbage_harms_no_other_connection() {
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

#[test]
fn channel_is_gone_when_its_holder_sees_the_hang_up() {
    let daemon = Daemon::new();
    for _ in 0..500 {
        let (producer, _) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=1:global");
        producer.send(&Hello { min_version: 1, max_version: 1, features: 0 }.frame(0, 1));
        producer.dropped(1, Errno::EPROTO, "a second HELLO");
        assert!(daemon.registry.hold("log").is_none());
        assert_eq!(daemon.registry.connections().0, 0);
    }
}
