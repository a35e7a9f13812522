//! Messages that are filled in before they are written: one for each thread, in memory of its own.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;

use crate::handle::Handle;

/// How many there are in the process, so that a thread looks for its own only where somebody has one.
static PENDING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether `SCRATCH` has a message. It has no destructor, which a thread would have to register at its first look: with
    /// memory, and that may be in a signal handler.
    static RESERVED: Cell<bool> = const { Cell::new(false) };
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { bytes: Vec::new(), of: None, by: 0 }) };
}

/// A thread's message.
struct Scratch {
    bytes: Vec<u8>,
    /// Its channel, while there is one.
    of: Option<&'static Handle>,
    /// The process that reserved it: a forked child has a copy, and shall not write it too.
    by: u32,
}

impl Scratch {
    /// Writes the message, if there is one, and only if it is of the channel `only`, where that is given. `None`: there is
    /// none.
    fn commit(&mut self, only: Option<&Handle>) -> Option<Result<(), Errno>> {
        let handle = self.of.take_if(|of| only.is_none_or(|only| std::ptr::eq(only, *of)))?;
        PENDING.fetch_sub(1, Ordering::Relaxed);
        RESERVED.set(false);
        if self.by != std::process::id() {
            return None;
        }
        Some(handle.write(&self.bytes))
    }
}

/// At the end of the thread.
impl Drop for Scratch {
    fn drop(&mut self) {
        self.commit(None);
    }
}

/// Room for a message of this thread.
pub(crate) fn reserve(handle: &'static Handle, len: usize) -> Result<*mut u8, Errno> {
    SCRATCH
        .try_with(|scratch| {
            // Only a handler that interrupts us finds it borrowed.
            let mut scratch = scratch.try_borrow_mut().map_err(|_| Errno::EDEADLK)?;
            scratch.commit(None);
            scratch.bytes.clear();
            // Not none, so that there is an address for a message of no bytes.
            scratch.bytes.try_reserve(len.max(1)).map_err(|_| Errno::ENOMEM)?;
            scratch.bytes.resize(len, 0);
            (scratch.of, scratch.by) = (Some(handle), std::process::id());
            // Relaxed: only the own thread's is ever looked for.
            PENDING.fetch_add(1, Ordering::Relaxed);
            RESERVED.set(true);
            Ok(scratch.bytes.as_mut_ptr())
        })
        .unwrap_or(Err(Errno::EDEADLK))
}

/// Writes this thread's message of a channel.
pub(crate) fn commit(handle: &'static Handle) -> Result<(), Errno> {
    is_pending().then(|| commit_if(Some(handle))).flatten().unwrap_or(Err(Errno::EINVAL))
}

#[cold]
#[inline(never)]
fn commit_if(only: Option<&Handle>) -> Option<Result<(), Errno>> {
    // Borrowed: a handler interrupted one of us.
    SCRATCH.try_with(|scratch| scratch.try_borrow_mut().ok()?.commit(only)).ok()?
}

/// Whether a thread has reserved and not committed.
#[inline(always)]
pub(crate) fn is_pending() -> bool {
    // Relaxed: as above.
    PENDING.load(Ordering::Relaxed) != 0 && RESERVED.get()
}

/// Writes what this thread has reserved and not committed.
pub(crate) fn commit_pending() {
    if is_pending() {
        commit_if(None);
    }
}
