//! A channel's way to its daemon: the latest connection, and getting a new one when that is over.

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

/// After a loss of the connection, a new one is tried for at most this often.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same for those who have nothing else to do than to wait for a daemon.
const AWAIT_INTERVAL: Duration = Duration::from_millis(50);
/// How long they sleep between two looks.
const AWAIT_SLEEP: Duration = Duration::from_millis(10);

/// A channel's way to its daemon.
#[derive(Debug)]
pub(crate) struct Link {
    mount: PathBuf,
    request: OpenRequest,
    /// The latest connection. Locked only to take or replace the `Arc`.
    current: RwLock<Arc<Connection>>,
    /// The same one's buffers, for those who may not lock.
    buffers: Generations,
    redial: Mutex<Redial>,
    /// There is to be no connection any more.
    closed: AtomicBool,
}

/// The search for a new daemon.
#[derive(Debug, Default)]
struct Redial {
    last_try: Option<Instant>,
    /// The process that tried.
    pid: u32,
    under_way: Option<Handshake>,
}

/// Why there is no connection; `None` if it was not tried now.
pub(crate) type NoConnection = Option<OpenError>;

/// For those who would have waited.
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

    /// Ends the connection, for good. Threads that are inside a call get an error, or have written where nobody reads.
    pub(crate) fn close(&self) {
        let mut redial = self.redial.lock().unwrap_or_else(PoisonError::into_inner);
        // Relaxed: read with the lock.
        self.closed.store(true, Ordering::Relaxed);
        redial.under_way = None;
        let latest = self.latest();
        latest.close();
        if let Ok(shared) = &latest.sharing {
            shared.retire();
        }
    }

    /// The buffers to be written directly.
    pub(crate) fn buffers(&self) -> &Generations {
        &self.buffers
    }

    pub(crate) fn latest(&self) -> Arc<Connection> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection that works as far as is known.
    pub(crate) fn connection(&self, may_wait: bool) -> Result<Arc<Connection>, NoConnection> {
        let latest = self.latest();
        let wait = if may_wait { OPEN_LIMIT } else { Duration::ZERO };
        if latest.works() { Ok(latest) } else { self.reconnect(wait, RETRY_INTERVAL) }
    }

    /// A connection that works, for those who need the daemon, and wait for the next one until `deadline`: `None`, if there
    /// is none by then.
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
                // Nobody there yet, or one that ends while it is asked.
                Err(None | Some(OpenError::Connect(_))) if left.is_zero() => return Err(None),
                Err(None | Some(OpenError::Connect(_))) => sleep(left.min(AWAIT_SLEEP)),
                Err(reason) => return Err(reason),
            }
        }
    }

    /// Tries to get a connection, waiting at most `wait` for answers, if the last try is an `interval` ago.
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
        // Also for those who still have it when its buffers get another connection.
        if latest.is_own() {
            latest.set_gone();
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(None);
        }
        if redial.pid != process::id() {
            *redial = Redial { pid: process::id(), ..Redial::default() };
        }
        // A child has lost nothing yet, and shall not lose its first message.
        let wait = if latest.is_own() { wait } else { OPEN_LIMIT };
        let mapped = latest.sharing.as_ref().ok();
        let handshake = match redial.under_way.take().filter(|handshake| !handshake.is_overdue()) {
            Some(handshake) => handshake,
            None if redial.last_try.is_some_and(|at| at.elapsed() < interval) => return Err(None),
            None => {
                redial.last_try = Some(Instant::now());
                self.dial(&latest.path, wait, mapped.filter(|shared| !shared.is_over()))?
            }
        };
        match handshake.go_on(&self.request, Some(Instant::now() + wait))? {
            Progress::Done(connection) => Ok(self.take_up(connection, &latest)),
            Progress::Waiting(handshake) => {
                redial.under_way = Some(handshake);
                Err(None)
            }
        }
    }

    /// Goes on with a new connection in place of the latest.
    fn take_up(&self, connection: Connection, latest: &Connection) -> Arc<Connection> {
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
                // Without a place there, the next messages find them by way of the connection.
                self.buffers.push(shared);
            }
            shared.ring_for_all();
        }
        if let Some(replaced) = replaced {
            replaced.retire();
        }
        connection
    }

    /// Connects to where the daemon was; only if nobody is there, looks where the mount says it is now: a look into
    /// the mount of a daemon that hangs would hang as well.
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
