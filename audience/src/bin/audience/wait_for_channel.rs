//! Waits for a channel that does not exist yet, or has gone.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::channel_files::{Place, known};
use crate::error::Failure;
use crate::mount::is_mounted;

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

/// Turns the error of a channel that does not exist into `None`.
pub(crate) fn if_there<T>(opened: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match opened {
        Ok(files) => Ok(Some(files)),
        Err(Failure::NoChannel { .. }) => Ok(None),
        Err(Failure::Open { source, .. } | Failure::Read { source, .. }) if means_gone(&source) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The message, printed once, that a channel is missing and that the program waits for it.
pub(crate) fn missing(place: &Place) -> String {
    let (mount, channel) = (place.mount.clone(), place.channel.clone());
    let is_dead = |error: &io::Error| error.raw_os_error() == Some(Errno::ENOTCONN as i32);
    let missing = match is_mounted(&mount) {
        Ok(true) => Failure::NoChannel { channel, known: known(&mount), mount }.to_string(),
        _ if fs::metadata(&mount).is_err_and(|error| is_dead(&error)) => {
            format!("the daemon of {} has died", mount.display())
        }
        _ => format!("{} is not mounted", mount.display()),
    };
    format!("{missing}; waiting for it")
}

/// Whether an error means that a file's daemon, or a path's mount, has gone.
pub(crate) fn means_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENODEV, Errno::ENOTCONN, Errno::ECONNABORTED, Errno::ENOENT, Errno::ESTALE];
    error.raw_os_error().is_some_and(|raw| gone.contains(&Errno::from_raw(raw)))
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
