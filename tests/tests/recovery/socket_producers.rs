//! Daemons that are killed while producers send by the socket. What is in the buffers is whole and in order, and the next
//! daemon continues behind it.

use std::thread;

use nix::sys::signal::{Signal, kill};
use relay_producer::{Channel, WriteError};
use relayfs_tests::{Mount, eventually, exit_code, text};

const ARGS: &[&str] = &["--subbuf-size=1M", "--n-subbufs=8"];
const PRODUCERS: usize = 3;
const KILLS: usize = 3;
/// Fewer bytes than the buffer has, so that nothing is dropped.
const MESSAGES_MAX: usize = 50_000;

/// Sends numbered messages into the buffer of CPU 0, until the daemon is gone.
fn send(channel: &Channel, name: &str) {
    for number in 0..MESSAGES_MAX {
        let message = format!("{name} {number}\n");
        loop {
            match channel.write_to(0, message.as_bytes()) {
                Ok(()) => break,
                Err(WriteError::Full) => thread::yield_now(),
                Err(error) => return assert_eq!(error, WriteError::Disconnected),
            }
        }
    }
}

/// Checks that each producer's messages are the first ones that it sent, and returns how many there are in all.
#[track_caller]
fn check(read: &str, names: &[String]) -> usize {
    assert!(read.is_empty() || read.ends_with('\n'), "whole messages");
    let mut next = vec![0; names.len()];
    for line in read.lines() {
        let (name, number) = line.split_once(' ').unwrap_or_else(|| panic!("no message: {line:?}"));
        let index =
            names.iter().position(|known| known == name).unwrap_or_else(|| panic!("of none: {line:?}"));
        assert_eq!(number, next[index].to_string(), "of {name}");
        next[index] += 1;
    }
    next.iter().sum()
}

#[test]
fn daemon_killed_while_producers_send_leaves_whole_messages_in_order() {
    let mut mount = Mount::new(ARGS);
    for round in 0..KILLS {
        let daemon = mount.daemon().pid();
        let names: Vec<String> = (0..PRODUCERS).map(|number| format!("r{round}p{number}")).collect();
        let before = mount.stats("cpu")["total.written"];
        let producers: Vec<(&String, Channel)> =
            names.iter().map(|name| (name, mount.channel("cpu"))).collect();
        thread::scope(|scope| {
            for (name, channel) in &producers {
                scope.spawn(|| send(channel, name));
            }
            let some = 1000 * (round as u64 + 1);
            eventually("some messages", || mount.stats("cpu")["total.written"] >= before + some);
            kill(daemon, Signal::SIGKILL).unwrap();
        });
        assert_eq!(exit_code(mount.daemon().wait()), 128 + 9);
        mount.restart(ARGS);
        // A frame may have been written and not counted when the daemon died.
        let counted = mount.stats("cpu")["total.written"] - before;
        let found = check(&text(&mount.read("cpu0")), &names);
        assert!(found as u64 >= counted, "{found} found, {counted} counted");
        // The next daemon has the files from the last one, and no producer has them.
        mount.send(0, &[b"next ", b"daemon"]);
        assert_eq!(mount.read("cpu0"), b"next daemon");
    }
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}
