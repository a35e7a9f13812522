//! Signals whose default action a program replaces.
#![allow(unsafe_code)]

use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Makes a write beyond the file size limit fail with EFBIG, without SIGXFSZ.
///
/// A program that this process executes later has the caller's action again.
pub fn report_size_limit() -> io::Result<()> {
    if is_ignored(libc::SIGXFSZ) {
        return Ok(());
    }
    let nothing = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGXFSZ, &nothing) }?;
    Ok(())
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// Ignores a signal, given by its number.
/// A program that this process executes later ignores it too.
pub fn ignore(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no handler.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns whether this process ignores a signal, as a process started by nohup(1) does.
pub fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null pointer for the new action, nothing is changed; `now` is writable.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signal_is_known() {
        assert!(!is_ignored(libc::SIGUSR2));
        ignore(libc::SIGUSR2).unwrap();
        assert!(is_ignored(libc::SIGUSR2));
        assert!(ignore(libc::SIGKILL).is_err() && ignore(1000).is_err());
    }
}
