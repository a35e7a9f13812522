//! Handles signals; the table is in `relayfsd/docs/SECURITY.md`.
//!
//! When the daemon ends, its readers get an error. So a signal ends it only where a person or a service manager asks
//! for that. The daemon ignores signals that a peer, a limit of file size or a terminal may cause, and signals without
//! a meaning for it.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use nix::sys::signal::SigSet;
use relay::system::signals::{ignore, is_ignored};
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGVTALRM,
    SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;

/// The signals that end the daemon in order, besides SIGHUP in the foreground.
///
/// Timers are inherited over exec(2), and set for that purpose. The kernel sends SIGXCPU some time before SIGKILL. A
/// container's manager sends SIGPWR.
const ENDING: [i32; 7] = [SIGINT, SIGTERM, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU, libc::SIGPWR];

/// The ignored signals, besides SIGPIPE and the real-time signals.
///
/// The Rust runtime ignores SIGPIPE.
/// With SIGXFSZ ignored, a write fails with EFBIG. With SIGTTOU ignored, a log line reaches the terminal from the
/// background too.
const IGNORED: [i32; 7] = [SIGXFSZ, SIGTTOU, SIGTTIN, SIGIO, SIGUSR1, SIGUSR2, libc::SIGSTKFLT];

/// Returns the signals without a name. The C library reserves the first two.
fn real_time() -> RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// The request that a signal makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To end, and why, if that is not obvious.
    End(Option<&'static str>),
    /// To open the log file again.
    Reopen,
}

/// Resets signals that the starting process may have changed, and ignores unused ones.
///
/// Must be called first.
pub(crate) fn prepare() -> io::Result<()> {
    // A daemon with all signals blocked could not be ended.
    SigSet::empty().thread_set_mask()?;
    // A daemon that ignores SIGCHLD could not wait for fusermount3.
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    IGNORED.into_iter().chain(real_time()).try_for_each(ignore)
}

/// Signals that have come, and are not forwarded yet.
pub(crate) struct Caught {
    signals: Signals,
    foreground: bool,
}

impl Caught {
    /// Catches signals from now on.
    pub(crate) fn start(foreground: bool) -> io::Result<Caught> {
        // nohup(1) asks to ignore the end of the terminal.
        let hang_up = (!foreground || !is_ignored(SIGHUP)).then_some(SIGHUP);
        Ok(Caught { signals: Signals::new(ENDING.into_iter().chain(hang_up))?, foreground })
    }

    /// Forwards signals as requests, at once for those that have come.
    pub(crate) fn forward(self) -> io::Result<Receiver<Asked>> {
        let Caught { mut signals, foreground } = self;
        let (sender, receiver) = bounded(8);
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                // If the queue is full, another request adds nothing new.
                let _ = sender.try_send(asked(signal, foreground));
            }
        })?;
        Ok(receiver)
    }
}

fn asked(signal: i32, foreground: bool) -> Asked {
    match signal {
        SIGHUP if !foreground => Asked::Reopen,
        SIGXCPU => Asked::End(Some("the limit of CPU time is reached (ulimit -t, LimitCPU=)")),
        SIGALRM | SIGVTALRM | SIGPROF => {
            Asked::End(Some("a timer that was set before relayfsd was executed"))
        }
        _ => Asked::End(None),
    }
}
