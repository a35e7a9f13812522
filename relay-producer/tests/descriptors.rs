//! Descriptors from the daemon are always closed again, and no executed program inherits any.
//!
//! This is the only test of its process, because it counts the process's open descriptors.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Instant;

use common::files::Files;
use common::{Daemon, Manners, PATIENCE, geometry, hello_reply, open_reply};
use relay::wire::frame::{Body, OpenReply, ShareReply};
use relay_producer::Channel;
use tempfile::tempdir;

fn n_open() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until no more descriptors are open than before.
/// The daemon is also in this process, and closes its descriptors a little later.
#[track_caller]
fn all_closed_again(before: usize) {
    let started = Instant::now();
    while n_open() > before {
        let open: Vec<_> =
            fs::read_dir("/proc/self/fd").unwrap().flatten().map(|fd| fs::read_link(fd.path())).collect();
        assert!(started.elapsed() < PATIENCE, "{before} before, now {open:?}");
        std::thread::yield_now();
    }
}

/// Returns the flags of an open file as the kernel prints them, octal.
fn flags(fd: &str) -> u32 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap()
}

#[test]
fn received_descriptors_are_closed_and_not_inherited() {
    let spec = "subbuf-size=4K:overwrite";
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners { geometry: spec, ..Manners::default() });
    let files = Files::with(geometry(spec), 70, 30);
    let damaged = Files::with(geometry(spec), 70, 30);
    damaged.data[40].set_len(1).unwrap();
    let before = n_open();

    for files in [&files, &damaged] {
        daemon.share(files);
        for _ in 0..3 {
            let inherited: Vec<_> =
                fs::read_dir("/proc/self/fd").unwrap().flatten().map(|fd| fd.file_name()).collect();
            let channel = Channel::open(&daemon.socket, "cpu").unwrap();
            for fd in fs::read_dir("/proc/self/fd").unwrap().flatten() {
                let name = fd.file_name().into_string().unwrap();
                // Without the descriptor that reads the directory.
                let is_new = !inherited.contains(&fd.file_name()) && fd.path().exists();
                assert!(
                    !is_new || flags(&name) & 0o2_000_000 != 0,
                    "{:?} is inherited",
                    fs::read_link(fd.path())
                );
            }
            drop(channel);
        }
        all_closed_again(before);
    }

    // A new connection replaces the ended one.
    daemon.share(&files);
    let channel = Channel::open(&daemon.socket, "cpu").unwrap();
    let connected = n_open();
    daemon.hang_up();
    let (accepted, started) = (daemon.accepted(), Instant::now());
    while daemon.accepted() == accepted || channel.write(b"") != Ok(()) {
        let _ = channel.write(&[0; 100]);
        assert!(started.elapsed() < PATIENCE, "no new connection");
    }
    all_closed_again(connected);
    drop(channel);
    all_closed_again(before);
    drop(daemon);

    // More files than announced, fewer, and unrequested ones.
    let stray = files.control.as_raw_fd();
    for count in [5, 20, 31] {
        let socket = dir.path().join(count.to_string());
        let daemon = Daemon::start_script_at(&socket, move |peer| {
            peer.receive();
            peer.send_with(&hello_reply().frame(0, 1), &[stray; 3]);
            peer.receive();
            peer.send_with(
                &OpenReply { n_bufs: 20, ..open_reply(&geometry(""), false) }.frame(0, 2),
                &[stray],
            );
            peer.receive();
            peer.send_with(
                &ShareReply { layout_version: 1, first: 0, count: 20 }.frame(0, 3),
                &vec![stray; count],
            );
            while peer.receive().is_some() {}
        });
        let before = n_open();
        drop(Channel::open(&daemon.socket, "cpu").unwrap());
        all_closed_again(before);
    }
}
