//! Exactly once: forwarder, daemon and server are killed at random while two hosts write raw and timed channels.
//!
//! `sh tests/long.sh forward` for more of it: RELAYFS_FORWARD_ROUNDS.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use relay_producer::Channel;
use relayfs_tests::numbered::Random;
use relayfs_tests::stress::{Done, StressWriter, assert_each_once};
use relayfs_tests::{Mount, direct, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{raw, sub_buffers, texts};

const ARGS: &[&str] =
    &["--subbuf-size=16K", "--n-subbufs=4", "--channel=box:timed:subbuf-size=4K:n-subbufs=4"];
const HOSTS: [&str; 2] = ["a", "b"];
/// Longest time between a sign of work and a kill.
const LIFE_MAX_MS: usize = 30;
/// The duplicate window, the shortest that a server allows, and a longer outage.
const WINDOW: Duration = Duration::from_millis(100);
const OUTAGE: Duration = Duration::from_millis(150);

fn rounds() -> u64 {
    let rounds = std::env::var("RELAYFS_FORWARD_ROUNDS");
    rounds.map_or(6, |text| text.parse().expect("RELAYFS_FORWARD_ROUNDS is a number"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Forwarder,
    Daemon,
    Server,
}

#[test]
fn killed_forwarder_leaves_each_sub_buffer_once() {
    pass(&[Victim::Forwarder]);
}

#[test]
fn killed_daemon_leaves_each_sub_buffer_once() {
    pass(&[Victim::Daemon]);
}

#[test]
fn killed_server_leaves_each_sub_buffer_once() {
    pass(&[Victim::Server]);
}

#[test]
fn all_killed_in_turn_leave_each_sub_buffer_once() {
    pass(&[Victim::Forwarder, Victim::Daemon, Victim::Server]);
}

/// Writes numbered texts until it is stopped. Returns how many.
fn write_texts(channel: &Channel, stop: &AtomicBool) -> u64 {
    let mut written = 0;
    // Acquire: pairs with the store of the test.
    while !stop.load(Ordering::Acquire) {
        match channel.write(written.to_string().as_bytes()) {
            Ok(()) => written += 1,
            Err(_) => thread::park_timeout(Duration::from_millis(1)),
        }
        if written % 64 == 0 {
            thread::park_timeout(Duration::from_millis(1));
        }
    }
    written
}

fn pass(victims: &[Victim]) {
    let mut server = Server::start("");
    let client = server.client();
    client.create(|config| config.duplicate_window = WINDOW);
    let mut mounts = HOSTS.map(|_| Mount::with_sequences(ARGS));
    let mut forwarders =
        [0, 1].map(|host: usize| Forwarder::start(&mounts[host], &server.url(), HOSTS[host], &[]));
    let writers = [0, 1].map(|host: usize| StressWriter::start(&mounts[host], 0, 1..=512, false));
    let channels = [0, 1].map(|host: usize| mounts[host].direct_channel("box"));
    let stop = AtomicBool::new(false);
    let mut random = Random::new(victims.len() as u64 + 7);
    let written = thread::scope(|scope| {
        let texts = channels.each_ref().map(|channel| scope.spawn(|| write_texts(channel, &stop)));
        for _ in 0..rounds() {
            let before = client.count();
            eventually("something stored", || client.count() > before + 4);
            thread::park_timeout(Duration::from_millis(random.below(LIFE_MAX_MS) as u64));
            let host = random.below(HOSTS.len());
            match victims[random.below(victims.len())] {
                Victim::Forwarder => {
                    forwarders[host].kill();
                    thread::park_timeout(OUTAGE);
                    forwarders[host].restart();
                }
                Victim::Daemon => {
                    mounts[host].end(Signal::SIGKILL);
                    mounts[host].restart_prepared(ARGS, direct::with_sequences);
                }
                Victim::Server => {
                    server.kill();
                    thread::park_timeout(OUTAGE);
                    server.restart();
                }
            }
        }
        // Release: pairs with the load of the writers.
        stop.store(true, Ordering::Release);
        texts.map(|text| text.join().expect("a writer"))
    });
    let done: Vec<Done> = writers.into_iter().map(StressWriter::finish).collect();
    for mount in &mounts {
        eventually("a flush", || std::fs::write(mount.control("cpu", "flush"), "1").is_ok());
        ["cpu", "box"].iter().for_each(|channel| all_is_given_back(mount, channel));
    }
    forwarders.iter_mut().for_each(Forwarder::end);
    let stored = sub_buffers(&client.read());
    for (host, (done, written)) in HOSTS.iter().zip(done.into_iter().zip(written)) {
        assert_each_once(raw(&stored, host, "cpu"), &[done]);
        let found = texts(&stored, host, "box");
        let numbers = found.iter().map(|texts| texts.iter().map(|text| text.parse().expect("a number")));
        let numbers: Vec<Vec<u64>> = numbers.map(Iterator::collect).collect();
        assert!(numbers.iter().all(|numbers| numbers.is_sorted()), "{host}: in order");
        let mut all = numbers.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..written), "{host}: {written} texts, each once");
    }
    for forwarder in &forwarders {
        let said = forwarder.said();
        assert!(said.lines().count() < 20 * rounds() as usize, "one line a change: {said}");
    }
}
