//! Memory shared with other processes. In this crate, only `rseq.rs` and `lent.rs` have `unsafe` besides.
//!
//! Bytes that somebody else may change at any time are never borrowed as plain Rust values. Control words are
//! reached as atomics through [`Mapping::get`]; payload likewise through [`Mapping::bytes`], or it is copied in and out as
//! raw bytes. [`Mapping::lend`] gives a [`Lent`], which is copied or passed to the kernel. `mapping/sigbus.rs` has the handler of SIGBUS.
//!
//! By the letter of the memory model a copy of bytes that others store meanwhile is a data race: it has no copy of atomic bytes
//! yet. As sequence locks do, we rely on a plain copy being emitted for one, and the compiler knowing nothing of the bytes; what
//! may have been torn is thrown away by the protocol, not looked at.
#![allow(unsafe_code)]

mod sigbus;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use self::sigbus::{Listed, PAGE};
pub use self::sigbus::{outlive_truncation, truncations_met};
use crate::layout::abi::{BufferBlock, ControlHeader, Record};
use crate::memory::lent::Lent;
use crate::memory::sync::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// How much is made present at a time, in bytes: a millisecond or so.
const POPULATE_LEN: usize = 4 << 20;

/// Types that may be reached by reference in shared memory.
///
/// # Safety
/// Every bit pattern is valid, and every field that anybody writes is an atomic.
pub unsafe trait Shared {}

// SAFETY: only atomics.
unsafe impl Shared for BufferBlock {}
// SAFETY: only atomics.
unsafe impl Shared for Record {}

/// A shared, writable mapping of a file, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// For the handler of SIGBUS, if this process has it. Only gone while it is dropped.
    listed: Option<Listed>,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access through it is by atomics or raw copies.
unsafe impl Send for Mapping {}
// SAFETY: as above: `&Mapping` gives out atomics, or copies bytes whose exclusive use is the caller's protocol.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from its start, with every page present.
    pub fn new(file: &File, len: u64) -> io::Result<Mapping> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mapping = Mapping::of_file(file, len, prot)?;
        mapping.populate(libc::MADV_POPULATE_WRITE);
        Ok(mapping)
    }

    /// The same, to be looked at only: whoever writes there gets SIGSEGV.
    pub fn read_only(file: &File, len: u64) -> io::Result<Mapping> {
        let mapping = Mapping::of_file(file, len, ProtFlags::PROT_READ)?;
        mapping.populate(libc::MADV_POPULATE_READ);
        Ok(mapping)
    }

    /// The same, but each page comes when it is looked at: for files whose own word is all that says how long they should be.
    pub fn on_demand(file: &File, len: u64) -> io::Result<Mapping> {
        Mapping::of_file(file, len, ProtFlags::PROT_READ)
    }

    fn of_file(file: &File, len: u64, prot: ProtFlags) -> io::Result<Mapping> {
        let len = map_len(len)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, file, 0) }?;
        let mut mapping = Mapping { base: base.cast(), len: len.get(), listed: None };
        mapping.listed = Listed::new(mapping.base.addr().get(), mapping.len)?;
        Ok(mapping)
    }

    /// Has the pages present, as far as they are there. Piece by piece, for meanwhile no other thread of the process can change its
    /// address space, which is what an allocation often takes.
    fn populate(&self, advice: libc::c_int) {
        for at in (0..self.len).step_by(POPULATE_LEN) {
            let len = POPULATE_LEN.min(self.len - at);
            // SAFETY: `at < self.len`, so the result stays inside the mapping.
            let from = unsafe { self.base.add(at) };
            // SAFETY: the pages are our own mapping's, and populating changes no byte. Where it fails, as before Linux 5.14, they are
            // present from the first access on.
            if unsafe { libc::madvise(from.as_ptr().cast(), len, advice) } != 0 {
                return;
            }
        }
    }

    /// Maps `len` zeroed bytes of no file: a buffer for this process alone, as tests use it.
    pub fn anonymous(len: u64) -> io::Result<Mapping> {
        let len = map_len(len)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_SHARED) }?;
        Ok(Mapping { base: base.cast(), len: len.get(), listed: None })
    }

    /// The shared value at `offset`, or `None` if it does not lie inside the mapping or is not aligned.
    pub fn get<T: Shared>(&self, offset: usize) -> Option<&T> {
        let at = self.address(offset, size_of::<T>())?.cast::<T>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY:
        // - in bounds: `address()` checked `offset..offset + size_of::<T>()`;
        // - aligned: checked above;
        // - alive: the reference borrows `self`, and only `drop` unmaps;
        // - valid and aliased: `T: Shared` has no invalid bit patterns and is changed through atomics only.
        Some(unsafe { at.as_ref() })
    }

    /// Writes the header of a control file that nobody else has been given yet.
    pub fn put_header(&self, header: ControlHeader) {
        let at =
            self.address(0, size_of::<ControlHeader>()).expect("a control file is longer than its header");
        // SAFETY: in bounds by `address()`, aligned as the start of a page, and plain old data.
        unsafe { at.cast::<ControlHeader>().write(header) }
    }

    /// The header of a control file, as it is now: a copy, and nothing in it is to be believed unchecked.
    pub fn header(&self) -> Option<ControlHeader> {
        let at = self.address(0, size_of::<ControlHeader>())?;
        // SAFETY: in bounds by `address()`, aligned as the start of a page, and every bit pattern is a valid header;
        // volatile, since somebody may be changing it.
        Some(unsafe { at.cast::<ControlHeader>().read_volatile() })
    }

    /// Lets go of the file, whose memory may then be freed. The addresses stay valid: who still writes there does so
    /// to zeroed memory of its own that nobody looks at.
    pub fn retire(&self) -> io::Result<()> {
        let len = map_len(self.len as u64)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        // SAFETY: replaces exactly our own mapping, which stays ours; every access to it is by atomics or raw copies that
        // take any value, and the change of pages under them is one of values.
        unsafe { mmap_anonymous(Some(self.base.addr()), len, prot, flags) }?;
        Ok(())
    }

    /// Whether a page of it was replaced because the file has none there any more, see [`outlive_truncation`].
    pub fn is_torn(&self) -> bool {
        self.listed.as_ref().is_some_and(|listed| listed.entry().is_torn())
    }

    /// The `len` bytes at `offset`, which others may be changing; `None` if they are not in the mapping.
    pub fn bytes(&self, offset: usize, len: usize) -> Option<&[AtomicU8]> {
        let at = self.address(offset, len)?.cast::<AtomicU8>();
        // SAFETY: valid for `len` bytes by `address()`, alive while `self` is borrowed, of a type without alignment or invalid
        // values, and changed by others as atomics or raw memory, never borrowed as anything else.
        Some(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) })
    }

    /// Copies `bytes` to `offset`. False, and nothing is copied, if they would not lie inside the mapping.
    ///
    /// The caller is the only writer of these bytes; readers of other processes may look at them meanwhile.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.address(offset, bytes.len()) else { return false };
        // SAFETY: `to` is valid for `bytes.len()` bytes by `address()`; a Rust slice never overlaps the mapping, since
        // nothing but `Lent::pass_to_kernel` makes slices of it, for the kernel alone.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        true
    }

    /// Zeroes `len` bytes at `offset`, on the same terms as [`Mapping::copy_in`].
    pub fn zero(&self, offset: usize, len: usize) -> bool {
        let Some(to) = self.address(offset, len) else { return false };
        // SAFETY: `to` is valid for `len` bytes by `address()`.
        unsafe { to.as_ptr().write_bytes(0, len) }
        true
    }

    /// Appends the `len` bytes at `offset` to `out`. False, and nothing is appended, if they are not in the mapping, or there is
    /// no memory.
    ///
    /// A writer may be changing them meanwhile; whoever copies checks afterwards whether one was, and throws the
    /// copy away then.
    pub fn copy_out(&self, offset: usize, len: usize, out: &mut Vec<u8>) -> bool {
        let Some(from) = self.address(offset, len) else { return false };
        if out.try_reserve(len).is_err() {
            return false;
        }
        let to = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `from` is valid for `len` bytes by `address()`, the spare capacity of `out` by `try_reserve`, and
        // the two do not overlap. Bytes that change during the copy: see above; any `u8` is valid.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), len) }
        // SAFETY: the copy above initialised exactly `len` bytes behind the old length.
        unsafe { out.set_len(out.len() + len) }
        true
    }

    /// Lends the `len` bytes at `offset`; `None` if they are not in the mapping. With it a reply goes from the ring to the reader
    /// without a copy of ours.
    ///
    /// The kernel would refuse pages of a file that another process has truncated, and the reader would wait for ever. So each
    /// page is looked at before, and is there again then, see [`outlive_truncation`].
    pub fn lend(&self, offset: usize, len: usize) -> Option<Lent<'_>> {
        let from = self.address(offset, len)?;
        // The first byte, and the first of each further page: `offset` may be in the middle of one.
        let further = (offset + 1).next_multiple_of(PAGE)..offset + len;
        for at in [offset].into_iter().filter(|_| len > 0).chain(further.step_by(PAGE)) {
            if let Some(byte) = self.address(at, 1) {
                // SAFETY: inside the mapping by `address()`; volatile, since the value is not what it is about.
                let _ = unsafe { byte.read_volatile() };
            }
        }
        // SAFETY: readable by `address()`, and mapped while `self` is borrowed.
        Some(unsafe { Lent::new(from, len) })
    }

    /// Address of `offset`, if `len` bytes from there lie inside the mapping; for those who copy by themselves.
    #[inline(always)]
    pub(crate) fn address(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len`, so the result stays inside the one object mmap returned.
        Some(unsafe { self.base.add(offset) })
    }
}

/// A shared value, found once. Keeps its mapping alive.
#[derive(Debug)]
pub struct Located<T: Shared> {
    at: NonNull<T>,
    _mapping: Arc<Mapping>,
}

impl<T: Shared> Located<T> {
    /// The shared value at `offset` of `mapping`, see [`Mapping::get`].
    pub fn new(mapping: &Arc<Mapping>, offset: usize) -> Option<Located<T>> {
        Some(Located { at: mapping.get::<T>(offset)?.into(), _mapping: mapping.clone() })
    }
}

impl<T: Shared> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: it came from a reference into the mapping, which is kept, and stays where it is.
        unsafe { self.at.as_ref() }
    }
}

impl<T: Shared> Clone for Located<T> {
    fn clone(&self) -> Located<T> {
        Located { at: self.at, _mapping: self._mapping.clone() }
    }
}

// SAFETY: it stands for a `&T` into memory that belongs to no thread.
unsafe impl<T: Shared + Sync> Send for Located<T> {}
// SAFETY: as above.
unsafe impl<T: Shared + Sync> Sync for Located<T> {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First: the addresses will be others'.
        self.listed = None;
        // SAFETY: base and len are what mmap returned, and no reference outlives `self`.
        let result = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(result.is_ok(), "unmapping our own mapping: {result:?}");
    }
}

/// Where threads on a buffer's CPU append: a sub-buffer's position, its offset zero, and its address in this process, which
/// they alone store and load, in restartable sequences, and both at once, to which end they are aligned.
#[derive(Debug)]
#[repr(C, align(16))]
pub(crate) struct Window {
    begin: AtomicU64,
    address: AtomicPtr<u8>,
    /// The sub-buffer's size in bytes, or 0 when nothing is to be appended any more.
    size: AtomicUsize,
}

impl Window {
    /// That of a ring's first sub-buffer in lap 0, which was checked to be inside the ring.
    pub(crate) fn new(ring: &Mapping, subbuf_size: usize) -> Window {
        Window {
            begin: AtomicU64::new(0),
            address: AtomicPtr::new(ring.base.as_ptr()),
            size: AtomicUsize::new(subbuf_size),
        }
    }

    pub(crate) fn close(&self) {
        // Relaxed: it becomes 0 at some time, no matter when.
        self.size.store(0, Ordering::Relaxed);
    }
}

fn map_len(len: u64) -> io::Result<NonZeroUsize> {
    let len = usize::try_from(len).ok().and_then(NonZeroUsize::new);
    len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a mapping of no bytes, or of too many"))
}
