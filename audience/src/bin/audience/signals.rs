//! SIGINT and SIGTERM, where we have something to do before we end: a last read, or an unmount.
//!
//! The first one asks the main thread to end. That may be stuck, as in writing to a pipe that nobody empties:
//! at a second signal, or some seconds later, another thread ends the program instead. (Only at the second
//! signal while it records: what is in the buffers takes the time it takes to be written.)
//!
//! (To block the signals and read them from a signalfd would be simpler, but what we run would inherit the
//! block.)

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::process;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::error::Failure;

/// How long the main thread usually has to end after the first signal.
pub(crate) const END_MAX: Duration = Duration::from_secs(3);

/// A signal's number.
pub(crate) type Signal = i32;

/// Tells whether a signal has asked us to end.
#[derive(Debug)]
pub(crate) struct Stop {
    caught: Arc<OnceLock<(Signal, Instant)>>,
    /// Hangs up with the first signal, and stays so.
    hung_up: PipeReader,
}

impl Stop {
    /// The signal, and when it came.
    pub(crate) fn caught(&self) -> Option<(Signal, Instant)> {
        self.caught.get().copied()
    }

    /// Polls as POLLHUP from the first signal on.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.hung_up.as_fd()
    }
}

/// From now on signals ask us to end, within this time, if there is any limit but a second signal. `clean_up` is
/// for the end that cannot wait for the main thread.
pub(crate) fn catch(
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
    let wait = move || {
        let mut line = Some(line);
        for signal in signals.forever() {
            if line.take().is_none() {
                end(signal);
            }
            let _ = tell.set((signal, Instant::now())); // the first one stays
            let Some(end_max) = end_max else { continue };
            let end = end.clone();
            // If there is no thread for it, there is still the second signal.
            let _ = thread::Builder::new().spawn(move || {
                thread::sleep(end_max);
                end(signal);
            });
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failure)?;
    Ok(Stop { caught, hung_up })
}

/// Ends as if the signal had never been caught, so that whoever started us sees what happened.
pub(crate) fn die_of(signal: Signal) -> ! {
    let _ = emulate_default_handler(signal);
    process::exit(128 + signal) // not reached, unless the kernel does not let us
}
