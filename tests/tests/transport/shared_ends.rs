//! Direct producers that fork, run another program, or learn that the channel has ended. Tests of crashed daemons are
//! in `survive_producers.rs`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use relay_producer::{
    BatchOptions, Channel, OpenError, RequestError, Transport, TransportChoice, WriteError,
};
use relayfs_tests::direct::{assert_direct, is_without_sequences, on_cpu, pin, with_sequences};
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{Mount, Process, eventually, exit_code, program, text};

/// Starts a `relay-producer` on CPU 0 that writes lines of a pipe.
fn producer(mount: &Mount, transport: &str) -> Process {
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["-v", "--transport", transport]);
    with_sequences(&mut command).stdin(Stdio::piped()).stderr(Stdio::piped());
    let producer = Process::start(&mut command);
    let mut cpu = CpuSet::new();
    cpu.set(0).unwrap();
    sched_setaffinity(producer.pid(), &cpu).unwrap();
    producer
}

/// Returns the open files of a process. All sockets count as equal.
fn open_files(pid: Pid) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap);
    let name = |path: PathBuf| path.display().to_string();
    let names = entries.map(|entry| name(fs::read_link(entry.path()).unwrap()));
    let mut names: Vec<String> =
        names.map(|name| if name.starts_with("socket:") { "socket".into() } else { name }).collect();
    names.sort();
    names
}

/// A forked child writes at once, without a request: the daemon is stopped from before the fork until after the
/// child's end.
#[test]
fn forked_child_writes_at_once() {
    let mut mount = Mount::prepared(&[], with_sequences);
    let mut command = Command::new(program("test-fork"));
    with_sequences(&mut command).arg(mount.point()).arg("direct");
    let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut said = String::new();
    BufReader::new(process.child().stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "open\n");
    let stopped = Stopped::new(mount.daemon().pid());
    process.child().stdin.take().unwrap().write_all(b"\n").unwrap();
    let status = process.wait();
    drop(stopped);
    assert!(status.success(), "{status}");
    assert_eq!(text(&mount.read("cpu0")), "before child after");
    assert_eq!(mount.stats("cpu")["total.written"], 0, "nothing went by the socket");
}

/// Of the received descriptors, a producer keeps the bell open, and the control file, by which the daemon knows of
/// it; nothing else, however many CPUs there are.
#[test]
fn producer_keeps_only_bell_and_control_file_open() {
    let mount = Mount::prepared(&[], with_sequences);
    let open = ["socket", "shared"].map(|transport| {
        let mut producer = producer(&mount, transport);
        let mut stdin = producer.child().stdin.take().unwrap();
        stdin.write_all(b"line\n").unwrap();
        eventually("the line", || [mount.read("cpu0"), mount.read("cpu1")].concat() == b"line\n");
        let mut open = open_files(producer.pid());
        // One end of a pipe for each of the two.
        open.retain(|name| !name.starts_with("pipe:"));
        drop(stdin);
        assert!(producer.wait().success());
        open
    });
    let [by_socket, mut shared] = open;
    let bell = shared.iter().position(|name| name == "anon_inode:[eventfd]").expect("a bell");
    shared.remove(bell);
    let control = shared.iter().position(|name| name.ends_with(".control")).expect("a control file");
    shared.remove(control);
    assert_eq!(shared, by_socket);
    assert_eq!(by_socket.iter().filter(|name| *name == "socket").count(), 1, "{by_socket:?}");
}

/// Waits until an attempt succeeds.
fn until_it_works<T, E>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) {
    eventually(what, || attempt().is_ok());
}

/// A daemon that ends with `--discard` takes no more messages, on any CPU, once it has ended. Producers find the next
/// daemon, even if its channel has another geometry, and write directly.
#[test]
fn end_with_discard_is_an_error_until_next_daemon() {
    let mut mount = Mount::new(&["--subbuf-size=4096", "--discard"]);
    let channels: Vec<Channel> = (0..3).map(|_| mount.direct_channel("cpu")).collect();
    let n_bufs = channels[0].n_bufs();
    channels.iter().for_each(|channel| channel.write(b"before").unwrap());
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    for (channel, cpu) in channels.iter().zip([0, n_bufs - 1, 0]) {
        on_cpu(cpu, || {
            for _ in 0..3 {
                assert_eq!(channel.write(b"x"), Err(WriteError::Disconnected));
            }
            channel.write_batch([b"x"], BatchOptions::default()).unwrap_err();
            channel.flush().unwrap_err();
        });
    }
    mount.restart(&["--subbuf-size=100", "--n-subbufs=9", "--overwrite"]);
    for channel in &channels {
        until_it_works("a write that finds the new daemon", || on_cpu(0, || channel.write(b"found ")));
        assert_direct(channel);
        assert_eq!(channel.geometry().subbuf_size(), 100);
        channel.flush().unwrap(); // by the socket, it may not be there yet
    }
    assert_eq!(text(&mount.read("cpu0")), "found ".repeat(3));
}

/// The next daemon need not share: then producers use the socket, or get an error if they need the buffers.
#[test]
fn next_daemon_without_sharing_gets_socket_messages() {
    let mut mount = Mount::new(&["--discard"]);
    let channel = mount.direct_channel("cpu");
    let strict = Channel::builder(mount.point(), "cpu").transport(TransportChoice::Shared).open();
    assert_eq!(strict.is_err(), is_without_sequences());
    mount.end(Signal::SIGTERM);
    mount.restart(&["--shared=never"]);
    until_it_works("a write that finds the new daemon", || channel.write_to(0, b"by socket"));
    channel.flush().unwrap();
    assert_eq!(channel.transport(), Transport::Socket);
    if let Ok(strict) = strict {
        assert_eq!(channel.why_socket().unwrap(), "relayfsd runs with --shared=never");
        eventually(
            "the reason",
            || matches!(strict.flush(), Err(RequestError::Reopen(OpenError::NotShared { why })) if why.contains("--shared=never")),
        );
        assert_eq!(strict.write(b"x"), Err(WriteError::Disconnected));
    }
    assert_eq!(mount.read("cpu0"), b"by socket");
    assert_eq!(mount.stats("cpu")["cpu0.written"], 1);
}

/// `relay-producer` waits for the next daemon after an end with `--discard`, at the latest when a message does not
/// fit the sub-buffer. No signal ends it, though the files are gone.
#[test]
fn command_waits_for_next_daemon_after_discard() {
    let mut mount = Mount::prepared(&["--subbuf-size=1000", "--discard"], with_sequences);
    let state = relay::layout::paths::state_dir(mount.point(), 0);
    let mut producer = producer(&mount, "shared");
    let mut stdin = producer.child().stdin.take().unwrap();
    stdin.write_all(b"line\n").unwrap();
    eventually("the line", || mount.stats("cpu")["total.bytes"] == 5);
    mount.end(Signal::SIGTERM);
    assert!(!state.exists(), "the buffers' files are gone");
    let mut said = BufReader::new(producer.child().stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.next().unwrap().ends_with("transport: shared"));
    (0..3).for_each(|_| stdin.write_all(&[&[b'x'; 400][..], b"\n"].concat()).unwrap());
    assert!(said.next().unwrap().ends_with(" has gone away: waiting for the next one"));
    mount.restart_prepared(&["--subbuf-size=1000", "--discard"], with_sequences);
    assert!(said.next().unwrap().ends_with(" is there again: writing on"));
    drop(stdin);
    assert_eq!(exit_code(producer.wait()), 0);
    let got = mount.read("cpu0");
    assert!(got.ends_with(b"x\n") && got.len().is_multiple_of(401), "{}", text(&got));
}

/// All threads of a process that write all the time continue with the next daemon.
#[test]
fn all_threads_find_the_next_daemon() {
    let args = ["--subbuf-size=4096", "--overwrite", "--discard"];
    let mut mount = Mount::new(&args);
    let channel = mount.direct_channel("cpu");
    for _ in 0..2 {
        let is_there = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (channel, is_there) = (&channel, &is_there);
                scope.spawn(move || {
                    pin(thread % 2);
                    until_it_works("the next daemon", || {
                        let is_there = is_there.load(Ordering::SeqCst);
                        channel.write(&[b'x'; 100]).map_err(Some).and(if is_there {
                            Ok(())
                        } else {
                            Err(None)
                        })
                    });
                });
            }
            mount.end(Signal::SIGTERM);
            eventually("a write that notices the end", || {
                channel.write(&[b'x'; 100]) == Err(WriteError::Disconnected)
            });
            mount.restart(&args);
            is_there.store(true, Ordering::SeqCst);
        });
        channel.flush().unwrap();
        let left = ["cpu0", "cpu1"].map(|file| mount.read(file)).concat();
        assert!(left.len().is_multiple_of(100) && left.len() >= 400, "{}", left.len());
        assert_direct(&channel);
    }
}
