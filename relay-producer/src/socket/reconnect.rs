//! A channel's link to its daemon: the latest connection, and getting the next one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use once_cell::race::OnceBox;
use relay::system::process_lock::ProcessLock;
use relay::wire::socket::{ConnectError, find};

use crate::definitions::Definitions;
use crate::direct::buffers::DirectBuffers;
use crate::direct::generations::Generations;
use crate::error::{OpenError, RequestError};
use crate::levels::Levels;
use crate::socket::connection::Connection;
use crate::socket::follow::{Act, Follower};
use crate::socket::handshake::{Handshake, OPEN_LIMIT, OpenRequest, Progress};

/// Least time between two tries to connect after a loss of the connection.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two tries of a thread that only waits for a daemon.
const AWAIT_INTERVAL: Duration = Duration::from_millis(50);
/// Wait for the answers of a daemon that no message needs. A busy machine's daemon answers within it.
const SEARCH_WAIT: Duration = Duration::from_secs(1);
/// Least time between two such waits.
const SEARCH_WAIT_INTERVAL: Duration = Duration::from_secs(5);
/// Sleep of such a thread between two looks.
const AWAIT_SLEEP: Duration = Duration::from_millis(10);

/// A channel's link to its daemon.
#[derive(Debug)]
pub(crate) struct Link {
    mount: PathBuf,
    request: OpenRequest,
    /// The latest connection. Locked only to take or replace the `Arc`.
    current: ProcessLock<Option<Arc<Connection>>>,
    /// The same while a thread replaces `current`: a child that is forked at that moment has it from here.
    next: ProcessLock<Option<Arc<Connection>>>,
    /// The buffers of the latest connection, for threads that must not lock.
    buffers: Generations,
    redial: ProcessLock<Redial>,
    /// Whether the channel was closed, so that no further connection is made.
    closed: AtomicBool,
    /// The front end that wants to know of changed levels.
    follower: OnceBox<Follower>,
}

/// The search for a new daemon.
#[derive(Debug, Default)]
struct Redial {
    last_try: Option<Instant>,
    pending: Option<Handshake>,
    /// When a thread last waited for an answer of `pending` and got none.
    last_wait: Option<Instant>,
}

/// The reason for which there is no connection; `None` if no try was due.
pub(crate) type NoConnection = Option<OpenError>;

/// Converts the reason into the error of a request that would have waited.
pub(crate) fn no_connection(reason: NoConnection) -> RequestError {
    reason.map_or(RequestError::Disconnected, RequestError::Reopen)
}

impl Link {
    pub(crate) fn new(mount: PathBuf, request: OpenRequest, connection: Connection) -> Link {
        Link {
            mount,
            request,
            buffers: Generations::new(connection.sharing.as_ref().ok()),
            current: ProcessLock::new(Some(Arc::new(connection)), Clone::clone),
            next: ProcessLock::default(),
            redial: ProcessLock::new(Redial::default(), |_| Redial::default()),
            closed: AtomicBool::new(false),
            follower: OnceBox::new(),
        }
    }

    /// Returns which messages are written.
    pub(crate) fn levels(&self) -> &Arc<Levels> {
        &self.request.levels
    }

    /// Calls `act` on another thread now, and whenever the levels have changed. A link has one such front end.
    pub(crate) fn follow_levels(self: &Arc<Self>, act: Act) {
        self.follower.get_or_init(|| Box::new(Follower::new(Arc::downgrade(self), act))).start();
    }

    /// Returns whether the channel was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Looks whether the daemon is there, and tries to reach the next one if not. Returns whether one is there.
    pub(crate) fn look_for_daemon(&self) -> bool {
        let latest = self.latest();
        latest.look();
        if latest.works() {
            return true;
        }
        // A daemon that stands still takes the connection and does not answer. It costs one wait in each interval.
        let is_silent = self
            .redial
            .try_write()
            .is_some_and(|redial| redial.last_wait.is_some_and(|at| at.elapsed() < SEARCH_WAIT_INTERVAL));
        let wait = if is_silent { Duration::ZERO } else { SEARCH_WAIT };
        self.reconnect(wait, RETRY_INTERVAL).is_ok()
    }

    /// Ends the connection for good.
    /// Threads inside a call get an error, or have written where no daemon reads.
    pub(crate) fn close(&self) {
        let mut redial = self.redial.write();
        // Relaxed: read with the lock.
        self.closed.store(true, Ordering::Relaxed);
        redial.pending = None;
        let latest = self.latest();
        latest.close();
        if let Ok(shared) = &latest.sharing {
            shared.retire();
        }
        self.levels().attach(None);
    }

    /// Gives the channel back to the daemon, which reports no end of this process then, and ends the connection for good.
    pub(crate) fn give_back(&self) {
        let latest = self.latest();
        if latest.works() {
            latest.send_close();
        }
        self.close();
    }

    /// Returns the buffers for direct writing.
    pub(crate) fn buffers(&self) -> &Generations {
        &self.buffers
    }

    /// Returns the events that the program has defined.
    pub(crate) fn definitions(&self) -> &Definitions {
        &self.request.definitions
    }

    pub(crate) fn latest(&self) -> Arc<Connection> {
        let latest = self.current.read().clone().or_else(|| self.next.read().clone());
        latest.unwrap_or_else(|| unreachable!("one of them has it at any time"))
    }

    /// Returns a connection that works as far as is known, without waiting for a new daemon.
    pub(crate) fn connection_now(&self) -> Result<Arc<Connection>, NoConnection> {
        self.connection_within(Duration::ZERO)
    }

    /// Returns a connection that works as far as is known. Waits at most this long for the answers of a new daemon.
    pub(crate) fn connection_within(&self, wait: Duration) -> Result<Arc<Connection>, NoConnection> {
        let latest = self.latest();
        if latest.works() { Ok(latest) } else { self.reconnect(wait, RETRY_INTERVAL) }
    }

    /// Returns a working connection, and waits for the next daemon until `deadline`.
    /// `Err(None)`: there was none by then.
    pub(crate) fn await_connection(&self, deadline: Instant) -> Result<Arc<Connection>, NoConnection> {
        loop {
            let latest = self.latest();
            latest.look();
            if latest.works() {
                return Ok(latest);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reconnect(left.min(OPEN_LIMIT), AWAIT_INTERVAL) {
                Ok(connection) => return Ok(connection),
                // No daemon is there yet, or one that is ending.
                Err(None | Some(OpenError::Connect(_))) if left.is_zero() => return Err(None),
                Err(None | Some(OpenError::Connect(_))) => sleep(left.min(AWAIT_SLEEP)),
                Err(reason) => return Err(reason),
            }
        }
    }

    /// Tries to get a connection, if the last try is at least `interval` ago.
    /// Waits at most `wait` for answers.
    #[cold]
    fn reconnect(&self, wait: Duration, interval: Duration) -> Result<Arc<Connection>, NoConnection> {
        let mut redial = match self.redial.try_write() {
            Some(redial) => redial,
            None if !wait.is_zero() => self.redial.write(),
            None => return Err(None),
        };
        let latest = self.latest();
        if latest.works() {
            return Ok(latest);
        }
        // Also for threads that still hold this connection when its buffers get another one.
        if latest.is_own() {
            latest.set_gone();
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(None);
        }
        // A child has lost no message yet, and must not lose its first one.
        let wait = if latest.is_own() { wait } else { OPEN_LIMIT };
        let mapped = latest.sharing.as_ref().ok();
        let handshake = match redial.pending.take().filter(|handshake| !handshake.is_overdue()) {
            Some(handshake) => handshake,
            None if redial.last_try.is_some_and(|at| at.elapsed() < interval) => return Err(None),
            None => {
                redial.last_try = Some(Instant::now());
                self.dial(&latest.path, wait, mapped.filter(|shared| !shared.is_over()))?
            }
        };
        match handshake.advance(&self.request, Some(Instant::now() + wait))? {
            Progress::Done(connection) => Ok(self.replace_latest(connection, &latest)),
            Progress::Waiting(handshake) => {
                redial.pending = Some(handshake);
                if !wait.is_zero() {
                    redial.last_wait = Some(Instant::now());
                }
                Err(None)
            }
        }
    }

    /// Replaces the latest connection by a new one.
    fn replace_latest(&self, connection: Connection, latest: &Connection) -> Arc<Connection> {
        if latest.is_own() {
            connection.inherit_losses(latest);
        }
        let connection = Arc::new(connection);
        self.next.replace(Some(connection.clone()), || ());
        self.current.replace(Some(connection.clone()), || ());
        self.next.replace(None, || ());
        let mapped = latest.sharing.as_ref().ok();
        let shared = connection.sharing.as_ref().ok();
        let replaced = mapped.filter(|mapped| !shared.is_some_and(|shared| Arc::ptr_eq(shared, mapped)));
        if let Some(shared) = shared {
            if mapped.is_none() || replaced.is_some() {
                // If no place is left there, later messages find the buffers through the connection.
                self.buffers.push(shared);
            }
            shared.ring_for_all();
        }
        if let Some(replaced) = replaced {
            replaced.retire();
        }
        if let Some(follower) = self.follower.get() {
            follower.start();
        }
        connection
    }

    /// Connects to the daemon's last socket, or else to the mount's present one.
    /// The mount comes second: a look into the mount of a hanging daemon would hang as well.
    fn dial(
        &self,
        path: &Path,
        wait: Duration,
        mapped: Option<&Arc<DirectBuffers>>,
    ) -> Result<Handshake, OpenError> {
        let mapped = mapped.cloned();
        match Handshake::begin(path, wait, mapped.clone()) {
            Err(OpenError::Connect(ConnectError::NoDaemon { .. })) => {
                Handshake::begin(&find(&self.mount)?, wait, mapped)
            }
            begun => begun,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The thread that follows the levels ends now, not at its next look.
        if self.follower.get().is_some() {
            self.levels().wake();
        }
    }
}
