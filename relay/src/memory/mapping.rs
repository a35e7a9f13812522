//! Memory shared with other processes.
//! In this crate only `rseq.rs` and `lent.rs` have `unsafe` besides.
//!
//! Bytes that another process may change at any time are never borrowed as plain Rust values. Control words are reached
//! as atomics through [`Mapping::get`]. Payload is reached as atomics through [`Mapping::bytes`], or copied in and out
//! as raw bytes. [`Mapping::lend`] gives a [`Lent`], which is copied or passed to the kernel. `mapping/sigbus.rs` has
//! the handler of SIGBUS.
//!
//! By the letter of the memory model, a copy of bytes that another process stores meanwhile is a data race: the model
//! has no copy of atomic bytes yet. Like sequence locks, this code relies on two facts: the compiler emits a plain copy
//! for a copy, and knows nothing of the bytes. The protocol discards bytes that may be torn, and never looks at them.
#![allow(unsafe_code)]

mod sigbus;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use self::sigbus::{Listed, PAGE};
pub use self::sigbus::{outlive_truncation, truncations_met};
use crate::layout::abi::{AnchorTable, BufferBlock, ControlHeader, Record, ThreadTable};
use crate::layout::geometry::{Geometry, RECORD_OVERHEAD};
use crate::layout::levels::LevelPage;
use crate::memory::lent::Lent;
use crate::memory::sync::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering};

/// Bytes populated at a time, which takes about a millisecond.
const POPULATE_LEN: usize = 4 << 20;

/// Types that may be reached by reference in shared memory.
///
/// # Safety
/// Every bit pattern is valid, and every field that any process writes is an atomic.
pub unsafe trait Shared {}

// SAFETY: only atomics.
unsafe impl Shared for BufferBlock {}
// SAFETY: only atomics.
unsafe impl Shared for Record {}
// SAFETY: only atomics.
unsafe impl Shared for AnchorTable {}
// SAFETY: only atomics.
unsafe impl Shared for ThreadTable {}
// SAFETY: only atomics.
unsafe impl Shared for LevelPage {}

/// A shared, writable mapping of a file, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Entry for the handler of SIGBUS, if this process installed it. `None` during `drop`.
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

    /// Maps like [`Mapping::new`], but read-only: a store there raises SIGSEGV.
    pub fn read_only(file: &File, len: u64) -> io::Result<Mapping> {
        let mapping = Mapping::of_file(file, len, ProtFlags::PROT_READ)?;
        mapping.populate(libc::MADV_POPULATE_READ);
        Ok(mapping)
    }

    /// Maps read-only, and populates each page at its first access.
    /// It is for files whose length only their own header states.
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

    /// Populates the pages that the file has.
    /// It works piece by piece: meanwhile no other thread of the process can change the address space, as many
    /// allocations do.
    fn populate(&self, advice: libc::c_int) {
        for at in (0..self.len).step_by(POPULATE_LEN) {
            let len = POPULATE_LEN.min(self.len - at);
            // SAFETY: `at < self.len`, so the result stays inside the mapping.
            let from = unsafe { self.base.add(at) };
            // SAFETY: the pages are our own mapping's, and populating changes no byte. If it fails, as before Linux
            // 5.14, the pages are populated at their first access.
            if unsafe { libc::madvise(from.as_ptr().cast(), len, advice) } != 0 {
                return;
            }
        }
    }

    /// Maps `len` zeroed bytes without a file: private memory, for tests.
    pub fn anonymous(len: u64) -> io::Result<Mapping> {
        let len = map_len(len)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_SHARED) }?;
        Ok(Mapping { base: base.cast(), len: len.get(), listed: None })
    }

    /// Returns the shared value at `offset`; `None` if it is outside the mapping or not aligned.
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

    /// Writes the header of a control file that no other process has yet.
    pub fn put_header(&self, header: ControlHeader) {
        let at =
            self.address(0, size_of::<ControlHeader>()).expect("a control file is longer than its header");
        // SAFETY: in bounds by `address()`, aligned as the start of a page, and plain old data.
        unsafe { at.cast::<ControlHeader>().write(header) }
    }

    /// Returns a copy of a control file's present header.
    /// The caller must check every value in it.
    pub fn header(&self) -> Option<ControlHeader> {
        let at = self.address(0, size_of::<ControlHeader>())?;
        // SAFETY: in bounds by `address()`, aligned as the start of a page, and every bit pattern is a valid header;
        // volatile, since another process may be changing it.
        Some(unsafe { at.cast::<ControlHeader>().read_volatile() })
    }

    /// Detaches from the file, whose memory may then be freed.
    /// The addresses stay valid: stores there reach zeroed private memory that no reader looks at.
    pub fn retire(&self) -> io::Result<()> {
        let len = map_len(self.len as u64)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        // SAFETY: replaces exactly our own mapping, which stays ours; every access to it is by atomics or raw copies that
        // take any value, and the change of pages under them is one of values.
        unsafe { mmap_anonymous(Some(self.base.addr()), len, prot, flags) }?;
        Ok(())
    }

    /// Maps another file in place of this one, read-only: a store there raises SIGSEGV.
    /// The addresses stay valid, and threads that load there find the values of one file or the other.
    pub fn replace(&self, file: &File) -> io::Result<()> {
        let len = map_len(self.len as u64)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: as in `retire`; every user of the mapping only loads there, since it was made read-only.
        unsafe { mmap(Some(self.base.addr()), len, ProtFlags::PROT_READ, flags, file, 0) }?;
        Ok(())
    }

    /// Maps the same file over this writable mapping by `file`, another open file of it.
    /// Addresses and contents stay. The mapping keeps the former open file, and with it that file's locks, no longer.
    pub fn remap(&self, file: impl AsFd) -> io::Result<()> {
        let len = map_len(self.len as u64)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: as in `retire`; the pages are those of the same file.
        unsafe { mmap(Some(self.base.addr()), len, prot, flags, file, 0) }?;
        self.populate(libc::MADV_POPULATE_WRITE);
        Ok(())
    }

    /// Returns whether a page was replaced because the file lost it, see [`outlive_truncation`].
    pub fn is_torn(&self) -> bool {
        self.listed.as_ref().is_some_and(|listed| listed.entry().is_torn())
    }

    /// Returns the `len` bytes at `offset`, or `None` if they are outside the mapping.
    /// Other processes may be changing them.
    pub fn bytes(&self, offset: usize, len: usize) -> Option<&[AtomicU8]> {
        let at = self.address(offset, len)?.cast::<AtomicU8>();
        // SAFETY: valid for `len` bytes by `address()`, alive while `self` is borrowed, of a type without alignment or invalid
        // values, and changed by others as atomics or raw memory, never borrowed as anything else.
        Some(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) })
    }

    /// Copies `bytes` to `offset`.
    /// False, and nothing is copied, if they do not lie inside the mapping.
    ///
    /// The caller is the only writer of these bytes; readers in other processes may look at them meanwhile.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.address(offset, bytes.len()) else { return false };
        // SAFETY: `to` is valid for `bytes.len()` bytes by `address()`; a Rust slice never overlaps the mapping, since
        // nothing but `Lent::pass_to_kernel` makes slices of it, for the kernel alone.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        true
    }

    /// Zeroes `len` bytes at `offset`, under the conditions of [`Mapping::copy_in`].
    pub fn zero(&self, offset: usize, len: usize) -> bool {
        let Some(to) = self.address(offset, len) else { return false };
        // SAFETY: `to` is valid for `len` bytes by `address()`.
        unsafe { to.as_ptr().write_bytes(0, len) }
        true
    }

    /// Appends the `len` bytes at `offset` to `out`.
    /// False, and nothing is appended, if they are outside the mapping or there is no memory.
    ///
    /// A writer may be changing them meanwhile. The caller checks that afterwards, and then discards the copy.
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

    /// Returns the little-endian number at `offset`, as a writer may be changing it; `None` outside the mapping.
    pub fn u16_at(&self, offset: usize) -> Option<u16> {
        // Relaxed: the caller orders the look.
        let byte = |byte: &AtomicU8| byte.load(Ordering::Relaxed);
        self.bytes(offset, 2).map(|bytes| u16::from_le_bytes([byte(&bytes[0]), byte(&bytes[1])]))
    }

    /// Lends the `len` bytes at `offset`; `None` if they are outside the mapping.
    /// A reply then goes from the ring to the reader without a copy in this process.
    ///
    /// The kernel would refuse pages of a file that another process has truncated, and the reader would wait for ever.
    /// So this function reads a byte of each page first, which restores the page, see [`outlive_truncation`].
    pub fn lend(&self, offset: usize, len: usize) -> Option<Lent<'_>> {
        let from = self.address(offset, len)?;
        // The first byte, and the first of each further page: `offset` may be in the middle of a page.
        let further = (offset + 1).next_multiple_of(PAGE)..offset + len;
        for at in [offset].into_iter().filter(|_| len > 0).chain(further.step_by(PAGE)) {
            if let Some(byte) = self.address(at, 1) {
                // SAFETY: inside the mapping by `address()`; volatile, since the load matters and its value does not.
                let _ = unsafe { byte.read_volatile() };
            }
        }
        // SAFETY: readable by `address()`, and mapped while `self` is borrowed.
        Some(unsafe { Lent::new(from, len) })
    }

    /// Returns the address of `offset` if `len` bytes from there lie inside the mapping.
    /// It is for callers that copy without this type.
    #[inline(always)]
    pub(crate) fn address(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len`, so the result stays inside the one object mmap returned.
        Some(unsafe { self.base.add(offset) })
    }
}

/// A shared value whose place is looked up once. It keeps its mapping alive.
#[derive(Debug)]
pub struct Located<T: Shared> {
    at: NonNull<T>,
    _mapping: Arc<Mapping>,
}

impl<T: Shared> Located<T> {
    /// Looks up the shared value at `offset` of `mapping`, see [`Mapping::get`].
    pub fn new(mapping: &Arc<Mapping>, offset: usize) -> Option<Located<T>> {
        Some(Located { at: mapping.get::<T>(offset)?.into(), _mapping: mapping.clone() })
    }
}

impl<T: Shared> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `at` came from a reference into the mapping, which `self` keeps, and which does not move.
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
        // First: after munmap the addresses may belong to another mapping.
        self.listed = None;
        // SAFETY: base and len are what mmap returned, and no reference outlives `self`.
        let result = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(result.is_ok(), "unmapping our own mapping: {result:?}");
    }
}

/// The sub-buffer that threads on a buffer's CPU append to.
/// `begin` is its position with offset zero, `address` its address in this process. Only those threads store and load
/// the two, in restartable sequences. They store both at once, hence the alignment.
#[derive(Debug)]
#[repr(C, align(16))]
pub(crate) struct Window {
    begin: AtomicU64,
    address: AtomicPtr<u8>,
    /// Size of the sub-buffer in bytes; or -1, so that not even an empty bare message is appended.
    size: AtomicI64,
    /// The same for the payload of a record. A buffer has bare messages or records.
    payload_size: AtomicI64,
    /// Sum of a state and a `consumed` at which the buffer is full. Neither ever goes back, so while the sum is the same,
    /// so are both. It is stored and loaded like the first two.
    full_at: AtomicU64,
    /// Messages that may be dropped there without another look, or a negative number.
    drops_left: AtomicI64,
    /// Shortest message that is copied by moves of 32 bytes; `usize::MAX` if the processor has none.
    wide_from: usize,
    /// The buffer's shared words, of which the state is the first.
    block: NonNull<BufferBlock>,
}

// SAFETY: the pointer is to atomic words of the mapping, which no thread owns.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

// Sequences know the offsets.
const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(Window, begin) == 0 && offset_of!(Window, address) == 8);
    assert!(offset_of!(Window, size) == 16 && offset_of!(Window, payload_size) == 24);
    assert!(offset_of!(Window, full_at) == 32 && offset_of!(Window, drops_left) == 40);
    assert!(offset_of!(Window, wide_from) == 48 && offset_of!(Window, block) == 56);
    assert!(offset_of!(BufferBlock, state) == 0);
};

impl Window {
    /// Messages that are dropped, in a burst, between two that the writer looks at.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(crate) const DROPS_UNNOTED: i32 = 63;

    /// Returns the window of a ring's first sub-buffer in lap 0, of the buffer with these words.
    /// The caller has checked that the ring holds it, and keeps the words' mapping.
    pub(crate) fn new(ring: &Mapping, geometry: &Geometry, block: &BufferBlock) -> Window {
        let (size, timed) = (geometry.subbuf_size(), geometry.timed());
        Window {
            begin: AtomicU64::new(0),
            address: AtomicPtr::new(ring.base.as_ptr()),
            size: AtomicI64::new(if timed { -1 } else { size as i64 }),
            payload_size: AtomicI64::new(if timed { size as i64 - RECORD_OVERHEAD as i64 } else { -1 }),
            full_at: AtomicU64::new(0),
            drops_left: AtomicI64::new(0),
            wide_from: wide_from(),
            block: NonNull::from(block),
        }
    }

    /// Returns the shortest message that is copied by moves of 32 bytes.
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux"))]
    pub(crate) fn wide_from(&self) -> usize {
        self.wide_from
    }

    /// Makes sequences copy as on a processor without moves of 32 bytes.
    #[cfg(test)]
    pub(crate) fn copy_narrowly(&mut self) {
        self.wide_from = usize::MAX;
    }

    /// Returns the number of messages that may be dropped where the sum of `state` and `consumed` is this.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn drops_left(&self, sum: u64) -> i64 {
        if self.full_at.load(Ordering::Relaxed) == sum { self.drops_left.load(Ordering::Relaxed) } else { 0 }
    }

    pub(crate) fn close(&self) {
        // Relaxed: writers may see the -1 at any later time.
        self.size.store(-1, Ordering::Relaxed);
        self.payload_size.store(-1, Ordering::Relaxed);
    }
}

/// Returns the shortest message that sequences copy by moves of 32 bytes: AVX has them.
fn wide_from() -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        return 65;
    }
    usize::MAX
}

fn map_len(len: u64) -> io::Result<NonZeroUsize> {
    let len = usize::try_from(len).ok().and_then(NonZeroUsize::new);
    len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a mapping of no bytes, or of too many"))
}
