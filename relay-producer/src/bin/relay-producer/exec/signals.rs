//! The signals of this command that are meant for the program.
//!
//! The program is in the same process group. What the kernel sends for a terminal (Ctrl-C, a hangup, a new size)
//! reaches it by itself. What a process sends to this command alone is forwarded.

use nix::libc::signalfd_siginfo;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// The signals that are forwarded. Others keep their default action: SIGTSTP stops both processes.
const FORWARDED: [Signal; 13] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGABRT,
    Signal::SIGIO,
    Signal::SIGURG,
    Signal::SIGPWR,
];

/// Returns the signals that this command takes from a descriptor: those, and the end of the program.
pub(crate) fn taken() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Forwards a signal to the program, unless the program has got it already.
pub(crate) fn forward(info: &signalfd_siginfo, program: Pid) {
    let Ok(number) = i32::try_from(info.ssi_signo) else { return };
    let Ok(signal) = Signal::try_from(number) else { return };
    // An alarm that was set before this command began is the kernel's, and this process's alone.
    let is_forwarded = FORWARDED.contains(&signal)
        && (is_of_process(info) && !is_by(info, program) || signal == Signal::SIGALRM);
    if is_forwarded {
        // It fails only if the program has ended, or belongs to another user now.
        let _ = kill(program, signal);
    }
}

/// Returns whether a process has sent it: codes above 0 are the kernel's.
fn is_of_process(info: &signalfd_siginfo) -> bool {
    info.ssi_code <= 0
}

/// Returns whether the program has sent it, to its whole process group.
fn is_by(info: &signalfd_siginfo, program: Pid) -> bool {
    i32::try_from(info.ssi_pid) == Ok(program.as_raw())
}
