//! A process that stands still for a while.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

/// A process that was stopped, and continues when this is dropped, also when a test fails.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops a process. Returns when it takes no more requests.
    #[track_caller]
    pub fn new(pid: Pid) -> Stopped {
        kill(pid, Signal::SIGSTOP).expect("a process to stop");
        let stopped = Stopped(pid);
        stands_still(pid);
        stopped
    }

    /// Stops a daemon that has no request of a client. The kernel ends no process whose request the daemon has taken and
    /// not answered.
    #[track_caller]
    pub fn between_requests(daemon: Pid, client: Pid) -> Stopped {
        let waiting = Stopped::new(client);
        let stopped = Stopped::new(daemon);
        drop(waiting);
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Waits until each thread of a process has left the kernel, after a signal that stops it.
#[track_caller]
pub fn stands_still(process: Pid) {
    eventually("a process that stands still", || {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
        // A thread that has just ended has no file, and a first thread that has ended stays as a zombie.
        let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).ok();
        let state = |stat: String| stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        tasks.filter_map(|task| state(stat(task.expect("a thread"))?)).all(|state| matches!(state, 'T' | 'Z'))
    });
}
