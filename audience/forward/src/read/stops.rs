//! What ends waiting: a signal, or the end of the output's reader.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use audience_common::error::Failure as Common;
use audience_common::signals::{self, Stop};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;

use super::error::Failure;

/// Waits for the end in a thread, so that tasks can wait for it too.
pub(super) struct Stops {
    stop: Arc<Stop>,
    ended: watch::Receiver<bool>,
}

impl Stops {
    /// Catches signals from now on. `output`: its reader is watched.
    pub(super) fn watch(output: Option<OwnedFd>) -> Result<Stops, Failure> {
        let stop = Arc::new(signals::catch(Some(signals::END_MAX), || {})?);
        let (end, ended) = watch::channel(false);
        let theirs = Arc::clone(&stop);
        let wait = move || {
            wait(&theirs, output.as_ref());
            let _ = end.send(true);
        };
        thread::Builder::new()
            .name("end".to_owned())
            .spawn(wait)
            .map_err(|error| Failure::system("start a thread", error))?;
        Ok(Stops { stop, ended })
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) {
        // The sender goes behind its message.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Returns whether the end has come.
    pub(super) fn is_ended(&self) -> bool {
        *self.ended.borrow() || self.stop.caught().is_some()
    }

    /// Returns why: the signal, or that the reader of the output has gone.
    pub(super) fn why(&self) -> Failure {
        match self.stop.caught() {
            Some((signal, _)) => Common::Interrupted(signal).into(),
            None => Common::OutputClosed.into(),
        }
    }

    /// Returns whether a signal has asked for the end.
    pub(super) fn is_signalled(&self) -> bool {
        self.stop.caught().is_some()
    }
}

/// Waits for a signal, or for an output that nothing reads any more.
fn wait(stop: &Stop, output: Option<&OwnedFd>) {
    loop {
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::empty())];
        // A broken pipe is reported without being asked for.
        fds.extend(output.map(|output| PollFd::new(output.as_fd(), PollFlags::empty())));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if fds.iter().any(|fd| fd.revents().is_some_and(|events| !events.is_empty())) {
            return;
        }
    }
}
