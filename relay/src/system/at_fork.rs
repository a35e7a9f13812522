//! Work of the library's threads that no fork may cut in two.
//!
//! A program cannot see when these threads are inside another library, whose locks a forked child would then find held
//! forever. So fork(2) of the C library waits for the end of such work.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::system::process_lock::ProcessLock;

/// A child does not wait for work of its parent, whenever the fork was.
static WORK: ProcessLock<()> = ProcessLock::new((), |()| ());
/// Whether fork(2) waits for the work.
static IS_REGISTERED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// What the thread that forks holds meanwhile.
    static HELD: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// Does work that is short, and does not fork. Only one thread does such work at a time.
pub fn whole<T>(work: impl FnOnce() -> T) -> T {
    // No `Once`: a child that is forked while another thread is inside would wait for that thread forever.
    // Acquire, pairs with the Release below: a fork behind the work that follows knows the functions.
    if !IS_REGISTERED.load(Ordering::Acquire) {
        // Without memory for it, a fork does not wait. Two threads may both register the functions, which does no harm.
        // SAFETY: all three are functions of this library; the C library forgets them when it unloads the library.
        unsafe { libc::pthread_atfork(Some(before), Some(behind), Some(behind)) };
        IS_REGISTERED.store(true, Ordering::Release);
    }
    let _whole = WORK.write();
    work()
}

// SAFETY: called by fork(2) on the thread that forks.
unsafe extern "C" fn before() {
    let _ = HELD.try_with(|held| {
        held.try_borrow_mut().map(|mut held| {
            held.get_or_insert_with(|| WORK.write());
        })
    });
}

// SAFETY: as above, in both processes.
unsafe extern "C" fn behind() {
    let _ = HELD.try_with(|held| held.try_borrow_mut().map(|mut held| held.take()));
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, TryLockError};
    use std::thread;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn child_never_finds_a_lock_held_that_is_taken_in_whole_work() {
        static LOCK: Mutex<()> = Mutex::new(());
        whole(|| ());
        let forks = Mutex::new(());
        thread::scope(|scope| {
            let going_on = forks.lock();
            scope.spawn(|| {
                // Until all forks are done, or one has panicked.
                while let Err(TryLockError::WouldBlock) = forks.try_lock() {
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
            drop(going_on);
        });
    }
}
