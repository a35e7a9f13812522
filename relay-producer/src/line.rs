//! What writing shared buffers still needs of their connection: ringing for the daemon, and noticing that it has gone,
//! which nothing else would.
//!
//! Nothing here waits. The lock is only ever tried: a thread that waited for it could wait for itself, having been
//! interrupted by a signal while it held the lock, or for one that is not there, in a forked child.

use std::os::fd::OwnedFd;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::write;

use relay::client::Socket;

/// Whether the connection is still there is looked at not more often than this.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Tries at closing the descriptors while others are using them.
const CLOSE_TRIES_MAX: u32 = 1000;

/// The way to the daemon.
#[derive(Debug)]
pub(crate) struct Line {
    /// The process whose connection it is.
    pid: u32,
    /// `None` once closed.
    ends: RwLock<Option<Ends>>,
    /// When the connection was last looked at, in milliseconds since `born`.
    looked: AtomicU64,
    born: Instant,
}

#[derive(Debug)]
struct Ends {
    /// An eventfd; the daemon waits for it if somebody waits for the daemon.
    bell: OwnedFd,
    socket: Arc<Socket>,
}

impl Line {
    pub(crate) fn new(bell: OwnedFd, socket: Arc<Socket>) -> Line {
        Line::with(Some(Ends { bell, socket }))
    }

    /// One that leads nowhere.
    pub(crate) fn none() -> Line {
        Line::with(None)
    }

    fn with(ends: Option<Ends>) -> Line {
        let (pid, born) = (process::id(), Instant::now());
        Line { pid, ends: RwLock::new(ends), looked: AtomicU64::new(0), born }
    }

    /// Whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        self.pid == process::id()
    }

    /// Rings. False: it is not certain that the daemon hears it, or the connection is another process's.
    pub(crate) fn ring(&self) -> bool {
        // Fails only while it is being closed.
        let Ok(ends) = self.ends.try_read() else { return false };
        let Some(Ends { bell, socket }) = &*ends else { return false };
        // Looked at before: a daemon that hangs up later will look at the buffers after that, and see the switch. A
        // child rings all the same, which is heard as long as the parent lives.
        let is_sure = self.is_own() && !socket.is_over();
        loop {
            match write(bell, &1u64.to_ne_bytes()) {
                Err(Errno::EINTR) => {}
                // EAGAIN: the daemon has not come round to the last 2^64 rings yet.
                Ok(_) | Err(Errno::EAGAIN) => return is_sure,
                Err(_) => return false,
            }
        }
    }

    /// Whether the connection is over, or another process's; not often, so that it can be asked often.
    pub(crate) fn is_found_cut(&self) -> bool {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Relaxed: a time of its own; two who look at once do no harm.
        let looked = self.looked.load(Ordering::Relaxed);
        if now.saturating_sub(looked) < LOOK_INTERVAL.as_millis() as u64 {
            return false;
        }
        self.looked.store(now, Ordering::Relaxed);
        let Ok(ends) = self.ends.try_read() else { return true };
        !self.is_own() || ends.as_ref().is_none_or(|ends| ends.socket.is_over())
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
