//! The handler of SIGBUS, and the table of mappings that it may repair.
//!
//! A file that another process truncates has no pages there any more: an access to the mapping is a SIGBUS. The handler puts a
//! page of zeroes in the place, and marks the mapping as *torn*. It does so for mappings in the table alone. Every other
//! SIGBUS goes to the action that was there before: one of the disk, of a library's mapping, or sent by a process.
//!
//! The handler takes no lock. Entries lie in blocks that are never freed, and each says in one word where its mapping is, so
//! that no load finds half of an entry.

use std::io;
use std::num::NonZeroUsize;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

use crate::memory::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// x86-64's pages. Where they are larger, replacing one fails, and the signal ends the process as it would have.
pub(super) const PAGE: usize = 4096;
/// Bits of an entry's word that say how many pages the mapping has: 2 TiB at most.
const LEN_BITS: u32 = 29;
/// Bits of an entry's word that say in which page it begins: addresses up to 2^47, all that mmap(2) gives unasked.
const BEGIN_BITS: u32 = 64 - LEN_BITS;
/// Entries in a block.
const BLOCK_LEN: usize = 64;

/// Pages that were replaced in all mappings together.
static REPLACED: AtomicUsize = AtomicUsize::new(0);
/// The newest block of the table.
static BLOCKS: AtomicPtr<Block> = AtomicPtr::new(std::ptr::null_mut());
/// Entries that no mapping has. The handler never takes this lock.
static FREE: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());
/// What a SIGBUS did before [`outlive_truncation`].
static BEFORE: OnceLock<SigAction> = OnceLock::new();

struct Block {
    entries: [Entry; BLOCK_LEN],
    older: *const Block,
}

/// What the handler knows of one mapping.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// First page and number of pages; 0 when no mapping has this entry.
    place: AtomicU64,
    /// Pages of it that were replaced.
    torn: AtomicUsize,
}

impl Entry {
    fn contains(&self, address: usize) -> bool {
        // Acquire: the entry's `torn` belongs to this mapping.
        let place = self.place.load(Ordering::Acquire);
        let (begin, len) = (place >> LEN_BITS, place & ((1 << LEN_BITS) - 1));
        (begin..begin + len).contains(&((address / PAGE) as u64))
    }

    /// Whether a page of the mapping was replaced.
    pub(super) fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Acquire) > 0
    }
}

/// A mapping's entry in the table, taken out when dropped: before the mapping is unmapped.
#[derive(Debug)]
pub(super) struct Listed(&'static Entry);

impl Listed {
    /// Lists a mapping of `len` bytes at the page `begin`, if this process outlives truncations.
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
        // Release, with the handler's Acquire.
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
    // Release, with the handler's Acquire: a thread that finds the block finds it filled in.
    BLOCKS.store(block, Ordering::Release);
    let (first, others) = block.entries.split_first().expect("a block has entries");
    free.extend(others);
    first
}

/// The entry of the mapping that has this address.
fn find(address: usize) -> Option<&'static Entry> {
    // Acquire, with the Release above.
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

/// Number of pages of truncated files that this process has met; [`is_torn`](super::Mapping::is_torn) says whose they were.
/// Counts only after [`outlive_truncation`].
pub fn truncations_met() -> usize {
    // Acquire: what is counted, is marked.
    REPLACED.load(Ordering::Acquire)
}

/// Lets this process live on when another one truncates a file that it maps from now on.
///
/// Pages of such a mapping that the file does not have any more are zeroes from the first access on. It is for the daemon and for
/// commands, which map what others may truncate. Any other SIGBUS does what it did before; where that was the default, it ends
/// the process.
pub fn outlive_truncation() -> io::Result<()> {
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_RESTART;
    let ours = SigAction::new(SigHandler::SigAction(on_bus_error), flags, SigSet::empty());
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler.
    let before = unsafe { sigaction(Signal::SIGBUS, &default) }?;
    // Before ours is in place, which looks there.
    let _ = BEFORE.set(before);
    // SAFETY: the handler does nothing but loads, stores and system calls that a handler may do, and keeps errno.
    unsafe { sigaction(Signal::SIGBUS, &ours) }?;
    Ok(())
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel passes a valid siginfo with SA_SIGINFO.
    let fault = unsafe { &*info };
    // SAFETY: where the code says that the kernel found a fault, there is an address; otherwise it is not used.
    let (code, address) = (fault.si_code, unsafe { fault.si_addr() } as usize);
    // A signal that a process sent has another code.
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

/// Puts a page of zeroes where `address` is.
fn replace(address: usize) -> bool {
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
    NonZeroUsize::new(address & !(PAGE - 1)).is_some_and(|page| {
        let len = NonZeroUsize::MIN.saturating_add(PAGE - 1);
        // SAFETY: the page lies in a mapping of ours that a reference is borrowed of, since this thread has just accessed it: it
        // is not unmapped meanwhile. The file has nothing there, so nothing that is of use is replaced. Another thread that
        // faults there at the same time puts further zeroes: stores to memory that is not believed get lost.
        unsafe { mmap_anonymous(Some(page), len, prot, flags) }.is_ok()
    })
}

/// Does what this SIGBUS would have done without us. It never returns with the handler gone: the process lives with the
/// handler, or ends.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let handler = BEFORE.get().map_or(SigHandler::SigDfl, SigAction::handler);
    // SAFETY: as for `fault` above.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match handler {
        // The kernel ignores what is sent, and ends a process at a fault all the same.
        SigHandler::SigIgn if was_sent => return,
        SigHandler::SigIgn | SigHandler::SigDfl => {}
        SigHandler::Handler(handler) => handler(signal),
        SigHandler::SigAction(handler) => handler(signal, info, context),
    }
    let keeps = matches!(handler, SigHandler::Handler(_) | SigHandler::SigAction(_)) && !is_default();
    if keeps {
        return;
    }
    // The Rust runtime's handler comes here as well: it restores the default, for an access that is tried again to end the process.
    // Whether that access comes, and fails again, is not left to chance.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler.
    let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
    // Blocked until the handler returns, then it ends the process.
    let _ = raise(Signal::SIGBUS);
}

/// Whether the handler that was there before has restored the default.
fn is_default() -> bool {
    // SAFETY: all zeroes is a valid `sigaction`.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null pointer for the new action, nothing is changed; `now` is writable.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_DFL
}
