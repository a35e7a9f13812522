//! Direct producers outlive killed daemons: they continue without an error, none of their messages is lost, and they
//! find the next daemon, which has the data.

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

/// Returns a channel that is written directly; `None` if this process cannot write directly.
fn direct_channel(mount: &Mount) -> Option<Channel> {
    let channel = mount.direct_channel("cpu");
    (channel.transport() == Transport::Shared).then_some(channel)
}

fn line(thread: usize, seq: u32) -> Vec<u8> {
    message(Tag { producer: 0, thread: thread as u32, seq }, 20 + seq as usize % 80)
}

/// Returns the numbers of each thread's messages, in the order of the streams.
fn numbers(streams: &[Vec<u8>], n_threads: usize) -> Vec<Vec<u32>> {
    let mut numbers = vec![Vec::new(); n_threads];
    for tag in streams.iter().flat_map(|stream| tags(stream)) {
        numbers[tag.thread as usize].push(tag.seq);
    }
    numbers
}

/// Threads write while the daemon is killed: no write fails, and the next daemon has all bytes.
#[test]
fn writes_continue_while_daemon_is_killed() {
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
        // As many as have room, and half of them are for the time without a daemon.
        let max = AtomicU32::new(100_000);
        thread::scope(|scope| {
            for (thread, count) in counts.iter().enumerate() {
                let (channel, ended, max) = (&channel, &ended, &max);
                scope.spawn(move || {
                    pin(thread % 2);
                    while !ended.load(Ordering::SeqCst) {
                        let seq = count.load(Ordering::SeqCst);
                        if seq >= max.load(Ordering::SeqCst) {
                            thread::yield_now();
                            continue;
                        }
                        assert_eq!(channel.write(&line(thread, seq)), Ok(()), "{seq}");
                        count.store(seq + 1, Ordering::SeqCst);
                    }
                });
            }
            eventually("writing", || sum() > 10_000);
            mount.end(Signal::SIGKILL);
            max.store(200_000, Ordering::SeqCst);
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
        // This data was consumed, as by any reader. Later data is for the next daemon.
        mount.restart(args);
        on_cpu(0, || channel.write(b"and on").unwrap());
        channel.flush().unwrap();
        assert_direct(&channel);
        assert!(mount.read("cpu0").ends_with(b"and on"));
    }
}

/// Signal handlers write too, every 100 us, and threads move from CPU to CPU.
#[test]
fn signal_handlers_write_while_daemon_is_killed() {
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

/// Producers do not write to removed files: they notice the removal, and find the next daemon.
#[test]
fn removed_files_are_noticed() {
    for mode in ["--header=0", "--overwrite"] {
        let args = ["--subbuf-size=1000", "--n-subbufs=4", mode];
        let mut mount = Mount::new(&args);
        let Some(channel) = direct_channel(&mount) else { return };
        on_cpu(0, || channel.write(b"before").unwrap());
        mount.end(Signal::SIGKILL);
        fs::remove_dir_all(state_dir(mount.point(), 0)).unwrap();
        eventually("a producer that notices", || {
            on_cpu(0, || channel.write(&[b'x'; 100])) == Err(WriteError::Disconnected)
        });
        mount.restart(&args);
        eventually("a write that finds the new daemon", || on_cpu(0, || channel.write(b"found")).is_ok());
        assert_direct(&channel);
        channel.flush().unwrap(); // by the socket, it may not be there yet
        assert_eq!(text(&mount.read("cpu0")), "found");
    }
}

/// A child that is forked while no daemon runs still writes.
#[test]
fn child_forked_without_daemon_writes() {
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

/// A batch that waits for room continues with the next daemon. Each of its messages is there once.
#[test]
fn waiting_batch_continues_with_next_daemon() {
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

/// `relay-producer` outlives a killed daemon and continues with the next one, with or without `--wait`.
#[test]
fn command_continues_with_next_daemon() {
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
        // Each restart that the command waited for makes a pair of lines.
        let said = producer.stderr();
        let of_restart = |line: &&str| {
            line.ends_with("has gone away: waiting for the next one")
                || line.ends_with("is there again: writing on")
        };
        assert_eq!(said.lines().filter(|line| !of_restart(line)).count(), 1, "what -v says: {said}");
    }
}
