//! A lock for which a forked child never waits.
//!
//! fork(2) copies the locks that other threads hold, and none of these threads: a child would wait for them forever. So
//! each process has its own lock. A child's begins with what the lock of its parent had. If a thread of the parent was
//! changing that at the moment of the fork, it begins with the default.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use once_cell::race::OnceBox;

use crate::system::thread_id::ThisThread;

/// A lock for readers and writers, another one in each process.
pub struct ProcessLock<T> {
    /// Generation of the process that has the lock; 0 until a thread looks.
    generation: AtomicU32,
    lock: RwLock<T>,
    /// Makes a child's value.
    inherit: fn(&T) -> T,
    /// The lock of a forked child, in the child's memory alone. It is never waited for.
    in_child: OnceBox<ProcessLock<T>>,
}

impl<T> ProcessLock<T> {
    /// Returns a lock with this value. `inherit` makes a child's value from that of its parent.
    pub const fn new(value: T, inherit: fn(&T) -> T) -> ProcessLock<T> {
        ProcessLock {
            generation: AtomicU32::new(0),
            lock: RwLock::new(value),
            inherit,
            in_child: OnceBox::new(),
        }
    }
}

impl<T: Clone + Default> Default for ProcessLock<T> {
    fn default() -> ProcessLock<T> {
        ProcessLock::new(T::default(), T::clone)
    }
}

impl<T: fmt::Debug> fmt::Debug for ProcessLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock.fmt(f)
    }
}

impl<T: Default> ProcessLock<T> {
    /// Waits for threads of this process that write, and reads.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.here().read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, unless a thread writes.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.here().try_read().map_or_else(free, Some)
    }

    /// Waits for other threads of this process, and writes.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.here().write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, unless another thread reads or writes.
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.here().try_write().map_or_else(free, Some)
    }

    /// Replaces the value, calls `also` before other threads can see that, and drops what this process has inherited.
    ///
    /// Where a thread of a parent was reading at the moment of the fork, what that parent had stays in memory.
    pub fn replace(&self, value: T, also: impl FnOnce()) {
        let mut present = self.write();
        let before = mem::replace(&mut *present, value);
        also();
        drop(present);
        drop(before);
        self.drop_inherited();
    }

    /// Is [`Self::replace`], unless another thread reads or writes. Returns whether the value was replaced.
    pub fn try_replace(&self, value: T) -> bool {
        let Some(mut present) = self.try_write() else { return false };
        let before = mem::replace(&mut *present, value);
        drop(present);
        drop(before);
        self.drop_inherited();
        true
    }

    fn drop_inherited(&self) {
        let here = self.here();
        let mut at = self;
        while !std::ptr::eq(&raw const at.lock, here) {
            if let Some(mut inherited) = at.lock.try_write().map_or_else(free, Some) {
                *inherited = T::default();
            }
            match at.in_child.get() {
                Some(next) => at = next,
                None => break,
            }
        }
    }

    /// Returns the lock of this process.
    fn here(&self) -> &RwLock<T> {
        let now = ThisThread::find().generation();
        let mut at = self;
        loop {
            // Relaxed, both: the number is complete in itself, and the lock was there before it.
            let mut generation = at.generation.load(Ordering::Relaxed);
            if generation == 0 {
                let first = at.generation.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
                generation = first.map_or_else(|other| other, |_| now);
            }
            if generation == now {
                return &at.lock;
            }
            at = at.in_child.get_or_init(|| Box::new(at.child(now)));
        }
    }

    #[cold]
    fn child(&self, generation: u32) -> ProcessLock<T> {
        let inherited = self.lock.try_read().map_or_else(free, Some);
        let value = inherited.map_or_else(T::default, |value| (self.inherit)(&value));
        let child = ProcessLock::new(value, self.inherit);
        child.generation.store(generation, Ordering::Relaxed);
        child
    }
}

/// Returns what is locked all the same, after a panic of the thread that had it.
fn free<G>(error: TryLockError<G>) -> Option<G> {
    match error {
        TryLockError::Poisoned(poisoned) => Some(poisoned.into_inner()),
        TryLockError::WouldBlock => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// Runs `check` in a child, which SIGALRM ends if it hangs.
    #[allow(unsafe_code)]
    fn in_child(check: impl FnOnce() -> bool) {
        // SAFETY: the child only looks at locks, takes memory, which the C library allows there, and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                nix::unistd::alarm::set(60);
                let is_right = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).unwrap_or(false);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(if is_right { 0 } else { 1 }) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
    }

    /// Calls `act` while another thread is inside `hold`.
    fn while_held(lock: &Arc<ProcessLock<Vec<u32>>>, is_writing: bool, act: impl FnOnce()) {
        let (held, is_held) = mpsc::channel();
        let (over, is_over) = mpsc::channel::<()>();
        let lock = Arc::clone(lock);
        let holder = thread::spawn(move || {
            let guards = (is_writing.then(|| lock.write()), (!is_writing).then(|| lock.read()));
            held.send(()).unwrap();
            let _ = is_over.recv();
            drop(guards);
        });
        is_held.recv().unwrap();
        act();
        drop(over);
        holder.join().unwrap();
    }

    #[test]
    fn child_has_the_value_and_waits_for_no_thread_of_its_parent() {
        let lock = Arc::new(ProcessLock::<Vec<u32>>::default());
        lock.write().push(1);
        in_child(|| {
            lock.write().push(2);
            let mut is_right = *lock.read() == [1, 2];
            in_child(|| {
                lock.write().push(3);
                *lock.read() == [1, 2, 3]
            });
            is_right &= lock.try_read().is_some() && lock.try_write().is_some();
            lock.replace(vec![4], || is_right &= lock.try_read().is_none());
            is_right && *lock.read() == [4]
        });
        while_held(&lock, false, || {
            in_child(|| {
                lock.write().push(2);
                *lock.read() == [1, 2]
            });
        });
        while_held(&lock, true, || {
            in_child(|| {
                let was_empty = lock.read().is_empty();
                lock.replace(vec![5], || ());
                was_empty && *lock.read() == [5]
            });
        });
        assert_eq!(*lock.read(), [1], "the parent's stays");
    }

    #[test]
    fn what_a_child_replaces_is_dropped() {
        let (value, lock) = (Arc::new(()), ProcessLock::<Option<Arc<()>>>::default());
        lock.replace(Some(Arc::clone(&value)), || ());
        in_child(|| {
            let is_inherited = lock.read().is_some();
            lock.replace(None, || ());
            is_inherited && Arc::strong_count(&value) == 1
        });
        assert_eq!(Arc::strong_count(&value), 2);
    }
}
