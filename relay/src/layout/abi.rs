//! Layout of a channel's files, to the byte.
//! `relay/docs/FORMAT.md` draws the layout; this file asserts it.
//!
//! A channel has one *control* file, and one *data* file for each buffer. A data file holds the ring and nothing else.
//!
//! ```text
//! control   0                 ControlHeader
//!           anchors_offset    AnchorTable, of a timed channel
//!           threads_offset    ThreadTable, of a timed channel
//!           buffers_offset    BufferBlock of buffer 0, then its records: two for each slot, by parity of the lap
//!           + buffer_stride   BufferBlock of buffer 1 ...
//! ```
//!
//! Everything is little-endian and naturally aligned; reserved bytes are zero.

mod anchors;
mod threads;

use std::fmt;

pub use self::anchors::{AnchorTable, Anchors};
pub use self::threads::ThreadTable;
use crate::clock::Clock;
use crate::layout::geometry::{Geometry, GeometrySpec, Mode};
use crate::layout::position::Widths;
use crate::memory::sync::{AtomicByte, AtomicU64};

/// First bytes of a control file.
pub const CONTROL_MAGIC: [u8; 8] = *b"relayctl";
/// Version of this layout.
pub const LAYOUT_VERSION: u32 = 1;
/// Length of a raw channel's header in bytes; what [`ControlHeader`] has behind it belongs to timed channels.
pub const RAW_HEADER_LEN: u32 = 88;
/// Bit of [`ControlHeader::features_required`]: the buffers hold records with time stamps.
pub const FEATURE_TIMED: u64 = 1;
/// Where the first buffer's block begins in a raw channel's control file, in bytes.
pub const BUFFERS_OFFSET: usize = 4096;
/// Where the first buffer's block begins in a timed channel's control file, in bytes.
pub const TIMED_BUFFERS_OFFSET: usize = 49152;
/// Where the anchors lie in a timed channel's control file, in bytes.
pub const ANCHORS_OFFSET: usize = 4096;
/// Where the table of threads lies in a timed channel's control file, in bytes.
pub const THREADS_OFFSET: usize = 16384;
/// Most anchors in the table. Models have fewer, since loom watches each word.
pub const ANCHORS_MAX: usize = if cfg!(loom) { 2 } else { 128 };
/// Words in the table of threads.
pub const THREADS_LEN: usize = if cfg!(loom) { 4 } else { 4096 };
/// Length of a [`BufferBlock`] in bytes.
pub const BLOCK_LEN: usize = 512;
/// Length of a [`Record`] in bytes.
pub const RECORD_LEN: usize = 64;
/// Bit of [`ControlHeader::flags`]: overwrite mode.
pub const FLAG_OVERWRITE: u32 = 1;
/// Bit of [`ControlHeader::flags`]: one buffer for all CPUs.
pub const FLAG_GLOBAL: u32 = 2;

/// Bit of [`ControlHeader::flags`]: records with time stamps.
pub const FLAG_TIMED: u32 = 4;

/// Start of a control file.
/// Processes that map the file use the offsets and strides in it, not constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ControlHeader {
    /// [`CONTROL_MAGIC`].
    pub magic: [u8; 8],
    /// [`LAYOUT_VERSION`].
    pub layout_version: u32,
    /// Size of this header in bytes: [`RAW_HEADER_LEN`], or 128 for a timed channel.
    pub header_len: u32,
    /// Bits of features that a process must know to use the file: [`FEATURE_TIMED`].
    pub features_required: u64,
    /// Bits of features that a process may ignore; none are defined yet.
    pub features_optional: u64,
    /// Size of a sub-buffer in bytes.
    pub subbuf_size: u32,
    /// Number of sub-buffers in a buffer.
    pub n_subbufs: u32,
    /// Zeroed bytes at the start of each sub-buffer.
    pub header: u32,
    /// [`FLAG_OVERWRITE`], [`FLAG_GLOBAL`], [`FLAG_TIMED`].
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
    /// Number of the clock that stamps, see [`Clock`]. A raw channel's header has zeroes from here on, or other bytes.
    pub clock: u32,
    /// Zero.
    pub reserved_clock: u32,
    /// Ticks of the clock per second, as first measured.
    pub ticks_per_second: u64,
    /// Offset of the [`AnchorTable`], in bytes.
    pub anchors_offset: u64,
    /// Offset of the [`ThreadTable`], in bytes.
    pub threads_offset: u64,
    /// Zero.
    pub reserved_end: u64,
}

/// Shared words of one buffer.
/// Each line of 64 bytes has one kind of writer. A few words that only reports use have another one, which each names.
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
    /// Times that a writer found every sub-buffer full where it had found room before.
    /// This word and the next three are written by any process, atomically; only reports use them.
    pub full: AtomicU64,
    /// Bytes that messages refused for lack of room would have taken, besides [`Self::dropped_bytes`]: those that no
    /// thread on the buffer's CPU has counted. Earlier releases count all here.
    pub dropped_bytes_elsewhere: AtomicU64,
    /// Bytes that the longest of these messages would have taken.
    pub longest_dropped: AtomicU64,
    /// Bytes that the longest message of [`Self::too_big`] would have taken.
    pub longest_too_big: AtomicU64,
    /// Bytes that messages refused for lack of room would have taken.
    /// Written only on the buffer's CPU, like [`Self::dropped`].
    pub dropped_bytes: AtomicU64,
    pad2: Pad<16>,
    /// Messages refused because every sub-buffer was full.
    pub dropped: AtomicU64,
    /// Messages refused because they are longer than a sub-buffer or the message limit.
    pub too_big: AtomicU64,
    /// Messages refused because every try was interrupted and no other way was open.
    pub contended: AtomicU64,
    /// Times the daemon found a value in these files that no correct writer stores.
    /// A running daemon counts in its own memory and only stores here.
    pub corrected: AtomicU64,
    /// When [`Self::dropped`] or [`Self::dropped_elsewhere`] changed last, in nanoseconds since 1970; 0: never.
    /// Any process writes this word and the next three; only reports use them.
    pub last_dropped: AtomicU64,
    /// When [`Self::too_big`] changed last.
    pub last_too_big: AtomicU64,
    /// When [`Self::contended`] changed last.
    pub last_contended: AtomicU64,
    /// When a writer last gave up a sub-buffer that no reader had given back.
    pub last_overwritten: AtomicU64,
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
    /// How many of [`Self::lost`] were too big; timed channels only.
    pub too_big: AtomicU64,
    /// Records in the buffer before it since the channel was created; timed channels only.
    pub messages: AtomicU64,
    reserved: Pad<16>,
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

    assert!(size_of::<ControlHeader>() == 128);
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
    assert!(offset_of!(ControlHeader, clock) == RAW_HEADER_LEN as usize);
    assert!(offset_of!(ControlHeader, ticks_per_second) == 96);
    assert!(offset_of!(ControlHeader, anchors_offset) == 104);
    assert!(offset_of!(ControlHeader, threads_offset) == 112);
    assert!(offset_of!(ControlHeader, reserved_end) == 120);

    assert!(size_of::<BufferBlock>() == BLOCK_LEN);
    assert!(offset_of!(BufferBlock, state) == 0);
    assert!(offset_of!(BufferBlock, consumed) == 64);
    assert!(offset_of!(BufferBlock, old_dropped) == 72);
    assert!(offset_of!(BufferBlock, old_too_big) == 80);
    assert!(offset_of!(BufferBlock, old_contended) == 88);
    assert!(offset_of!(BufferBlock, old_overwritten_bytes) == 96);
    assert!(offset_of!(BufferBlock, begun) == 128);
    assert!(offset_of!(BufferBlock, full) == 136);
    assert!(offset_of!(BufferBlock, dropped_bytes_elsewhere) == 144);
    assert!(offset_of!(BufferBlock, longest_dropped) == 152);
    assert!(offset_of!(BufferBlock, longest_too_big) == 160);
    assert!(offset_of!(BufferBlock, dropped_bytes) == 168);
    assert!(offset_of!(BufferBlock, dropped) == 192);
    assert!(offset_of!(BufferBlock, too_big) == 200);
    assert!(offset_of!(BufferBlock, contended) == 208);
    assert!(offset_of!(BufferBlock, corrected) == 216);
    assert!(offset_of!(BufferBlock, last_dropped) == 224);
    assert!(offset_of!(BufferBlock, last_too_big) == 232);
    assert!(offset_of!(BufferBlock, last_contended) == 240);
    assert!(offset_of!(BufferBlock, last_overwritten) == 248);
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
    assert!(offset_of!(Record, too_big) == 32);
    assert!(offset_of!(Record, messages) == 40);

    assert!(ANCHORS_OFFSET + size_of::<AnchorTable>() <= THREADS_OFFSET);
    assert!(THREADS_OFFSET + size_of::<ThreadTable>() == TIMED_BUFFERS_OFFSET);
};

/// Size of a page in bytes.
/// Data files are rounded up to pages, and each CPU's block starts on a page.
const PAGE: u64 = 4096;

/// Returns the control header of a channel of this geometry with `n_bufs` buffers.
/// The clock of a timed channel is [`Clock::Monotonic`] until [`ControlHeader::with_clock`] sets another.
pub fn control_header(geometry: &Geometry, n_bufs: usize) -> ControlHeader {
    let widths = Widths::new(geometry);
    let timed = geometry.timed();
    let if_timed = |value: usize| if timed { value as u64 } else { 0 };
    let records_len = 2 * geometry.n_subbufs() as u64 * RECORD_LEN as u64;
    ControlHeader {
        magic: CONTROL_MAGIC,
        layout_version: LAYOUT_VERSION,
        header_len: if timed { size_of::<ControlHeader>() as u32 } else { RAW_HEADER_LEN },
        features_required: if timed { FEATURE_TIMED } else { 0 },
        features_optional: 0,
        subbuf_size: geometry.subbuf_size() as u32,
        n_subbufs: geometry.n_subbufs() as u32,
        header: geometry.header() as u32,
        flags: if geometry.mode() == Mode::Overwrite { FLAG_OVERWRITE } else { 0 }
            | if geometry.global() { FLAG_GLOBAL } else { 0 }
            | if timed { FLAG_TIMED } else { 0 },
        n_bufs: n_bufs as u32,
        offset_bits: widths.offset_bits() as u8,
        slot_bits: widths.slot_bits() as u8,
        reserved: [0; 2],
        buffers_offset: if timed { TIMED_BUFFERS_OFFSET } else { BUFFERS_OFFSET } as u64,
        buffer_stride: (BLOCK_LEN as u64 + records_len).next_multiple_of(PAGE),
        records_offset: BLOCK_LEN as u64,
        record_stride: RECORD_LEN as u64,
        clock: if timed { Clock::Monotonic as u32 } else { 0 },
        reserved_clock: 0,
        ticks_per_second: if timed { NANOSECONDS } else { 0 },
        anchors_offset: if_timed(ANCHORS_OFFSET),
        threads_offset: if_timed(THREADS_OFFSET),
        reserved_end: 0,
    }
}

impl ControlHeader {
    /// Sets the clock of a timed channel, and its ticks per second as measured.
    /// A raw channel's header stays as it is.
    pub fn with_clock(self, clock: Clock, ticks_per_second: u64) -> ControlHeader {
        if self.is_timed() { ControlHeader { clock: clock as u32, ticks_per_second, ..self } } else { self }
    }

    /// Returns the clock that stamps; `None` for a raw channel, or a number that no clock has.
    pub fn clock(&self) -> Option<Clock> {
        Clock::of_number(self.clock).filter(|_| self.is_timed())
    }

    fn is_timed(&self) -> bool {
        self.features_required & FEATURE_TIMED != 0
    }

    /// Returns whether clock and tables of a timed channel make sense, and lie before the buffers.
    fn has_tables(&self) -> bool {
        let fits = |offset: u64, len: usize| {
            let end = offset.checked_add(len as u64);
            offset >= u64::from(self.header_len)
                && offset.is_multiple_of(align_of::<AtomicU64>() as u64)
                && end.is_some_and(|end| end <= self.buffers_offset)
        };
        self.header_len as usize >= size_of::<ControlHeader>()
            && self.ticks_per_second > 0
            && fits(self.anchors_offset, size_of::<AnchorTable>())
            && fits(self.threads_offset, size_of::<ThreadTable>())
    }

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
            timed: Some(is(FLAG_TIMED)),
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
        } else if self.layout_version != LAYOUT_VERSION || self.features_required & !FEATURE_TIMED != 0 {
            Err("its layout is of another release")
        } else if shape(self) != shape(&own) || self.features_required != own.features_required {
            Err("its geometry is not the channel's")
        } else if geometry.timed() && self.clock().is_none() {
            Err("its clock is unknown")
        } else if geometry.timed() && !self.has_tables() {
            Err("its tables do not fit it")
        } else if self.buffers_offset < u64::from(own.header_len)
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

/// Ticks per second of [`Clock::Monotonic`].
const NANOSECONDS: u64 = 1_000_000_000;

/// Length of a buffer's data file in bytes: the ring, rounded up to whole pages as the kernel does.
pub fn data_len(geometry: &Geometry) -> u64 {
    geometry.buffer_size().next_multiple_of(PAGE)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn geometry(text: &str) -> Geometry {
        text.parse::<GeometrySpec>().unwrap().build().unwrap()
    }

    fn check(header: &ControlHeader, geometry: &Geometry) -> Result<(), &'static str> {
        header.check(geometry, 2, control_header(geometry, 2).control_len())
    }

    /// Releases without timed channels accept a raw channel's file.
    #[test]
    fn raw_header_has_nothing_of_timed_channels() {
        let raw = geometry("subbuf-size=4K");
        let header = control_header(&raw, 2);
        assert_eq!((header.header_len, header.features_required, header.flags), (88, 0, 0));
        assert_eq!((header.buffers_offset, header.clock, header.ticks_per_second), (4096, 0, 0));
        assert_eq!((header.anchors_offset, header.threads_offset), (0, 0));
        assert_eq!(header.with_clock(Clock::Tsc, 7), header);
        assert_eq!((check(&header, &raw), header.clock()), (Ok(()), None));
        // What lies behind the header of another release means nothing.
        let further = ControlHeader { clock: 77, anchors_offset: u64::MAX, reserved_end: 1, ..header };
        assert_eq!((check(&further, &raw), further.clock()), (Ok(()), None));
        assert_eq!(header.shape(), Some((raw, 2)));
    }

    #[test]
    fn timed_header_is_refused_unless_clock_and_tables_are_sound() {
        let timed = geometry("subbuf-size=4K:timed");
        let header = control_header(&timed, 2);
        assert_eq!((header.header_len, header.features_required, header.flags), (128, 1, 4));
        assert_eq!((header.anchors_offset, header.threads_offset), (4096, 16384));
        assert_eq!((header.buffers_offset, header.clock()), (49152, Some(Clock::Monotonic)));
        assert_eq!((check(&header, &timed), header.shape()), (Ok(()), Some((timed, 2))));
        let tsc = header.with_clock(Clock::Tsc, 3_000_000_000);
        assert_eq!((check(&tsc, &timed), tsc.clock()), (Ok(()), Some(Clock::Tsc)));
        for (wrong, said) in [
            (ControlHeader { features_required: 3, ..header }, "its layout is of another release"),
            (ControlHeader { features_required: 0, ..header }, "its geometry is not the channel's"),
            (ControlHeader { flags: 0, ..header }, "its geometry is not the channel's"),
            (ControlHeader { clock: 0, ..header }, "its clock is unknown"),
            (ControlHeader { clock: 3, ..header }, "its clock is unknown"),
            (ControlHeader { ticks_per_second: 0, ..header }, "its tables do not fit it"),
            (ControlHeader { header_len: 88, ..header }, "its tables do not fit it"),
            (ControlHeader { anchors_offset: 120, ..header }, "its tables do not fit it"),
            (ControlHeader { anchors_offset: 4097, ..header }, "its tables do not fit it"),
            (ControlHeader { anchors_offset: 49152, ..header }, "its tables do not fit it"),
            (ControlHeader { threads_offset: u64::MAX - 7, ..header }, "its tables do not fit it"),
            (ControlHeader { threads_offset: 16392, ..header }, "its tables do not fit it"),
            (ControlHeader { buffers_offset: 4096, ..header }, "its tables do not fit it"),
        ] {
            assert_eq!(check(&wrong, &timed), Err(said), "{wrong:?}");
        }
        let raw = geometry("subbuf-size=4K");
        assert_eq!(check(&header, &raw), Err("its geometry is not the channel's"));
        assert_eq!(check(&control_header(&raw, 2), &timed), Err("its geometry is not the channel's"));
    }
}
