//! A channel that is reset while it is forwarded.

use std::fs;

use nix::sys::signal::Signal;
use relayfs_tests::forwarded::from;
use relayfs_tests::slow_copies::{ARGS, SUBBUF_SIZE, fill};
use relayfs_tests::{Mount, eventually, run, text};

use crate::order::{all_is_given_back, is_given_back};
use crate::server::{Forwarder, Server};
use crate::stored::header;

/// Bytes of a sub-buffer that are copied at least when the forwarder stands still, and not copied at least.
const SOME: usize = 4 << 20;

/// Returns the bytes of a process's own memory.
#[track_caller]
fn own_memory(pid: nix::unistd::Pid) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.split_whitespace().next().and_then(|word| word.parse::<usize>().ok()).expect("a number") << 10
}

/// The forwarder stands still while it copies. Then the writer has the sub-buffer again.
#[test]
fn sub_buffer_that_is_reset_while_it_is_copied_is_not_mixed() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["-c", "cpu"]);
    let channel = mount.channel("cpu");
    let mut byte = 0;
    eventually("a forwarder that stands still while it copies", || {
        // Room and memory are those of the start.
        all_is_given_back(&mount, "cpu");
        forwarder.kill();
        forwarder.restart();
        let pid = forwarder.process().pid();
        byte += 1;
        let before = own_memory(pid);
        fill(&channel, byte);
        mount.poke("cpu", "flush");
        eventually("a copy", || own_memory(pid) > before + SOME || is_given_back(&mount, "cpu"));
        forwarder.process().signal(Signal::SIGSTOP);
        let copied = own_memory(pid).saturating_sub(before);
        let is_caught = copied > SOME && copied + SOME < SUBBUF_SIZE && !is_given_back(&mount, "cpu");
        if !is_caught {
            forwarder.process().signal(Signal::SIGCONT);
        }
        is_caught
    });
    mount.poke("cpu", "reset");
    fill(&channel, byte + 1);
    mount.poke("cpu", "flush");
    forwarder.process().signal(Signal::SIGCONT);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let mut seen = Vec::new();
    for message in client.read() {
        let first = message.payload.first().copied();
        let is_same = message.payload.iter().all(|byte| Some(*byte) == first);
        assert!(is_same, "sub-buffer {} has bytes of another", header(&message, "Relay-Number"));
        let number: u64 = header(&message, "Relay-Number").parse().expect("a number");
        seen.extend(first.map(|byte| (number, byte)));
    }
    seen.dedup();
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{seen:?}");
    assert_eq!(seen.last().map(|(_, byte)| *byte), Some(byte + 1));
}

/// A sub-buffer that was not finished leaves no gap of numbers.
#[test]
fn reader_says_what_a_reset_has_discarded() {
    let (server, mount) = (Server::start(""), Mount::new(&["--subbuf-size=4K", "--flush-interval=never"]));
    server.client().create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--flush-interval=never"]);
    let write = |message: &[u8]| assert_eq!(mount.send(0, &[message]).written, 1);
    let finish = || mount.poke("cpu", "flush");
    write(b"first\n");
    finish();
    all_is_given_back(&mount, "cpu");
    write(b"unfinished\n");
    mount.poke("cpu", "reset");
    write(b"second\n");
    finish();
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    for lost in [&b"x"[..], b"finished\n"] {
        write(lost);
        finish();
        mount.poke("cpu", "reset");
        write(b"next\n");
        finish();
        forwarder.restart();
        all_is_given_back(&mount, "cpu");
        forwarder.end();
    }
    let output = run(&mut from(&server.url(), &["-c", "cpu"]));
    assert_eq!(text(&output.stdout), "first\nsecond\nnext\nnext\n");
    let why = "discarded by a reset, or read elsewhere";
    let missing = [
        "11 bytes before sub-buffer 1 are missing",
        "sub-buffer 2 is missing, 1 byte",
        "sub-buffer 4 is missing, 9 bytes",
    ];
    let said = missing.map(|what| format!("relay-forward: h cpu cpu0: {what}: {why}\n"));
    assert_eq!(text(&output.stderr), said.concat());
}
