//! What the commands share around their options: standard streams, and the options that all of them have.
//!
//! Rust's runtime opens /dev/null in place of a standard stream that is closed when a program starts. Output there is
//! lost without an error, and input ends at once. So a function of this crate runs before the runtime, and notes which
//! streams are closed, and whether SIGPIPE is ignored. A stream that the caller has set to /dev/null stays as it is.
//!
//! For commands only: a library must not have code that runs before a program's `main`.
#![allow(unsafe_code)]

pub mod flags;

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{F_GETFD, STDIN_FILENO, STDOUT_FILENO};
use thiserror::Error;

/// The reason for which a standard stream cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// Standard input was closed when the program started.
    #[error("standard input is closed")]
    NoInput,
    /// Standard output was closed when the program started.
    #[error("standard output is closed")]
    NoOutput,
    /// Standard input cannot be read.
    #[error("standard input is not open for reading")]
    UnreadableInput,
    /// Standard output cannot be written.
    #[error("standard output is not open for writing")]
    UnwritableOutput,
}

/// Bit N is set if descriptor N was closed when the program started.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// Whether SIGPIPE was ignored when the program started. The runtime ignores it in any case.
static IGNORED_PIPE: AtomicBool = AtomicBool::new(false);

// SAFETY: the C library calls the functions of this section, which are of this type, before main(); the section has a
// pointer's alignment.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = note;

/// Notes the closed streams. It must not use the runtime, which is not initialised yet.
extern "C" fn note() {
    for fd in 0..=2 {
        // SAFETY: reads the flags of a descriptor, if there is one.
        if unsafe { libc::fcntl(fd, F_GETFD) } < 0 {
            // Relaxed: this is the only thread so far.
            CLOSED.fetch_or(1 << fd, Ordering::Relaxed);
        }
    }
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null pointer for the new action, nothing is changed; `now` is writable.
    let asked = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut now) };
    // Relaxed: as above.
    IGNORED_PIPE.store(asked == 0 && now.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
}

/// Returns whether the program's caller ignored SIGPIPE.
pub fn ignored_pipe() -> bool {
    // Relaxed: stored before other threads existed.
    IGNORED_PIPE.load(Ordering::Relaxed)
}

/// Returns whether a standard stream was closed when the program started.
pub fn was_closed(fd: RawFd) -> bool {
    // Relaxed: stored before other threads existed.
    CLOSED.load(Ordering::Relaxed) & (1 << fd) != 0
}

/// Checks that standard input can be read.
pub fn input() -> Result<(), StreamError> {
    if was_closed(STDIN_FILENO) {
        return Err(StreamError::NoInput);
    }
    if is_open_for(&io::stdin(), OFlag::O_RDONLY) { Ok(()) } else { Err(StreamError::UnreadableInput) }
}

/// Checks that standard output can be written.
pub fn output() -> Result<(), StreamError> {
    if was_closed(STDOUT_FILENO) {
        return Err(StreamError::NoOutput);
    }
    if is_open_for(&io::stdout(), OFlag::O_WRONLY) { Ok(()) } else { Err(StreamError::UnwritableOutput) }
}

/// Runs `print`, which writes help or a version to standard output, and returns its error.
/// A reader that closes the pipe early causes no error.
pub fn print(print: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    output().map_err(|error| error.to_string())?;
    match print().and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

fn is_open_for(stream: &impl AsFd, access: OFlag) -> bool {
    let Ok(flags) = fcntl(stream, FcntlArg::F_GETFL).map(OFlag::from_bits_retain) else { return false };
    let mode = flags & OFlag::O_ACCMODE;
    !flags.contains(OFlag::O_PATH) && (mode == access || mode == OFlag::O_RDWR)
}
