//! The doorbell of mapped buffers: ringing for the daemon, and noticing that it has gone.
//!
//! It is all that direct writing needs of the connection. The buffers outlive a connection: the endpoints are replaced
//! in place by those of the next daemon, if that daemon has taken over the same files.
//!
//! If the program has closed the descriptors, the connection counts as ended.
//!
//! Code in this file does not wait, except in [`Doorbell::replace`]. The lock is only ever tried. A thread that waits
//! for it could wait for itself, in a signal handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::write;

use relay::system::descriptor::HeldFd;
use relay::system::process_lock::ProcessLock;
use relay::system::thread_id::ThisThread;
use relay::wire::socket::Socket;

/// Least time between two checks of the connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Tries to close the descriptors while other threads use them.
const CLOSE_TRIES_MAX: u32 = 1000;

/// State: the connection has not been found ended.
const WHOLE: u8 = 0;
/// State: the connection is that of the process from which this one was forked.
const INHERITED: u8 = 1;
/// State: the connection has ended.
const CUT: u8 = 2;

/// The connection to the daemon as direct writers use it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    /// The process that made the connection, see [`ThisThread::process`].
    process: AtomicU64,
    /// `None` once closed.
    ends: ProcessLock<Option<Arc<Endpoints>>>,
    /// `WHOLE`, `INHERITED` or `CUT`. Changed only by threads that hold the lock.
    state: AtomicU8,
    /// Time of the last check of the connection, in milliseconds since `born`.
    looked: AtomicU64,
    born: Instant,
}

/// The descriptors that a connection brings besides the buffers.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// An eventfd; the daemon polls it while a process waits for the daemon.
    pub(crate) bell: HeldFd,
    pub(crate) socket: Arc<Socket>,
    /// The control file. While it is open the daemon sees a user of the files by its lock.
    pub(crate) control: HeldFd,
}

impl Doorbell {
    pub(crate) fn new(ends: Endpoints) -> Doorbell {
        Doorbell::with(Some(ends))
    }

    /// Returns a doorbell without a connection.
    pub(crate) fn none() -> Doorbell {
        Doorbell::with(None)
    }

    fn with(ends: Option<Endpoints>) -> Doorbell {
        Doorbell {
            process: AtomicU64::new(ThisThread::find().process()),
            ends: ProcessLock::new(ends.map(Arc::new), Clone::clone),
            state: AtomicU8::new(WHOLE),
            looked: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// Installs the endpoints of this process's new connection.
    /// Waits for threads that are using the old ones.
    pub(crate) fn replace(&self, new: Endpoints) {
        let new = Some(Arc::new(new));
        self.ends.replace(new, || {
            // Relaxed, both: the lock orders them.
            self.process.store(ThisThread::find().process(), Ordering::Relaxed);
            self.state.store(WHOLE, Ordering::Relaxed);
        });
    }

    /// Whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        // Relaxed: another value is only ever stored by a child, in its own memory.
        self.process.load(Ordering::Relaxed) == ThisThread::find().process()
    }

    /// Returns whether the connection was found ended, or another process's.
    pub(crate) fn is_cut(&self) -> bool {
        // Relaxed: a thread that sees it late asks for a new connection later.
        self.state.load(Ordering::Relaxed) != WHOLE
    }

    /// Rings. False: the daemon may not hear it, or the connection is another process's.
    pub(crate) fn ring(&self) -> bool {
        // Fails only while another thread closes or replaces the endpoints; that thread rings.
        let Some(ends) = self.ends.try_read() else { return false };
        let Some(Endpoints { bell, socket, .. }) = ends.as_deref() else { return false };
        // Relaxed, here and below: the lock excludes `replace`.
        if self.state.load(Ordering::Relaxed) == CUT {
            return false;
        }
        // Checked before the ring: a daemon that hangs up later looks at the buffers afterwards, and sees the switch. A
        // child rings all the same, which works as long as the parent lives.
        if socket.is_over() {
            self.state.store(CUT, Ordering::Relaxed);
            return false;
        }
        let is_own = self.is_own();
        if !is_own {
            self.state.store(INHERITED, Ordering::Relaxed);
        }
        let Some(bell) = bell.get() else {
            self.state.store(CUT, Ordering::Relaxed);
            return false;
        };
        loop {
            match write(bell, &1u64.to_ne_bytes()) {
                Err(Errno::EINTR) => {}
                // EAGAIN: the daemon has not taken the last 2^64 rings yet.
                Ok(_) | Err(Errno::EAGAIN) => return is_own,
                Err(_) => return false,
            }
        }
    }

    /// Checks whether the connection has ended and no daemon will ever read the files.
    /// It checks rarely, so that callers may ask often. It also updates the answer of [`Self::is_cut`].
    pub(crate) fn is_found_abandoned(&self) -> bool {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Relaxed: the time is independent; two threads that check at once do no harm.
        let looked = self.looked.load(Ordering::Relaxed);
        if now.saturating_sub(looked) < LOOK_INTERVAL.as_millis() as u64 {
            return false;
        }
        self.looked.store(now, Ordering::Relaxed);
        // Fails only while another thread closes or replaces the endpoints.
        let Some(ends) = self.ends.try_read() else { return false };
        let Some(Endpoints { socket, control, .. }) = ends.as_deref() else { return true };
        if socket.is_over() {
            self.state.store(CUT, Ordering::Relaxed);
            // A removed file: no daemon will find it. If the descriptor is lost, the next connection finds out.
            return control
                .get()
                .and_then(|control| fstat(control).ok())
                .is_some_and(|stat| stat.st_nlink == 0);
        }
        if !self.is_own() {
            self.state.store(INHERITED, Ordering::Relaxed);
        }
        false
    }

    /// Closes the descriptors, unless other threads keep using them; then `drop` closes them.
    pub(crate) fn close(&self) {
        for _ in 0..CLOSE_TRIES_MAX {
            if self.ends.try_replace(None) {
                return;
            }
            yield_now();
        }
    }
}
