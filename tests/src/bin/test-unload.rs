//! Loads a library with the producer, writes under signals, and unloads it, in a loop.
//!
//! A thread that still had the address of one of the library's sequences would crash at its next interruption, since
//! the kernel reads there. Prints how many messages were written.
//!
//! `test-unload MOUNT LIBRARY ROUNDS MESSAGE`
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

/// Time between two signals.
const TICK: Duration = Duration::from_micros(100);
/// Messages in a round under signals.
const MESSAGES: usize = 300;
/// Time that a round continues without the library.
const AFTER: Duration = Duration::from_millis(3);

// SAFETY: `tests/examples/test-plugin.rs` says what callers owe to this and the next two functions.
type Open = unsafe extern "C" fn(*const c_char) -> *mut c_void;
// SAFETY: as above.
type Write = unsafe extern "C" fn(*const c_void, *const u8, usize) -> c_int;
// SAFETY: as above.
type Close = unsafe extern "C" fn(*mut c_void);

/// The library, as long as it is loaded.
struct Plugin {
    handle: *mut c_void,
    open: Open,
    write: Write,
    close: Close,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, mount, library, rounds, message] = &args[..] else { panic!("wrong arguments: {args:?}") };
    let mount = CString::new(mount.as_str()).expect("a path");
    let rounds: usize = rounds.parse().expect("a number");
    let action = SigAction::new(SigHandler::Handler(on_tick), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");
    let notify =
        SigevNotify::SigevThreadId { signal: Signal::SIGUSR1, thread_id: gettid().as_raw(), si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).expect("a timer");
    let interval = Expiration::Interval(TimeSpec::from_duration(TICK));
    timer.set(interval, TimerSetTimeFlags::empty()).expect("setting a timer");

    let mut ticks = SigSet::empty();
    ticks.add(Signal::SIGUSR1);
    let mut written = 0;
    for round in 0..rounds {
        assert!(!is_loaded(library), "loaded before round {round}");
        let plugin = Plugin::load(library);
        // SAFETY: a string that ends with a zero byte.
        let channel = unsafe { (plugin.open)(mount.as_ptr()) };
        assert!(!channel.is_null(), "opening the channel in round {round}");
        for _ in 0..MESSAGES {
            written += plugin.write(channel, message.as_bytes());
        }
        // No signal from here on: an interruption would make the kernel forget the address in time.
        ticks.thread_block().expect("blocking a signal");
        written += plugin.write(channel, message.as_bytes());
        // In every other round the channel is not closed, and the unload follows right after the write.
        if round.is_multiple_of(2) {
            // SAFETY: the channel is not used any more.
            unsafe { (plugin.close)(channel) };
        }
        plugin.unload();
        ticks.thread_unblock().expect("unblocking a signal");
        assert!(!is_loaded(library), "unloaded in round {round}");
        let begin = Instant::now();
        while begin.elapsed() < AFTER {
            std::thread::yield_now();
        }
    }
    drop(timer);
    println!("{written}");
}

extern "C" fn on_tick(_: c_int) {}

/// Whether the library is mapped in this process.
fn is_loaded(library: &str) -> bool {
    fs::read_to_string("/proc/self/maps").expect("our own mappings").contains(library)
}

impl Plugin {
    fn load(library: &str) -> Plugin {
        let path = CString::new(library).expect("a path");
        // SAFETY: loads a library of this project, whose initialisers are those of Rust's standard library.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "cannot load {library}");
        let symbol = |name: &CStr| {
            // SAFETY: the handle is that of a loaded library, the name ends with a zero byte.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!address.is_null(), "no {name:?} in {library}");
            address
        };
        // SAFETY: the library's `plugin_open` is of this type.
        let open = unsafe { std::mem::transmute::<*mut c_void, Open>(symbol(c"plugin_open")) };
        // SAFETY: as above.
        let write = unsafe { std::mem::transmute::<*mut c_void, Write>(symbol(c"plugin_write")) };
        // SAFETY: as above.
        let close = unsafe { std::mem::transmute::<*mut c_void, Close>(symbol(c"plugin_close")) };
        Plugin { handle, open, write, close }
    }

    /// Returns the number of messages written: one, or none.
    fn write(&self, channel: *const c_void, message: &[u8]) -> usize {
        // SAFETY: the channel is from `open`, the message as long as it says.
        let failed = unsafe { (self.write)(channel, message.as_ptr(), message.len()) };
        usize::from(failed == 0)
    }

    fn unload(self) {
        // SAFETY: nothing of the library is used any more.
        let result = unsafe { libc::dlclose(self.handle) };
        assert_eq!(result, 0, "unloading");
    }
}
