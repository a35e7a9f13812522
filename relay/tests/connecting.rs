//! Connecting to a listener with a full queue: signals do not end the wait.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;
use relay::wire::socket::{ConnectError, Socket};

const LONG: Duration = Duration::from_secs(60);

/// A listener, and the connections that fill its queue.
fn full_listener(path: &Path) -> (OwnedFd, Vec<Socket>) {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let mut waiting = Vec::new();
    while let Ok(socket) = Socket::connect(path, Duration::ZERO) {
        waiting.push(socket);
    }
    (listener, waiting)
}

#[test]
fn interrupted_connect_waits_on() {
    // Installs a handler, so that the signal interrupts.
    relay::system::signals::report_size_limit().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (listener, _waiting) = full_listener(&path);
    let (sender, receiver) = mpsc::channel();
    let connecting = thread::spawn(move || {
        let notify =
            SigevNotify::SigevThreadId { signal: Signal::SIGXFSZ, thread_id: gettid().as_raw(), si_value: 0 };
        let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).unwrap();
        let interval = Expiration::Interval(TimeSpec::from_duration(Duration::from_millis(1)));
        timer.set(interval, TimerSetTimeFlags::empty()).unwrap();
        sender.send(gettid()).unwrap();
        Socket::connect(&path, LONG).map(drop)
    });
    let thread = receiver.recv().unwrap();
    let interrupted = || {
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:\t"));
        line.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    // The thread sleeps again after each signal.
    while interrupted() < 20 && !connecting.is_finished() {
        thread::yield_now();
    }
    assert!(!connecting.is_finished(), "{:?}", connecting.join());
    accept(listener.as_raw_fd()).unwrap();
    connecting.join().unwrap().unwrap();
}

#[test]
fn shortest_wait_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _full = full_listener(&path);
    for wait in [Duration::ZERO, Duration::from_nanos(1), Duration::from_nanos(999), Duration::from_millis(2)]
    {
        let (sender, receiver) = mpsc::channel();
        let path = path.clone();
        thread::spawn(move || sender.send(Socket::connect(&path, wait).map(drop)));
        let result = receiver.recv_timeout(LONG).expect("an end");
        assert!(matches!(&result, Err(ConnectError::Io { .. })), "{wait:?}: {result:?}");
    }
}
