//! The API: a channel that is opened once and written to from anywhere in the process.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use relay::frame::MESSAGE_PREFIX_LEN;
use relay::{Geometry, GeometrySpec, Mode};

use crate::batch::{Batch, BatchOptions, Counts, REPLY_LIMIT};
use crate::connection::{Connection, Envelope};
use crate::error::{BatchError, OpenError, RequestError, WriteError};
use crate::frames::WriteFrame;
use crate::handshake::{Handshake, OPEN_LIMIT, OpenRequest, Progress};
use crate::replies::Reply;
use crate::socket::{SendError, find};

/// After a loss of the connection, a new one is tried for at most this often.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long [`Channel::write`] may take for a message that is longer than the socket holds at once.
const LONG_MESSAGE_LIMIT: Duration = Duration::from_millis(100);

/// How messages get into the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// Through a Unix socket: the daemon writes for us.
    Socket,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transport::Socket => f.write_str("socket"),
        }
    }
}

/// How a channel is to be opened; made by [`Channel::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    mount: PathBuf,
    name: String,
    create: bool,
    spec: GeometrySpec,
}

impl Builder {
    /// Whether to create the channel if there is none of that name. One that exists keeps its geometry.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// The geometry of a channel that is created; what it leaves out is left to the daemon.
    pub fn geometry(mut self, spec: GeometrySpec) -> Self {
        self.spec = spec.or(&self.spec);
        self
    }

    /// What a channel that is created does when its buffers are full.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.spec.mode = Some(mode);
        self
    }

    /// Whether a channel that is created has one buffer for all CPUs.
    pub fn global(mut self, global: bool) -> Self {
        self.spec.global = Some(global);
        self
    }

    /// Opens the channel.
    pub fn open(self) -> Result<Channel, OpenError> {
        let request = OpenRequest { name: self.name.parse()?, spec: self.spec, create: self.create };
        request.check()?;
        let socket = find(&self.mount)?;
        let handshake = Handshake::begin(&socket, OPEN_LIMIT)?;
        let connection = match handshake.go_on(&request, Some(Instant::now() + OPEN_LIMIT))? {
            Progress::Done(connection) => connection,
            Progress::Waiting(handshake) => return Err(handshake.overdue()),
        };
        Ok(Channel {
            mount: self.mount,
            request,
            created: connection.created,
            current: RwLock::new(Arc::new(connection)),
            redial: Mutex::default(),
        })
    }
}

/// An open channel.
///
/// It can be used from many threads at once, through `&self`. [`write`](Self::write) never waits: not for the daemon,
/// not for a reader, not for other threads that do. [`write_batch`](Self::write_batch), [`batch`](Self::batch) and
/// [`flush`](Self::flush) wait for the daemon's answer.
///
/// What one thread writes arrives in the order in which it was written, as far as it goes to one CPU's buffer.
///
/// **When the daemon goes away**, the call that notices fails with `Disconnected`, and so do later ones, until there
/// is a new daemon: every call looks for one, but at most one a second. [`write`](Self::write) does not wait for the
/// new daemon's answers either, so it goes on failing until they are there.
///
/// **After fork**, the child's first call makes a connection of its own, and waits for that. As with any lock, no other
/// thread may be inside a call while a process forks, if the child is to use the channel.
#[derive(Debug)]
pub struct Channel {
    mount: PathBuf,
    request: OpenRequest,
    created: bool,
    /// The latest connection. Locked only to take or replace the `Arc`.
    current: RwLock<Arc<Connection>>,
    redial: Mutex<Redial>,
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
type NoConnection = Option<OpenError>;

impl Channel {
    /// Opens an existing channel of the daemon behind `mount`, which is a mount point or a socket.
    pub fn open(mount: impl AsRef<Path>, name: &str) -> Result<Channel, OpenError> {
        Channel::builder(mount, name).open()
    }

    /// Prepares to open, and perhaps to create, a channel of the daemon behind `mount`, which is a mount point or a
    /// socket.
    pub fn builder(mount: impl AsRef<Path>, name: &str) -> Builder {
        let mount = mount.as_ref().to_owned();
        Builder { mount, name: name.to_owned(), create: false, spec: GeometrySpec::default() }
    }

    /// Writes a message into the buffer of the CPU on which the caller runs.
    ///
    /// `Ok` means that the daemon will get it, even if this process ends now; whether there is room in the buffer is
    /// not known yet. `Err` means that it is lost. The daemon gets to know of every loss but those while it was away:
    /// it counts what is too big as such, if it can be sent at all, and everything else among the dropped.
    ///
    /// A message of more than about 64 KiB may take up to 0.1 s if the daemon does not keep up.
    pub fn write(&self, message: &[u8]) -> Result<(), WriteError> {
        self.write_somewhere(None, message)
    }

    /// Writes a message into the buffer of a given CPU; otherwise as [`write`](Self::write). In a global channel there
    /// is only one buffer, and `cpu` means nothing.
    pub fn write_to(&self, cpu: usize, message: &[u8]) -> Result<(), WriteError> {
        self.write_somewhere(Some(cpu), message)
    }

    fn write_somewhere(&self, cpu: Option<usize>, message: &[u8]) -> Result<(), WriteError> {
        let connection = self.connection(false).map_err(|_| WriteError::Disconnected)?;
        let cpu = connection.buffer_of(cpu)?;
        let (len, max) = (message.len(), connection.geometry.message_max());
        let too_big = WriteError::TooBig { len, max };
        if len > connection.message_max {
            connection.add_lost(cpu, 1);
            return Err(too_big);
        }
        let envelope = Envelope { cpu, flags: 0, id: connection.new_id(), wait_ms: 0 };
        let sent = if MESSAGE_PREFIX_LEN + len <= connection.room {
            let mut frame = WriteFrame::new(MESSAGE_PREFIX_LEN + len);
            frame.push(message);
            connection.send(&mut frame, envelope)
        } else {
            connection.send_long(message, envelope, Some(Instant::now() + LONG_MESSAGE_LIMIT))
        };
        match sent {
            // Sent all the same, so that the buffer's rules decide what becomes of it and the right counter counts it.
            Ok(()) if len > max => Err(too_big),
            Ok(()) => Ok(()),
            Err(SendError::Full) => {
                connection.add_lost(cpu, 1);
                Err(WriteError::Full)
            }
            Err(SendError::Gone) => Err(WriteError::Disconnected),
        }
    }

    /// Writes many messages, and waits until the daemon has said what became of them.
    pub fn write_batch<I>(&self, messages: I, options: BatchOptions) -> Result<Counts, BatchError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let unwritten = |cause| BatchError { counts: Counts::default(), cause };
        let mut batch = self.batch(options).map_err(unwritten)?;
        let pushed = messages.into_iter().try_for_each(|message| batch.push(message.as_ref()));
        let finished = batch.finish();
        pushed.and(finished).map_err(|cause| BatchError { counts: batch.counts(), cause })
    }

    /// Begins a batch whose messages come bit by bit.
    pub fn batch(&self, options: BatchOptions) -> Result<Batch, RequestError> {
        Batch::new(self.connection(true).map_err(no_connection)?, options)
    }

    /// Finishes the current sub-buffer of every CPU, after everything written before through this `Channel`.
    pub fn flush(&self) -> Result<(), RequestError> {
        let connection = self.connection(true).map_err(no_connection)?;
        let deadline = Some(Instant::now() + REPLY_LIMIT);
        let id = connection.expect();
        if let Err(error) = connection.send_flush(id, deadline) {
            connection.forget(id);
            return Err(error.into());
        }
        match connection.reply(id, deadline)? {
            Reply::Done => Ok(()),
            Reply::Refused(refused) => Err(refused.into()),
            Reply::Written(_) => Err(RequestError::Garbled("counts for a flush".into())),
        }
    }

    /// The channel's geometry, as the daemon told it last.
    pub fn geometry(&self) -> Geometry {
        self.latest().geometry
    }

    /// Number of the channel's buffers: the number of CPUs, or 1.
    pub fn n_bufs(&self) -> usize {
        self.latest().n_bufs()
    }

    /// Whether opening it created the channel.
    pub fn created(&self) -> bool {
        self.created
    }

    /// How messages get into the buffers.
    pub fn transport(&self) -> Transport {
        Transport::Socket
    }

    fn latest(&self) -> Arc<Connection> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection that works as far as is known.
    fn connection(&self, may_wait: bool) -> Result<Arc<Connection>, NoConnection> {
        let latest = self.latest();
        if latest.is_own() && !latest.is_gone() { Ok(latest) } else { self.reconnect(may_wait) }
    }

    #[cold]
    fn reconnect(&self, may_wait: bool) -> Result<Arc<Connection>, NoConnection> {
        let mut redial = match self.redial.try_lock() {
            Ok(redial) => redial,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if may_wait => {
                self.redial.lock().unwrap_or_else(PoisonError::into_inner)
            }
            Err(TryLockError::WouldBlock) => return Err(None),
        };
        let latest = self.latest();
        if latest.is_own() && !latest.is_gone() {
            return Ok(latest);
        }
        if redial.pid != process::id() {
            *redial = Redial { pid: process::id(), ..Redial::default() };
        }
        // A child has lost nothing yet, and shall not lose its first message.
        let wait = if may_wait || !latest.is_own() { OPEN_LIMIT } else { Duration::ZERO };
        let handshake = match redial.under_way.take().filter(|handshake| !handshake.is_overdue()) {
            Some(handshake) => handshake,
            None if redial.last_try.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) => return Err(None),
            None => {
                redial.last_try = Some(Instant::now());
                self.dial(&latest.path, wait)?
            }
        };
        match handshake.go_on(&self.request, Some(Instant::now() + wait))? {
            Progress::Done(connection) => {
                if latest.is_own() {
                    connection.inherit_losses(&latest);
                }
                let connection = Arc::new(connection);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = connection.clone();
                Ok(connection)
            }
            Progress::Waiting(handshake) => {
                redial.under_way = Some(handshake);
                Err(None)
            }
        }
    }

    /// Connects to where the daemon was; only if nobody is there, looks where the mount says it is now: a look into
    /// the mount of a daemon that hangs would hang as well.
    fn dial(&self, path: &Path, wait: Duration) -> Result<Handshake, OpenError> {
        match Handshake::begin(path, wait) {
            Err(OpenError::NoDaemon { .. }) => Handshake::begin(&find(&self.mount)?, wait),
            begun => begun,
        }
    }
}

fn no_connection(reason: NoConnection) -> RequestError {
    reason.map_or(RequestError::Disconnected, RequestError::Reopen)
}
