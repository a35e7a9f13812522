//! The program that is run: how it starts, and how its end becomes this command's.
//!
//! The program must find what it would find without this command: signals that are blocked or ignored, and standard
//! input, even if that is closed. Rust's runtime, and its `Command`, change some of them.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, raise, signal, sigprocmask};
use nix::unistd::{ForkResult, fork};
use relay::system::signals::is_ignored;

/// A program that runs, and the ends of its output.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdout: PipeReader,
    pub(crate) stderr: PipeReader,
}

/// The signals as the caller of this command left them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    blocked: SigSet,
    ignores_children: bool,
    ignores_pipe: bool,
}

impl Inherited {
    /// Blocks `signals`, from now on and in every thread, and makes children of this process wait for it.
    /// Returns what was before.
    pub(crate) fn replace(signals: &SigSet) -> nix::Result<Inherited> {
        let mut blocked = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(signals), Some(&mut blocked))?;
        let ignores_children = is_ignored(libc::SIGCHLD);
        if ignores_children {
            // SAFETY: no handler.
            unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        }
        Ok(Inherited { blocked, ignores_children, ignores_pipe: relay_stdio::ignored_pipe() })
    }

    /// Restores everything in a child, right before it becomes the program.
    fn restore(self, closes_input: bool) -> io::Result<()> {
        let action = |ignored| if ignored { SigHandler::SigIgn } else { SigHandler::SigDfl };
        // SAFETY: no handler.
        unsafe { signal(Signal::SIGPIPE, action(self.ignores_pipe)) }?;
        // SAFETY: as above.
        unsafe { signal(Signal::SIGCHLD, action(self.ignores_children)) }?;
        if closes_input {
            // SAFETY: the runtime has put /dev/null there, which nothing in this child uses.
            unsafe { libc::close(libc::STDIN_FILENO) };
        }
        Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.blocked), None)?)
    }
}

/// Starts a program whose output goes into two pipes.
pub(crate) fn start(program: &OsStr, args: &[OsString], inherited: Inherited) -> io::Result<Running> {
    let (stdout, to_stdout) = io::pipe()?;
    let (stderr, to_stderr) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::inherit()).stdout(to_stdout).stderr(to_stderr);
    let closes_input = relay_stdio::was_closed(libc::STDIN_FILENO);
    // SAFETY: system calls alone, which a child may make before exec.
    unsafe { command.pre_exec(move || inherited.restore(closes_input)) };
    let child = command.spawn()?;
    Ok(Running { child, stdout, stderr })
}

/// Makes another process that continues after this call; it gets true.
/// This process must have one thread.
pub(crate) fn split() -> nix::Result<bool> {
    // SAFETY: with one thread, the child may do whatever this process may.
    Ok(matches!(unsafe { fork() }?, ForkResult::Child))
}

/// Ends this process by the signal that has ended the program. Returns if that is not possible.
pub(crate) fn die_by(number: i32) {
    let Ok(mortal) = Signal::try_from(number) else { return };
    // The program has left its core already.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // SAFETY: no handler.
    let _ = unsafe { signal(mortal, SigHandler::SigDfl) };
    let _ = SigSet::from(mortal).thread_unblock();
    let _ = raise(mortal);
}
