//! A program whose threads log by `tracing`, `log` and a channel while it forks, and whose children log too.
//!
//! `test-forks busy|busy-by-socket`: threads log all the time. Each of [`CHILDREN`] children logs, at a place that is new
//! to all processes as well, and flushes the channel.
//! `test-forks waiting DAEMON`: stops the daemon, and forks while a thread waits for an answer to a definition. The child
//! logs, lets the daemon continue, and logs until its standard input ends.
#![allow(unsafe_code)]

use std::fs;
use std::io::Read;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork, gettid};
use relay_producer::{Builder, Channel, TransportChoice};
use tracing::{info, info_span};
use tracing_subscriber::prelude::*;

/// Number of children of `busy`.
const CHILDREN: u32 = 40;
const THREADS: u64 = 3;
/// Seconds after which SIGALRM ends a child that hangs.
const HANGS: u32 = 60;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let is_by_socket = args[1] == "busy-by-socket";
    let transport = if is_by_socket { TransportChoice::Socket } else { TransportChoice::Auto };
    let builder = || Builder::from("app/log").transport(transport);
    let layer = relay_producer::tracing::layer(builder()).expect("a layer");
    tracing_subscriber::registry().with(layer).init();
    relay_producer::log::init(builder()).expect("a logger");
    let channel = builder().open().expect("a channel");
    match args.get(2) {
        None => fork_while_busy(&channel),
        Some(daemon) => fork_while_waiting(&channel, Pid::from_raw(daemon.parse().expect("a number"))),
    }
}

/// Runs `act` in a child, and returns the child's number.
fn in_child(act: impl FnOnce()) -> Pid {
    // SAFETY: of what other threads may hold, the child uses the C library's memory and this library alone, which allow it.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            alarm::set(HANGS);
            act();
            // SAFETY: ends the child, without the end of threads that it does not have.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    }
}

fn succeeds(child: Pid) {
    let status = waitpid(child, None).expect("its end");
    if status != WaitStatus::Exited(child, 0) {
        eprintln!("a child ended with {status:?}");
        exit(1);
    }
}

fn fork_while_busy(channel: &Channel) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let _span = info_span!("busy", thread).entered();
                    info!("busy");
                    log::info!("busy");
                }
            });
        }
        for number in 0..CHILDREN {
            succeeds(in_child(|| {
                info!(number, "child");
                log::info!(number; "log of child");
                let _span = info_span!("of child", number).entered();
                info!(number, "new place of child");
                channel.flush().expect("the daemon's answer");
            }));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

fn fork_while_waiting(channel: &Channel, daemon: Pid) {
    // The process has its thread's name in the table, and the layer its connection.
    info!("before");
    kill(daemon, Signal::SIGSTOP).expect("stopping the daemon");
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            tell.send(gettid()).expect("a listener");
            info!("new place of parent");
        });
        let waiting = format!("/proc/self/task/{}/syscall", told.recv().expect("a thread"));
        // poll(2), in which it waits for the answer. It may be over before this thread looks: then it has left the loop.
        while fs::read_to_string(&waiting).is_ok_and(|call| !call.starts_with("7 ")) {
            thread::yield_now();
        }
        let child = in_child(|| {
            info!("new place of child");
            kill(daemon, Signal::SIGCONT).expect("letting the daemon continue");
            channel.flush().expect("the daemon's answer");
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = std::io::stdin().read_to_end(&mut Vec::new());
                    is_over.store(true, Ordering::Relaxed);
                });
                while !is_over.load(Ordering::Relaxed) {
                    info!("later place of child");
                    thread::sleep(Duration::from_millis(2));
                }
            });
        });
        succeeds(child);
    });
}
