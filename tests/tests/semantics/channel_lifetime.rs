//! The life of a channel that a producer opened: it lives while a connection, an open `cpuN` file or a poll waiter
//! holds it, or it has unread data. When it goes, the daemon adds its losses to the totals.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay::wire::frame::{
    self, Body, Close, FrameType, HEADER_DEFAULT, OPEN_CREATE, Open, OpenReply, WRITE_REPLY,
};
use relay::wire::frame::{Write, WriteReply};
use relayfs_tests::peer::{Peer, assert_unharmed, messages, write};
use relayfs_tests::{Mount, eventually};

/// Returns a counter of the daemon.
fn daemon_stat(mount: &Mount, name: &str) -> u64 {
    let stats = fs::read_to_string(mount.path(".relay/stats")).unwrap();
    let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.expect("a number of that name").parse().unwrap()
}

/// Writes one message, and returns the reply.
#[track_caller]
fn send(peer: &Peer, channel: u32, message: &[u8]) -> WriteReply {
    peer.ask(&write(channel, &messages(&[message])).frame(WRITE_REPLY, 5)).unwrap()
}

#[track_caller]
fn await_end(mount: &Mount, channel: &str) {
    eventually("the end of the channel", || !mount.path(".relay/channels").join(channel).exists());
}

/// A channel appears with its files and directories when it is opened, and goes with the last connection that holds
/// it. Its memory is freed, and its losses stay counted.
#[test]
fn channel_goes_with_last_connection() {
    let mount = Mount::new(&[]);
    let memory = daemon_stat(&mount, "memory_bytes");
    let (first, second) = (Peer::hello(&mount), Peer::hello(&mount));
    let channel = first.open("app/web/log", OPEN_CREATE);
    assert!(mount.path("app/web/log0").is_file() && mount.control("app/web/log", "msg").is_file());
    assert_eq!(daemon_stat(&mount, "channels"), 2);
    assert_eq!(daemon_stat(&mount, "memory_bytes"), memory + 8192 + 8192);
    second.open("app/web/log", 0);
    let lost = Write { lost: 5, ..write(channel, b"") }.frame(WRITE_REPLY, 3);
    first.ask::<WriteReply>(&lost).unwrap();
    assert_eq!(send(&first, channel, &[b'x'; 4097]).too_big, 1);

    drop(first);
    second.assert_served();
    assert!(mount.path("app/web/log0").is_file());
    drop(second);
    await_end(&mount, "app");
    assert!(!mount.path("app").exists());
    assert_eq!(daemon_stat(&mount, "channels"), 1);
    assert_eq!(daemon_stat(&mount, "memory_bytes"), memory);
    assert_eq!(daemon_stat(&mount, "gone.dropped"), 5);
    assert_eq!(daemon_stat(&mount, "gone.too_big"), 1);
    assert_unharmed(mount);
}

/// CLOSE ends one hold. A connection that opened the channel twice has two.
#[test]
fn close_ends_one_hold() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let (a, b) = (peer.open("log", OPEN_CREATE), peer.open("log", 0));
    assert_ne!(a, b);
    for (channel, exists) in [(a, true), (b, false)] {
        peer.send(&Close { channel }.frame(0, 9));
        assert_eq!(peer.receive(), Some(frame::done(FrameType::Close, 9)));
        eventually("the end, or not", || mount.path("log0").exists() == exists);
    }
    peer.assert_served();
    assert_unharmed(mount);
}

/// Unread data keeps the channel without its producer, until a reader has read all and closed the file.
#[test]
fn unread_data_keeps_channel() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = peer.open("log", OPEN_CREATE);
    assert_eq!(send(&peer, channel, b"unread").written, 1);
    drop(peer);

    let mut reader = File::open(mount.path("log0")).unwrap();
    let mut part = [0; 2];
    reader.read_exact(&mut part).unwrap();
    drop(reader);
    assert_eq!(mount.stats("log")["total.read_bytes"], 2);
    let mut reader = File::open(mount.path("log0")).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "read");
    assert!(mount.path("log0").exists(), "the reader holds it");
    drop(reader);
    await_end(&mount, "log");
    assert_eq!(daemon_stat(&mount, "gone.read_bytes"), 6);
    assert_unharmed(mount);
}

/// An open file keeps the channel, even without data, for the next producer. The next message wakes its poller.
#[test]
fn open_file_keeps_channel() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    peer.open("log", OPEN_CREATE);
    let mut reader = File::open(mount.path("log0")).unwrap();
    drop(peer);

    let peer = Peer::hello(&mount);
    let reply: OpenReply = peer.ask(&relayfs_tests::peer::open("log", OPEN_CREATE, 2)).unwrap();
    assert_eq!(reply.created, 0, "it is the same channel");
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(20_000u16))
        });
        send(&peer, reply.channel, &[b'x'; 4000]);
        send(&peer, reply.channel, &[b'y'; 4000]);
        drop(peer);
        assert_eq!(sleeper.join().unwrap(), Ok(1));
    });
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 8000);
    drop(reader);
    await_end(&mount, "log");
    assert_unharmed(mount);
}

/// After a reset nothing is unread, so nothing keeps the channel.
#[test]
fn reset_frees_channel() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let channel = peer.open("log", OPEN_CREATE);
    send(&peer, channel, b"unread");
    drop(peer);
    mount.poke("log", "reset");
    await_end(&mount, "log");
    assert_eq!(daemon_stat(&mount, "gone.discarded_bytes"), 6);
    assert_unharmed(mount);
}

/// A sub-buffer's header is not data: it alone keeps no channel.
#[test]
fn headers_alone_keep_no_channel() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let (mode, scope) = (0, 2);
    let open = Open { subbuf_size: 4096, n_subbufs: 2, header: 16, mode, scope, name: b"log" };
    peer.ask::<OpenReply>(&open.frame(OPEN_CREATE, 2)).unwrap();
    drop(peer);
    await_end(&mount, "log");
    assert_unharmed(mount);
}

/// An existing channel keeps its geometry, and the reply has it. A channel that went is created with counts from 0.
#[test]
fn existing_channel_is_attached_and_gone_channel_is_new() {
    let mount = Mount::new(&["--channel=fixed:subbuf-size=8K:n-subbufs=3:overwrite:header=8"]);
    let peer = Peer::hello(&mount);
    let ask = |name: &str, subbuf_size, flags| {
        let (n_subbufs, mode, scope) = (5, 1, 2);
        let open =
            Open { subbuf_size, n_subbufs, header: HEADER_DEFAULT, mode, scope, name: name.as_bytes() };
        peer.ask::<OpenReply>(&open.frame(flags, 2)).map(|reply| {
            let OpenReply { subbuf_size, n_subbufs, header, mode, scope, created, .. } = reply;
            ((subbuf_size, n_subbufs, header, mode, scope, created), reply.channel)
        })
    };
    assert_eq!(ask("fixed", 4096, OPEN_CREATE).unwrap().0, (8192, 3, 8, 2, 1, 0));
    assert_eq!(ask("fixed", 0, 0).unwrap().0, (8192, 3, 8, 2, 1, 0));
    assert_eq!(ask("fixed", u32::MAX, OPEN_CREATE).unwrap().0, (8192, 3, 8, 2, 1, 0), "not looked at");

    let (told, channel) = ask("log", 4096, OPEN_CREATE).unwrap();
    assert_eq!(told, (4096, 5, 0, 1, 2, 1));
    send(&peer, channel, b"read");
    assert_eq!(mount.read("log0"), b"read");
    peer.send(&Close { channel }.frame(0, 9));
    peer.receive();
    await_end(&mount, "log");
    assert_eq!(ask("log", 4096, 0).unwrap_err().errno, libc::ENOENT);
    assert_eq!(ask("log", 100, OPEN_CREATE).unwrap().0, (100, 5, 0, 1, 2, 1));
    assert!(mount.stats("log").values().all(|count| *count == 0));
    drop(peer);
    await_end(&mount, "log");
    assert!(mount.path("fixed0").exists(), "what --channel names stays");
    assert_unharmed(mount);
}
