//! Work of the library's threads that no fork may cut in two.
//!
//! A program cannot see when these threads are inside another library, whose locks a forked child would then find held
//! forever. So fork(2) of the C library waits for the end of such work.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

static WORK: Mutex<()> = Mutex::new(());

thread_local! {
    /// What the thread that forks holds meanwhile.
    static HELD: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// Does work that is short, and does not fork. Only one thread does such work at a time.
pub fn whole<T>(work: impl FnOnce() -> T) -> T {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without memory for it, a fork does not wait.
        // SAFETY: all three are functions of this library; the C library forgets them when it unloads the library.
        unsafe { libc::pthread_atfork(Some(before), Some(behind), Some(behind)) };
    });
    let _whole = lock();
    work()
}

fn lock() -> MutexGuard<'static, ()> {
    WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: called by fork(2) on the thread that forks.
unsafe extern "C" fn before() {
    let _ = HELD.try_with(|held| held.try_borrow_mut().map(|mut held| *held = Some(lock())));
}

// SAFETY: as above, in both processes.
unsafe extern "C" fn behind() {
    let _ = HELD.try_with(|held| held.try_borrow_mut().map(|mut held| held.take()));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn child_never_finds_a_lock_held_that_is_taken_in_whole_work() {
        static LOCK: Mutex<()> = Mutex::new(());
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    whole(|| {
                        let _held = LOCK.lock();
                        thread::yield_now();
                    });
                }
            });
            for _ in 0..100 {
                // SAFETY: the child looks at a lock, does work, and ends.
                match unsafe { fork() }.unwrap() {
                    ForkResult::Child => {
                        let is_free = whole(|| LOCK.try_lock().is_ok());
                        // SAFETY: ends the child at once.
                        unsafe { libc::_exit(if is_free { 0 } else { 1 }) }
                    }
                    ForkResult::Parent { child } => {
                        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
                    }
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }
}
