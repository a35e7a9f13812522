//! Life of a module: load, initialise, wait for a signal or the time, clean up.

use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, raise};
use relay::layout::channel_name::DEFAULT_CHANNEL;
use relay_producer::{Channel, OpenError};
use thiserror::Error;

use crate::kernel_module::loader::Module;
use crate::say;

/// The signals that end a module.
const SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// The reason for which a module did not run.
#[derive(Debug, Error)]
pub(crate) enum ModuleError {
    #[error("cannot load {}: {reason}", path.display())]
    Load { path: PathBuf, reason: String },
    #[error("{}: init_module failed: {what}{why}", path.display())]
    Init { path: PathBuf, what: String, why: String },
    #[error("cannot wait for signals: {0}")]
    Signals(Errno),
}

/// Runs a module until a signal comes or the time has passed.
pub(crate) fn run(
    file: &Path,
    mount: &Path,
    time: Option<Duration>,
    verbose: bool,
) -> Result<(), ModuleError> {
    let end = catch_signals().map_err(ModuleError::Signals)?;
    let module = Module::load(file, mount.as_os_str())
        .map_err(|reason| ModuleError::Load { path: file.to_owned(), reason })?;
    check(module.init(), file, mount)?;
    if verbose {
        say(&format!("{}: loaded", file.display()));
    }
    // A signal that came earlier is in the channel already.
    match time {
        Some(time) => match end.recv_timeout(time) {
            Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        },
        None => {
            let _ = end.recv();
        }
    }
    module.cleanup();
    if verbose {
        say(&format!("{}: unloaded", file.display()));
    }
    Ok(())
}

/// Checks the result of `init_module`.
fn check(returned: c_int, file: &Path, mount: &Path) -> Result<(), ModuleError> {
    if returned >= 0 {
        if returned > 0 {
            say(&format!(
                "{}: init_module returned {returned}, which is neither 0 nor -E...; taken for success",
                file.display()
            ));
        }
        return Ok(());
    }
    let what = match Errno::from_raw(returned.saturating_neg()) {
        Errno::UnknownErrno => format!("it returned {returned}"),
        errno => errno.desc().to_owned(),
    };
    // Modules report any failure of relay_open() as a lack of memory. Most often there is no daemon.
    let why = match Channel::open(mount, DEFAULT_CHANNEL) {
        Err(OpenError::Connect(error)) => format!("; {error}"),
        _ => String::new(),
    };
    Err(ModuleError::Init { path: file.to_owned(), what, why })
}

/// Blocks the signals in all threads, and returns a receiver of the first one.
/// After the first signal the module has as long as it takes. The second one ends the process at once, as the first
/// would have.
fn catch_signals() -> Result<Receiver<()>, Errno> {
    let signals = SigSet::from_iter(SIGNALS);
    signals.thread_block()?;
    let (sender, receiver) = sync_channel(1);
    // A thread inherits the blocked signals of the thread that starts it.
    thread::spawn(move || {
        let mut told = false;
        while let Ok(signal) = signals.wait() {
            if told {
                // To this thread, the only one that does not block the signal now. Shells make programs in the
                // background ignore SIGINT; then SIGKILL follows.
                let _ = signals.thread_unblock();
                let _ = raise(signal);
                let _ = raise(Signal::SIGKILL);
            }
            told = true;
            let _ = sender.try_send(());
        }
    });
    Ok(receiver)
}
