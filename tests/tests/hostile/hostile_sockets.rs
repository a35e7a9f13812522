//! Hostile peers, while an honest producer writes and a reader reads. The daemon refuses or drops the hostile peers,
//! and the honest ones notice nothing. A peer at a limit gets an error that names the limit.

use std::fs;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use relay::wire::frame::{
    Body, Close, FRAME_MAX, Frame, FrameType, OPEN_CREATE, Refusal, SHARE_READ, Share, Watch,
};
use relay::wire::frame::{WAIT_FOREVER, WRITE_MORE, WRITE_REPLY, Write};
use relay::wire::socket::Socket;
use relay_producer::BatchOptions;
use relayfs_tests::honest::Honest;
use relayfs_tests::limits::allow_open_files;
use relayfs_tests::peer::{Peer, assert_unharmed, hello, messages, open, write};
use relayfs_tests::users::{NOBODY, USER, by_user, mount_for_all, program_for_all};
use relayfs_tests::{DEADLINE, Mount, Process, eventually};

/// The channel of the honest peers.
const HONEST: &str = "--channel=honest";

fn socket_of(mount: &Mount) -> PathBuf {
    fs::read_link(mount.path(".relay/socket")).unwrap()
}

/// Returns the next number of a fixed pseudo-random sequence.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Runs `test-stranger ARGS` as another user. Returns the process, to keep, and its output up to an empty line.
fn stranger(uid: u32, args: &[&str]) -> (Process, Vec<String>) {
    let mut command = by_user(uid, uid, program_for_all("test-stranger"));
    let mut process = Process::start(command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (mut said, mut bytes) = (String::new(), [0]);
    let mut output = process.child().stdout.take().unwrap();
    // Up to an empty line.
    while !said.ends_with("\n\n") && output.read(&mut bytes).unwrap() == 1 {
        said.push(bytes[0].into());
    }
    (process, said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Garbage frames, right heads with wrong bodies, and packets that are too short, too long or empty.
#[test]
fn garbage_frames_end_the_connection_only() {
    let mount = Mount::new(&[HONEST]);
    let honest = Honest::on(&mount, "honest");
    let seed = &mut 7;
    for round in 0..300 {
        let peer = if round % 3 == 0 { Peer::connect(&mount) } else { Peer::hello(&mount) };
        for _ in 0..20 {
            let len = match random(seed) % 8 {
                0 => 0,
                1 => FRAME_MAX + 1,
                _ => random(seed) as usize % 200,
            };
            let mut packet: Vec<u8> = (0..len).map(|_| random(seed) as u8).collect();
            if len >= 12 && !random(seed).is_multiple_of(4) {
                packet[..4].copy_from_slice(&(len as u32).to_le_bytes());
                packet[4..6].copy_from_slice(&(random(seed) as u16 % 10).to_le_bytes());
                packet[6..8].copy_from_slice(&(random(seed) as u16 % 4).to_le_bytes());
            }
            if peer.try_send(&packet, MsgFlags::MSG_DONTWAIT).is_err() {
                break; // dropped
            }
        }
        if round % 100 == 0 {
            honest.assert_going_on();
        }
    }
    honest.end();
}

/// The kernel refuses unwanted descriptors, or the daemon closes them. It keeps none.
#[test]
fn unwanted_descriptors_are_not_kept() {
    let mount = Mount::new(&[HONEST]);
    let honest = Honest::on(&mount, "honest");
    let peer = Peer::hello(&mount);
    for frame in [hello(1, 1), open("cpu", 0, 3), vec![0; 5], Close { channel: 5 }.frame(0, 4)] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let rights = [ControlMessage::ScmRights(&[writer.as_raw_fd()])];
        let _ = sendmsg::<()>(peer.fd(), &[IoSlice::new(&frame)], &rights, MsgFlags::MSG_NOSIGNAL, None);
        drop(writer);
        // The end shows when no process has the other end.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
    honest.end();
    assert_unharmed(mount);
}

/// A connection, and all connections together, hold a limited number of channels. So do names of new channels.
#[test]
fn endless_opens_meet_limits() {
    let mount = Mount::new(&[HONEST, "--max-channels=40"]);
    let honest = Honest::on(&mount, "honest");
    let peer = Peer::hello(&mount);
    let all: Vec<u32> = (0..1024).map(|_| peer.open("cpu", 0)).collect();
    peer.send(&open("cpu", 0, 9));
    peer.assert_refused(Errno::EMFILE, "a connection holds at most 1024 channels");
    peer.send(&Close { channel: all[500] }.frame(0, 3));
    assert!(peer.receive().is_some());
    peer.open("cpu", 0);

    let maker = Peer::hello(&mount);
    for i in 0..38 {
        maker.open(&format!("channel-{i}-"), OPEN_CREATE);
    }
    for i in 38..60 {
        maker.send(&open(&format!("channel-{i}-"), OPEN_CREATE, 9));
        let text = format!(
            "channel 'channel-{i}-': there are 40 channels already: close some or raise --max-channels of relayfsd"
        );
        maker.assert_refused(Errno::ENOSPC, &text);
    }
    honest.assert_going_on();
    drop(maker);
    eventually("their end", || fs::read_dir(mount.path(".relay/channels")).unwrap().count() == 2);
    Peer::hello(&mount).open("new", OPEN_CREATE);
    honest.end();
}

/// The daemon drops a peer that does not receive its replies, whatever they are.
#[test]
fn peer_that_reads_no_replies_is_dropped() {
    let mount = Mount::new(&[HONEST]);
    let honest = Honest::on(&mount, "honest");
    for request in [
        open("cpu", 0, 1),
        open("none", 0, 1),
        Close { channel: 9 }.frame(0, 1),
        write(0, &messages(&[b"x"])).frame(WRITE_REPLY, 1),
        Share { channel: 0 }.frame(SHARE_READ, 1),
        vec![12, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let peer = Peer::hello(&mount);
        peer.send(&open("cpu", 0, 1));
        while peer.try_send(&request, MsgFlags::empty()).is_ok() {}
        assert_eq!(peer.try_send(&request, MsgFlags::empty()), Err(Errno::EPIPE));
        honest.assert_going_on();
    }
    honest.end();
}

/// A peer that asks for files without receiving the descriptors is refused more. It gets more when it has received
/// them.
#[test]
fn descriptors_in_flight_are_limited() {
    let mount = Mount::new(&[HONEST]);
    let honest = Honest::on(&mount, "honest");
    let socket = Socket::connect(&socket_of(&mount), DEADLINE).unwrap();
    let take = || {
        assert!(socket.wait(PollFlags::POLLIN, Some(Instant::now() + DEADLINE)), "an answer in time");
        let mut packet = vec![0; FRAME_MAX];
        let (len, descriptors) = socket.receive_with_descriptors(&mut packet).expect("an answer");
        packet.truncate(len);
        (packet, descriptors.len())
    };
    for request in [hello(1, 1), open("cpu", 0, 2)] {
        socket.send(&request).unwrap();
        take();
    }
    let request = Share { channel: 0 }.frame(SHARE_READ, 1);
    let per_share = {
        socket.send(&request).unwrap();
        take().1
    };
    assert!(per_share >= 3, "control, bell, data");
    for _ in 0..2 {
        let n_shares = 256 / per_share + 10;
        (0..n_shares).for_each(|_| socket.send(&request).unwrap());
        // The daemon answers them before it accepts others: each is a frame, and a turn has several.
        for _ in 0..n_shares {
            Peer::hello(&mount).assert_served();
        }
        let answers: Vec<(Vec<u8>, usize)> = (0..n_shares).map(|_| take()).collect();
        let total: usize = answers.iter().map(|(_, n)| n).sum();
        assert!(total <= 256 && total > 256 - per_share, "{total} descriptors");
        let (last, _) = answers.last().unwrap();
        let frame = Frame::decode(last).unwrap();
        assert_eq!(frame.kind, FrameType::Error);
        let refusal = Refusal::decode(frame.body).unwrap();
        assert_eq!(Errno::from_raw(refusal.errno), Errno::ETOOMANYREFS);
        assert!(
            refusal.text.contains("descriptors wait to be received, the limit is 256"),
            "{}",
            refusal.text
        );
    }
    honest.end();
}

/// A peer may make its bell block, and empty or fill it. The daemon waits for no bell.
#[test]
fn blocking_bell_delays_no_other_peer() {
    let mount = Mount::with_sequences(&[HONEST]);
    let honest = Honest::on(&mount, "honest");
    for flags in [0, SHARE_READ] {
        let socket = Socket::connect(&socket_of(&mount), DEADLINE).unwrap();
        let take = || {
            assert!(socket.wait(PollFlags::POLLIN, Some(Instant::now() + DEADLINE)), "an answer in time");
            socket.receive_with_descriptors(&mut vec![0; FRAME_MAX]).expect("an answer").1
        };
        for request in [hello(1, 1), open("cpu", 0, 2)] {
            socket.send(&request).unwrap();
            take();
        }
        socket.send(&Share { channel: 0 }.frame(flags, 3)).unwrap();
        let bell = take().swap_remove(1);
        if flags == SHARE_READ {
            // Filled, if the bell is writable.
            let _ = nix::unistd::write(&bell, &(u64::MAX - 1).to_ne_bytes());
        }
        fcntl(&bell, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        socket.send(&Watch { channel: 0, cpu: 0 }.frame(0, 4)).unwrap();
        take();
        assert_eq!(mount.send(0, &[b"x"]).written, 1);
        mount.channel("cpu").flush().unwrap();
        Peer::hello(&mount).assert_served();
        drop(socket);
        Peer::hello(&mount).assert_served();
        honest.assert_going_on();
    }
    honest.end();
}

/// An unfinished long message keeps its memory until others need it. Its sender then gets an error.
#[test]
fn stalled_long_message_loses_its_memory_to_others() {
    let mount = Mount::new(&[HONEST, "--subbuf-size=2M", "--n-subbufs=2"]);
    let honest = Honest::on(&mount, "honest");
    let begun = [&(1_u32 << 20).to_le_bytes()[..], &[b'x'; 100]].concat();
    let crowd: Vec<Peer> = (0..64)
        .map(|_| {
            let peer = Peer::hello(&mount);
            let channel = peer.open("cpu", 0);
            peer.send(&write(channel, &begun).frame(WRITE_MORE | WRITE_REPLY, 5));
            peer
        })
        .collect();
    let message = vec![b'm'; 300_000];
    let channel = mount.channel("cpu");
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    eventually("room for a long message", || {
        channel.write_batch(&[&message], options).is_ok_and(|counts| counts.written == 1)
    });
    let first = &crowd[0];
    first.send(&write(0, b"y").frame(WRITE_MORE, 5));
    first.send(&write(0, b"z").frame(0, 5));
    first.assert_refused(Errno::ENOBUFS, "the message stood still for 1s, and others needed its memory");
    first.assert_served();
    honest.end();
}

/// Long messages that wait for room have a limit together. Other producers continue.
#[test]
fn waiting_long_messages_are_limited() {
    let mount = Mount::new(&[HONEST, "--channel=full:subbuf-size=1M:n-subbufs=2:global"]);
    let honest = Honest::on(&mount, "honest");
    let piece = |len: usize| vec![b'x'; len];
    let begun = [&(1_u32 << 20).to_le_bytes()[..], &piece(60_000)].concat();
    let crowd: Vec<Peer> = (0..270)
        .map(|_| {
            let peer = Peer::hello(&mount);
            let channel = peer.open("full", 0);
            let forever = Write { wait_ms: WAIT_FOREVER, ..write(channel, &[]) };
            peer.send(&Write { messages: &begun, ..forever }.frame(WRITE_MORE | WRITE_REPLY, 5));
            let mut left = (1 << 20) - 60_000;
            while left > 0 {
                let len = left.min(65_000);
                left -= len;
                let flags = if left > 0 { WRITE_MORE } else { 0 };
                peer.send(&Write { messages: &piece(len), ..forever }.frame(flags, 5));
            }
            peer
        })
        .collect();
    // Two are in the buffer.
    crowd[269].assert_refused(Errno::ENOBUFS, "that waits for room, the limit is 256M for all connections");
    crowd[269].assert_served();
    drop(crowd);
    honest.end();
}

/// A silent connection keeps its place until another peer needs it.
#[test]
fn silent_connection_gives_way_to_others() {
    let mount = Mount::new(&[HONEST, "--max-connections=20"]);
    let honest = Honest::on(&mount, "honest");
    let crowd: Vec<Peer> = (0..19).map(|_| Peer::connect(&mount)).collect();
    let mut served = None;
    eventually("a place", || {
        let peer = Peer::connect(&mount);
        // Refused, perhaps before it has sent anything.
        let _ = peer.try_send(&hello(1, 1), MsgFlags::empty());
        let packet = peer.receive().expect("an answer");
        served = (Frame::decode(&packet).unwrap().kind == FrameType::Hello).then_some(peer);
        served.is_some()
    });
    served.unwrap().assert_served();
    crowd[0].assert_dropped(Errno::ETIMEDOUT, "no HELLO for 5s, and others want to connect");
    let late = &crowd[18];
    late.send(&hello(1, 1));
    assert!(late.receive().is_some());
    late.assert_served();
    honest.end();
}

/// A user has a share of the connections. Root may have all.
#[test]
fn user_has_share_of_connections() {
    let mount = mount_for_all(&[HONEST, "--socket-mode=0666", "--max-connections=41"]);
    let honest = Honest::on(&mount, "honest");
    let socket = socket_of(&mount);
    let (first, said) = stranger(USER, &["connect", socket.to_str().unwrap(), "50"]);
    let refused = "EUSERS: uid 1000 has as many connections as are left for others, of 41: raise --max-connections of relayfsd";
    assert_eq!(said, ["20 served".to_owned(), format!("30 {refused}")]);
    let (second, said) = stranger(NOBODY, &["connect", socket.to_str().unwrap(), "50"]);
    assert_eq!(said[0], "10 served");
    assert!(said[1].starts_with("40 EUSERS: uid 65534 has as many connections"), "{said:?}");
    let crowd: Vec<Peer> = (0..10).map(|_| Peer::hello(&mount)).collect();
    Peer::connect(&mount)
        .assert_dropped(Errno::EUSERS, "41 connections are open, the limit of --max-connections");
    honest.assert_going_on();
    drop((first, second, crowd));
    honest.end();
}

/// A user has a share of the channels, and of their memory. Root may have all.
#[test]
fn user_has_share_of_channels_and_memory() {
    let mount = mount_for_all(&[
        "--channel=honest:global",
        "--subbuf-size=4K",
        "--socket-mode=0666",
        "--max-channels=22",
        "--max-memory=16M",
    ]);
    let honest = Honest::on(&mount, "honest");
    let socket = socket_of(&mount);
    let (many, said) = stranger(USER, &["create", socket.to_str().unwrap(), "30", "4096", "2"]);
    let refused = "ENOSPC: channel 'NAME': uid 1000 has as many channels as are left for others, of 22: \
                   close some or raise --max-channels of relayfsd";
    assert_eq!(said, ["10 served".to_owned(), format!("20 {refused}")]);
    drop(many);
    eventually("their end", || fs::read_dir(mount.path(".relay/channels")).unwrap().count() == 2);
    let (_large, said) = stranger(NOBODY, &["create", socket.to_str().unwrap(), "30", "1048576", "2"]);
    assert_eq!(said[0], "3 served");
    let refused = "ENOMEM: channel 'NAME' needs 2056K, and the channels of uid 65534 may have as much as is left for others, \
                   of 16M: use smaller buffers or raise --max-memory of relayfsd";
    assert_eq!(said[1], format!("27 {refused}"));
    let peer = Peer::hello(&mount);
    for i in 0..10 {
        peer.open(&format!("roots-{i}-"), OPEN_CREATE);
    }
    honest.end();
}

/// A user has a share of the open files.
#[test]
fn user_has_share_of_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(
        hard > 4200,
        "this test takes more than 4200 open files: raise the hard limit (ulimit -Hn), {hard}"
    );
    let mount = mount_for_all(&[HONEST]);
    let honest = Honest::on(&mount, "honest");
    let version = mount.path(".relay/version");
    let (_stranger, said) = stranger(USER, &["open", version.to_str().unwrap(), "4200"]);
    let opened: usize = said[0].strip_suffix(" opened").expect("most of them").parse().unwrap();
    assert!((4090..=4096).contains(&opened), "{said:?}");
    assert!(said[1].ends_with("Too many open files in system (os error 23)"), "{said:?}");
    assert!(fs::read(&version).is_ok());
    honest.end();
}

/// What open files keep for readers that seek back is limited. Reads beyond the limit succeed.
#[test]
fn read_history_is_limited_and_reads_continue() {
    const FILES: usize = 600;
    allow_open_files(2000);
    let mut mount = Mount::new(&[HONEST, "--subbuf-size=256K", "--n-subbufs=4"]);
    let honest = Honest::on(&mount, "honest");
    let message = vec![b'm'; 64 << 10];
    let mut files = Vec::new();
    for _ in 0..FILES {
        let mut file = fs::File::open(mount.path("cpu0")).unwrap();
        assert_eq!(mount.send(0, &[&message, &message, &message]).written, 3);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 3 * message.len());
        files.push(file);
    }
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon().pid())).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: usize = anonymous.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(kib < 80 << 10, "{kib} KiB for what {FILES} files keep");
    honest.end();
}
