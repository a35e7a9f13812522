//! One CPU's buffer as this process sees it: its words in the control file, its ring in the data file.

use std::sync::Arc;

use crate::abi::{self, BufferBlock, Record};
use crate::geometry::Geometry;
use crate::position::{Position, Widths};
use crate::shm::{Located, Mapping};
use crate::sync::{AtomicU64, Ordering};

/// A mapped buffer. Cheap to clone; all clones are the same buffer.
#[derive(Clone, Debug)]
pub struct Buffer {
    control: Arc<Mapping>,
    block: Located<BufferBlock>,
    block_at: usize,
    data: Arc<Mapping>,
    geometry: Geometry,
    widths: Widths,
}

impl Buffer {
    /// The buffer number `index` of a channel: its part of the control file, and its data file. `None` if the
    /// mappings are too short for the geometry.
    pub fn new(
        control: Arc<Mapping>,
        data: Arc<Mapping>,
        geometry: Geometry,
        index: usize,
    ) -> Option<Buffer> {
        let header = abi::control_header(&geometry, index + 1);
        let block_at = usize::try_from(header.buffers_offset + index as u64 * header.buffer_stride).ok()?;
        let block = Located::new(&control, block_at)?;
        let buffer = Buffer { control, block, block_at, data, widths: Widths::new(&geometry), geometry };
        let last_record =
            block_at + size_of::<BufferBlock>() + (2 * geometry.n_subbufs() - 1) * size_of::<Record>();
        buffer.control.get::<Record>(last_record)?;
        buffer.data.lend(0, geometry.buffer_size() as usize, |_| ())?;
        Some(buffer)
    }

    /// A buffer in memory of this process alone, ready for use, whose history begins at `lap`.
    pub fn anonymous(geometry: Geometry, lap: u64) -> std::io::Result<Buffer> {
        let control = Arc::new(Mapping::anonymous(abi::control_header(&geometry, 1).control_len())?);
        let data = Arc::new(Mapping::anonymous(abi::data_len(&geometry))?);
        let buffer = Buffer::new(control, data, geometry, 0).expect("mappings of the right length");
        buffer.init(lap);
        Ok(buffer)
    }

    /// Makes a zeroed buffer that nobody uses yet ready for use: empty, at the start of `lap`.
    pub fn init(&self, lap: u64) {
        let start = self.widths.pack(lap, 0, 0);
        let inside = self.data.zero(self.ring_offset(start), self.geometry.header());
        debug_assert!(inside, "the ring was checked in new");
        // Relaxed: whoever hands the buffer to other threads or processes orders that.
        let block = self.block();
        block.begun.store(start.0, Ordering::Relaxed);
        block.consumed.store(start.0, Ordering::Relaxed);
        block.state.store(self.widths.at(start, self.geometry.header()).0, Ordering::Relaxed);
    }

    /// The channel's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How the channel's positions are divided.
    pub fn widths(&self) -> &Widths {
        &self.widths
    }

    /// The shared words.
    #[inline]
    pub fn block(&self) -> &BufferBlock {
        &self.block
    }

    /// The record of the sub-buffer at `position`.
    pub fn record(&self, position: Position) -> &Record {
        let number = 2 * self.widths.slot(position) + (self.widths.lap(position) & 1) as usize;
        let at = self.block_at + size_of::<BufferBlock>() + number * size_of::<Record>();
        self.control.get(at).expect("the last record was checked in new, and slots are clamped")
    }

    /// Messages lost in this buffer so far, for whatever cause.
    pub fn lost(&self) -> u64 {
        let block = self.block();
        // Relaxed: a sum of counters that stand for themselves.
        block.dropped.load(Ordering::Relaxed).wrapping_add(block.too_big.load(Ordering::Relaxed))
    }

    /// The ring.
    #[inline(always)]
    pub(crate) fn data(&self) -> &Mapping {
        &self.data
    }

    /// Where `position` is in the ring, in bytes.
    #[inline(always)]
    pub(crate) fn ring_offset(&self, position: Position) -> usize {
        self.widths.slot(position) * self.geometry.subbuf_size() + self.widths.offset(position)
    }
}

/// Adds to a counter that only this thread adds to, or whose adders exclude each other.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    // Relaxed: the count says nothing about other memory.
    counter.fetch_add(n, Ordering::Relaxed);
}
