//! Layout of a channel's files, to the byte.
//! `relay/docs/FORMAT.md` draws the layout; this file asserts it.
//!
//! A channel has one *control* file, and one *data* file for each buffer. A data file holds the ring and nothing else.
//!
//! ```text
//! control   0                 ControlHeader
//!           buffers_offset    BufferBlock of buffer 0, then its records: two for each slot, by parity of the lap
//!           + buffer_stride   BufferBlock of buffer 1 ...
//! ```
//!
//! Everything is little-endian and naturally aligned; reserved bytes are zero.

use std::fmt;

use crate::layout::geometry::{Geometry, GeometrySpec, Mode};
use crate::layout::position::Widths;
use crate::memory::sync::{AtomicByte, AtomicU64};

/// First bytes of a control file.
pub const CONTROL_MAGIC: [u8; 8] = *b"relayctl";
/// Version of this layout.
pub const LAYOUT_VERSION: u32 = 1;
/// Where the first buffer's block begins in a control file, in bytes.
pub const BUFFERS_OFFSET: usize = 4096;
/// Length of a [`BufferBlock`] in bytes.
pub const BLOCK_LEN: usize = 512;
/// Length of a [`Record`] in bytes.
pub const RECORD_LEN: usize = 64;
/// Bit of [`ControlHeader::flags`]: overwrite mode.
pub const FLAG_OVERWRITE: u32 = 1;
/// Bit of [`ControlHeader::flags`]: one buffer for all CPUs.
pub const FLAG_GLOBAL: u32 = 2;

/// Start of a control file.
/// Processes that map the file use the offsets and strides in it, not constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ControlHeader {
    /// [`CONTROL_MAGIC`].
    pub magic: [u8; 8],
    /// [`LAYOUT_VERSION`].
    pub layout_version: u32,
    /// Size of this header in bytes.
    pub header_len: u32,
    /// Bits of features that a process must know to use the file; none are defined yet.
    pub features_required: u64,
    /// Bits of features that a process may ignore; none are defined yet.
    pub features_optional: u64,
    /// Size of a sub-buffer in bytes.
    pub subbuf_size: u32,
    /// Number of sub-buffers in a buffer.
    pub n_subbufs: u32,
    /// Zeroed bytes at the start of each sub-buffer.
    pub header: u32,
    /// [`FLAG_OVERWRITE`], [`FLAG_GLOBAL`].
    pub flags: u32,
    /// Number of buffers.
    pub n_bufs: u32,
    /// Bits of the offset in a position.
    pub offset_bits: u8,
    /// Bits of the slot in a position.
    pub slot_bits: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Offset of the first [`BufferBlock`], in bytes.
    pub buffers_offset: u64,
    /// Distance from one [`BufferBlock`] to the next, in bytes.
    pub buffer_stride: u64,
    /// Distance from a [`BufferBlock`] to its first [`Record`], in bytes.
    pub records_offset: u64,
    /// Distance from one [`Record`] to the next, in bytes.
    /// The record of slot s in lap l is number `2 * s + l % 2`.
    pub record_stride: u64,
}

/// Shared words of one buffer.
/// Each line of 64 bytes has one kind of writer. The exception is `corrected`, which the daemon writes.
#[derive(Debug, Default)]
#[repr(C)]
pub struct BufferBlock {
    /// Position of the writer: `lap | slot | offset`.
    /// Alone on its line; written only on the buffer's CPU.
    pub state: AtomicU64,
    pad0: Pad<56>,
    /// Position of the reader: `lap | slot | bytes_consumed`. Written by the daemon only.
    pub consumed: AtomicU64,
    /// [`Self::dropped`] plus [`Self::dropped_elsewhere`] when the buffer was last read.
    /// The daemon is the only writer of this word and the next three; only reports use them.
    pub old_dropped: AtomicU64,
    /// [`Self::too_big`] when the buffer was last read.
    pub old_too_big: AtomicU64,
    /// [`Self::contended`] when the buffer was last read.
    pub old_contended: AtomicU64,
    /// [`Self::overwritten_bytes`] when the buffer was last read.
    pub old_overwritten_bytes: AtomicU64,
    pad1: Pad<24>,
    /// Newest sub-buffer that a writer has begun to write into: `lap | slot | 0`.
    /// Never decreases.
    pub begun: AtomicU64,
    pad2: Pad<56>,
    /// Messages refused because every sub-buffer was full.
    pub dropped: AtomicU64,
    /// Messages refused because they are longer than a sub-buffer or the message limit.
    pub too_big: AtomicU64,
    /// Messages refused because every try was interrupted and no other way was open.
    pub contended: AtomicU64,
    /// Times the daemon found a value in these files that no correct writer stores.
    /// A running daemon counts in its own memory and only stores here.
    pub corrected: AtomicU64,
    pad3: Pad<32>,
    /// Messages that the daemon wrote on behalf of producers.
    pub written: AtomicU64,
    /// Bytes given to readers.
    pub read_bytes: AtomicU64,
    /// Sub-buffers that reading gave back.
    pub read_subbufs: AtomicU64,
    /// Unread bytes lost to newer messages in overwrite mode.
    pub overwritten_bytes: AtomicU64,
    /// Sub-buffers given up for newer messages before a reader gave them back.
    pub overwritten_subbufs: AtomicU64,
    /// Unread bytes discarded by reset, or by a reader that seeks forward.
    pub discarded_bytes: AtomicU64,
    /// Finished sub-buffers discarded by reset, or by a reader that seeks forward.
    pub discarded_subbufs: AtomicU64,
    /// Highest number of finished, unread sub-buffers seen at one time.
    pub high_water: AtomicU64,
    /// Messages that were lost without a thread on the buffer's CPU to count them.
    /// They were lost on a socket, or no thread could run on that CPU.
    pub dropped_elsewhere: AtomicU64,
    pad4: Pad<56>,
    /// Odd while the daemon waits for the next switch; each arming stores a new odd value.
    pub wake: AtomicU64,
    pad5: Pad<56>,
    /// Not 0 when the channel has ended. Writers read it when they switch.
    /// The daemon blocks the buffer after setting it.
    pub closed: AtomicU64,
    pad6: Pad<56>,
}

/// Record of one sub-buffer.
/// A writer stores absolute values at the switches that begin and finish the sub-buffer.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Record {
    /// Number of sub-buffers finished before it since the channel was created.
    pub number: AtomicU64,
    /// Stream position of its first byte: bytes written to the buffer before it since creation.
    pub begin: AtomicU64,
    /// Unused bytes at its end; valid once it is finished.
    pub padding: AtomicU64,
    /// Messages lost in this buffer, for any cause, when it was finished.
    pub lost: AtomicU64,
    reserved: Pad<32>,
}

/// Bytes without meaning.
/// A hostile peer may store there, which a reference to plain bytes would exclude.
#[repr(transparent)]
struct Pad<const N: usize>([AtomicByte; N]);

impl<const N: usize> Default for Pad<N> {
    fn default() -> Pad<N> {
        Pad([const { AtomicByte::new(0) }; N])
    }
}

impl<const N: usize> fmt::Debug for Pad<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pad")
    }
}

// loom's atomics are larger, so layouts are asserted outside models only.
#[cfg(not(loom))]
const _: () = {
    use std::mem::offset_of;

    assert!(size_of::<ControlHeader>() == 88);
    assert!(offset_of!(ControlHeader, layout_version) == 8);
    assert!(offset_of!(ControlHeader, header_len) == 12);
    assert!(offset_of!(ControlHeader, features_required) == 16);
    assert!(offset_of!(ControlHeader, features_optional) == 24);
    assert!(offset_of!(ControlHeader, subbuf_size) == 32);
    assert!(offset_of!(ControlHeader, n_subbufs) == 36);
    assert!(offset_of!(ControlHeader, header) == 40);
    assert!(offset_of!(ControlHeader, flags) == 44);
    assert!(offset_of!(ControlHeader, n_bufs) == 48);
    assert!(offset_of!(ControlHeader, offset_bits) == 52);
    assert!(offset_of!(ControlHeader, slot_bits) == 53);
    assert!(offset_of!(ControlHeader, buffers_offset) == 56);
    assert!(offset_of!(ControlHeader, buffer_stride) == 64);
    assert!(offset_of!(ControlHeader, records_offset) == 72);
    assert!(offset_of!(ControlHeader, record_stride) == 80);

    assert!(size_of::<BufferBlock>() == BLOCK_LEN);
    assert!(offset_of!(BufferBlock, state) == 0);
    assert!(offset_of!(BufferBlock, consumed) == 64);
    assert!(offset_of!(BufferBlock, old_dropped) == 72);
    assert!(offset_of!(BufferBlock, old_too_big) == 80);
    assert!(offset_of!(BufferBlock, old_contended) == 88);
    assert!(offset_of!(BufferBlock, old_overwritten_bytes) == 96);
    assert!(offset_of!(BufferBlock, begun) == 128);
    assert!(offset_of!(BufferBlock, dropped) == 192);
    assert!(offset_of!(BufferBlock, too_big) == 200);
    assert!(offset_of!(BufferBlock, contended) == 208);
    assert!(offset_of!(BufferBlock, corrected) == 216);
    assert!(offset_of!(BufferBlock, written) == 256);
    assert!(offset_of!(BufferBlock, read_bytes) == 264);
    assert!(offset_of!(BufferBlock, read_subbufs) == 272);
    assert!(offset_of!(BufferBlock, overwritten_bytes) == 280);
    assert!(offset_of!(BufferBlock, overwritten_subbufs) == 288);
    assert!(offset_of!(BufferBlock, discarded_bytes) == 296);
    assert!(offset_of!(BufferBlock, discarded_subbufs) == 304);
    assert!(offset_of!(BufferBlock, high_water) == 312);
    assert!(offset_of!(BufferBlock, dropped_elsewhere) == 320);
    assert!(offset_of!(BufferBlock, wake) == 384);
    assert!(offset_of!(BufferBlock, closed) == 448);

    assert!(size_of::<Record>() == RECORD_LEN);
    assert!(offset_of!(Record, number) == 0);
    assert!(offset_of!(Record, begin) == 8);
    assert!(offset_of!(Record, padding) == 16);
    assert!(offset_of!(Record, lost) == 24);
};

/// Size of a page in bytes.
/// Data files are rounded up to pages, and each CPU's block starts on a page.
const PAGE: u64 = 4096;

/// Returns the control header of a channel of this geometry with `n_bufs` buffers.
pub fn control_header(geometry: &Geometry, n_bufs: usize) -> ControlHeader {
    let widths = Widths::new(geometry);
    let records_len = 2 * geometry.n_subbufs() as u64 * RECORD_LEN as u64;
    ControlHeader {
        magic: CONTROL_MAGIC,
        layout_version: LAYOUT_VERSION,
        header_len: size_of::<ControlHeader>() as u32,
        features_required: 0,
        features_optional: 0,
        subbuf_size: geometry.subbuf_size() as u32,
        n_subbufs: geometry.n_subbufs() as u32,
        header: geometry.header() as u32,
        flags: if geometry.mode() == Mode::Overwrite { FLAG_OVERWRITE } else { 0 }
            | if geometry.global() { FLAG_GLOBAL } else { 0 },
        n_bufs: n_bufs as u32,
        offset_bits: widths.offset_bits() as u8,
        slot_bits: widths.slot_bits() as u8,
        reserved: [0; 2],
        buffers_offset: BUFFERS_OFFSET as u64,
        buffer_stride: (BLOCK_LEN as u64 + records_len).next_multiple_of(PAGE),
        records_offset: BLOCK_LEN as u64,
        record_stride: RECORD_LEN as u64,
    }
}

impl ControlHeader {
    /// Length of the control file in bytes.
    pub fn control_len(&self) -> u64 {
        self.buffers_offset.saturating_add(u64::from(self.n_bufs).saturating_mul(self.buffer_stride))
    }

    /// Returns the geometry and number of buffers in the header, if such a channel can exist.
    pub fn shape(&self) -> Option<(Geometry, usize)> {
        let is = |flag| self.flags & flag != 0;
        let spec = GeometrySpec {
            subbuf_size: Some(self.subbuf_size.into()),
            n_subbufs: Some(self.n_subbufs.into()),
            header: Some(self.header.into()),
            mode: Some(if is(FLAG_OVERWRITE) { Mode::Overwrite } else { Mode::NoOverwrite }),
            global: Some(is(FLAG_GLOBAL)),
        };
        let (geometry, n_bufs) = (spec.build().ok()?, self.n_bufs as usize);
        geometry.can_have(n_bufs).then_some((geometry, n_bufs))
    }

    /// Checks that this release can use a control file with this header.
    /// `geometry` and `n_bufs` are the channel's, `len` is the length of the file in bytes. The layout must be the
    /// same, no unknown feature required, and every part inside the file.
    pub fn check(&self, geometry: &Geometry, n_bufs: usize, len: u64) -> Result<(), &'static str> {
        let own = control_header(geometry, n_bufs);
        let shape = |h: &ControlHeader| {
            (h.subbuf_size, h.n_subbufs, h.header, h.flags, h.n_bufs, h.offset_bits, h.slot_bits)
        };
        let block_len = self
            .records_offset
            .checked_add((2 * u64::from(self.n_subbufs)).saturating_mul(self.record_stride));
        if self.magic != CONTROL_MAGIC {
            Err("it is no control file")
        } else if self.layout_version != LAYOUT_VERSION || self.features_required != 0 {
            Err("its layout is of another release")
        } else if shape(self) != shape(&own) {
            Err("its geometry is not the channel's")
        } else if self.buffers_offset < size_of::<ControlHeader>() as u64
            || self.records_offset < BLOCK_LEN as u64
            || self.record_stride < RECORD_LEN as u64
            || block_len.is_none_or(|len| len > self.buffer_stride)
            || self.control_len() > len
        {
            Err("its parts do not fit it")
        } else {
            Ok(())
        }
    }
}

/// Length of a buffer's data file in bytes: the ring, rounded up to whole pages as the kernel does.
pub fn data_len(geometry: &Geometry) -> u64 {
    geometry.buffer_size().next_multiple_of(PAGE)
}
