//! Catches SIGINT and SIGTERM, for programs that end with a last read, or an unmount.
//!
//! The first signal asks the main thread to end. That thread may be stuck, for instance in a write to a full pipe.
//! Another thread therefore ends the program at a second signal, or some seconds later. While a recording runs, only a
//! second signal does: writing what is in the buffers takes its time.
//!
//! The kernel gives a signal to the main thread if it can, and runs no handler there while that thread waits for a FUSE
//! daemon that stands still. So the main thread blocks both signals. Programs that it runs inherit that: relayfsd, which
//! takes them all the same, and fusermount3, which ends soon.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::process;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as BlockedSignal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::error::{Failure, Signal};

/// Usual time limit for the main thread to end after the first signal.
pub const END_MAX: Duration = Duration::from_secs(3);
/// Steps in which that time is counted. While the machine stands still, the main thread cannot end either, and at most
/// one step passes.
const END_STEPS: u32 = 30;

/// Says whether a signal has asked this process to end.
#[derive(Debug)]
pub struct Stop {
    caught: Arc<OnceLock<(Signal, Instant)>>,
    /// Hangs up at the first signal, and stays so.
    hung_up: PipeReader,
}

impl Stop {
    /// The first signal, and when it came.
    pub fn caught(&self) -> Option<(Signal, Instant)> {
        self.caught.get().copied()
    }

    /// Polls as POLLHUP from the first signal on.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.hung_up.as_fd()
    }
}

/// Catches signals from now on; each asks the process to end. The calling thread blocks them, and those that it starts.
///
/// The process ends within `end_max` of the first signal; `None`: only a second signal ends it by force. Such an end
/// does not wait for the main thread, so it calls `clean_up`.
pub fn catch(
    end_max: Option<Duration>,
    clean_up: impl Fn() + Send + Sync + 'static,
) -> Result<Stop, Failure> {
    let failure = |error| Failure::system("wait for signals", error);
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failure)?;
    let (hung_up, line) = io::pipe().map_err(failure)?;
    let caught = Arc::new(OnceLock::new());
    let tell = caught.clone();
    let end = Arc::new(move |signal| {
        clean_up();
        die_of(signal);
    });
    let set = SigSet::from_iter([BlockedSignal::SIGINT, BlockedSignal::SIGTERM]);
    let wait = move || {
        // Cannot fail: both exist. The process may have been started with them blocked.
        let _ = set.thread_unblock();
        let mut line = Some(line);
        for signal in signals.forever() {
            if line.take().is_none() {
                end(signal);
            }
            let _ = tell.set((signal, Instant::now())); // the first signal stays
            let Some(end_max) = end_max else { continue };
            let end = end.clone();
            // If no thread can be started, a second signal still ends the process.
            let _ = thread::Builder::new().spawn(move || {
                (0..END_STEPS).for_each(|_| thread::sleep(end_max / END_STEPS));
                end(signal);
            });
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failure)?;
    set.thread_block().map_err(|errno| failure(errno.into()))?;
    Ok(Stop { caught, hung_up })
}

/// Ends as if the signal had never been caught, so that the parent process sees the cause.
pub fn die_of(signal: Signal) -> ! {
    let _ = emulate_default_handler(signal);
    process::exit(128 + signal) // reached only if the default action cannot be taken
}
