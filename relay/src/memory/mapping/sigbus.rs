//! The handler of SIGBUS, and the table of mappings that it may repair.
//!
//! An access to a page that another process has truncated from the file raises SIGBUS. The handler maps a page of
//! zeroes there, and marks the mapping as *torn*. It does so only for mappings in the table. For every other SIGBUS it
//! runs the earlier action: one of the disk, of a library's mapping, or sent by a process.
//!
//! The handler takes no lock. Entries lie in blocks that are never freed. Each entry says in one word where its mapping
//! is, so that no load finds half of an entry.

use std::io;
use std::num::NonZeroUsize;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

use crate::memory::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Page size of x86-64, and of most kernels of aarch64.
/// With larger pages, replacing a page fails, and the signal ends the process as before.
pub(super) const PAGE: usize = 4096;
/// Bits of an entry's word for the mapping's number of pages: 2 TiB at most.
const LEN_BITS: u32 = 29;
/// Bits of an entry's word for the mapping's first page.
/// They reach addresses up to 2^47, all that mmap(2) gives unasked.
const BEGIN_BITS: u32 = 64 - LEN_BITS;
/// Entries in a block.
const BLOCK_LEN: usize = 64;

/// Number of pages replaced in all mappings.
static REPLACED: AtomicUsize = AtomicUsize::new(0);
/// The newest block of the table.
static BLOCKS: AtomicPtr<Block> = AtomicPtr::new(std::ptr::null_mut());
/// Entries without a mapping. The handler never takes this lock.
static FREE: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());
/// The action of SIGBUS before [`outlive_truncation`].
static BEFORE: OnceLock<SigAction> = OnceLock::new();

struct Block {
    entries: [Entry; BLOCK_LEN],
    older: *const Block,
}

/// The handler's data on one mapping.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// First page and number of pages; 0 while no mapping has this entry.
    place: AtomicU64,
    /// Number of its pages that were replaced.
    torn: AtomicUsize,
}

impl Entry {
    fn contains(&self, address: usize) -> bool {
        // Acquire: the `torn` of this entry belongs to the mapping that was found.
        let place = self.place.load(Ordering::Acquire);
        let (begin, len) = (place >> LEN_BITS, place & ((1 << LEN_BITS) - 1));
        (begin..begin + len).contains(&((address / PAGE) as u64))
    }

    /// Returns whether a page of the mapping was replaced.
    pub(super) fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Acquire) > 0
    }
}

/// A mapping's entry in the table. `drop` removes it, before the mapping is unmapped.
#[derive(Debug)]
pub(super) struct Listed(&'static Entry);

impl Listed {
    /// Lists a mapping of `len` bytes at the address `begin`.
    /// `None` without the handler of SIGBUS.
    pub(super) fn new(begin: usize, len: usize) -> io::Result<Option<Listed>> {
        if BEFORE.get().is_none() {
            return Ok(None);
        }
        let (begin, pages) = ((begin / PAGE) as u64, len.div_ceil(PAGE) as u64);
        if begin >> BEGIN_BITS != 0 || pages >> LEN_BITS != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the mapping is too long, or too high"));
        }
        let entry = free_entry();
        entry.torn.store(0, Ordering::Relaxed);
        // Release, pairs with the handler's Acquire.
        entry.place.store(begin << LEN_BITS | pages, Ordering::Release);
        Ok(Some(Listed(entry)))
    }

    pub(super) fn entry(&self) -> &'static Entry {
        self.0
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.place.store(0, Ordering::Release);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

fn free_entry() -> &'static Entry {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(entry) = free.pop() {
        return entry;
    }
    // Relaxed: only holders of the lock store it.
    let older = BLOCKS.load(Ordering::Relaxed);
    let block = Box::leak(Box::new(Block { entries: std::array::from_fn(|_| Entry::default()), older }));
    // Release, pairs with the handler's Acquire: a thread that finds the block finds it filled in.
    BLOCKS.store(block, Ordering::Release);
    let (first, others) = block.entries.split_first().expect("a block has entries");
    free.extend(others);
    first
}

/// Returns the entry of the mapping that contains this address.
fn find(address: usize) -> Option<&'static Entry> {
    // Acquire, pairs with the Release in `free_entry`.
    let mut next = BLOCKS.load(Ordering::Acquire).cast_const();
    loop {
        // SAFETY: null, or a block that was filled in before it was stored, and is never freed.
        let block: &'static Block = unsafe { next.as_ref() }?;
        if let Some(entry) = block.entries.iter().find(|entry| entry.contains(address)) {
            return Some(entry);
        }
        next = block.older;
    }
}

/// Returns the number of pages of truncated files that this process has replaced.
/// It counts only after [`outlive_truncation`]. [`is_torn`](super::Mapping::is_torn) tells which mappings they are in.
pub fn truncations_met() -> usize {
    // Acquire: the mapping of a counted page is marked.
    REPLACED.load(Ordering::Acquire)
}

/// Keeps this process alive when another one truncates a file that it maps from now on.
///
/// From the first access on, the lost pages of such a mapping are zeroes. This function is for the daemon and for
/// commands, which map files that others may truncate. For any other SIGBUS the earlier action applies; the default
/// ends the process.
pub fn outlive_truncation() -> io::Result<()> {
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_RESTART;
    let ours = SigAction::new(SigHandler::SigAction(on_bus_error), flags, SigSet::empty());
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler.
    let before = unsafe { sigaction(Signal::SIGBUS, &default) }?;
    // Before the handler is installed, which reads it.
    let _ = BEFORE.set(before);
    // SAFETY: the handler does nothing but loads, stores and system calls that a handler may do, and keeps errno.
    unsafe { sigaction(Signal::SIGBUS, &ours) }?;
    Ok(())
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel passes a valid siginfo with SA_SIGINFO.
    let fault = unsafe { &*info };
    // SAFETY: if the code says that the kernel found a fault, the address is valid; otherwise it is not used.
    let (code, address) = (fault.si_code, unsafe { fault.si_addr() } as usize);
    // A signal sent by a process has another code.
    let torn = if code == libc::BUS_ADRERR { find(address) } else { None };
    match torn {
        Some(entry) if replace(address) => {
            entry.torn.fetch_add(1, Ordering::Release);
            REPLACED.fetch_add(1, Ordering::Release);
        }
        _ => pass_on(signal, info, context),
    }
    Errno::set_raw(errno);
}

/// Maps a page of zeroes at `address`.
fn replace(address: usize) -> bool {
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
    NonZeroUsize::new(address & !(PAGE - 1)).is_some_and(|page| {
        let len = NonZeroUsize::MIN.saturating_add(PAGE - 1);
        // SAFETY: the page lies in a mapping of ours, and a reference borrows the mapping, since this thread has just
        // accessed it. So the mapping is not unmapped meanwhile. The file has no page there, so nothing of use is
        // replaced. Another thread that faults there at the same time maps zeroes again: stores to memory that no code
        // trusts get lost.
        unsafe { mmap_anonymous(Some(page), len, prot, flags) }.is_ok()
    })
}

/// Does what this SIGBUS would do without our handler.
/// It never returns without the handler: the process lives with the handler, or ends.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let handler = BEFORE.get().map_or(SigHandler::SigDfl, SigAction::handler);
    // SAFETY: as for `fault` above.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match handler {
        // The kernel ignores sent signals, and ends a process at a fault all the same.
        SigHandler::SigIgn if was_sent => return,
        SigHandler::SigIgn | SigHandler::SigDfl => {}
        SigHandler::Handler(handler) => handler(signal),
        SigHandler::SigAction(handler) => handler(signal, info, context),
    }
    let keeps = matches!(handler, SigHandler::Handler(_) | SigHandler::SigAction(_)) && !is_default();
    if keeps {
        return;
    }
    // The Rust runtime's handler comes here as well. It restores the default, so that the repeated access ends the
    // process. Whether that access comes and fails again is uncertain, so this function raises the signal.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler.
    let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
    // Blocked until the handler returns; then it ends the process.
    let _ = raise(Signal::SIGBUS);
}

/// Returns whether the earlier handler has restored the default.
fn is_default() -> bool {
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null pointer for the new action, nothing is changed; `now` is writable.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_DFL
}
