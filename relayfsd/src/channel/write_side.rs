//! Which thread writes a buffer: the writer of its CPU, or the thread that has a producer's frame.
//!
//! Beside direct producers only a thread on the buffer's CPU may write. While no process has the channel's files, the
//! daemon's threads are the only writers, and a lock keeps them apart. Then the thread that received a frame writes it
//! by itself, without waking another one.
//!
//! Jobs for a buffer keep their order: such a thread writes only if the buffer's writer has none left.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::Channel;
use crate::channel::integrity::ReadGuard;

/// One of this many frames for a shared channel checks whether its producers are gone.
const LOOK_INTERVAL: u32 = 256;

/// What keeps the daemon's writers of one buffer apart.
#[derive(Default)]
pub(super) struct WriteSide {
    lock: Mutex<()>,
    /// Jobs that the buffer's writer has.
    queued: Arc<AtomicUsize>,
}

/// Which processes may write the buffers besides the daemon.
#[derive(Default)]
pub(super) struct DirectWriters {
    /// Whether a producer may have the files.
    shared: AtomicBool,
    /// Whether a producer may have the files without a mark, so that its end is not seen.
    unmarked: AtomicBool,
    /// Times that the socket thread found `shared` set.
    looks: AtomicU32,
}

/// A job's place in the queue of its buffer, until it is dropped.
pub(crate) struct Turn(Arc<AtomicUsize>);

impl Drop for Turn {
    fn drop(&mut self) {
        // Release, with the Acquire in `Channel::try_lock_to_write`: the job comes before what the next thread writes.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl DirectWriters {
    /// Notes that a producer gets the files, or has them from an earlier daemon.
    pub(super) fn note_shared(&self) {
        // Relaxed: only the socket thread shares files and asks whether it is the only writer.
        self.shared.store(true, Ordering::Relaxed);
    }

    /// Notes that a producer has the files without a mark.
    pub(super) fn note_unmarked(&self) {
        self.unmarked.store(true, Ordering::Relaxed); // as in `note_shared`
    }
}

impl Channel {
    /// Returns whether producers may write the channel directly.
    pub(crate) fn is_shared(&self) -> bool {
        self.direct.shared.load(Ordering::Relaxed)
    }

    /// Returns whether a live producer may write the channel directly, by a look at the files.
    pub(crate) fn may_be_written_directly(&self) -> bool {
        // Relaxed: as in `note_unmarked`.
        self.is_shared() && (self.direct.unmarked.load(Ordering::Relaxed) || self.has_producers())
    }

    /// Returns whether producers may write the channel directly, and now and then looks whether they are gone.
    ///
    /// Only the socket thread calls this. It is the thread that shares files, so none is shared meanwhile.
    fn is_still_shared(&self) -> bool {
        let direct = &self.direct;
        if !self.is_shared() {
            return false;
        }
        // Relaxed, all: as in `note_shared`.
        let is_due = direct.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_INTERVAL);
        if is_due && !direct.unmarked.load(Ordering::Relaxed) && self.has_files() && !self.has_producers() {
            direct.shared.store(false, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Counts a job for the buffer's writer, until the result is dropped.
    pub(crate) fn queue(&self, cpu: usize) -> Turn {
        let queued = &self.buffers[cpu].write_side.queued;
        // Relaxed: the thread that must see it has sent the job, or the lock keeps the two apart.
        queued.fetch_add(1, Ordering::Relaxed);
        Turn(Arc::clone(queued))
    }

    /// Locks the buffer for its writer. The read side is locked after it.
    pub(crate) fn lock_to_write(&self, cpu: usize) -> MutexGuard<'_, ()> {
        // A change that a panic cut short is one of a killed writer: nothing that a reader sees.
        self.buffers[cpu].write_side.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the buffer for the socket thread, if that may write it now. Never waits.
    pub(crate) fn try_lock_to_write(&self, cpu: usize) -> Option<MutexGuard<'_, ()>> {
        let side = &self.buffers[cpu].write_side;
        // Acquire: see `Turn`.
        if self.is_still_shared() || side.queued.load(Ordering::Acquire) > 0 {
            return None;
        }
        match side.lock.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Locks the buffer's read side, if no other thread has it. Otherwise like [`Self::read_side`].
    pub(crate) fn try_read_side(&self, cpu: usize) -> Option<ReadGuard<'_>> {
        let side = match self.buffers[cpu].read_side.try_lock() {
            Ok(side) => side,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(ReadGuard::new(self, cpu, side))
    }
}
