//! The daemon goes away, comes back, or sends invalid answers.
//!
//! Calls fail, and later calls work again.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::{Daemon, Manners, PATIENCE, geometry, hello_reply, open_by_socket, open_reply};
use relay::wire::frame::{Body, Refusal, WriteReply};
use relay_producer::{BatchOptions, Channel, RequestError, WriteError};
use tempfile::tempdir;

/// Repeats a call until it succeeds. The calls try to connect at most once a second.
fn until_it_works<T, E: std::fmt::Debug>(mut call: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error:?}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn write_finds_the_new_daemon_and_opens_the_channel_again() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners::default());
    let channel = Channel::builder(&daemon.socket, "app/log").create(true).open().unwrap();
    channel.write(b"before").unwrap();
    daemon.wait_for("the message", |store| store.messages.len() == 1);
    drop(daemon);
    assert_eq!(channel.write(b"lost"), Err(WriteError::Disconnected));
    assert_eq!(channel.write(b"lost"), Err(WriteError::Disconnected));

    let daemon = Daemon::start(&dir, Manners { geometry: "n-subbufs=7", ..Manners::default() });
    until_it_works(|| channel.write(b"after"));
    daemon.wait_for("the message", |store| store.messages.len() == 1);
    assert_eq!(daemon.store().opened, [("app/log".into(), true)]);
    assert_eq!(daemon.store().messages[0].1, b"after");
    assert_eq!(channel.geometry().n_subbufs(), 7, "the new one's geometry");
}

#[test]
fn batch_and_flush_find_the_new_daemon_or_report_why_not() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners::default());
    let channel = Channel::open(&daemon.socket, "cpu").unwrap();
    drop(daemon);
    // The flush looks, notices the loss, and looks for another daemon at once.
    let error = channel.flush().unwrap_err();
    assert!(matches!(error, RequestError::Reopen(_)), "{error}");
    assert!(error.to_string().contains("no relayfs is mounted on"), "{error}");

    let daemon = Daemon::start(&dir, Manners::default());
    let written = until_it_works(|| channel.write_batch(["x"], BatchOptions::default()));
    assert_eq!(written.written, 1);
    channel.flush().unwrap();
    assert_eq!(daemon.store().flushes, [1]);
}

#[test]
fn daemon_with_another_socket_is_found_through_the_mount() {
    let dir = tempdir().unwrap();
    let mount = dir.path().join("mount");
    fs::create_dir_all(mount.join(".relay")).unwrap();
    let link = mount.join(".relay/socket");
    let old = Daemon::start_at(&dir.path().join("old"), Manners::default());
    symlink(&old.socket, &link).unwrap();
    let channel = Channel::open(&mount, "cpu").unwrap();
    drop(old);
    let new = Daemon::start_at(&dir.path().join("new"), Manners::default());
    fs::remove_file(&link).unwrap();
    symlink(&new.socket, &link).unwrap();
    until_it_works(|| channel.write(b"here"));
    new.wait_for("the message", |store| store.messages.len() == 1);
}

#[test]
fn lost_connection_is_retried_at_most_once_a_second() {
    let dir = tempdir().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let daemon = Daemon::start_script(&dir, {
        let connections = connections.clone();
        move |peer| {
            // Only the first connection gets a channel.
            if connections.fetch_add(1, Ordering::SeqCst) == 0 {
                peer.receive();
                peer.send(&hello_reply().frame(0, 1));
                peer.receive();
                peer.send(&open_reply(&geometry(""), false).frame(0, 2));
                peer.receive();
            }
        }
    });
    let channel = open_by_socket(&daemon);
    let started = Instant::now();
    let tries = || connections.load(Ordering::SeqCst) as u64 - 1;
    while tries() < 3 {
        let _ = channel.write(b"x");
        assert!(started.elapsed() < PATIENCE, "{} tries", tries());
    }
    let (tries, seconds) = (tries(), started.elapsed().as_secs());
    assert!(tries <= seconds + 1, "{tries} tries in {seconds} seconds");
}

#[test]
fn hang_up_during_a_batch_keeps_known_counts() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners { frames_max: 5, ..Manners::default() });
    let channel = Channel::open(&daemon.socket, "cpu").unwrap();
    let message = [b'x'; 1000];
    let error =
        channel.write_batch(std::iter::repeat_n(message, 100_000), BatchOptions::default()).unwrap_err();
    assert!(matches!(error.cause, RequestError::Disconnected), "{error}");
    assert_eq!(error.counts.written, daemon.store().messages.len() as u64);
    assert!(error.counts.written > 0);
}

#[test]
fn invalid_answer_ends_only_the_connection() {
    let garbage: [(&str, Vec<u8>); 4] = [
        ("shorter than a frame", b"huh?".to_vec()),
        ("unexpected Hello", hello_reply().frame(0, 4)),
        ("no counts", relay::wire::frame::done(relay::wire::frame::FrameType::Flush, 4)),
        ("a packet of 60000 bytes", vec![0; 60_000]),
    ];
    for (expected, answer) in garbage {
        let dir = tempdir().unwrap();
        let daemon = Daemon::start_script(&dir, move |peer| {
            for answer in
                [hello_reply().frame(0, 1), open_reply(&geometry(""), false).frame(0, 2), answer.clone()]
            {
                peer.receive();
                peer.send(&answer);
            }
            peer.receive();
        });
        let channel = open_by_socket(&daemon);
        let error = channel.write_batch(["x"], BatchOptions::default()).unwrap_err();
        assert!(matches!(error.cause, RequestError::Garbled(_)), "{expected}: {error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[test]
fn refused_frame_ends_the_batch_and_keeps_other_counts() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start_script(&dir, |peer| {
        for answer in [
            hello_reply().frame(0, 1),
            open_reply(&geometry(""), false).frame(0, 2),
            WriteReply { written: 7, ..WriteReply::default() }.frame(0, 4),
            Refusal { errno: 6, text: "CPU 1 is offline".into() }.frame(0, 5),
            WriteReply { written: 9, ..WriteReply::default() }.frame(0, 6),
        ] {
            peer.receive();
            peer.send(&answer);
        }
        peer.receive();
    });
    let channel = open_by_socket(&daemon);
    let error =
        channel.write_batch(std::iter::repeat_n([0; 40_000], 3), BatchOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "CPU 1 is offline");
    assert_eq!(error.counts.written, 16);
}
