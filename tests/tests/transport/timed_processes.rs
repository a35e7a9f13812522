//! The end of a process that is attached to a timed channel leaves a record, behind what the process wrote.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relay::trace::event::{Event, What};
use relayfs_tests::ends::without_ends;
use relayfs_tests::peer::Peer;
use relayfs_tests::timed::{Found, attach, open, record, snapshot, write};
use relayfs_tests::{Mount, Process, eventually, program};

/// A process that is attached to a channel.
struct Attached {
    process: Process,
    number: u32,
}

impl Attached {
    fn new(mount: &Mount, channel: &str, more: &[&str]) -> Attached {
        let socket = fs::read_link(mount.path(".relay/socket")).unwrap();
        let mut command = Command::new(program("test-attached"));
        command.arg(socket).args([channel, "hello"]).args(more);
        let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut line = String::new();
        BufReader::new(process.child().stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Attached { number: line.trim().parse().unwrap(), process }
    }

    fn go(&mut self, line: &str) {
        self.process.child().stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn pid(&self) -> u32 {
        self.process.pid().as_raw().cast_unsigned()
    }
}

fn all(mount: &Mount, channel: &str) -> Vec<Found> {
    let mut found: Vec<Found> = (0..2).flat_map(|cpu| snapshot(mount, channel, cpu)).collect();
    found.sort_by_key(|(stamp, ..)| *stamp);
    found
}

/// Waits for the record of a process's end, which must be the last one: what happened, and its status.
fn end_of(mount: &Mount, channel: &str, pid: u32) -> (What, u32) {
    let mut end = None;
    eventually("a record of the end", || {
        let found = all(mount, channel);
        end = found.last().and_then(|(_, id, tid, payload)| match Event::decode(*id, payload) {
            Event::Process { pid: of, what: Some(what), status, command } if of == pid => {
                assert_eq!((*tid, command), (pid, &b"test-attached"[..]));
                Some((what, status))
            }
            _ => None,
        });
        end.is_some()
    });
    end.unwrap()
}

#[test]
fn exit_and_signal_leave_a_record_behind_the_last_words() {
    let mount = Mount::new(&["--channel=app:timed:n-subbufs=2:subbuf-size=8K"]);
    for (line, end) in [("7\n", (What::Exit, 7)), ("\n", (What::Signal, Signal::SIGABRT as u32))] {
        let mut attached = Attached::new(&mount, "app", &[]);
        attached.go(line);
        attached.process.wait();
        assert_eq!(end_of(&mount, "app", attached.pid()), end, "{line:?}");
        let words = all(&mount, "app").into_iter().rev().nth(1).unwrap();
        assert_eq!((words.2, &words.3[..]), (attached.pid(), &b"last words"[..]));
    }
    let mut attached = Attached::new(&mount, "app", &[]);
    attached.process.signal(Signal::SIGKILL);
    attached.process.wait();
    assert_eq!(end_of(&mount, "app", attached.pid()), (What::Signal, Signal::SIGKILL as u32));
    assert_eq!(attached.number, 3);
    let ends = all(&mount, "app").iter().filter(|(_, id, ..)| *id == 7).count();
    assert_eq!(ends, 3, "one record for each process");
    assert_eq!(mount.stats("app")["total.written"], 3 + 2, "messages of clients count, and no others");
    let trace = fs::read_to_string(mount.control("app", "trace")).unwrap();
    assert!(trace.contains("last words") && trace.contains("killed by signal"), "{trace}");
}

/// Status 0 is no news: what the process wrote is all there is.
#[test]
fn regular_exit_leaves_no_record() {
    let mut mount = Mount::new(&["--channel=app:timed:n-subbufs=2:subbuf-size=8K"]);
    let _first = Peer::hello(&mount); // when it is served, the daemon has opened what it needs
    let pid = mount.daemon().pid();
    let n_descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = n_descriptors();
    for _ in 0..2 {
        let mut regular = Attached::new(&mount, "app", &[]);
        regular.go("0\n");
        regular.process.wait();
    }
    // The daemon is done with both, and would have written their records.
    eventually("the daemon has seen the ends", || n_descriptors() <= before);
    let mut other = Attached::new(&mount, "app", &[]);
    other.go("7\n");
    other.process.wait();
    assert_eq!(end_of(&mount, "app", other.pid()), (What::Exit, 7));
    let ends = all(&mount, "app").iter().filter(|(_, id, ..)| *id == 7).count();
    assert_eq!(ends, 1);
}

/// An end without a status may be regular, so it is no record: neither that of a failure, nor a regular one.
#[test]
fn end_that_the_kernel_does_not_tell_leaves_no_record() {
    let mut mount = Mount::prepared(&["--channel=app:timed:global:n-subbufs=2:subbuf-size=8K"], without_ends);
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "").channel;
    let pid = mount.daemon().pid();
    let n_descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = n_descriptors();
    for line in ["0\n", "7\n", "\n"] {
        let mut attached = Attached::new(&mount, "app", &[]);
        attached.go(line);
        attached.process.wait();
    }
    eventually("the daemon has seen the ends", || n_descriptors() <= before);
    // Behind all that the daemon would have written.
    write(&peer, channel, 0, &[record(0, 1, b"behind")]).unwrap();
    let found = snapshot(&mount, "app", 0);
    assert_eq!(found.last().unwrap().3, b"behind");
    assert_eq!(found.iter().filter(|(_, id, ..)| *id == 7).count(), 0, "{found:?}");
    assert_eq!(found.len(), 3 * 2 + 1, "what they wrote is there");
}

/// A channel that only the process holds stays long enough for the record. All of it was read before.
#[test]
fn channel_without_other_holder_gets_the_record() {
    let mount = Mount::new(&[]);
    let mut attached = Attached::new(&mount, "app", &[]);
    for cpu in 0..2 {
        fs::read(mount.path(&format!("app{cpu}"))).unwrap();
    }
    attached.process.signal(Signal::SIGFPE);
    attached.process.wait();
    assert_eq!(end_of(&mount, "app", attached.pid()), (What::Signal, Signal::SIGFPE as u32));
    // The channel goes with the last byte.
    (0..2).for_each(|cpu| drop(fs::read(mount.path(&format!("app{cpu}")))));
    eventually("the channel's end", || !mount.path("app0").exists());
}

/// A process that has closed the channel, or only its connection, is not attached any more.
#[test]
fn process_that_has_left_leaves_no_record() {
    let mount = Mount::new(&["--channel=app:timed:n-subbufs=2:subbuf-size=8K"]);
    let mut left = Attached::new(&mount, "app", &["close"]);
    left.go("3\n");
    left.process.wait();
    let mut other = Attached::new(&mount, "app", &[]);
    other.go("5\n");
    other.process.wait();
    assert_eq!(end_of(&mount, "app", other.pid()), (What::Exit, 5));
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "app", "").channel;
    attach(&peer, channel);
    write(&peer, channel, 0, &[record(0, 1, b"of this process")]).unwrap();
    drop(peer);
    let mut third = Attached::new(&mount, "app", &[]);
    third.go("6\n");
    third.process.wait();
    assert_eq!(end_of(&mount, "app", third.pid()), (What::Exit, 6));
    let ends = all(&mount, "app").iter().filter(|(_, id, ..)| *id == 7).count();
    assert_eq!(ends, 2);
}

/// Root's daemon may not look at executables. The library tells.
#[test]
fn executable_is_a_path_also_for_a_program_that_is_found_by_its_name() {
    use std::os::unix::process::CommandExt;
    let mount = Mount::new(&["--channel=app:timed"]);
    let path = program("relay-producer");
    let mut command = Command::new(&path);
    command.arg0("relay-producer").arg("-m").arg(mount.path("")).args(["-c", "app", "hello"]);
    assert!(command.status().unwrap().success());
    let processes = fs::read_to_string(mount.control("app", "processes")).unwrap();
    let executable = processes.lines().next().and_then(|line| line.split_once('\t')).unwrap().1;
    assert_eq!(executable, fs::canonicalize(&path).unwrap().to_str().unwrap());
}

/// Descriptors of processes are given back: the daemon has as many as before.
#[test]
fn ended_processes_leave_no_descriptors() {
    let mut mount = Mount::new(&["--channel=app:timed:n-subbufs=4:subbuf-size=64K"]);
    let pid = mount.daemon().pid();
    let n = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let first = Attached::new(&mount, "app", &[]);
    drop(first);
    let mut last = 0;
    eventually("a rest", || std::mem::replace(&mut last, n()) == n());
    let before = n();
    for _ in 0..30 {
        let mut attached = Attached::new(&mount, "app", &[]);
        attached.go("0\n");
        attached.process.wait();
    }
    eventually("the same descriptors", || n() <= before);
}
