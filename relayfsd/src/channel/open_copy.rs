//! A copy that the open files of one name share.
//!
//! A process that has closed the file, written to the channel and opened the file again finds what it wrote. But the
//! daemon may handle the last close of an open file (RELEASE) after that next open. Close(2) waits for its FLUSH alone,
//! which comes for each descriptor. So a copy whose users have all closed it is probably about to end.

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never};

use crate::process::killed::process_of;

/// Longest wait for the end of a copy whose users have all closed it.
///
/// The kernel queues RELEASE before close(2) returns, so that is time for the daemon's threads to get a CPU. A
/// descriptor that was duplicated or passed on, or a mapping, may hold the copy longer. Then it is shared, and later
/// opens do not wait.
const CLOSE_MAX: Duration = Duration::from_millis(250);

/// A copy, with what the open files of its name have in common.
pub(crate) struct OpenCopy<T> {
    copy: T,
    /// Number of its open files that the process which opened them has not closed.
    users: AtomicUsize,
    /// Whether an open has waited for its end as long as it may.
    is_held: AtomicBool,
    /// The copy's end closes it.
    _alive: Sender<Infallible>,
}

/// An open file's use of a copy.
pub(crate) struct CopyUse<T> {
    open: Arc<OpenCopy<T>>,
    /// The process that opened the file.
    process: u32,
    is_closed: AtomicBool,
}

/// Finds a copy as long as a file that uses it is open.
pub(crate) struct CopyRef<T> {
    open: Weak<OpenCopy<T>>,
    /// Is closed at the copy's end.
    end: Receiver<Infallible>,
}

// Relaxed in all that follows: the counts order no other memory. Close(2) returns after its FLUSH was answered, and the
// kernel passes a later open on after that.
impl<T> CopyUse<T> {
    /// Begins the use of a new copy, by a file that a thread has opened.
    pub(crate) fn new(copy: T, thread: u32) -> (CopyUse<T>, CopyRef<T>) {
        let (alive, end) = bounded(0);
        let (users, is_held) = (AtomicUsize::new(0), AtomicBool::new(false));
        let open = Arc::new(OpenCopy { copy, users, is_held, _alive: alive });
        let found = CopyRef { open: Arc::downgrade(&open), end };
        (CopyUse::begin(open, thread), found)
    }

    fn begin(open: Arc<OpenCopy<T>>, thread: u32) -> CopyUse<T> {
        open.users.fetch_add(1, Ordering::Relaxed);
        CopyUse { open, process: process_of(thread).unwrap_or(thread), is_closed: AtomicBool::new(false) }
    }

    /// Called when a thread closes a descriptor of the file, or ends. Other processes may have inherited one.
    ///
    /// Returns whether the copy has no users from now on.
    pub(crate) fn close(&self, thread: u32) -> bool {
        process_of(thread).unwrap_or(thread) == self.process && self.end()
    }

    fn end(&self) -> bool {
        !self.is_closed.swap(true, Ordering::Relaxed) && self.open.users.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl<T> Deref for CopyUse<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.open.copy
    }
}

impl<T> Drop for CopyUse<T> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<T> CopyRef<T> {
    /// Begins the use of the copy by a file that a thread has opened, or returns nothing if the copy has ended.
    pub(crate) fn share(&self, thread: u32) -> Option<CopyUse<T>> {
        Some(CopyUse::begin(self.open.upgrade()?, thread))
    }

    /// Like [`CopyRef::share`], but first waits for the end of a copy whose users have closed it.
    ///
    /// The caller may hold no lock that a close takes.
    pub(crate) fn share_unless_closed(&self, thread: u32) -> Option<CopyUse<T>> {
        let open = self.open.upgrade()?;
        if !open.is_held.load(Ordering::Relaxed) && open.users.load(Ordering::Relaxed) == 0 {
            drop(open);
            if self.end.recv_timeout(CLOSE_MAX) != Err(RecvTimeoutError::Timeout) {
                return None;
            }
            self.open.upgrade()?.is_held.store(true, Ordering::Relaxed);
        }
        self.share(thread)
    }

    /// Returns the copy for a look at it.
    pub(crate) fn get(&self) -> Option<Arc<OpenCopy<T>>> {
        self.open.upgrade()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.strong_count() > 0
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
        CopyRef { open: self.open.clone(), end: self.end.clone() }
    }
}

impl<T> Default for CopyRef<T> {
    fn default() -> CopyRef<T> {
        CopyRef { open: Weak::new(), end: never() }
    }
}

#[cfg(test)]
mod tests {
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

    /// The file of a closed descriptor may have another one, or reads on their way. Only the first open waits for its end.
    #[test]
    fn copy_that_is_held_is_shared() {
        let (held, found) = CopyUse::new("held", us());
        let is_held = || found.get().expect("an open copy").is_held.load(Ordering::Relaxed);
        assert!(held.close(us()));
        assert!(!is_held());
        assert!(found.share_unless_closed(us()).is_some() && is_held());
        drop(held);
        assert!(found.share_unless_closed(us()).is_none());
    }

    /// A shell holds a file open, and its commands inherit the descriptor.
    #[test]
    fn close_by_another_process_leaves_the_use() {
        let (used, found) = CopyUse::new("used", us());
        assert!(!used.close(1));
        assert!(found.share_unless_closed(us()).is_some());
        assert!(!found.get().expect("an open copy").is_held.load(Ordering::Relaxed), "no open has waited");
    }
}
