//! A channel's link to its daemon: the latest connection, and getting the next one.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use relay::wire::socket::{ConnectError, find};

use crate::direct::buffers::DirectBuffers;
use crate::direct::generations::Generations;
use crate::error::{OpenError, RequestError};
use crate::socket::connection::Connection;
use crate::socket::handshake::{Handshake, OPEN_LIMIT, OpenRequest, Progress};

/// Least time between two tries to connect after a loss of the connection.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two tries of a thread that only waits for a daemon.
const AWAIT_INTERVAL: Duration = Duration::from_millis(50);
/// Sleep of such a thread between two looks.
const AWAIT_SLEEP: Duration = Duration::from_millis(10);

/// A channel's link to its daemon.
#[derive(Debug)]
pub(crate) struct Link {
    mount: PathBuf,
    request: OpenRequest,
    /// The latest connection. Locked only to take or replace the `Arc`.
    current: RwLock<Arc<Connection>>,
    /// The buffers of the latest connection, for threads that must not lock.
    buffers: Generations,
    redial: Mutex<Redial>,
    /// Whether the channel was closed, so that no further connection is made.
    closed: AtomicBool,
}

/// The search for a new daemon.
#[derive(Debug, Default)]
struct Redial {
    last_try: Option<Instant>,
    /// The process that tried.
    pid: u32,
    pending: Option<Handshake>,
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
            current: RwLock::new(Arc::new(connection)),
            redial: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Ends the connection for good.
    /// Threads inside a call get an error, or have written where no daemon reads.
    pub(crate) fn close(&self) {
        let mut redial = self.redial.lock().unwrap_or_else(PoisonError::into_inner);
        // Relaxed: read with the lock.
        self.closed.store(true, Ordering::Relaxed);
        redial.pending = None;
        let latest = self.latest();
        latest.close();
        if let Ok(shared) = &latest.sharing {
            shared.retire();
        }
    }

    /// Returns the buffers for direct writing.
    pub(crate) fn buffers(&self) -> &Generations {
        &self.buffers
    }

    pub(crate) fn latest(&self) -> Arc<Connection> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a connection that works as far as is known.
    pub(crate) fn connection(&self, may_wait: bool) -> Result<Arc<Connection>, NoConnection> {
        let latest = self.latest();
        let wait = if may_wait { OPEN_LIMIT } else { Duration::ZERO };
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
        let mut redial = match self.redial.try_lock() {
            Ok(redial) => redial,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if !wait.is_zero() => {
                self.redial.lock().unwrap_or_else(PoisonError::into_inner)
            }
            Err(TryLockError::WouldBlock) => return Err(None),
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
        if redial.pid != process::id() {
            *redial = Redial { pid: process::id(), ..Redial::default() };
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
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = connection.clone();
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
