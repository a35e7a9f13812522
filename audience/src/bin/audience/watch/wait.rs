//! Waits for the next look.

use std::time::{Duration, Instant};

use audience_common::signals::Stop;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::channel_files::CpuFile;
use crate::error::Failure;
use crate::output::Output;
use crate::wait_for_channel::{Mounts, poll_timeout};

/// Least time between two looks: a look copies buffers.
const REST_MIN: Duration = Duration::from_millis(10);
/// How much longer than a look the rest behind it is, so that a watch of busy channels takes a part of one CPU.
const REST_FACTOR: u32 = 3;
/// What an event is about.
const FILE: u64 = 0;
const STOP: u64 = 1;
const OUTPUT: u64 = 2;

/// Waits for what a channel's files report.
///
/// Nothing is consumed, so a file stays ready from its first finished sub-buffer on. Edges tell of each further one.
pub(super) struct Waiter<'a> {
    epoll: Epoll,
    stop: &'a Stop,
}

impl<'a> Waiter<'a> {
    pub(super) fn new(files: &[CpuFile], stop: &'a Stop, output: &Output) -> Result<Waiter<'a>, Failure> {
        let failure = |errno| Failure::system("wait for files", errno);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failure)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for file in files {
            epoll.add(&file.file, EpollEvent::new(edge, FILE)).map_err(failure)?;
        }
        epoll.add(stop.as_fd(), EpollEvent::new(EpollFlags::empty(), STOP)).map_err(failure)?;
        // A regular file as output has no reader that could go.
        match epoll.add(output.as_fd(), EpollEvent::new(EpollFlags::empty(), OUTPUT)) {
            Ok(()) | Err(Errno::EPERM) => Ok(Waiter { epoll, stop }),
            Err(errno) => Err(failure(errno)),
        }
    }

    /// Waits until a sub-buffer is finished, a signal comes, or the interval since the last look is over.
    ///
    /// Returns whether the channel has gone.
    pub(super) fn wait(&self, looked: Instant, interval: Duration) -> Result<bool, Failure> {
        let look = looked.elapsed();
        rest(self.stop, None, (REST_FACTOR * look).min(interval.max(look)).max(REST_MIN))?;
        let left = interval.saturating_sub(looked.elapsed());
        let mut events = [EpollEvent::empty(); 16];
        let timeout =
            EpollTimeout::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(EpollTimeout::MAX);
        let n = match self.epoll.wait(&mut events, timeout) {
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(Failure::system("wait for files", errno)),
        };
        let broken = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let mut gone = false;
        for event in &events[..n] {
            let is_broken = event.events().intersects(broken);
            match event.data() {
                OUTPUT if is_broken => return Err(Failure::OutputClosed),
                FILE => gone |= is_broken,
                _ => {}
            }
        }
        Ok(gone)
    }
}

/// Waits this time; ends early at a signal, and when something is mounted.
pub(super) fn rest(stop: &Stop, mounts: Option<&Mounts>, time: Duration) -> Result<(), Failure> {
    let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::empty())];
    fds.extend(mounts.map(Mounts::poll_fd));
    match poll(&mut fds, poll_timeout(time)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(Failure::system("poll", errno)),
    }
}
