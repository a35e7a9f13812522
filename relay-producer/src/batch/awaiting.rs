//! Moving a batch from one daemon to the next.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc::ENODEV;
use relay::wire::socket::{Deadline, Refused};

use super::Batch;
use crate::error::{OpenError, RequestError};
use crate::socket::connection::Connection;

/// Interval at which a waiting batch checks whether the last daemon has closed the channel.
const END_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// An event in the life of a batch that outlives its daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonEvent {
    /// The batch has no daemon, needs one, and waits from now on.
    Awaited,
    /// A daemon is there again, and the batch no longer waits.
    Found,
}

/// The callback of such a batch.
pub(super) struct Outlives(Box<dyn FnMut(DaemonEvent) + Send + Sync>);

impl fmt::Debug for Outlives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outlives")
    }
}

impl Batch {
    /// Makes messages that need a daemon wait for the next one without limit.
    /// That holds even if the channel has new buffers then, or none that are shared. [`crate::BatchOptions::wait`]
    /// still decides whether a message waits for room. `report` is called when a wait for a daemon begins, and when it
    /// ends.
    pub fn outlive_daemons(&mut self, report: impl FnMut(DaemonEvent) + Send + Sync + 'static) {
        self.outlives = Some(Outlives(Box::new(report)));
    }

    pub(super) fn outlives(&self) -> bool {
        self.outlives.is_some()
    }

    fn report(&mut self, event: DaemonEvent) {
        if let Some(Outlives(report)) = &mut self.outlives {
            report(event);
        }
    }

    /// Returns whether the daemon can take requests now.
    pub(super) fn works(&self) -> bool {
        self.connection.look();
        self.connection.works()
    }

    /// Returns whether the batch outlives its connection.
    pub(super) fn survives(&self) -> bool {
        self.outlives() || self.connection.shared().is_some()
    }

    /// Uses a new connection if there is one, without waiting for it.
    #[cold]
    pub(super) fn reattach(&mut self) {
        if let Ok(connection) = self.link.connection_now() {
            // If it does not fit this batch, the next message finds out.
            let _ = self.use_connection(connection);
        }
    }

    /// Waits for a daemon with the same buffers, or for any if the batch outlives its daemons.
    #[cold]
    pub(super) fn find_daemon(&mut self, deadline: Deadline) -> Result<(), RequestError> {
        // Answers to frames in flight that have arrived still count.
        self.collect_all()?;
        let mut is_reported = false;
        loop {
            let now = Instant::now();
            let pause = now + END_LOOK_INTERVAL;
            match self.link.await_connection(deadline.map_or(pause, |at| at.min(pause))) {
                Ok(connection) => {
                    if is_reported {
                        self.report(DaemonEvent::Found);
                    }
                    return self.use_connection(connection);
                }
                Err(Some(reason)) if self.outlives() && is_ending(&reason) => {}
                Err(Some(reason)) => return Err(RequestError::Reopen(reason)),
                Err(None) => {}
            }
            if let Some(shared) = self.connection.shared() {
                shared.look_for_end();
            }
            if !self.survives() || deadline.is_some_and(|at| at <= now) {
                return Err(RequestError::Disconnected);
            }
            if !std::mem::replace(&mut is_reported, true) {
                self.report(DaemonEvent::Awaited);
            }
        }
    }

    fn use_connection(&mut self, connection: Arc<Connection>) -> Result<(), RequestError> {
        let is_same = match (&self.connection.sharing, &connection.sharing) {
            (Ok(old), Ok(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        // The gathered messages must fit a frame of the new connection, and a channel of its kind.
        let is_same_kind = connection.geometry.timed() == self.connection.geometry.timed();
        let has_none = self.frame.n_messages() == 0 && self.handed_back.is_empty();
        let fits = connection.room >= self.connection.room && (is_same_kind || has_none);
        if !(is_same || self.outlives()) || !fits {
            return Err(RequestError::Disconnected);
        }
        connection.buffer_of(self.options.cpu)?;
        self.direct &= is_same;
        self.handed_back.has_new_daemon();
        self.connection = connection;
        Ok(())
    }

    /// Sends what was handed back, then calls `send`; again with the next daemon if this one has gone.
    /// `send` must have sent nothing then.
    pub(super) fn by_daemon(
        &mut self,
        mut send: impl FnMut(&mut Batch) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        let deadline = if self.outlives() { None } else { self.deadline() };
        loop {
            // A child has inherited the socket, but not its replies.
            let own = self.connection.is_own();
            let sent = if own {
                self.send_handed_back().and_then(|()| send(self))
            } else {
                Err(RequestError::Disconnected)
            };
            match sent {
                Err(RequestError::Disconnected) if self.survives() => self.find_daemon(deadline)?,
                sent => return sent,
            }
        }
    }
}

/// Returns whether the daemon's reason is that it is ending.
fn is_ending(reason: &OpenError) -> bool {
    matches!(reason, OpenError::Refused(Refused { errno, .. }) if *errno == ENODEV)
}
