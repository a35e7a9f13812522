//! When a recording ends: at a signal, or when its time is over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use audience_common::signals::{self, Stop};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::error::Failure;
use crate::wait_for_channel::{Mounts, poll_timeout};

/// What ends a recording.
#[derive(Debug)]
pub(crate) struct Limits {
    stop: Stop,
    /// When the time is over.
    end: Option<Instant>,
    /// Set when another recorder has failed.
    is_halted: AtomicBool,
}

impl Limits {
    /// Begins to catch signals, and the time.
    pub(crate) fn begin(duration: Option<Duration>) -> Result<Limits, Failure> {
        let stop = signals::catch(None, || {})?;
        // A time beyond the clock's range is no limit.
        let end = duration.and_then(|duration| Instant::now().checked_add(duration));
        Ok(Limits { stop, end, is_halted: AtomicBool::new(false) })
    }

    /// Whether the recording is over.
    pub(crate) fn is_over(&self) -> bool {
        self.is_halted.load(Ordering::Relaxed)
            || self.stop.caught().is_some()
            || self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Ends the recording of all threads, when they look next.
    pub(crate) fn halt(&self) {
        // Relaxed: it orders nothing else.
        self.is_halted.store(true, Ordering::Relaxed);
    }

    /// Waits this time at most; ends early when something is mounted or the recording is over.
    pub(crate) fn rest(&self, time: Duration, mounts: Option<&Mounts>) -> Result<(), Failure> {
        let mut fds: Vec<PollFd<'_>> = mounts.map(Mounts::poll_fd).into_iter().collect();
        self.poll(&mut fds, time)
    }

    /// Polls this time at most; ends early when the recording is over.
    pub(crate) fn poll<'fd>(&'fd self, fds: &mut Vec<PollFd<'fd>>, time: Duration) -> Result<(), Failure> {
        let left = self.end.map_or(time, |end| end.saturating_duration_since(Instant::now()).min(time));
        fds.push(PollFd::new(self.stop.as_fd(), PollFlags::empty()));
        let polled = poll(fds, poll_timeout(left));
        fds.pop();
        match polled {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Failure::system("poll", errno)),
        }
    }
}
