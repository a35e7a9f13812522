//! "A channel opened by a producer lives as long as somebody holds it (producers' connections, open `cpuN` files, poll
//! waiters) or it has unread data; when it goes, its losses are added to the daemon's totals."

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

/// The daemon's own numbers.
fn daemon_stat(mount: &Mount, name: &str) -> u64 {
    let stats = fs::read_to_string(mount.path(".relay/stats")).unwrap();
    let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.expect("a number of that name").parse().unwrap()
}

/// Writes one message, and tells what became of it.
#[track_caller]
fn send(peer: &Peer, channel: u32, message: &[u8]) -> WriteReply {
    peer.ask(&write(channel, &messages(&[message])).frame(WRITE_REPLY, 5)).unwrap()
}

#[track_caller]
fn await_end(mount: &Mount, channel: &str) {
    eventually("the end of the channel", || !mount.path(".relay/channels").join(channel).exists());
}

/// It appears with its files and directories when it is opened, and goes with the last connection that holds it. Its
/// memory is given back, and its losses stay.
#[test]
fn it_goes_with_the_last_connection() {
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

/// CLOSE gives one hold back; a connection that opened it twice has two.
#[test]
fn close_gives_it_back() {
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

/// Unread data keeps it, without its producer, until somebody has read it all and closed the file.
#[test]
fn unread_data_keeps_it() {
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

/// An open file keeps it, even with nothing to read, for whoever comes next; and who polls is woken by them.
#[test]
fn an_open_file_keeps_it() {
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

/// Reset leaves nothing unread, so nothing keeps it.
#[test]
fn reset_frees_it() {
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

/// A sub-buffer's header is no data of anybody's: a channel nobody has written to does not stay because of it.
#[test]
fn headers_alone_do_not_keep_it() {
    let mount = Mount::new(&[]);
    let peer = Peer::hello(&mount);
    let (mode, scope) = (0, 2);
    let open = Open { subbuf_size: 4096, n_subbufs: 2, header: 16, mode, scope, name: b"log" };
    peer.ask::<OpenReply>(&open.frame(OPEN_CREATE, 2)).unwrap();
    drop(peer);
    await_end(&mount, "log");
    assert_unharmed(mount);
}

/// "An existing channel keeps its geometry and the reply tells it"; one that is gone is made anew, with counts from 0.
#[test]
fn attaching_and_making_anew() {
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
