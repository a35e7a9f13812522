//! Producers that write directly while their daemon is killed: they go on without an error, nothing they wrote is lost, and
//! they find the next daemon, which reads on.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use relay::layout::paths::state_dir;
use relay_producer::{BatchOptions, Channel, Transport, Wait, WriteError};
use relayfs_tests::direct::{assert_direct, on_cpu, pin, with_sequences};
use relayfs_tests::known::Pattern;
use relayfs_tests::numbered::{Tag, message, tags};
use relayfs_tests::progress::get;
use relayfs_tests::streams::Received;
use relayfs_tests::stress::StressWriter;
use relayfs_tests::{Mount, Process, eventually, exit_code, left, program, text};

/// A channel that is written directly, unless this process cannot.
fn direct_channel(mount: &Mount) -> Option<Channel> {
    let channel = mount.direct_channel("cpu");
    (channel.transport() == Transport::Shared).then_some(channel)
}

fn line(thread: usize, seq: u32) -> Vec<u8> {
    message(Tag { producer: 0, thread: thread as u32, seq }, 20 + seq as usize % 80)
}

/// The numbers of each thread's messages, in the order in which they come.
fn numbers(streams: &[Vec<u8>], n_threads: usize) -> Vec<Vec<u32>> {
    let mut numbers = vec![Vec::new(); n_threads];
    for tag in streams.iter().flat_map(|stream| tags(stream)) {
        numbers[tag.thread as usize].push(tag.seq);
    }
    numbers
}

/// "kill -9 the daemon while threads write: no write fails, all bytes are in the files"; and the next daemon has them.
#[test]
fn a_daemon_that_is_killed_is_not_missed_by_who_writes() {
    for (args, geometry) in [
        (&["--subbuf-size=64K", "--n-subbufs=500"][..], "subbuf-size=64K:n-subbufs=500"),
        (&["--subbuf-size=4K", "--overwrite"], "subbuf-size=4K:overwrite"),
    ] {
        let mut mount = Mount::new(args);
        let Some(channel) = direct_channel(&mount) else { return };
        let (n_threads, n_bufs) = (4, channel.n_bufs());
        let counts: Vec<_> = (0..n_threads).map(|_| AtomicU32::new(0)).collect();
        let sum = || counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<u32>();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for (thread, count) in counts.iter().enumerate() {
                let (channel, ended) = (&channel, &ended);
                scope.spawn(move || {
                    pin(thread % 2);
                    // As many as there is room for.
                    while !ended.load(Ordering::SeqCst) && count.load(Ordering::SeqCst) < 200_000 {
                        let seq = count.load(Ordering::SeqCst);
                        assert_eq!(channel.write(&line(thread, seq)), Ok(()), "{seq}");
                        count.store(seq + 1, Ordering::SeqCst);
                    }
                });
            }
            eventually("writing", || sum() > 10_000);
            mount.end(Signal::SIGKILL);
            let before = sum();
            eventually("writing without a daemon", || sum() > before + 50_000);
            ended.store(true, Ordering::SeqCst);
        });
        let check = |streams: &[Vec<u8>]| {
            for (got, count) in numbers(streams, n_threads).iter().zip(&counts) {
                let end = count.load(Ordering::SeqCst);
                assert_eq!(*got, (end - got.len() as u32..end).collect::<Vec<_>>());
                assert!(args.contains(&"--overwrite") || got.len() as u32 == end, "{} of {end}", got.len());
            }
        };
        let unread = left::unread(&state_dir(mount.point(), 0), 1, geometry, n_bufs);
        check(&unread);
        // That was consumed, as by any reader. What comes is for the next daemon.
        mount.restart(args);
        on_cpu(0, || channel.write(b"and on").unwrap());
        channel.flush().unwrap();
        assert_direct(&channel);
        assert!(mount.read("cpu0").ends_with(b"and on"));
    }
}

/// The same with signal handlers that write, too, every 100 us, and threads that move from CPU to CPU.
#[test]
fn signal_handlers_go_on_writing() {
    let args = ["--subbuf-size=64K", "--n-subbufs=8"];
    let mut mount = Mount::with_sequences(&args);
    let n_bufs = mount.channel("cpu").n_bufs();
    let pattern = Pattern::default();
    let mut received: Vec<_> = (0..n_bufs).map(|_| Received::new(&pattern, false)).collect();
    let mut writer = StressWriter::start(&mount, 0, 1..=2000, true);
    eventually("writing", || writer.attempts() > 1000);
    for _ in 0..3 {
        let read = |mount: &Mount, received: &mut Vec<Received<'_>>| {
            for (cpu, received) in received.iter_mut().enumerate() {
                received.take(&mount.read(&format!("cpu{cpu}")));
            }
        };
        read(&mount, &mut received);
        mount.end(Signal::SIGKILL);
        let before = writer.attempts();
        eventually("writing without a daemon", || writer.attempts() > before + 20_000);
        writer.assert_running();
        mount.restart_with_sequences(&args);
        read(&mount, &mut received);
    }
    writer.stop();
    let done = writer.finish();
    for (cpu, received) in received.iter_mut().enumerate() {
        while received.bytes() < mount.stats("cpu")[&format!("cpu{cpu}.bytes")] {
            received.take(&mount.read(&format!("cpu{cpu}")));
        }
        received.finish();
    }
    for (number, stream) in done.streams() {
        let count = received.iter().filter_map(|received| received.writers.get(&number));
        assert_eq!(count.map(|numbers| numbers.count()).sum::<u64>(), get(&stream.numbered), "{number}");
    }
}

/// What nobody will ever read is no place to write to: files that were removed are noticed, and the next daemon is found.
#[test]
fn files_that_were_removed_are_noticed() {
    for mode in ["--header=0", "--overwrite"] {
        let args = ["--subbuf-size=1000", "--n-subbufs=4", mode];
        let mut mount = Mount::new(&args);
        let Some(channel) = direct_channel(&mount) else { return };
        on_cpu(0, || channel.write(b"before").unwrap());
        mount.end(Signal::SIGKILL);
        fs::remove_dir_all(state_dir(mount.point(), 0)).unwrap();
        eventually("somebody noticing", || {
            on_cpu(0, || channel.write(&[b'x'; 100])) == Err(WriteError::Disconnected)
        });
        mount.restart(&args);
        eventually("a write that finds the new daemon", || on_cpu(0, || channel.write(b"found")).is_ok());
        assert_direct(&channel);
        channel.flush().unwrap(); // by the socket, it may not be there yet
        assert_eq!(text(&mount.read("cpu0")), "found");
    }
}

/// A child that is forked when there is no daemon writes all the same.
#[test]
fn a_child_is_forked_without_a_daemon() {
    let mut mount = Mount::with_sequences(&[]);
    let mut command = Command::new(program("test-fork"));
    with_sequences(&mut command).arg(mount.point()).arg("direct");
    let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut said = String::new();
    BufReader::new(process.child().stdout.take().unwrap()).read_line(&mut said).unwrap();
    mount.end(Signal::SIGKILL);
    process.child().stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(process.wait().success());
    mount.restart(&[]);
    assert_eq!(text(&mount.read("cpu0")), "before child after");
}

/// A batch that waits for room goes on with the next daemon, and each message is there once.
#[test]
fn a_batch_that_waits_goes_on_with_the_next_daemon() {
    let args = ["--subbuf-size=1000", "--n-subbufs=4"];
    let mut mount = Mount::new(&args);
    let Some(channel) = direct_channel(&mount).map(Arc::new) else { return };
    let n_messages = 20_000;
    let batch = thread::spawn({
        let channel = Arc::clone(&channel);
        move || {
            pin(0);
            let options = BatchOptions { wait: Wait::Forever, ..BatchOptions::default() };
            channel.write_batch((0..n_messages).map(|seq| line(0, seq)), options)
        }
    });
    let (mut stream, mut next_kill) = (Vec::new(), 0);
    eventually("all messages", || {
        stream.extend(mount.read("cpu0"));
        let came = tags(&stream).len() as u32;
        if came < n_messages && came >= next_kill {
            next_kill = came + n_messages / 5;
            mount.end(Signal::SIGKILL);
            mount.restart(&args);
        }
        came >= n_messages
    });
    assert_eq!(numbers(&[stream], 1), [(0..n_messages).collect::<Vec<_>>()]);
    let counts = batch.join().unwrap().unwrap();
    assert_eq!((counts.written, counts.dropped, counts.too_big), (n_messages.into(), 0, 0));
}

/// `relay-producer` is not ended by a daemon that is killed and comes again, whether it waits for room or not.
#[test]
fn the_command_goes_on() {
    for wait in [&[][..], &["--wait"]] {
        let args = ["--subbuf-size=1000", "--n-subbufs=4"];
        let mut mount = Mount::with_sequences(&args);
        let mut command = Command::new(program("relay-producer"));
        command.arg("-m").arg(mount.point()).args(["-v", "--transport=shared"]).args(wait);
        with_sequences(&mut command).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut producer = Process::start(&mut command);
        let mut cpu = CpuSet::new();
        cpu.set(0).unwrap();
        sched_setaffinity(producer.pid(), &cpu).unwrap();
        let mut stdin = producer.child().stdin.take().unwrap();
        let n_lines = if wait.is_empty() { 50 } else { 2000 };
        let feeder = thread::spawn(move || {
            (0..n_lines).for_each(|n| writeln!(stdin, "a line with the number {n}").unwrap());
            stdin
        });
        let mut got = String::new();
        for round in 1..=3 {
            eventually("lines", || {
                got.push_str(&text(&mount.read("cpu0")));
                got.lines().count() >= n_lines * round / 4
            });
            mount.end(Signal::SIGKILL);
            mount.restart_with_sequences(&args);
        }
        drop(feeder.join().unwrap());
        eventually("all lines", || {
            got.push_str(&text(&mount.read("cpu0")));
            got.lines().count() >= n_lines
        });
        assert_eq!(exit_code(producer.wait()), 0);
        let expected: String = (0..n_lines).map(|n| format!("a line with the number {n}\n")).collect();
        assert_eq!(got, expected);
        // A pair of lines for each restart that the command had to wait for, depending on where it was in its work.
        let said = producer.stderr();
        let of_restart = |line: &&str| {
            line.ends_with("has gone away: waiting for the next one")
                || line.ends_with("is there again: writing on")
        };
        assert_eq!(said.lines().filter(|line| !of_restart(line)).count(), 1, "what -v says: {said}");
    }
}
