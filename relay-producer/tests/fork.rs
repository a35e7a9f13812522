//! A channel is open when its process forks, and the parent ends.
//!
//! The child continues writing at once, and gets a connection when it finishes a sub-buffer. In a second run the daemon
//! has gone before, and the next one comes later. A third one is the first process of a PID namespace, and its child that
//! of another: both have the number 1. In a fourth one these write records, which have the numbers of their processes.
//!
//! This file does not use the test harness, since a process that forks should have one thread. The program runs itself
//! again, and that process becomes a daemon, as forking producers usually do.

#![allow(unsafe_code)]

mod common;

use std::env;
use std::process::{Command, ExitCode};
use std::time::Instant;

use common::files::{Files, pin_anywhere};
use common::{Daemon, Manners, PATIENCE, geometry};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, daemon, fork, geteuid};
use relay::trace::record::Records;
use relay_producer::Channel;
use tempfile::tempdir;

/// Tells the program to fork, and where the daemon is.
const SOCKET: &str = "RELAY_TEST_FORK_SOCKET";
/// Tells it to fork when that daemon has gone.
const GONE: &str = "RELAY_TEST_FORK_GONE";
/// Tells it to fork into a PID namespace where the child has the parent's number.
const SAME: &str = "RELAY_TEST_FORK_SAME";
const GEOMETRY: &str = "subbuf-size=1000:n-subbufs=64";
/// Messages of 100 bytes that the child writes: a number of sub-buffers.
const N_MESSAGES: usize = 200;

fn main() -> ExitCode {
    match env::var_os(SOCKET) {
        Some(socket) => {
            let channel = Channel::open(socket, "cpu").unwrap();
            match (env::var_os(GONE), env::var_os(SAME)) {
                (Some(_), _) => forks_without_daemon(&channel),
                (_, Some(_)) => forks_with_same_number(&channel),
                _ => forks(&channel),
            }
        }
        None => {
            reads(&mut Command::new(env::current_exe().unwrap()));
            let mut first = Command::new("unshare");
            if !geteuid().is_root() {
                first.args(["--user", "--map-root-user"]);
            }
            first.args(["--pid", "--fork"]).arg(env::current_exe().unwrap()).env(SAME, "yes");
            reads(&mut first);
            reads_records(&mut first);
            takes_over();
        }
    }
    ExitCode::SUCCESS
}

fn text(who: &str, number: usize) -> String {
    format!("{:<100}", format!("{who} {number}"))
}

fn forks(channel: &Channel) {
    pin_anywhere();
    channel.write(text("parent", 0).as_bytes()).unwrap();
    // The parent ends in it, without closing anything; the child returns.
    daemon(true, true).unwrap();
    for number in 0..N_MESSAGES {
        channel.write(text("child", number).as_bytes()).unwrap();
    }
}

/// Each is the first process of its PID namespace. The parent stays, as the kernel ends all processes of a namespace
/// with its first one.
fn forks_with_same_number(channel: &Channel) {
    pin_anywhere();
    channel.write(text("parent", 0).as_bytes()).unwrap();
    unshare(CloneFlags::CLONE_NEWPID).unwrap();
    // SAFETY: this process has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            assert_eq!(std::process::id(), 1);
            (0..N_MESSAGES).for_each(|number| channel.write(text("child", number).as_bytes()).unwrap());
        }
        ForkResult::Parent { child } => {
            assert_eq!(std::process::id(), 1);
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
}

/// The child writes until it has found a daemon.
fn forks_without_daemon(channel: &Channel) {
    pin_anywhere();
    channel.write(text("parent", 0).as_bytes()).unwrap();
    let started = Instant::now();
    while channel.flush().is_ok() {
        assert!(started.elapsed() < PATIENCE, "the daemon does not go");
    }
    daemon(true, true).unwrap();
    let mut number = 0;
    while channel.flush().is_err() {
        assert!(started.elapsed() < PATIENCE, "no daemon comes");
        channel.write(text("child", number).as_bytes()).unwrap();
        number += 1;
        std::thread::yield_now();
    }
    (number..number + N_MESSAGES).for_each(|number| channel.write(text("child", number).as_bytes()).unwrap());
    channel.write(text("end", 0).as_bytes()).unwrap();
}

fn takes_over() {
    if !relay::ring::writer::AnyExecutor::can_share() {
        return;
    }
    const GEOMETRY: &str = "subbuf-size=1000:n-subbufs=4:overwrite";
    let dir = tempdir().unwrap();
    let files = Files::in_dir(dir.path(), geometry(GEOMETRY));
    let manners = Manners { geometry: GEOMETRY, ..Manners::default() };
    let daemon = Daemon::start(&dir, manners.clone());
    daemon.share(&files);
    let cpu = common::files::allowed_cpus()[0];
    let mut child = Command::new(env::current_exe().unwrap())
        .envs([(SOCKET, daemon.socket.as_os_str()), (GONE, "yes".as_ref())])
        .spawn()
        .unwrap();
    let (started, mut stream) = (Instant::now(), String::new());
    let mut read_until = |what: &str| {
        while !stream.contains(what) {
            assert!(started.elapsed() < PATIENCE, "no {what}");
            stream.push_str(&String::from_utf8(files.read(cpu)).unwrap());
            std::thread::yield_now();
        }
    };
    read_until("parent 0");
    drop(daemon);
    assert!(child.wait().unwrap().success());
    // Many sub-buffers later.
    read_until("child 10");
    let daemon = Daemon::start(&dir, manners);
    daemon.share(&files);
    read_until("end 0");
    assert_eq!(daemon.accepted(), 1);
    assert!(daemon.store().waits.is_empty(), "nothing went by the socket");
    println!("child without a daemon continues and finds the next one ... ok");
}

fn reads(program: &mut Command) {
    let dir = tempdir().unwrap();
    let files = Files::new(geometry(GEOMETRY));
    let daemon = Daemon::start(&dir, Manners { geometry: GEOMETRY, ..Manners::default() });
    daemon.share(&files);
    let cpu = common::files::allowed_cpus()[0];
    files.buffers[cpu].arm();
    let status = program.env(SOCKET, &daemon.socket).status().unwrap();
    assert!(status.success());
    let expected: String =
        [text("parent", 0)].into_iter().chain((0..N_MESSAGES).map(|number| text("child", number))).collect();
    let (started, mut stream) = (Instant::now(), Vec::new());
    while stream.len() < expected.len() {
        assert!(started.elapsed() < PATIENCE, "only {} bytes came", stream.len());
        stream.extend(files.read(cpu));
        std::thread::yield_now();
    }
    assert!(String::from_utf8(stream).unwrap() == expected);
    assert_eq!(files.lost(), 0);
    assert_eq!(daemon.accepted(), 2, "connections: the parent's and the child's");
    if relay::ring::writer::AnyExecutor::can_share() {
        assert!(files.rings() > 0, "the bell has rung");
        assert!(daemon.store().waits.is_empty(), "nothing went by the socket");
    }
    println!("child writes at once and gets a new connection ... ok");
}

/// The child's first record makes it connect, and is written before the daemon has said its number.
fn reads_records(program: &mut Command) {
    const GEOMETRY: &str = "timed:subbuf-size=4096:n-subbufs=16";
    let dir = tempdir().unwrap();
    let files = Files::new(geometry(GEOMETRY));
    let daemon = Daemon::start(&dir, Manners { geometry: GEOMETRY, ..Manners::default() });
    daemon.share(&files);
    let status = program.env(SOCKET, &daemon.socket).status().unwrap();
    assert!(status.success());
    assert_eq!(daemon.store().attached, 2, "the parent and the child");
    if !relay::ring::writer::AnyExecutor::can_share() {
        return;
    }
    let bytes = files.read(common::files::allowed_cpus()[0]);
    let threads: Vec<_> = Records::new(&bytes).map(|record| record.unwrap().tid).collect();
    // Nothing but the number of the thread itself, and not that of the parent, which is 1000.
    let is_right = threads.strip_prefix(&[1000, 1]).is_some_and(|rest| rest.iter().all(|tid| *tid == 1001));
    assert!(is_right, "{threads:?}");
    println!("first record of a child is not its parent's ... ok");
}
