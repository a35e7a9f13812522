//! Writes records into a timed channel, from threads that signals interrupt and that move from CPU to CPU, and from
//! children made by several system calls.
//!
//! `test-timed-writer MOUNT CHANNEL threads THREADS COUNT`: each thread writes COUNT texts "TID N", and its signal
//! handler texts of level and target "signal", if it may. The threads print "TID COUNT SIGNALS" at their end.
//! `test-timed-writer MOUNT CHANNEL children`: this process and its children write a text with name and pid each.
//! `test-timed-writer MOUNT CHANNEL one NAME`: the same alone.
//! `test-timed-writer MOUNT CHANNEL no-counter`: a thread that may not read the time stamp counter writes a text.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::os::unix::process::CommandExt;
use std::process::{Command, abort};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, gettid};
use relay_producer::{Channel, Level, Transport, WriteError};
use relayfs_tests::direct::assert_direct;
use relayfs_tests::numbered::Random;
use relayfs_tests::ticks::ticks;

/// Time between two signals to a thread.
const TICK: Duration = Duration::from_micros(200);
/// Texts, on average, between two changes of a thread's CPU.
const TEXTS_PER_MOVE: usize = 200;

static CHANNEL: OnceLock<Channel> = OnceLock::new();
/// Whether signal handlers may write: directly alone.
static IN_HANDLERS: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Records that this thread's signal handler has written. Without a destructor, for the handler's sake.
    static SIGNALS: Cell<u32> = const { Cell::new(0) };
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [_, mount, name, what @ ..] = &args[..] else { panic!("wrong arguments: {args:?}") };
    let channel = CHANNEL.get_or_init(|| Channel::open(mount, name).expect("opening the channel"));
    assert_direct(channel);
    IN_HANDLERS.store(channel.transport() == Transport::Shared, Ordering::Relaxed);
    match what {
        ["threads", threads, count] => {
            write_from_threads(channel, threads.parse().expect("a number"), count.parse().expect("a number"));
        }
        ["children"] => write_from_children(channel, &args),
        ["one", name] => write_name(channel, name),
        ["no-counter"] => write_without_counter(channel),
        _ => panic!("wrong arguments: {args:?}"),
    }
    channel.flush().expect("the daemon's answer");
}

fn write_from_threads(channel: &Channel, threads: usize, count: u32) {
    let action = SigAction::new(SigHandler::Handler(on_tick), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does only what a signal handler may do, see there.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");
    let may_use = sched_getaffinity(Pid::from_raw(0)).expect("our own CPUs");
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| may_use.is_set(*cpu).unwrap_or(false)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let tid = gettid();
                let mut random = Random::new(tid.as_raw().unsigned_abs().into());
                // Its first record looks up what a signal handler must not.
                write_text(channel, &format!("{tid} 0"));
                let ticks = ticks(TICK);
                for number in 1..count {
                    write_text(channel, &format!("{tid} {number}"));
                    if random.below(TEXTS_PER_MOVE) == 0 {
                        let mut set = CpuSet::new();
                        set.set(cpus[random.below(cpus.len())]).expect("one of those in a set");
                        let _ = sched_setaffinity(Pid::from_raw(0), &set);
                    }
                }
                drop(ticks);
                println!("{tid} {count} {}", SIGNALS.get());
            });
        }
    });
}

/// Writes a text, again where the socket to the daemon has no room.
fn write_text(channel: &Channel, text: &str) {
    while let Err(error) = channel.text(text) {
        assert!(error == WriteError::Full && channel.transport() == Transport::Socket, "{error}");
        std::thread::yield_now();
    }
}

/// Writes a record that says how many came before. Takes no lock, allocates nothing, and keeps `errno`.
extern "C" fn on_tick(_: libc::c_int) {
    let errno = Errno::last_raw();
    if let Some(channel) = CHANNEL.get().filter(|_| IN_HANDLERS.load(Ordering::Relaxed)) {
        let number = SIGNALS.get();
        let digits: [u8; 8] = std::array::from_fn(|at| b'0' + (number / 10u32.pow(7 - at as u32) % 10) as u8);
        match channel.log_bytes(Level::Debug, b"signal", &digits) {
            Ok(()) => SIGNALS.set(number + 1),
            Err(WriteError::Full) => {}
            Err(_) => abort(),
        }
    }
    Errno::set_raw(errno);
}

fn write_name(channel: &Channel, name: &str) {
    channel.text(&format!("{name} {}", std::process::id())).expect("room");
}

fn write_from_children(channel: &Channel, args: &[&str]) {
    write_name(channel, "parent");
    let of_child = |child: Pid| assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            write_name(channel, "forked");
            // SAFETY: as above; what it has inherited stays the parent's.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => of_child(child),
    }
    // SAFETY: as above; no library learns of this child.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32 {
        0 => {
            write_name(channel, "cloned");
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
        child => of_child(Pid::from_raw(child)),
    }
    // By vfork, or what the C library has in its place.
    let status = Command::new("/proc/self/exe").args(&args[1..3]).args(["one", "spawned"]).status();
    assert!(status.expect("another process").success());
    write_name(channel, "parent");
    // SAFETY: as above. The process then becomes another program.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            let error = Command::new("/proc/self/exe").args(&args[1..3]).args(["one", "executed"]).exec();
            panic!("becoming another program: {error}");
        }
        ForkResult::Parent { child } => of_child(child),
    }
}

fn write_without_counter(channel: &Channel) {
    channel.text("may read").expect("room");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: it concerns this thread alone, which does not look at a clock from here on.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) }, 0);
            let written = channel.text("may not read");
            // SAFETY: as above.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_ENABLE) }, 0);
            written.expect("a message over the socket");
        });
    });
}
