//! A channel that is open when its process forks, and the parent ends: the child goes on writing, at once, and gets a
//! connection of its own when it finishes a sub-buffer.
//!
//! Without the test harness, since a process that forks should have one thread: the program runs itself again, and that
//! one becomes a daemon, which is what producers do who fork.

mod common;

use std::env;
use std::process::{Command, ExitCode};
use std::time::Instant;

use common::files::{Files, pin_anywhere};
use common::{Daemon, Manners, PATIENCE, geometry};
use nix::unistd::daemon;
use relay_producer::Channel;
use tempfile::tempdir;

/// Tells the program to be the one that forks, and where the daemon is.
const SOCKET: &str = "RELAY_TEST_FORK_SOCKET";
const GEOMETRY: &str = "subbuf-size=1000:n-subbufs=64";
/// Messages of 100 bytes that the child writes: a number of sub-buffers.
const N_MESSAGES: usize = 200;

fn main() -> ExitCode {
    match env::var_os(SOCKET) {
        Some(socket) => forks(&Channel::open(socket, "cpu").unwrap()),
        None => reads(),
    }
    ExitCode::SUCCESS
}

fn text(who: &str, number: usize) -> String {
    format!("{:<100}", format!("{who} {number}"))
}

fn forks(channel: &Channel) {
    pin_anywhere();
    channel.write(text("parent", 0).as_bytes()).unwrap();
    // The parent ends in it, without closing anything; the child comes back.
    daemon(true, true).unwrap();
    for number in 0..N_MESSAGES {
        channel.write(text("child", number).as_bytes()).unwrap();
    }
}

fn reads() {
    let dir = tempdir().unwrap();
    let files = Files::new(geometry(GEOMETRY));
    let daemon = Daemon::start(&dir, Manners { geometry: GEOMETRY, ..Manners::default() });
    daemon.share(&files);
    let cpu = common::files::allowed_cpus()[0];
    files.buffers[cpu].arm();
    let status = Command::new(env::current_exe().unwrap()).env(SOCKET, &daemon.socket).status().unwrap();
    assert!(status.success());
    let expected: String =
        [text("parent", 0)].into_iter().chain((0..N_MESSAGES).map(|number| text("child", number))).collect();
    let (started, mut stream) = (Instant::now(), Vec::new());
    while stream.len() < expected.len() {
        assert!(started.elapsed() < PATIENCE, "only {} bytes came", stream.len());
        stream.extend(files.read(cpu));
        std::thread::yield_now();
    }
    assert!(String::from_utf8(stream).unwrap() == expected);
    assert_eq!(files.lost(), 0);
    assert_eq!(daemon.accepted(), 2, "connections: the parent's and the child's");
    if relay::writer::Here::can_share() {
        assert!(files.rings() > 0, "who waits is told, whoever switches");
        assert!(daemon.store().waits.is_empty(), "nothing went by the socket");
    }
    println!("a child writes at once and gets a connection of its own ... ok");
}
