//! A program that logs by `log` and `tracing` into a timed channel of the relayfs that `$RELAYFS` names.
//!
//! `test-frontend panic`: a thread panics, with a hook before that prints "hook before".
//! `test-frontend ticks`: logs ticks by both crates until its standard input ends.
//! `test-frontend allocations`: prints how many allocations 1000 events of `tracing` within a span make, and 3000
//! messages of `log`.
//! `test-frontend levels|levels-by-socket|levels-in-child`: logs for each line of its standard input, by `tracing`, by
//! `log` and by a channel, at each level of two targets, and then prints the line. In a forked child, if asked.
//! `test-frontend signals`: logs while signals interrupt it whose handler logs too, and prints how many both have logged.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{ForkResult, fork};
use relay_producer::{Builder, Level, TransportChoice};
use tracing::{Dispatch, info, info_span};
use tracing_subscriber::prelude::*;

const CHANNEL: &str = "app/log";

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: it is the system's allocator.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: what the caller owes goes to the system's allocator.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as above.
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let what = std::env::args().nth(1).expect("an argument");
    if what == "panic" {
        return panic_in_thread();
    }
    let transport = if what == "levels-by-socket" { TransportChoice::Socket } else { TransportChoice::Auto };
    let layer = relay_producer::tracing::layer(builder(transport)).expect("a layer");
    tracing::dispatcher::set_global_default(Dispatch::new(tracing_subscriber::registry().with(layer)))
        .expect("the first subscriber");
    match what.as_str() {
        "ticks" => tick(),
        "allocations" => count_allocations(),
        "levels" | "levels-by-socket" => log_at_each_level(transport, false),
        "levels-in-child" => log_at_each_level(transport, true),
        "signals" => log_in_handlers(),
        what => panic!("wrong argument: {what}"),
    }
}

fn builder(transport: TransportChoice) -> Builder {
    Builder::from(CHANNEL).transport(transport)
}

fn log_at_each_level(transport: TransportChoice, in_child: bool) {
    relay_producer::log::init(builder(transport)).expect("a logger");
    let channel = builder(transport).open().expect("a channel");
    if in_child {
        // SAFETY: the other threads only wait, and hold no lock.
        if let ForkResult::Parent { child } = unsafe { fork() }.expect("a child") {
            nix::sys::wait::waitpid(child, None).expect("its end");
            return;
        }
    }
    for line in std::io::stdin().lines() {
        let round = line.expect("a line");
        macro_rules! at {
            ($($level:ident)*) => {$(
                tracing::event!(target: "app", tracing::Level::$level, "{round} tracing app {}", stringify!($level));
                tracing::event!(target: "app::db", tracing::Level::$level, "{round} tracing db {}", stringify!($level));
            )*};
        }
        at!(ERROR WARN INFO DEBUG TRACE);
        for level in log::Level::iter() {
            log::log!(target: "app", level, "{round} log app {level}");
            log::log!(target: "app::db", level, "{round} log db {level}");
        }
        for level in Level::ALL {
            // The channel may be the next daemon's, and not be open yet.
            let _ = channel.log(level, "app", &format!("{round} channel app {level}"));
            let _ = channel.log(level, "app::db", &format!("{round} channel db {level}"));
        }
        let _ = channel.sync();
        println!("{round}");
    }
}

/// Events of the handler.
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// The place of the handler's events, which has to be defined before.
fn handled(number: u64) {
    info!(number, "handled");
}

extern "C" fn handle(_: nix::libc::c_int) {
    handled(HANDLED.fetch_add(1, Ordering::Relaxed));
}

fn log_in_handlers() {
    const COUNT: u64 = 20_000;
    let _span = info_span!("main").entered();
    // The first event of a place defines it, which no handler may do.
    handled(HANDLED.fetch_add(1, Ordering::Relaxed));
    let action = SigAction::new(SigHandler::Handler(handle), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler logs, as the library promises that it may.
    unsafe { sigaction(Signal::SIGALRM, &action) }.expect("a handler");
    let timer = |micros: i64| {
        let every: nix::libc::timeval = *TimeVal::microseconds(micros).as_ref();
        let timer = nix::libc::itimerval { it_interval: every, it_value: every };
        // SAFETY: the value is a local one, and the former value is not asked for.
        assert_eq!(unsafe { nix::libc::setitimer(nix::libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
    };
    timer(200);
    for number in 0..COUNT {
        let _inner = info_span!("inner").entered();
        info!(number, "main");
    }
    timer(0);
    println!("{COUNT} {}", HANDLED.load(Ordering::Relaxed));
}

fn panic_in_thread() {
    std::panic::set_hook(Box::new(|_| println!("hook before")));
    relay_producer::panic_hook(CHANNEL).expect("a channel");
    let worker = thread::Builder::new().name("worker".into());
    let panicked = worker.spawn(|| panic!("no {}", "bread")).expect("a thread").join();
    assert!(panicked.is_err());
}

fn tick() {
    relay_producer::log::init(CHANNEL).expect("a logger");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            is_over.store(true, Ordering::Relaxed);
        });
        let mut number = 0u64;
        while !is_over.load(Ordering::Relaxed) {
            info!(number, "tick");
            log::info!(number = number; "log tick");
            number += 1;
            thread::sleep(Duration::from_millis(2));
        }
    });
}

fn count_allocations() {
    let _entered = info_span!("all", of = 1).entered();
    let events = |count: u64| {
        for number in 0..count {
            info!(number, host = "example.org", ratio = 0.5, debug = ?Some(number), "event {number} of {count}");
        }
    };
    relay_producer::log::init(CHANNEL).expect("a logger");
    let messages = |count: u64| {
        for number in 0..count {
            log::info!("a constant");
            log::info!(target: "app::db", "message {number} of {count}");
            log::warn!(number = number, text = "in quotes", debug:? = Some(number); "pairs {number} of {count}");
        }
    };
    let during = |act: &dyn Fn(u64)| {
        act(10);
        let before = ALLOCATIONS.get();
        act(1000);
        ALLOCATIONS.get() - before
    };
    println!("tracing {} log {}", during(&events), during(&messages));
}
