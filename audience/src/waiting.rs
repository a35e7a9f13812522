//! Waiting for a channel that is not there, or not there any more.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFlags, PollTimeout};

use crate::channel::{Place, known};
use crate::failure::Failure;
use crate::mount::is_mounted;

/// Time between two looks at whether a channel is there, or still the same.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// What poll reports for a descriptor that is no use any more.
pub(crate) const BROKEN: PollFlags = PollFlags::POLLERR.union(PollFlags::POLLHUP).union(PollFlags::POLLNVAL);

/// What was opened, or `None` if the channel is not there.
pub(crate) fn if_there<T>(opened: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match opened {
        Ok(files) => Ok(Some(files)),
        Err(Failure::NoChannel { .. }) => Ok(None),
        Err(Failure::Open { source, .. } | Failure::Read { source, .. }) if means_gone(&source) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What is said once when a channel has to be waited for.
pub(crate) fn missing(place: &Place) -> String {
    let (mount, channel) = (place.mount.clone(), place.channel.clone());
    let missing = match is_mounted(&mount) {
        Ok(true) => Failure::NoChannel { channel, known: known(&mount), mount }.to_string(),
        _ => format!("{} is not mounted", mount.display()),
    };
    format!("{missing}; waiting for it")
}

/// The error of a file whose daemon has gone, or of a path below a mount that has.
pub(crate) fn means_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENODEV, Errno::ENOTCONN, Errno::ECONNABORTED, Errno::ENOENT, Errno::ESTALE];
    error.raw_os_error().is_some_and(|raw| gone.contains(&Errno::from_raw(raw)))
}

/// A time as poll(2) takes it: in milliseconds, and never none for a little.
pub(crate) fn poll_timeout(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_time_is_a_millisecond() {
        assert_eq!(poll_timeout(Duration::ZERO), PollTimeout::ZERO);
        assert_eq!(poll_timeout(Duration::from_nanos(1)), PollTimeout::from(1_u8));
        assert_eq!(poll_timeout(Duration::from_millis(2)), PollTimeout::from(2_u8));
        assert_eq!(poll_timeout(Duration::from_secs(1 << 40)), PollTimeout::MAX);
    }
}
