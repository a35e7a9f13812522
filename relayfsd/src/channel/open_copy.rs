//! A copy that the open files of one name share.
//!
//! A process that has closed the file, written to the channel and opened the file again finds what it wrote. But the
//! daemon may handle the last close of an open file (RELEASE) after that next open. Close(2) waits for its FLUSH alone,
//! which comes for each descriptor. So a copy whose users have all closed it is probably about to end.

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never};

use crate::process::killed::process_of;

/// Longest wait for the end of a copy whose users have all closed it.
///
/// The kernel queues RELEASE before close(2) returns, so that is time for the daemon's threads to get a CPU. A
/// descriptor that was duplicated or passed on, or a mapping, may hold the copy longer. Then it is shared, and later
/// opens do not wait for these uses.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// A copy, with what the open files of its name have in common.
pub(crate) struct OpenCopy<T> {
    copy: T,
    uses: Mutex<Uses>,
    /// The copy's end closes it.
    _alive: Sender<Infallible>,
}

/// What is counted of a copy's uses.
#[derive(Default)]
struct Uses {
    begun: u64,
    /// Open ones whose process has not closed its descriptor.
    in_use: u64,
    /// Open ones that outlasted an open's wait for their end: all that began before number `held_below`.
    held: u64,
    held_below: u64,
    open: u64,
}

/// An open file's use of a copy.
pub(crate) struct CopyUse<T> {
    of: Arc<OpenCopy<T>>,
    number: u64,
    /// The process that opened the file.
    process: u32,
    /// Whether it has closed a descriptor of the file.
    is_closed: AtomicBool,
}

/// Finds a copy as long as a file that uses it is open.
pub(crate) struct CopyRef<T> {
    copy: Weak<OpenCopy<T>>,
    /// Is closed at the copy's end.
    end: Receiver<Infallible>,
}

impl<T> OpenCopy<T> {
    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> CopyUse<T> {
    /// Begins the use of a new copy, by a file that a thread has opened.
    pub(crate) fn new(copy: T, thread: u32) -> (CopyUse<T>, CopyRef<T>) {
        let (alive, end) = bounded(0);
        let of = Arc::new(OpenCopy { copy, uses: Mutex::default(), _alive: alive });
        let found = CopyRef { copy: Arc::downgrade(&of), end };
        (CopyUse::begin(of, thread), found)
    }

    fn begin(of: Arc<OpenCopy<T>>, thread: u32) -> CopyUse<T> {
        let mut uses = of.uses();
        let number = uses.begun;
        uses.begun += 1;
        uses.open += 1;
        uses.in_use += 1;
        drop(uses);
        let process = process_of(thread).unwrap_or(thread);
        CopyUse { of, number, process, is_closed: AtomicBool::new(false) }
    }

    /// Called when a thread closes a descriptor of the file, or ends. Other processes may have inherited one.
    ///
    /// Returns whether no process uses the copy from now on.
    pub(crate) fn close(&self, thread: u32) -> bool {
        process_of(thread).unwrap_or(thread) == self.process && self.mark_closed()
    }

    fn mark_closed(&self) -> bool {
        let mut uses = self.of.uses();
        // Relaxed: the lock orders it.
        if self.is_closed.swap(true, Ordering::Relaxed) {
            return false;
        }
        uses.in_use -= 1;
        uses.in_use == 0
    }
}

impl<T> Drop for CopyUse<T> {
    fn drop(&mut self) {
        self.mark_closed();
        let mut uses = self.of.uses();
        uses.open -= 1;
        if self.number < uses.held_below {
            uses.held -= 1;
        }
    }
}

impl<T> Deref for CopyUse<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.of.copy
    }
}

impl<T> CopyRef<T> {
    /// Begins the use of the copy by a file that a thread has opened, or returns nothing if the copy has ended.
    pub(crate) fn share(&self, thread: u32) -> Option<CopyUse<T>> {
        Some(CopyUse::begin(self.copy.upgrade()?, thread))
    }

    /// Like [`CopyRef::share`], but first waits for the end of a copy whose users have closed it.
    ///
    /// The caller may hold no lock that a close takes.
    pub(crate) fn share_unless_closed(&self, thread: u32) -> Option<CopyUse<T>> {
        let is_ending = |uses: &Uses| uses.in_use == 0 && uses.held == 0;
        if is_ending(&self.copy.upgrade()?.uses()) {
            if self.end.recv_timeout(CLOSE_MAX) != Err(RecvTimeoutError::Timeout) {
                return None;
            }
            let held = self.copy.upgrade()?;
            let mut uses = held.uses();
            (uses.held, uses.held_below) = (uses.open, uses.begun);
        }
        self.share(thread)
    }

    /// Returns the copy for a look at it.
    pub(crate) fn get(&self) -> Option<Arc<OpenCopy<T>>> {
        self.copy.upgrade()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.copy.strong_count() > 0
    }
}

impl<T> Deref for OpenCopy<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.copy
    }
}

impl<T> Clone for CopyRef<T> {
    fn clone(&self) -> CopyRef<T> {
        CopyRef { copy: self.copy.clone(), end: self.end.clone() }
    }
}

impl<T> Default for CopyRef<T> {
    fn default() -> CopyRef<T> {
        CopyRef { copy: Weak::new(), end: never() }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn us() -> u32 {
        std::process::id()
    }

    #[test]
    fn copy_is_shared_until_its_users_close_it() {
        let (first, found) = CopyUse::new("first", us());
        let second = found.share_unless_closed(us()).expect("an open copy");
        assert_eq!(*second, "first");
        assert!(!first.close(us()));
        assert!(found.share_unless_closed(us()).is_some(), "one of two has closed it");
        drop((first, second));
        assert!(found.share_unless_closed(us()).is_none() && !found.is_open());
    }

    /// The file of a closed descriptor may have another one, or reads on their way. Only the first open waits for its
    /// end.
    #[test]
    fn copy_that_is_held_is_shared_while_it_is_held() {
        let (held, found) = CopyUse::new("held", us());
        let n_held = || found.get().expect("an open copy").uses().held;
        assert!(held.close(us()));
        assert_eq!(n_held(), 0);
        let second = found.share_unless_closed(us()).expect("a held copy");
        assert_eq!(n_held(), 1);
        assert!(second.close(us()));
        let third = found.share_unless_closed(us()).expect("a held copy");
        assert_eq!((n_held(), third.number), (1, 2));
        drop((held, second));
        assert_eq!(n_held(), 0);
        assert!(third.close(us()));
        let closer = thread::spawn(move || drop(third));
        assert!(found.share_unless_closed(us()).is_none(), "it has waited for the third");
        closer.join().unwrap();
    }

    /// A shell holds a file open, and its commands inherit the descriptor.
    #[test]
    fn close_by_another_process_leaves_the_use() {
        let (used, found) = CopyUse::new("used", us());
        assert!(!used.close(1));
        assert!(found.share_unless_closed(us()).is_some());
        assert_eq!(found.get().expect("an open copy").uses().held, 0, "no open has waited");
    }
}
