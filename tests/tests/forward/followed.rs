//! `relay-forward --from -f` while servers of a cluster, the forwarder and the daemon end and return: each line once, and
//! those of a CPU in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use relay_producer::Channel;
use relayfs_tests::direct::on_cpu;
use relayfs_tests::forwarded::Follower;
use relayfs_tests::{Mount, direct, eventually};

use crate::cluster;
use crate::order::all_is_given_back;
use crate::server::{Client, Forwarder, Server};

const CHANNEL: &str = "box";
const ARGS: &[&str] = &["--channel=box:timed:subbuf-size=4K:n-subbufs=16"];
const CPUS: usize = 2;
/// Lines that a reader prints between two ends.
const LINES: usize = 50;

/// What ends, one after the other. The test asks the first server, so that stays.
const ENDS: [End; 8] = [
    End::Server(1),
    End::Forwarder,
    End::Leader,
    End::Server(2),
    End::Daemon,
    End::Leader,
    End::Server(1),
    End::Server(2),
];

#[derive(Clone, Copy, Debug)]
enum End {
    Server(usize),
    Leader,
    Forwarder,
    Daemon,
}

#[test]
fn follower_of_a_leader_prints_each_line_once() {
    follow(false);
}

#[test]
fn follower_of_replicas_prints_each_line_once() {
    follow(true);
}

/// Writes numbered lines into a CPU's buffer until it is stopped. Returns how many.
fn write(channel: &Channel, cpu: usize, stop: &AtomicBool) -> usize {
    let mut written = 0;
    // Acquire: pairs with the store of the test.
    while !stop.load(Ordering::Acquire) {
        match channel.write(format!("{cpu} {written}").as_bytes()) {
            Ok(()) => written += 1,
            Err(_) => thread::park_timeout(Duration::from_millis(1)),
        }
        if written % 16 == 0 {
            thread::park_timeout(Duration::from_millis(2));
        }
    }
    written
}

fn follow(allow_direct: bool) {
    let mut servers = cluster::start();
    let all = servers.each_ref().map(Server::url).join(",");
    let client = Client::connect(&servers[0].url(), async_nats::ConnectOptions::new());
    client.create(|config| (config.num_replicas, config.allow_direct) = (3, allow_direct));
    let mut mount = Mount::with_sequences(ARGS);
    let mut forwarder = Forwarder::start(&mount, &all, "h", &["-c", CHANNEL]);
    let follower = Follower::of(&all, &["-c", CHANNEL, "-o", "cat", "--hold", "20ms"]);
    let channel = mount.direct_channel(CHANNEL);
    let stop = AtomicBool::new(false);
    let n_lines = || follower.out().lines().count();
    let progress = |what: &str| {
        let before = n_lines();
        eventually(&format!("lines {what}: {}", follower.said()), || n_lines() > before + LINES);
    };
    let written = thread::scope(|scope| {
        let write = |cpu| {
            let (channel, stop) = (&channel, &stop);
            scope.spawn(move || on_cpu(cpu, || write(channel, cpu, stop)))
        };
        let writers: Vec<_> = (0..CPUS).map(write).collect();
        for end in ENDS {
            progress(&format!("before {end:?}"));
            match end {
                End::Server(n) => {
                    servers[n].kill();
                    progress("by two servers");
                    servers[n].restart();
                }
                End::Leader => client.step_down(),
                End::Forwarder => {
                    forwarder.kill();
                    forwarder.restart();
                }
                End::Daemon => {
                    mount.end(Signal::SIGKILL);
                    mount.restart_prepared(ARGS, direct::with_sequences);
                }
            }
        }
        progress("at the end");
        // Release: pairs with the load of the writers.
        stop.store(true, Ordering::Release);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect::<Vec<usize>>()
    });
    eventually("a flush", || std::fs::write(mount.control(CHANNEL, "flush"), "1").is_ok());
    all_is_given_back(&mount, CHANNEL);
    eventually(&format!("all lines: {}", follower.said()), || n_lines() >= written.iter().sum());
    forwarder.end();
    let out = follower.out();
    let said = follower.end();
    for (cpu, written) in written.into_iter().enumerate() {
        let of_cpu = |line: &str| -> Option<usize> {
            let (on, number) = line.split_once(' ').expect("two words");
            (on == cpu.to_string()).then(|| number.parse().expect("a number"))
        };
        let numbers: Vec<usize> = out.lines().filter_map(of_cpu).collect();
        let wrong = numbers.iter().zip(0..).find(|(number, expected)| *number != expected);
        assert_eq!((wrong, numbers.len()), (None, written), "cpu{cpu}: {said}");
    }
    // What a writer could not write is said beside the stream's changes, and nothing else is.
    let (lost, changes): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| line.ends_with("(buffer full)"));
    assert!(changes.iter().all(|line| line.contains("stream 'relay'")), "{lost:?} {changes:?}");
    assert!(changes.len() <= 4 * ENDS.len(), "one line a change: {changes:?}");
}
