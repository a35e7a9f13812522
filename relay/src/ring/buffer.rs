//! One CPU's buffer as this process sees it: its words in the control file, its ring in the data file.

pub mod doorbell;

use std::sync::Arc;

use crate::layout::abi::{self, BufferBlock, ControlHeader, Record};
use crate::layout::geometry::{Geometry, Mode};
use crate::layout::position::{Position, Widths};
use crate::memory::mapping::{Located, Mapping, Window};
use crate::memory::sync::{AtomicU64, Ordering, fence};

/// A mapped buffer. Cheap to clone; all clones are the same buffer.
#[derive(Debug)]
pub struct Buffer {
    window: Window,
    control: Arc<Mapping>,
    block: Located<BufferBlock>,
    /// Where the first record is in the control file, and how far it is to the next.
    records_at: usize,
    record_stride: usize,
    data: Arc<Mapping>,
    geometry: Geometry,
    widths: Widths,
}

impl Buffer {
    /// The buffer number `index` of a channel: its part of the control file, which has this header, and its data file.
    /// `None` if the mappings are too short for it. The header was checked, see [`ControlHeader::check`].
    pub fn new(
        control: Arc<Mapping>,
        data: Arc<Mapping>,
        geometry: Geometry,
        header: &ControlHeader,
        index: usize,
    ) -> Option<Buffer> {
        let block_at = header.buffers_offset.checked_add(header.buffer_stride.checked_mul(index as u64)?)?;
        let records_at = usize::try_from(block_at.checked_add(header.records_offset)?).ok()?;
        let record_stride = usize::try_from(header.record_stride).ok()?;
        let block = Located::new(&control, usize::try_from(block_at).ok()?)?;
        let last_record = records_at.checked_add(record_stride.checked_mul(2 * geometry.n_subbufs() - 1)?)?;
        control.get::<Record>(records_at)?;
        control.get::<Record>(last_record)?;
        data.address(0, usize::try_from(geometry.buffer_size()).ok()?)?;
        let widths = Widths::new(&geometry);
        let window = Window::new(&data, geometry.subbuf_size());
        Some(Buffer { window, control, block, records_at, record_stride, data, geometry, widths })
    }

    /// A buffer in memory of this process alone, ready for use, whose history begins at `lap`.
    pub fn anonymous(geometry: Geometry, lap: u64) -> std::io::Result<Buffer> {
        let header = abi::control_header(&geometry, 1);
        let control = Arc::new(Mapping::anonymous(header.control_len())?);
        let data = Arc::new(Mapping::anonymous(geometry.buffer_size())?);
        let buffer = Buffer::new(control, data, geometry, &header, 0).expect("mappings of the right length");
        buffer.init(lap);
        Ok(buffer)
    }

    /// From now on nothing is appended by means of this value, but for messages of no bytes: [`Appended::Elsewhere`] is the
    /// answer.
    ///
    /// [`Appended::Elsewhere`]: crate::ring::writer::Appended::Elsewhere
    pub fn stop_appending(&self) {
        self.window.close();
    }

    /// Lets go of the files, see [`Mapping::retire`].
    pub fn retire(&self) -> std::io::Result<()> {
        self.control.retire()?;
        self.data.retire()
    }

    /// A buffer that was ended, see [`crate::ring::writer::Writer::close`], is not any more: who took it over serves it.
    pub fn reopen(&self) {
        // Relaxed: who still finds it closed goes away, and comes back.
        self.block().closed.store(0, Ordering::Relaxed);
    }

    /// Ends a buffer that this process cannot write: producers find out at their next switch.
    pub fn announce_end(&self) {
        // Relaxed: a producer that still finds it open writes until a later switch.
        self.block().closed.store(1, Ordering::Relaxed);
    }

    /// Ends a buffer that somebody has damaged, from whatever CPU: who writes it comes to a switch with its next message,
    /// looks, and finds it closed. That this may come in the middle of somebody's change does not matter any more.
    pub fn condemn(&self) {
        let block = self.block();
        // Relaxed, and Release behind it: who finds the state, finds it closed.
        block.closed.store(1, Ordering::Relaxed);
        let state = Position(block.state.load(Ordering::Relaxed));
        block.state.store(self.widths.at_blocked(self.widths.next(state)).0, Ordering::Release);
    }

    /// Whether this process has met a truncation of its files, see [`outlive_truncation`](crate::memory::mapping::outlive_truncation).
    #[cfg(not(loom))]
    pub fn is_torn(&self) -> bool {
        self.control.is_torn() || self.data.is_torn()
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
        let at = self.records_at + number * self.record_stride;
        self.control.get(at).expect("first and last record were checked in new, and slots are clamped")
    }

    /// Whether every sub-buffer is finished, or begun, and not given back, as far as this thread sees.
    pub fn is_full(&self) -> bool {
        let block = self.block();
        // Relaxed, both: an answer that may be old by the time it is heard.
        let state = Position(block.state.load(Ordering::Relaxed));
        let consumed = Position(block.consumed.load(Ordering::Relaxed));
        self.widths.full(self.widths.at(state, 0), consumed)
    }

    /// Messages lost in this buffer so far, for whatever cause.
    pub fn lost(&self) -> u64 {
        let block = self.block();
        // Relaxed: a sum of counters that stand for themselves.
        [&block.dropped, &block.too_big, &block.contended, &block.dropped_elsewhere]
            .iter()
            .fold(0, |sum, counter| sum.wrapping_add(counter.load(Ordering::Relaxed)))
    }

    /// Counts messages that the daemon wrote for somebody.
    pub fn count_written(&self, n: u64) {
        add(&self.block().written, n);
    }

    /// Counts messages that were interrupted each time they were tried.
    pub fn count_contended(&self, n: u64) {
        add(&self.block().contended, n);
    }

    /// Counts messages that are lost without their CPU having been asked.
    pub fn count_dropped_elsewhere(&self, n: u64) {
        add(&self.block().dropped_elsewhere, n);
    }

    /// The ring.
    #[inline(always)]
    pub(crate) fn data(&self) -> &Mapping {
        &self.data
    }

    /// Where this process's threads append.
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
    #[inline(always)]
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Where `position` is in the ring, in bytes.
    #[inline(always)]
    pub(crate) fn ring_offset(&self, position: Position) -> usize {
        self.widths.slot(position) * self.geometry.subbuf_size() + self.widths.offset(position)
    }

    /// Whether the writer has begun to overwrite the sub-buffer at `position`; never in no-overwrite mode.
    pub(crate) fn lapped(&self, position: Position) -> bool {
        if self.geometry().mode() == Mode::NoOverwrite {
            return false;
        }
        // F, pairs with E: what was copied or looked up before, comes before the look at `begun`.
        fence(Ordering::Acquire);
        self.widths().before(position, self.oldest_whole())
    }

    /// The oldest sub-buffer that no writer has begun to overwrite.
    pub(crate) fn oldest_whole(&self) -> Position {
        // Acquire: what is found there was written before the writer went on to `begun`.
        self.widths().oldest(Position(self.block().begun.load(Ordering::Acquire)))
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        Buffer {
            window: Window::new(&self.data, self.geometry.subbuf_size()),
            control: self.control.clone(),
            block: self.block.clone(),
            records_at: self.records_at,
            record_stride: self.record_stride,
            data: self.data.clone(),
            geometry: self.geometry,
            widths: self.widths,
        }
    }
}

/// Adds to a counter that only this thread adds to, or whose adders exclude each other.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    // Relaxed: the count says nothing about other memory.
    counter.fetch_add(n, Ordering::Relaxed);
}
