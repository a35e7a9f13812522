//! What writing shared buffers still needs of their connection: ringing for the daemon, and noticing that it has gone,
//! which nothing else would. The buffers outlive it: a line is replaced in place by that of the next daemon, if that one
//! has taken over the same files.
//!
//! The program may have closed the descriptors: then the connection is over.
//!
//! Nothing here waits, but for [`Doorbell::replace`]. The lock is only ever tried: a thread that waited for it could wait for
//! itself, having been interrupted by a signal while it held the lock, or for one that is not there, in a forked child.

use std::process;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::write;

use relay::system::descriptor::HeldFd;
use relay::wire::socket::Socket;

/// Whether the connection is still there is looked at not more often than this.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Tries at closing the descriptors while others are using them.
const CLOSE_TRIES_MAX: u32 = 1000;

/// The connection is there, as far as anybody has noticed.
const WHOLE: u8 = 0;
/// It is that of the process from which this one was forked.
const INHERITED: u8 = 1;
/// It is over.
const CUT: u8 = 2;

/// The way to the daemon.
#[derive(Debug)]
pub(crate) struct Doorbell {
    /// The process whose connection it is.
    pid: AtomicU32,
    /// `None` once closed.
    ends: RwLock<Option<Endpoints>>,
    /// `WHOLE`, `INHERITED` or `CUT`. Changed by those who hold the lock.
    state: AtomicU8,
    /// When the connection was last looked at, in milliseconds since `born`.
    looked: AtomicU64,
    born: Instant,
}

/// What a connection brings besides the buffers.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// An eventfd; the daemon waits for it if somebody waits for the daemon.
    pub(crate) bell: HeldFd,
    pub(crate) socket: Arc<Socket>,
    /// The control file. As long as it is open the daemon can tell that somebody uses it: it holds a lock.
    pub(crate) control: HeldFd,
}

impl Doorbell {
    pub(crate) fn new(ends: Endpoints) -> Doorbell {
        Doorbell::with(Some(ends))
    }

    /// One that leads nowhere.
    pub(crate) fn none() -> Doorbell {
        Doorbell::with(None)
    }

    fn with(ends: Option<Endpoints>) -> Doorbell {
        Doorbell {
            pid: AtomicU32::new(process::id()),
            ends: RwLock::new(ends),
            state: AtomicU8::new(WHOLE),
            looked: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// Takes the ends of this process's new connection. Waits for those who are using the old ones.
    pub(crate) fn replace(&self, new: Endpoints) {
        let mut ends = self.ends.write().unwrap_or_else(PoisonError::into_inner);
        let old = ends.replace(new);
        // Relaxed, both: the lock orders them.
        self.pid.store(process::id(), Ordering::Relaxed);
        self.state.store(WHOLE, Ordering::Relaxed);
        drop(ends);
        drop(old);
    }

    /// Whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        // Relaxed: another value is only ever stored by a child, in its own memory.
        self.pid.load(Ordering::Relaxed) == process::id()
    }

    /// Whether it was noticed that the connection is over or another process's.
    pub(crate) fn is_cut(&self) -> bool {
        // Relaxed: who sees it late asks for a new connection later.
        self.state.load(Ordering::Relaxed) != WHOLE
    }

    /// Rings. False: it is not certain that the daemon hears it, or the connection is another process's.
    pub(crate) fn ring(&self) -> bool {
        // Fails only while it is being closed or replaced; who does that rings himself.
        let Ok(ends) = self.ends.try_read() else { return false };
        let Some(Endpoints { bell, socket, .. }) = &*ends else { return false };
        // Relaxed, here and below: the lock keeps `replace` away.
        if self.state.load(Ordering::Relaxed) == CUT {
            return false;
        }
        // Looked at before: a daemon that hangs up later will look at the buffers after that, and see the switch. A
        // child rings all the same, which is heard as long as the parent lives.
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
                // EAGAIN: the daemon has not come round to the last 2^64 rings yet.
                Ok(_) | Err(Errno::EAGAIN) => return is_own,
                Err(_) => return false,
            }
        }
    }

    /// Whether the connection is over, and nobody will read the files any more; not often looked at, so that it can be
    /// asked often. Notices, too, what [`Self::is_cut`] tells.
    pub(crate) fn is_found_abandoned(&self) -> bool {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Relaxed: a time of its own; two who look at once do no harm.
        let looked = self.looked.load(Ordering::Relaxed);
        if now.saturating_sub(looked) < LOOK_INTERVAL.as_millis() as u64 {
            return false;
        }
        self.looked.store(now, Ordering::Relaxed);
        // Fails only while it is being closed or replaced.
        let Ok(ends) = self.ends.try_read() else { return false };
        let Some(Endpoints { socket, control, .. }) = &*ends else { return true };
        if socket.is_over() {
            self.state.store(CUT, Ordering::Relaxed);
            // Removed: no daemon will find it. If it cannot be asked any more, the next connection finds out.
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

    /// Closes the descriptors, if nobody goes on using them; otherwise they go with this.
    pub(crate) fn close(&self) {
        for _ in 0..CLOSE_TRIES_MAX {
            if let Ok(mut ends) = self.ends.try_write() {
                *ends = None;
                return;
            }
            yield_now();
        }
    }
}
