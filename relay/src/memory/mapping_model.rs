//! Replaces shared memory under loom: words are loom's atomics, and loom watches the payload.
//!
//! Payload bytes are `UnsafeCell`s, so that a missing happens-before edge fails a model even if no load gets a wrong
//! value. In overwrite mode a reader copies bytes that a writer may be changing, and discards the copy. There the bytes
//! are atomics, and the model checks values.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU8, Ordering};

use crate::layout::abi::{
    ANCHORS_OFFSET, AnchorTable, BLOCK_LEN, BUFFERS_OFFSET, BufferBlock, ControlHeader, RECORD_LEN, Record,
    THREADS_OFFSET, TIMED_BUFFERS_OFFSET, ThreadTable,
};
use crate::layout::geometry::Geometry;
use crate::memory::lent::Lent;
use crate::ring::scheduler_model::before_store;

/// Most sub-buffers in a model's buffer.
const N_SUBBUFS_MAX: usize = 4;

thread_local! {
    /// Whether payload may be read while it is written, as in overwrite mode.
    static RACY: Cell<bool> = const { Cell::new(false) };
}

/// Sets whether payload may be read while it is written.
/// This applies to buffers that the calling thread makes from now on.
pub fn set_racy(racy: bool) {
    RACY.set(racy);
}

/// Types in a model's control file.
pub trait Shared: Sized {
    /// Returns the value at an offset.
    fn find(control: &Control, offset: usize) -> Option<&Self>;
}

impl Shared for BufferBlock {
    fn find(control: &Control, offset: usize) -> Option<&BufferBlock> {
        (offset == control.block_at()).then_some(&control.block)
    }
}

impl Shared for Record {
    fn find(control: &Control, offset: usize) -> Option<&Record> {
        let at = offset.checked_sub(control.block_at() + BLOCK_LEN)?;
        control.records.get(at / RECORD_LEN)
    }
}

impl Shared for AnchorTable {
    fn find(control: &Control, offset: usize) -> Option<&AnchorTable> {
        control.tables.as_ref().filter(|_| offset == ANCHORS_OFFSET).map(|(anchors, _)| anchors)
    }
}

impl Shared for ThreadTable {
    fn find(control: &Control, offset: usize) -> Option<&ThreadTable> {
        control.tables.as_ref().filter(|_| offset == THREADS_OFFSET).map(|(_, threads)| threads)
    }
}

/// The words of one buffer.
#[derive(Debug)]
pub struct Control {
    block: BufferBlock,
    records: Vec<Record>,
    /// Of a timed channel.
    tables: Option<(AnchorTable, ThreadTable)>,
}

impl Control {
    fn block_at(&self) -> usize {
        if self.tables.is_some() { TIMED_BUFFERS_OFFSET } else { BUFFERS_OFFSET }
    }
}

/// Memory of a model.
#[derive(Debug)]
pub enum Mapping {
    /// A control file.
    Control(Box<Control>),
    /// A ring that is not read while it is written, and the copies lent of it.
    Ring(Vec<UnsafeCell<u8>>, Mutex<Vec<Box<[u8]>>>),
    /// A ring that may be read while it is written.
    RacyRing(Vec<AtomicU8>),
}

// SAFETY: the cells are loom's, which checks every access to them.
unsafe impl Sync for Mapping {}
// SAFETY: as above.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Creates a control file if `len` is large enough for one, else a ring.
    pub fn anonymous(len: u64) -> io::Result<Mapping> {
        let ring = 0..len;
        Ok(if len >= BUFFERS_OFFSET as u64 {
            let records = (0..2 * N_SUBBUFS_MAX).map(|_| Record::default()).collect();
            let tables = (len > TIMED_BUFFERS_OFFSET as u64).then(Default::default);
            Mapping::Control(Box::new(Control { block: BufferBlock::default(), records, tables }))
        } else if RACY.get() {
            Mapping::RacyRing(ring.map(|_| AtomicU8::new(0)).collect())
        } else {
            Mapping::Ring(ring.map(|_| UnsafeCell::new(0)).collect(), Mutex::default())
        })
    }

    /// Returns the shared value at `offset`.
    pub fn get<T: Shared>(&self, offset: usize) -> Option<&T> {
        if let Mapping::Control(control) = self { T::find(control, offset) } else { None }
    }

    /// Returns `None`: a model has no file, hence no header.
    pub fn header(&self) -> Option<ControlHeader> {
        None
    }

    /// Does nothing: a model has no file.
    pub fn retire(&self) -> io::Result<()> {
        Ok(())
    }

    /// Copies `bytes` to `offset`.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        bytes.iter().enumerate().all(|(i, byte)| self.store(offset + i, *byte))
    }

    /// Zeroes `len` bytes at `offset`.
    pub fn zero(&self, offset: usize, len: usize) -> bool {
        (offset..offset + len).all(|at| self.store(at, 0))
    }

    /// Appends the `len` bytes at `offset` to `out`.
    pub fn copy_out(&self, offset: usize, len: usize, out: &mut Vec<u8>) -> bool {
        out.extend((offset..offset + len).filter_map(|at| self.load(at)));
        true
    }

    /// Returns the little-endian number at `offset`.
    pub fn u16_at(&self, offset: usize) -> Option<u16> {
        Some(u16::from_le_bytes([self.load(offset)?, self.load(offset + 1)?]))
    }

    /// Lends a copy of the `len` bytes at `offset`.
    pub fn lend(&self, offset: usize, len: usize) -> Option<Lent<'_>> {
        let Mapping::Ring(_, lent) = self else { return None };
        let mut bytes = Vec::new();
        self.copy_out(offset, len, &mut bytes);
        let bytes = bytes.into_boxed_slice();
        // SAFETY: the box stays where it is, and is freed with `self`.
        let copy = unsafe { std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
        lent.lock().expect("no model panics here").push(bytes);
        Some(Lent::from(copy))
    }

    pub(crate) fn address(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let available = match self {
            Mapping::Control(_) => 0,
            Mapping::Ring(cells, _) => cells.len(),
            Mapping::RacyRing(bytes) => bytes.len(),
        };
        (offset + len <= available).then_some(NonNull::dangling())
    }

    fn store(&self, at: usize, byte: u8) -> bool {
        before_store();
        match self {
            Mapping::Control(_) => return false,
            // SAFETY: loom fails the model if another thread accesses the cell at the same time.
            Mapping::Ring(cells, _) => cells[at].with_mut(|cell| unsafe { *cell = byte }),
            Mapping::RacyRing(bytes) => bytes[at].store(byte, Ordering::Relaxed),
        }
        true
    }

    fn load(&self, at: usize) -> Option<u8> {
        match self {
            Mapping::Control(_) => None,
            // SAFETY: loom fails the model if another thread writes the cell at the same time.
            Mapping::Ring(cells, _) => Some(cells[at].with(|cell| unsafe { *cell })),
            Mapping::RacyRing(bytes) => Some(bytes[at].load(Ordering::Relaxed)),
        }
    }
}

/// A shared value whose place is looked up at each access.
#[derive(Debug)]
pub struct Located<T> {
    offset: usize,
    mapping: Arc<Mapping>,
    _of: std::marker::PhantomData<fn() -> T>,
}

impl<T: Shared> Located<T> {
    /// Looks up the shared value at `offset` of `mapping`.
    pub fn new(mapping: &Arc<Mapping>, offset: usize) -> Option<Located<T>> {
        mapping.get::<T>(offset)?;
        Some(Located { offset, mapping: mapping.clone(), _of: std::marker::PhantomData })
    }
}

impl<T> Clone for Located<T> {
    fn clone(&self) -> Located<T> {
        Located { offset: self.offset, mapping: self.mapping.clone(), _of: std::marker::PhantomData }
    }
}

impl<T: Shared> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.mapping.get(self.offset).expect("looked for in new")
    }
}

/// Empty: no sequences run in models.
#[derive(Debug)]
pub(crate) struct Window;

impl Window {
    /// Does nothing.
    pub(crate) fn new(_: &Mapping, _: &Geometry, _: &crate::layout::abi::BufferBlock) -> Window {
        Window
    }

    /// Does nothing.
    pub(crate) fn close(&self) {}
}
