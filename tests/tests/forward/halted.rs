//! The daemon ends between an acknowledgement and what the forwarder gives back for it.

use std::fs;

use nix::sys::signal::Signal;
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::header;

const ARGS: &[&str] = &["--subbuf-size=4K", "--n-subbufs=8", "--flush-interval=never"];

/// Most work of a forwarder that does not spin, in clock ticks.
const TICKS_MAX: u64 = 50;

/// Returns how long a process has worked, in clock ticks.
#[track_caller]
fn worked(pid: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let behind = stat.rsplit(") ").next().expect("fields behind the command");
    // User and system time are the fields 14 and 15, and the command is the second.
    behind.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

/// Then `cat` reads past what the forwarder has taken.
#[test]
fn forwarder_goes_on_where_another_reader_stopped() {
    let (server, mut mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--flush-interval=never"]);
    let message = |byte: u8| vec![byte; 4096];
    let is_stored = |number| {
        eventually("a sub-buffer in the stream", || {
            let last = client.find_last("relay.h.cpu.cpu0");
            last.is_some_and(|last| header(&last, "Relay-Number") == number)
        });
    };
    assert_eq!(mount.send(0, &[&message(b'a')]).written, 1);
    assert_eq!(mount.send(0, &[b"flushed"]).written, 1);
    is_stored("0");
    server.halt();
    mount.poke("cpu", "flush");
    forwarder.says("does not answer");
    mount.end(Signal::SIGKILL);
    server.resume();
    is_stored("1");
    mount.restart(ARGS);
    let pid = forwarder.process().pid().to_string();
    eventually("the forwarder among the readers", || {
        let status = fs::read_to_string(mount.control("cpu", "status")).unwrap_or_default();
        status.split_whitespace().any(|word| word == pid)
    });
    // `cat` is faster than the forwarder.
    forwarder.process().signal(Signal::SIGSTOP);
    assert_eq!(mount.send(0, &[&message(b'c'), &message(b'd'), b"for cat"]).written, 3);
    eventually("what cat reads", || mount.read("cpu0").ends_with(b"for cat"));
    let behind: Vec<Vec<u8>> = (b'p'..b's').map(message).collect();
    let behind: Vec<&[u8]> = behind.iter().map(|message| &message[..]).collect();
    assert_eq!(mount.send(0, &behind).written, 3);
    mount.poke("cpu", "flush");
    forwarder.process().signal(Signal::SIGCONT);
    all_is_given_back(&mount, "cpu");
    assert!(worked(&pid) < TICKS_MAX, "{} ticks", worked(&pid));
    forwarder.end();
    let messages = client.read();
    let bytes: Vec<u8> = messages.iter().flat_map(|message| message.payload.to_vec()).collect();
    assert!(bytes.ends_with(&behind.concat()), "{} bytes", bytes.len());
}

/// In a container, for instance, where the socket's directory is not visible.
#[test]
fn daemon_whose_socket_is_missing_is_waited_for() {
    for args in [&[][..], &["-c", "cpu"]] {
        let (server, mut mount) = (Server::start(""), Mount::new(ARGS));
        let client = server.client();
        client.create(|_| {});
        assert_eq!(mount.send(0, &[b"kept"]).written, 1);
        mount.poke("cpu", "flush");
        fs::remove_file(fs::read_link(mount.path(".relay/socket")).expect("a path")).expect("a socket");
        let mut forwarder = Forwarder::start(&mount, &server.url(), "h", args);
        forwarder.says("are not forwarded: no daemon answers on ");
        mount.end(Signal::SIGKILL);
        mount.restart(ARGS);
        all_is_given_back(&mount, "cpu");
        forwarder.says("cpu: forwarded again");
        let ticks = worked(&forwarder.process().pid().to_string());
        assert!(ticks < TICKS_MAX, "{ticks} ticks");
        forwarder.end();
        assert_eq!(forwarder.said().matches("no daemon answers").count(), 1, "{}", forwarder.said());
        let messages = client.read();
        assert!(messages.iter().any(|message| &message.payload[..] == b"kept"), "{}", messages.len());
    }
}
