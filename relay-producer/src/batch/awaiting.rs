//! How a batch comes from one daemon to the next.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc::ENODEV;
use relay::wire::socket::{Deadline, Refused};

use super::Batch;
use crate::error::{OpenError, RequestError};
use crate::socket::connection::Connection;

/// How often a batch that waits for a daemon looks whether the last one has closed the channel.
const END_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What a batch that outlives its daemons tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonEvent {
    /// It has no daemon, and needs one: it waits from now on.
    Awaited,
    /// A daemon is there again: it waits no more.
    Found,
}

/// What such a batch calls.
pub(super) struct Outlives(Box<dyn FnMut(DaemonEvent) + Send + Sync>);

impl fmt::Debug for Outlives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outlives")
    }
}

impl Batch {
    /// From now on a message that needs a daemon waits for the next one as long as it takes, also where the channel's buffers
    /// are new ones then, or not shared. Whether a message waits for room is for [`crate::BatchOptions::wait`] to say, as
    /// before. `tell` is called when such a wait begins, and when it is over.
    pub fn outlive_daemons(&mut self, tell: impl FnMut(DaemonEvent) + Send + Sync + 'static) {
        self.outlives = Some(Outlives(Box::new(tell)));
    }

    pub(super) fn outlives(&self) -> bool {
        self.outlives.is_some()
    }

    fn tell(&mut self, event: DaemonEvent) {
        if let Some(Outlives(tell)) = &mut self.outlives {
            tell(event);
        }
    }

    /// Whether the daemon can be asked something now.
    pub(super) fn works(&self) -> bool {
        self.connection.look();
        self.connection.works()
    }

    /// Whether the end of the connection is not that of the batch.
    pub(super) fn survives(&self) -> bool {
        self.outlives() || self.connection.shared().is_some()
    }

    /// Takes a new connection if there is one, without waiting for it.
    #[cold]
    pub(super) fn reattach(&mut self) {
        if let Ok(connection) = self.link.connection(false) {
            // If it does not serve, the next message finds that out.
            let _ = self.take(connection);
        }
    }

    /// Waits for a daemon that continues with the same buffers, or, if the batch outlives its daemons, for any.
    #[cold]
    pub(super) fn find_daemon(&mut self, deadline: Deadline) -> Result<(), RequestError> {
        // Of what is under way, what was answered still counts.
        self.collect_all()?;
        let mut is_told = false;
        loop {
            let now = Instant::now();
            let pause = now + END_LOOK_INTERVAL;
            match self.link.await_connection(deadline.map_or(pause, |at| at.min(pause))) {
                Ok(connection) => {
                    if is_told {
                        self.tell(DaemonEvent::Found);
                    }
                    return self.take(connection);
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
            if !std::mem::replace(&mut is_told, true) {
                self.tell(DaemonEvent::Awaited);
            }
        }
    }

    fn take(&mut self, connection: Arc<Connection>) -> Result<(), RequestError> {
        let is_same = match (&self.connection.sharing, &connection.sharing) {
            (Ok(old), Ok(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        // What has been gathered must fit a frame of the new connection.
        if !(is_same || self.outlives()) || connection.room < self.connection.room {
            return Err(RequestError::Disconnected);
        }
        connection.buffer_of(self.options.cpu)?;
        self.direct &= is_same;
        self.connection = connection;
        Ok(())
    }

    /// Sends, by the next daemon if this one turns out to have gone. `send` must have sent nothing then.
    pub(super) fn by_daemon(
        &mut self,
        mut send: impl FnMut(&mut Batch) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        let deadline = if self.outlives() { None } else { self.deadline() };
        loop {
            // A child has inherited the socket, but not what comes through it.
            let own = self.connection.is_own();
            match if own { send(self) } else { Err(RequestError::Disconnected) } {
                Err(RequestError::Disconnected) if self.survives() => self.find_daemon(deadline)?,
                sent => return sent,
            }
        }
    }
}

/// Whether the daemon says that it is ending.
fn is_ending(reason: &OpenError) -> bool {
    matches!(reason, OpenError::Refused(Refused { errno, .. }) if *errno == ENODEV)
}
