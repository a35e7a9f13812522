//! `--wait-mount`: waits until relayfs is mounted, and its daemon takes connections.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay::system::mountinfo;
use relay::wire::socket::{ConnectError, Socket, find};
use relay_producer::Wait;

/// Longest time between two looks: a daemon answers some time after its mount has appeared.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for a daemon. The error says why there was none at the end.
pub(crate) fn wait(mount: &Path, limit: Wait) -> Result<(), ConnectError> {
    let limit = match limit {
        Wait::No => Some(Duration::ZERO),
        Wait::AtMost(time) => Some(time),
        Wait::Forever => None,
    };
    // Opened before the first look, so that no change of the table is missed.
    let table = mountinfo::open().ok();
    let end = limit.map(|limit| Instant::now() + limit);
    loop {
        let error = match find(mount).and_then(|socket| Socket::connect(&socket, LOOK)) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let left = end.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() || !may_change(&error) {
            return Err(error);
        }
        let time_out = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO);
        let mut changes: Vec<PollFd> =
            table.iter().map(|table| PollFd::new(table.as_fd(), PollFlags::POLLPRI)).collect();
        // An error, as that of a signal, only shortens the wait.
        let _ = poll(&mut changes, time_out);
    }
}

/// Returns whether a mount, or a daemon that starts, can end this error.
fn may_change(error: &ConnectError) -> bool {
    match error {
        ConnectError::NotMounted { .. }
        | ConnectError::Stale { .. }
        | ConnectError::NoDaemon { .. }
        | ConnectError::HungUp { .. }
        | ConnectError::Silent { .. } => true,
        ConnectError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        ConnectError::Forbidden { .. } | ConnectError::NotOurs { .. } => false,
    }
}
