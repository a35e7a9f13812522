//! What messages by the socket cost, beside bare packets to a process that receives: one at a time, answered, long, and
//! from many connections at once.
//!
//! `RELAYFSD_BESIDE` names another build of `relayfsd`, which then takes part in each round.

use std::process::{Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use relay::wire::frame::{Body, WRITE_REPLY, Write, WriteReply};
use relay_producer::{Channel, TransportChoice, WriteError};
use relayfs_tests::Mount;
use relayfs_tests::measure::{
    MESSAGE_LEN, Measurement, Values, WRITER_CPU, alternately, head, on_cpu, row, title,
};
use relayfs_tests::peer::{self, Peer};
use relayfs_tests::peers::{packets, play_other_end, sent_back};

/// Environment variable with the path of another daemon.
const BESIDE: &str = "RELAYFSD_BESIDE";
/// Messages of a round.
const MESSAGES: usize = 200_000;
/// Bytes of a round of long messages, at most.
const BYTES: usize = 512 << 20;
/// Lengths of messages that are sent one at a time.
const LENGTHS: [usize; 3] = [MESSAGE_LEN, 1024, 60 << 10];
/// Connections that send at once.
const MANY: [usize; 2] = [8, 100];

fn main() -> ExitCode {
    if let Some(played) = play_other_end() {
        return played;
    }
    head("messages by the socket");
    let beside = std::env::var(BESIDE).ok();
    let mut mounts = vec![("relayfs", Mount::new(&[]))];
    if let Some(path) = &beside {
        mounts.push((path, Mount::prepared(&[], |command| instead(path, command))));
    }
    for len in LENGTHS {
        one_way(&mounts, len);
    }
    answered(&mounts);
    beside_direct(&mounts);
    for n in MANY {
        at_once(&mounts, n);
    }
    ExitCode::SUCCESS
}

/// Returns a command with another program, for as long as this process lives.
fn instead<'a>(path: &str, command: &mut Command) -> &'a mut Command {
    let mut other = Command::new(path);
    other.args(command.get_args()).stdin(Stdio::null());
    Box::leak(Box::new(other))
}

fn open(mount: &Mount, name: &str, transport: TransportChoice) -> Channel {
    let geometry = "subbuf-size=1M:n-subbufs=4:overwrite".parse().expect("a geometry");
    let builder = Channel::builder(mount.point(), name).create(true).geometry(geometry);
    builder.transport(transport).open().expect("opening a channel")
}

fn count(len: usize) -> usize {
    MESSAGES.min(BYTES / len)
}

fn each(taken: Duration, n: usize) -> f64 {
    taken.as_secs_f64() * 1e9 / n as f64
}

/// Sends messages until all have arrived.
fn send(channel: &Channel, message: &[u8], n: usize) {
    for _ in 0..n {
        while let Err(error) = channel.write(message) {
            assert_eq!(error, WriteError::Full);
            thread::yield_now();
        }
    }
    channel.sync().expect("the answer, which comes after all messages");
}

fn timed(act: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    act();
    begun.elapsed()
}

fn table(names: &[&str], values: &[Values]) {
    for (name, each) in names.iter().zip(values) {
        let over: Vec<String> = values.iter().map(|other| format!("{:<22}", each.over(other))).collect();
        row(name, format_args!("{:<30} /: {}", each.to_string(), over.join(" ")));
    }
}

fn one_way(mounts: &[(&str, Mount)], len: usize) {
    title(&format!("{len} B each, one at a time, until all have arrived"), "ns; over each of these rows");
    let (message, n) = (vec![b'm'; len], count(len));
    let message = message.as_slice();
    let mut names = vec!["SOCK_SEQPACKET, to a process that receives"];
    let mut measurements: Vec<Measurement<'_>> = vec![Box::new(|| each(packets(message, n), n))];
    for (name, mount) in mounts {
        names.push(name);
        let channel = open(mount, "by-socket", TransportChoice::Socket);
        measurements
            .push(Box::new(move || on_cpu(WRITER_CPU, || each(timed(|| send(&channel, message, n)), n))));
    }
    table(&names, &alternately(&mut measurements));
}

fn answered(mounts: &[(&str, Mount)]) {
    title(&format!("{MESSAGE_LEN} B each, one at a time, each answered"), "ns; over each of these rows");
    let n = count(MESSAGE_LEN) / 4;
    let message = [b'm'; MESSAGE_LEN];
    let messages = peer::messages(&[&message]);
    let messages = messages.as_slice();
    let mut names = vec!["SOCK_SEQPACKET, to a process that sends it back"];
    let mut measurements: Vec<Measurement<'_>> = vec![Box::new(|| each(sent_back(&message, n), n))];
    for (name, mount) in mounts {
        names.push(name);
        let peer = Peer::hello(mount);
        let channel = peer.open("by-socket", 0);
        let ask = move || {
            let write = Write { channel, cpu: 0, wait_ms: 0, lost: 0, messages }.frame(WRITE_REPLY, 9);
            let reply: WriteReply = peer.ask(&write).expect("counts");
            assert_eq!(reply.written, 1);
        };
        measurements
            .push(Box::new(move || on_cpu(WRITER_CPU, || each(timed(|| (0..n).for_each(|_| ask())), n))));
    }
    table(&names, &alternately(&mut measurements));
}

/// The same channel is written directly by other processes, so that only its CPU's thread may write.
fn beside_direct(mounts: &[(&str, Mount)]) {
    title(
        &format!("{MESSAGE_LEN} B each, into a channel that is also written directly"),
        "ns; over each of these rows",
    );
    let (message, n) = ([b'm'; MESSAGE_LEN], count(MESSAGE_LEN));
    let mut names = vec!["SOCK_SEQPACKET, to a process that receives"];
    let mut measurements: Vec<Measurement<'_>> = vec![Box::new(|| each(packets(&message, n), n))];
    for (name, mount) in mounts {
        names.push(name);
        let direct = open(mount, "both", TransportChoice::Shared);
        let channel = open(mount, "both", TransportChoice::Socket);
        measurements.push(Box::new(move || {
            direct.write(&message).expect("a message that fits");
            on_cpu(WRITER_CPU, || each(timed(|| send(&channel, &message, n)), n))
        }));
    }
    table(&names, &alternately(&mut measurements));
}

/// Sends from many connections, each of a thread of its own that may run anywhere.
fn at_once(mounts: &[(&str, Mount)], n_channels: usize) {
    title(
        &format!("{MESSAGE_LEN} B each, from {n_channels} connections at once"),
        "ns of all; over each of these rows",
    );
    let n = MESSAGES / n_channels;
    let (mut names, mut measurements) = (Vec::new(), Vec::<Measurement<'_>>::new());
    for (name, mount) in mounts {
        names.push(*name);
        let channels: Vec<Channel> =
            (0..n_channels).map(|_| open(mount, "by-socket", TransportChoice::Socket)).collect();
        measurements.push(Box::new(move || {
            let ready = Barrier::new(n_channels + 1);
            let taken = thread::scope(|scope| {
                for channel in &channels {
                    let ready = &ready;
                    scope.spawn(move || {
                        ready.wait();
                        send(channel, &[b'm'; MESSAGE_LEN], n);
                        ready.wait();
                    });
                }
                ready.wait();
                timed(|| {
                    ready.wait();
                })
            });
            each(taken, n * n_channels)
        }));
    }
    table(&names, &alternately(&mut measurements));
}
