//! A daemon without restartable sequences takes over channels that orphaned producers write directly. It cannot write
//! beside them, so it refuses to write until they are gone. Reads succeed.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, TransportChoice, Wait};
use relayfs_tests::direct::{with_sequences, without_sequences};
use relayfs_tests::known::Pattern;
use relayfs_tests::progress::get;
use relayfs_tests::streams::{Numbers, Received};
use relayfs_tests::stress::{Done, StressWriter};
use relayfs_tests::{Mount, Process, eventually, program, run, text};

const ARGS: [&str; 2] = ["--subbuf-size=64K", "--n-subbufs=8"];
/// Numbers of the socket writers, after those of all direct writers.
const BY_SOCKET: u32 = 1000;
/// Least messages of a direct writer beside the daemon.
const BESIDE: u64 = 20_000;

/// Kills the daemon, and starts one without sequences.
#[track_caller]
fn restart_without_sequences(mount: &mut Mount) {
    mount.end(Signal::SIGKILL);
    mount.restart_prepared(&ARGS, without_sequences);
}

/// Takes the data of a buffer, as far as it is written.
fn take(mount: &Mount, cpu: usize, received: &mut Received<'_>) {
    received.take(&mount.read(&format!("cpu{cpu}")));
}

#[test]
fn messages_of_both_kinds_of_writers_stay_whole() {
    let mut mount = Mount::with_sequences(&ARGS);
    let writers: Vec<_> = (0..2).map(|number| StressWriter::start(&mount, number, 24..=400, false)).collect();
    let attempts = || writers.iter().map(StressWriter::attempts).sum::<u64>();
    eventually("first messages", || writers.iter().all(|writer| writer.attempts() > 0));
    mount.end(Signal::SIGKILL);
    mount.restart_prepared(&ARGS, without_sequences);

    let n_cpus = mount.channel("cpu").n_bufs();
    let (pattern, is_over) = (Pattern::default(), AtomicBool::new(false));
    let mut buffers: Vec<_> = (0..n_cpus).map(|_| Received::new(&pattern, false)).collect();
    let begun = attempts();
    let accepted = thread::scope(|scope| {
        let (mount, pattern, is_over) = (&mount, &pattern, &is_over);
        let senders: Vec<_> = (0..n_cpus)
            .map(|cpu| {
                scope.spawn(move || {
                    let channel = mount.channel("cpu");
                    let options = BatchOptions { cpu: Some(cpu), ..BatchOptions::default() };
                    let (mut message, mut accepted) = (vec![0; 200], 0);
                    while !is_over.load(Ordering::Acquire) {
                        pattern.put(&mut message, BY_SOCKET + cpu as u32, accepted as u32);
                        match channel.write_batch([&message[..]], options) {
                            Ok(counts) => accepted += counts.written,
                            Err(error) => assert!(error.to_string().contains("rseq"), "{error}"),
                        }
                        fs::write(mount.control("cpu", "flush"), "1").unwrap_or_default();
                    }
                    accepted
                })
            })
            .collect();
        let mut last = 0;
        while attempts() < begun + BESIDE {
            buffers.iter_mut().enumerate().for_each(|(cpu, received)| take(mount, cpu, received));
            let now = attempts();
            eventually("further messages", || attempts() > last || now >= begun + BESIDE);
            last = now;
        }
        is_over.store(true, Ordering::Release);
        senders.into_iter().map(|sender| sender.join().unwrap()).collect::<Vec<u64>>()
    });
    assert_eq!(accepted.iter().sum::<u64>(), 0, "the daemon wrote beside others");

    // When they are gone, the daemon writes.
    writers.iter().for_each(StressWriter::stop);
    let done: Vec<Done> = writers.into_iter().map(StressWriter::finish).collect();
    buffers.iter_mut().enumerate().for_each(|(cpu, received)| take(&mount, cpu, received));
    let mut message = vec![0; 200];
    for (cpu, received) in buffers.iter_mut().enumerate() {
        pattern.put(&mut message, BY_SOCKET + cpu as u32, 0);
        assert_eq!(mount.send(cpu, &[&message]).written, 1);
        take(&mount, cpu, received);
        received.finish();
    }
    let mut numbers = std::collections::BTreeMap::<u32, Numbers>::new();
    for (writer, of_cpu) in buffers.iter().flat_map(|received| &received.writers) {
        numbers.entry(*writer).or_default().merge(of_cpu);
    }
    for (writer, stream) in done.iter().flat_map(Done::streams) {
        let read = numbers.remove(&writer).unwrap_or_default();
        assert_eq!((read.end(), read.count()), (get(&stream.numbered), get(&stream.numbered)), "{writer}");
    }
    assert_eq!(numbers.len(), n_cpus, "one message of each writer by the socket");
}

/// Starts a `relay-producer` that holds a channel's buffers, and writes when it gets a line.
fn holder(mount: &Mount) -> Process {
    let mut command = std::process::Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["--transport", "shared"]);
    Process::start(with_sequences(&mut command).stdin(Stdio::piped()))
}

#[test]
fn writes_are_refused_until_the_last_orphaned_producer_is_gone() {
    let mut mount = Mount::with_sequences(&ARGS);
    let mut holder = holder(&mount);
    use std::io::Write;
    holder.child().stdin.as_mut().unwrap().write_all(b"before\n").unwrap();
    let n_cpus = mount.channel("cpu").n_bufs();
    eventually("its message", || mount.stats("cpu")["total.bytes"] > 0);
    restart_without_sequences(&mut mount);

    let channel = mount.channel("cpu");
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    let refused = channel.write_batch([b"refused"], options).unwrap_err().to_string();
    assert!(refused.contains("rseq") && refused.contains("producers of an earlier relayfsd"), "{refused}");
    let dropped = mount.stats("cpu")["total.dropped"];
    assert_eq!(dropped, 1, "what is refused counts");
    for (file, text) in [("msg", "message"), ("flush", "1"), ("reset", "1")] {
        let error = fs::write(mount.control("cpu", file), text).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{file}");
    }
    assert_eq!(mount.stats("cpu")["total.dropped"], dropped + 1, "msg");
    // Reads succeed, and so do writes to other channels.
    let read: Vec<u8> = (0..n_cpus).flat_map(|cpu| mount.read(&format!("cpu{cpu}"))).collect();
    assert_eq!(text(&read), "before\n");
    let other = ["-c", "other", "--create", "message"];
    let mut command = std::process::Command::new(program("relay-producer"));
    let made = run(command.arg("-m").arg(mount.point()).args(other));
    assert!(made.status.success(), "{}", text(&made.stderr));

    // A batch that may wait does so, and is written when they are gone.
    let waiter = thread::spawn({
        let point = mount.point().to_owned();
        move || {
            let channel = Channel::builder(&point, "cpu").transport(TransportChoice::Socket).open().unwrap();
            let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
            channel.write_batch([b"waited"], options).unwrap()
        }
    });
    let short = BatchOptions { wait: Wait::AtMost(std::time::Duration::from_millis(1)), ..options };
    assert_eq!(channel.write_batch([b"too late"], short).unwrap().dropped, 1);
    assert!(!waiter.is_finished());
    holder.signal(Signal::SIGKILL);
    holder.wait();
    assert_eq!(waiter.join().unwrap().written, 1);
    assert_eq!(channel.write_batch([b" written"], options).unwrap().written, 1);
    assert_eq!(text(&mount.read("cpu0")), "waited written");
    fs::write(mount.control("cpu", "reset"), "1").unwrap();
    // A clean end waits for nothing.
    drop(channel);
    assert!(mount.end(Signal::SIGTERM).success());
}

/// The daemon shares buffers with no writer.
#[test]
fn daemon_without_sequences_shares_no_buffers() {
    let mount = Mount::prepared(&[], without_sequences);
    let mut command = std::process::Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["--transport", "shared", "message"]);
    let refused = run(with_sequences(&mut command));
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    assert!(said.contains("no restartable sequences"), "{said}");
}
