//! `--flush-interval`: what was written waits no longer than that for a full sub-buffer, so that readers of channels with
//! few messages are woken too. Where nothing was written nothing is flushed, and without the option nothing ever is.

use std::fs::File;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relayfs_tests::background::Place;
use relayfs_tests::buffer::{READABLE, poll_now};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{Mount, complaint, run};

/// Sleeps in poll(2) until there is something, and reads it.
#[track_caller]
fn wait_and_read(mount: &Mount, name: &str) -> Vec<u8> {
    let file = File::open(mount.path(name)).unwrap();
    // For ever: when its time is over, poll(2) looks once more, and finds what nobody told it.
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::all())];
    poll(&mut fds, PollTimeout::NONE).unwrap();
    assert_eq!(fds[0].revents(), Some(READABLE));
    mount.read(name)
}

/// One short message after the other wakes its reader, whoever writes it; what is empty stays empty.
#[test]
fn few_messages_wake_their_readers() {
    for mode in ["no-overwrite", "overwrite", "no-overwrite:header=16"] {
        let mount = Mount::new(&[
            "--flush-interval=1ms",
            "--channel",
            &format!("cpu:{mode}"),
            "--channel",
            &format!("idle:{mode}"),
        ]);
        let (direct, by_socket) = (mount.direct_channel("cpu"), mount.channel("cpu"));
        let last = by_socket.n_bufs() - 1;
        for i in 0..20 {
            let message = format!("message {i}");
            if i % 2 == 0 {
                on_cpu(last, || direct.write(message.as_bytes()).unwrap());
            } else {
                mount.send(last, &[message.as_bytes()]);
            }
            let got = wait_and_read(&mount, &format!("cpu{last}"));
            let is_there = got.windows(message.len()).any(|part| part == message.as_bytes());
            assert!(is_there, "{mode}: {got:?}");
            assert_eq!(poll_now(&File::open(mount.path("idle0")).unwrap()), PollFlags::empty(), "{mode}");
        }
        let stats = mount.stats("cpu");
        assert_eq!(
            stats[&format!("cpu{last}.produced")],
            20,
            "{mode}: a flush for each message, and no other"
        );
        assert_eq!(stats["total.dropped"], 0, "{mode}");
        if last > 0 {
            assert_eq!(stats["cpu0.produced"], 0, "{mode}: a CPU that nobody wrote on");
        }
        assert_eq!(mount.stats("idle")["total.produced"], 0, "{mode}");
    }
}

/// A full buffer is left alone: flushing makes no room.
#[test]
fn a_full_buffer_stays_full() {
    let mount =
        Mount::new(&["--flush-interval=1ms", "--channel=cpu:subbuf-size=100:n-subbufs=2", "--channel=other"]);
    assert_eq!(mount.send(0, &[&[b'a'; 100], &[b'b'; 100], b"c"]).dropped, 1);
    let before = mount.stats("cpu");
    for _ in 0..20 {
        mount.send_to("other", 0, &[b"message"]);
        assert_eq!(wait_and_read(&mount, "other0"), b"message");
    }
    assert_eq!(mount.stats("cpu"), before);
    assert_eq!(mount.read("cpu0"), [[b'a'; 100], [b'b'; 100]].concat());
}

/// Without the option, what is written waits for its sub-buffer to be full, or for somebody to flush it.
#[test]
fn without_it_nothing_is_flushed() {
    let without = Mount::new(&[]);
    without.send(0, &[b"waiting"]);
    // As long as it takes elsewhere.
    let with = Mount::new(&["--flush-interval", "0.001"]);
    for _ in 0..20 {
        with.send(0, &[b"message"]);
        assert_eq!(wait_and_read(&with, "cpu0"), b"message");
    }
    assert_eq!(poll_now(&File::open(without.path("cpu0")).unwrap()), PollFlags::empty());
    assert_eq!(without.stats("cpu")["total.produced"], 0);
    without.poke("cpu", "flush");
    assert_eq!(wait_and_read(&without, "cpu0"), b"waiting");
}

/// Durations that are none, and such as are shorter than anybody means; the longest are no trouble.
#[test]
fn odd_intervals() {
    for bad in ["", "0", "0ms", "0.5ms", "-1", "soon", "1h", "1 s", "ms", "1e3", "inf", "nan"] {
        let place = Place::new();
        let option = format!("--flush-interval={bad}");
        let output = run(&mut place.command(&["-f", &option]));
        let told = complaint("relayfsd", &output);
        assert!(told.contains("--flush-interval"), "{bad:?}: {told}");
        place.assert_clean();
    }
    for long in ["100000000m", "18446744073709000000"] {
        let mount = Mount::new(&["--flush-interval", long]);
        mount.send(0, &[b"message"]);
        assert_eq!(poll_now(&File::open(mount.path("cpu0")).unwrap()), PollFlags::empty(), "{long}");
    }
    let mount = Mount::new(&["-o", "flush-interval=1ms"]);
    mount.send(0, &[b"message"]);
    assert_eq!(wait_and_read(&mount, "cpu0"), b"message");
}
