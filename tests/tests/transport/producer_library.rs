//! The library `relay_producer` with a real daemon: its calls, and what they do without a daemon.

use std::fs;
use std::io::{ErrorKind, IoSlice, LineWriter, Write};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use relay::trace::event::{Event, id};
use relay_producer::{
    BatchOptions, Channel, Counts, Mode, OpenError, RequestError, TransportChoice, Wait, WriteError,
};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::records::records;
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{Mount, eventually};

use super::producer::{MESSAGE_MAX, bytes, total};

/// Messages over the socket are in the buffers of all CPUs after `sync`. Direct messages are there at once.
#[test]
fn sync_returns_when_all_messages_are_in_the_buffers() {
    let mut mount = Mount::new(&[]);
    for transport in [TransportChoice::Socket, TransportChoice::Auto] {
        let channel = Channel::builder(mount.point(), "cpu").transport(transport).open().expect("a channel");
        for round in 0..100 {
            let messages = round % 10 + 1;
            for _ in 0..messages {
                channel.write_to(0, b"message").expect("room");
                channel.write_to(1, b"message").expect("room");
            }
            channel.sync().expect("a daemon");
            for file in ["cpu0", "cpu1"] {
                assert_eq!(mount.read(file), b"message".repeat(messages), "{transport:?}");
            }
        }
    }
    let channel = mount.channel("cpu");
    channel.sync().expect("there was nothing to wait for");
    mount.end(Signal::SIGTERM);
    channel.sync().expect("there was nothing that could be lost");
}

/// While no daemon is there, calls return errors, without SIGPIPE or panic. A later call finds the next daemon.
#[test]
fn later_call_finds_next_daemon() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut mount = Mount::new(&[]);
        let cpu = mount.channel("cpu");
        let log = Channel::builder(mount.point(), "app/log")
            .create(true)
            .mode(Mode::Overwrite)
            .transport(TransportChoice::Socket)
            .open()
            .expect("a channel");
        let temporary = Channel::builder(mount.point(), "temporary").create(true).open().expect("a channel");
        let attached = mount.channel("temporary");
        cpu.write_to(0, b"x").expect("a daemon");

        mount.end(signal);
        for _ in 0..3 {
            assert_eq!(cpu.write(b"x"), Err(WriteError::Disconnected));
            assert_eq!(log.write_to(0, b"x"), Err(WriteError::Disconnected));
        }
        for _ in 0..3 {
            let error = cpu.write_batch([b"x"], BatchOptions::default()).expect_err("no daemon");
            assert!(matches!(error.cause, RequestError::Disconnected | RequestError::Reopen(_)), "{error}");
            let error = log.flush().expect_err("no daemon");
            assert!(matches!(error, RequestError::Disconnected | RequestError::Reopen(_)), "{error}");
        }
        drop(temporary);

        mount.restart(&[]);
        eventually("a write that finds the new daemon", || cpu.write_to(1, b"found").is_ok());
        eventually("a flush that finds it", || log.flush().is_ok());
        cpu.flush().expect("the new daemon");
        assert_eq!(mount.read("cpu1"), b"found");
        log.write_to(0, b"created again").expect("the new daemon");
        log.flush().expect("the new daemon");
        assert_eq!(mount.read("app/log0"), b"created again");
        assert_eq!(
            fs::read_to_string(mount.control("app/log", "mode")).expect("its mode").trim(),
            "overwrite"
        );
        // A handle that did not create the channel does not create it again. Its calls say so.
        eventually(
            "the reason",
            || matches!(attached.flush(), Err(RequestError::Reopen(OpenError::Refused(why))) if why.text.contains("'temporary'")),
        );
    }
}

/// The test blocks SIGPIPE: a blocked signal stays pending when raised, even if its action is to ignore it.
#[test]
fn calls_without_daemon_raise_no_sigpipe() {
    let pending = || {
        let status = fs::read_to_string("/proc/thread-self/status").expect("this thread");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).expect("Linux says so");
        u64::from_str_radix(mask.trim(), 16).expect("a mask") & (1 << (Signal::SIGPIPE as u32 - 1)) != 0
    };
    let only = SigSet::from(Signal::SIGPIPE);
    only.thread_block().expect("blocking a signal");

    let mut mount = Mount::new(&[]);
    let channel = mount.channel("cpu");
    mount.end(Signal::SIGKILL);
    assert_eq!(channel.write(b"x"), Err(WriteError::Disconnected));
    channel.write_batch([b"x"], BatchOptions::default()).expect_err("no daemon");
    channel.flush().expect_err("no daemon");
    drop(channel);
    assert!(!pending(), "SIGPIPE was raised");
    mount.restart(&[]);

    // The check finds a raised signal.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.write_all(b"x").expect_err("no process reads");
    assert!(pending());
}

/// `write` never waits, even for a daemon that does nothing. Each loss is counted.
#[test]
fn write_returns_full_while_daemon_hangs() {
    let mut mount = Mount::new(&["--overwrite"]);
    let channel = mount.channel("cpu");
    let stopped = Stopped::new(mount.daemon().pid());
    let (mut sent, mut lost) = (0, 0);
    while lost < 1000 {
        match channel.write_to(0, b"0123456789abcdef") {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error, WriteError::Full);
                lost += 1;
            }
        }
    }
    assert!(sent > 0, "a socket holds some");
    drop(stopped);
    channel.flush().expect("the daemon runs again");
    let counted = |counter| total(&mount, "cpu", counter);
    assert_eq!((counted("written"), counted("dropped")), (sent, lost));
    assert_eq!(mount.read("cpu0").len() as u64, 16 * sent);
}

/// `write`, `write_batch` and the counters distinguish messages that are too big from messages without room.
#[test]
fn too_big_and_dropped_are_told_apart() {
    let mount =
        Mount::new(&["--subbuf-size", "2M", "--n-subbufs", "1", "--channel", "small:subbuf-size=100"]);
    let small = mount.channel("small");
    let too_big = |len| Err(WriteError::TooBig { len, max: 100 });
    assert_eq!(small.write_to(0, &[b'x'; 101]), too_big(101));
    assert_eq!(small.write_to(0, &[b'x'; MESSAGE_MAX + 1]), too_big(MESSAGE_MAX + 1));
    assert_eq!(small.write_to(0, &[b'x'; 100]), Ok(()));
    let one_cpu = |wait| BatchOptions { cpu: Some(0), wait };
    let messages = [vec![b'x'; 100], vec![b'x'; 101], vec![], vec![b'x'; MESSAGE_MAX + 1]];
    for wait in [Wait::No, Wait::AtMost(Duration::from_millis(1))] {
        // The first message finds no room. An empty message needs none, but a blocked buffer refuses it too.
        let counts = small.write_batch(&messages, one_cpu(wait)).expect("a daemon");
        assert_eq!(counts, Counts { written: 0, dropped: 2, too_big: 2 }, "{wait:?}");
    }
    let counted = |counter| total(&mount, "small", counter);
    small.flush().expect("a daemon");
    // A message longer than any message may be is never sent, and counts as dropped.
    assert_eq!((counted("written"), counted("dropped"), counted("too_big")), (1, 4 + 3, 3));

    let cpu = mount.channel("cpu");
    let long = bytes(MESSAGE_MAX);
    assert_eq!(cpu.write_to(1, &long), Ok(()));
    let counts = cpu.write_batch([&long, &long], BatchOptions { cpu: Some(1), ..Default::default() });
    assert_eq!(counts.expect("a daemon"), Counts { written: 1, dropped: 1, too_big: 0 });
    let got = mount.read("cpu1");
    assert!(got == [&long[..], &long].concat(), "long messages are whole");
    assert_eq!(
        cpu.write_to(1, &[0; MESSAGE_MAX + 1]),
        Err(WriteError::TooBig { len: MESSAGE_MAX + 1, max: MESSAGE_MAX })
    );
}

/// What `std::io` writes in several ways, a message each.
fn write_by_io(mut channel: &Channel) {
    writeln!(channel, "{} rows of {:?}", 3, "db").expect("a message");
    write!(channel, "constant").expect("a message");
    channel.write_all(b"of bytes\n\n").expect("a message");
    assert_eq!(Write::write(&mut channel, b"").expect("no message"), 0);
    let parts = [IoSlice::new(b"of "), IoSlice::new(b"parts\n")];
    assert_eq!(channel.write_vectored(&parts).expect("a message"), 9);
    channel.write_all(b"\n").expect("a message");
    let mut lines = LineWriter::new(channel);
    for part in ["a line ", "of ", "parts\n"] {
        lines.write_all(part.as_bytes()).expect("a part");
    }
    lines.flush().expect("nothing to do");
}

/// Each call is one message, whole. A flush finishes no sub-buffer.
#[test]
fn io_write_makes_a_message_of_each_call() {
    let geometry = "subbuf-size=4K:n-subbufs=4";
    for transport in [TransportChoice::Socket, TransportChoice::Auto] {
        let mount =
            Mount::new(&[&format!("--channel=raw:{geometry}"), &format!("--channel=log:timed:{geometry}")]);
        for name in ["raw", "log"] {
            let channel =
                Channel::builder(mount.point(), name).transport(transport).open().expect("a channel");
            on_cpu(1, || write_by_io(&channel));
            channel.sync().expect("a daemon");
            assert_eq!(mount.stats(name)["total.produced"], 0, "a flush did something");
        }
        let raw = mount.read("raw1");
        let expected = "3 rows of \"db\"\nconstantof bytes\n\nof parts\n\na line of parts\n";
        assert_eq!(String::from_utf8(raw).expect("text"), expected);
        let log = records(&mount, "log");
        assert!(log.iter().all(|record| (record.cpu, record.id) == (1, id::TEXT)), "{log:?}");
        let texts: Vec<String> = log.iter().map(|record| record.text()).collect();
        let expected = ["3 rows of \"db\"", "constant", "of bytes\n", "of parts", "", "a line of parts"];
        assert_eq!(texts, expected, "{transport:?}");
    }
}

/// Nothing is cut: what is too long is an error and counted, and so is what has no daemon.
#[test]
fn io_write_refuses_what_is_no_message() {
    let mut mount =
        Mount::new(&["--channel=raw:subbuf-size=100:n-subbufs=2", "--channel=log:timed:subbuf-size=100"]);
    for (name, max) in [("raw", 100), ("log", 100 - 16)] {
        for transport in [TransportChoice::Socket, TransportChoice::Auto] {
            let channel =
                Channel::builder(mount.point(), name).transport(transport).open().expect("a channel");
            (&channel).write_all(&vec![b'x'; max]).expect("as long as possible");
            let error = (&channel).write_all(&vec![b'x'; max + 1]).expect_err("too long");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name} {transport:?}");
            let expected = WriteError::TooBig { len: max + 1, max };
            assert_eq!(error.downcast::<WriteError>().expect("the cause"), expected);
            channel.sync().expect("a daemon");
        }
        assert_eq!(mount.stats(name)["total.too_big"], 2, "{name}");
    }
    let whole =
        |payload: &[u8]| matches!(Event::decode(id::TEXT, payload), Event::Text(text) if text.len() == 84);
    let log = records(&mount, "log");
    assert!(log.len() == 2 && log.iter().all(|record| whole(&record.payload)), "{log:?}");
    let channel = mount.channel("raw");
    mount.end(Signal::SIGTERM);
    let error = writeln!(&channel, "{}", 1).expect_err("no daemon");
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}
