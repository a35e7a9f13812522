//! Messages that are filled in before they are written: one in each thread's memory.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use relay::system::thread_id::ThisThread;

use crate::handle::Handle;

/// Number of reserved messages in the process.
/// A thread looks for its message only if there is one.
pub(crate) static PENDING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether `SCRATCH` has a message.
    /// It has no destructor: a thread would have to register that at its first look, which takes memory, perhaps in a
    /// signal handler.
    static RESERVED: Cell<bool> = const { Cell::new(false) };
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { bytes: Vec::new(), of: None, by: 0 }) };
}

/// The reserved message of a thread.
struct Scratch {
    bytes: Vec<u8>,
    /// The channel of the message; `None` without a message.
    of: Option<&'static Handle>,
    /// The process that reserved it. A forked child has a copy, and must not write it too.
    by: u64,
}

impl Scratch {
    /// Writes the message, if there is one. With `only`, its channel must be that one.
    /// `None`: there is no such message.
    fn commit(&mut self, only: Option<&Handle>) -> Option<Result<(), Errno>> {
        let handle = self.of.take_if(|of| only.is_none_or(|only| std::ptr::eq(only, *of)))?;
        PENDING.fetch_sub(1, Ordering::Relaxed);
        RESERVED.set(false);
        if self.by != ThisThread::find().process() {
            return None;
        }
        Some(handle.write(&self.bytes))
    }
}

/// Writes the message at the end of the thread.
impl Drop for Scratch {
    fn drop(&mut self) {
        self.commit(None);
    }
}

/// Reserves room for a message of this thread.
pub(crate) fn reserve(handle: &'static Handle, len: usize) -> Result<*mut u8, Errno> {
    SCRATCH
        .try_with(|scratch| {
            // Borrowed only if this is a signal handler that interrupted this code.
            let mut scratch = scratch.try_borrow_mut().map_err(|_| Errno::EDEADLK)?;
            scratch.commit(None);
            scratch.bytes.clear();
            // At least one byte, so that an empty message has an address.
            scratch.bytes.try_reserve(len.max(1)).map_err(|_| Errno::ENOMEM)?;
            scratch.bytes.resize(len, 0);
            (scratch.of, scratch.by) = (Some(handle), ThisThread::find().process());
            // Relaxed: each thread only looks for its own message.
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
    // Borrowed if this is a signal handler that interrupted this code.
    SCRATCH.try_with(|scratch| scratch.try_borrow_mut().ok()?.commit(only)).ok()?
}

/// Returns whether this thread has reserved and not committed.
#[inline(always)]
pub(crate) fn is_pending() -> bool {
    // Relaxed: as in `reserve`.
    PENDING.load(Ordering::Relaxed) != 0 && has_reserved()
}

/// Apart from its caller: the address of a thread's variable takes a call in a shared library. The compiler would make
/// that call for every message.
#[cold]
#[inline(never)]
fn has_reserved() -> bool {
    RESERVED.get()
}

/// Writes the message that this thread has reserved and not committed.
pub(crate) fn commit_pending() {
    if is_pending() {
        commit_if(None);
    }
}
