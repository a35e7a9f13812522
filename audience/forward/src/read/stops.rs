//! What ends waiting: a signal, the end of the output's reader, or what keeps a reader without `--follow` from reading.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
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
    give_up: GiveUp,
}

/// Ends waiting, for a reason.
#[derive(Clone, Debug)]
pub(super) struct GiveUp {
    why: Arc<OnceLock<String>>,
    end: watch::Sender<bool>,
}

impl GiveUp {
    /// Ends waiting. The first reason counts.
    pub(super) fn because(&self, why: String) {
        let _ = self.why.set(why);
        self.end.send_replace(true);
    }
}

impl Stops {
    /// Catches signals from now on. `output`: its reader is watched.
    pub(super) fn watch(output: Option<OwnedFd>) -> Result<Stops, Failure> {
        let stop = Arc::new(signals::catch(Some(signals::END_MAX), || {})?);
        let (end, ended) = watch::channel(false);
        let give_up = GiveUp { why: Arc::default(), end: end.clone() };
        let theirs = Arc::clone(&stop);
        let wait = move || {
            wait(&theirs, output.as_ref());
            end.send_replace(true);
        };
        thread::Builder::new()
            .name("end".to_owned())
            .spawn(wait)
            .map_err(|error| Failure::system("start a thread", error))?;
        Ok(Stops { stop, ended, give_up })
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

    /// Returns why: the signal, that reading was given up, or that the reader of the output has gone.
    pub(super) fn why(&self) -> Failure {
        match (self.stop.caught(), self.give_up.why.get()) {
            (Some((signal, _)), _) => Common::Interrupted(signal).into(),
            (None, Some(why)) => Failure::GivenUp(why.clone()),
            (None, None) => Common::OutputClosed.into(),
        }
    }

    /// Returns what ends waiting for a reason.
    pub(super) fn give_up(&self) -> GiveUp {
        self.give_up.clone()
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
