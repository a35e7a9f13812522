//! A process that stands still for a while.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that was stopped, and continues when this is dropped, also when a test fails.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops a process.
    #[track_caller]
    pub fn new(pid: Pid) -> Stopped {
        kill(pid, Signal::SIGSTOP).expect("a process to stop");
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
