//! The life of a module: loaded, initialised, there until it is told to go, cleaned up.

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

/// What ends a module.
const SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// Why a module did not run.
#[derive(Debug, Error)]
pub(crate) enum ModuleError {
    #[error("cannot load {}: {reason}", path.display())]
    Load { path: PathBuf, reason: String },
    #[error("{}: init_module failed: {what}{why}", path.display())]
    Init { path: PathBuf, what: String, why: String },
    #[error("cannot wait for signals: {0}")]
    Signals(Errno),
}

/// Runs a module until a signal comes, or the time is over.
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
    // A signal that came meanwhile is there already.
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

/// What `init_module` returned.
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
    // Modules take any failure of relay_open() for a lack of memory. Most often there is no daemon.
    let why = match Channel::open(mount, DEFAULT_CHANNEL) {
        Err(OpenError::Connect(error)) => format!("; {error}"),
        _ => String::new(),
    };
    Err(ModuleError::Init { path: file.to_owned(), what, why })
}

/// From now on no thread of this process ends by the signals: the first of them is told to the receiver, and leaves the
/// module the time it takes; the second ends the process at once, as the first would have done.
fn catch_signals() -> Result<Receiver<()>, Errno> {
    let signals = SigSet::from_iter(SIGNALS);
    signals.thread_block()?;
    let (sender, receiver) = sync_channel(1);
    // Threads have the blocked signals of whoever starts them.
    thread::spawn(move || {
        let mut told = false;
        while let Ok(signal) = signals.wait() {
            if told {
                // To this thread, the only one that does not block it, for the moment. Shells have the programs in
                // their background ignore SIGINT, and then it takes more.
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
