//! Waits for a channel that does not exist yet, or has gone.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::channel_files::{CpuFile, Place, known};
use crate::error::Failure;
use crate::mount::is_mounted;

/// Why the reading of a channel's files ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// A signal came, and the last read is done.
    Stopped,
    /// The channel, or the whole mount, has gone.
    Gone,
}

/// Time between two checks whether a channel exists, or was replaced.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The poll flags of a descriptor that is of no use any more.
pub(crate) const BROKEN: PollFlags = PollFlags::POLLERR.union(PollFlags::POLLHUP).union(PollFlags::POLLNVAL);

/// Watches the table of mounts, which changes first when the next daemon starts.
///
/// A channel may come and go without such a change, so the caller also checks at intervals.
#[derive(Debug)]
pub(crate) struct Mounts(File);

impl Mounts {
    /// Watches for changes from now on.
    pub(crate) fn watch() -> Result<Mounts, Failure> {
        let table = relay::system::mountinfo::open();
        table.map(Mounts).map_err(|error| Failure::system("watch the table of mounts", error))
    }

    /// A descriptor that polls as ready once for all changes since the last poll.
    pub(crate) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.0.as_fd(), PollFlags::POLLPRI)
    }
}

/// What a wait for files has found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Polled {
    /// Some file can be read.
    pub(crate) ready: bool,
    /// Some file's channel has gone.
    pub(crate) gone: bool,
}

/// Waits until a file is ready, something has been mounted, `stop` is ready, or the time is over.
/// Fails if the reader of `output` has gone.
pub(crate) fn wait_for_files(
    stop: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
    files: &[CpuFile],
    mounts: Option<&Mounts>,
    time: Duration,
) -> Result<Polled, Failure> {
    let mut fds = vec![PollFd::new(stop, PollFlags::empty()), PollFd::new(output, PollFlags::empty())];
    fds.extend(files.iter().map(|file| PollFd::new(file.file.as_fd(), PollFlags::POLLIN)));
    fds.extend(mounts.map(Mounts::poll_fd));
    match poll(&mut fds, poll_timeout(time)) {
        // The process was stopped and continued: one more round does no harm.
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(Failure::system("poll", errno)),
    }
    let has = |fd: &PollFd<'_>, flags| fd.revents().is_some_and(|events| events.intersects(flags));
    // Without this check, only the next message would show it, perhaps much later.
    if has(&fds[1], BROKEN) {
        return Err(Failure::OutputClosed);
    }
    let any = |flags| fds[2..2 + files.len()].iter().any(|fd| has(fd, flags));
    Ok(Polled { ready: any(PollFlags::POLLIN), gone: any(BROKEN) })
}

/// A channel that has come.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) is_timed: bool,
    /// Whether it was there at the first look. The counters of one that comes later begin at zero.
    pub(crate) at_once: bool,
}

/// Waits for a channel. `None` if `rest`, which waits a moment, says that the program is to end.
pub(crate) fn wait_for(
    place: &Place,
    cpu: Option<usize>,
    say: impl FnOnce(String),
    rest: impl Fn(&Mounts) -> Result<bool, Failure>,
) -> Result<Option<Found>, Failure> {
    let mounts = Mounts::watch()?;
    let mut say = Some(say);
    loop {
        if let Some((_, is_timed)) = if_there(place.open_of_kind(cpu))? {
            return Ok(Some(Found { is_timed, at_once: say.is_some() }));
        }
        if let Some(say) = say.take() {
            say(missing(place));
        }
        if rest(&mounts)? {
            return Ok(None);
        }
    }
}

/// Turns the error of a channel that does not exist into `None`.
pub(crate) fn if_there<T>(opened: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match opened {
        Ok(files) => Ok(Some(files)),
        Err(Failure::NoChannel { .. }) => Ok(None),
        Err(failure) if failure.means_gone() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The message, printed once, that a channel is missing and that the program waits for it.
pub(crate) fn missing(place: &Place) -> String {
    let (mount, channel) = (place.mount.clone(), place.channel.clone());
    let missing = missing_mount(&mount)
        .unwrap_or_else(|| Failure::NoChannel { channel, known: known(&mount), mount }.to_string());
    format!("{missing}; waiting for it")
}

/// Says that nothing is mounted, or that its daemon has died. `None` if a daemon serves the mount point.
pub(crate) fn missing_mount(mount: &Path) -> Option<String> {
    let is_dead = |error: &io::Error| error.raw_os_error() == Some(Errno::ENOTCONN as i32);
    match is_mounted(mount) {
        Ok(true) => None,
        _ if fs::metadata(mount).is_err_and(|error| is_dead(&error)) => {
            Some(format!("the daemon of {} has died", mount.display()))
        }
        _ => Some(format!("{} is not mounted", mount.display())),
    }
}

/// A time as poll(2) takes it: in milliseconds, rounded up, so that a short time is not zero.
pub(crate) fn poll_timeout(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_time_is_rounded_up_to_a_millisecond() {
        assert_eq!(poll_timeout(Duration::ZERO), PollTimeout::ZERO);
        assert_eq!(poll_timeout(Duration::from_nanos(1)), PollTimeout::from(1_u8));
        assert_eq!(poll_timeout(Duration::from_millis(2)), PollTimeout::from(2_u8));
        assert_eq!(poll_timeout(Duration::from_secs(1 << 40)), PollTimeout::MAX);
    }
}
