//! One CPU's buffer: its words in the mapped control file, its ring in the data file.

pub mod doorbell;

mod losses;
mod records;

use std::sync::Arc;

use crate::clock::Clock;
use crate::layout::abi::{self, AnchorTable, BufferBlock, ControlHeader, Record, ThreadTable};
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
    /// Offset of the first record in the control file.
    /// The next field is the distance to the next record.
    records_at: usize,
    record_stride: usize,
    data: Arc<Mapping>,
    geometry: Geometry,
    widths: Widths,
    timed: Option<Timed>,
}

/// What a buffer of a timed channel has besides.
#[derive(Clone, Debug)]
struct Timed {
    clock: Clock,
    ticks_per_second: u64,
    anchors: Located<AnchorTable>,
    threads: Located<ThreadTable>,
}

impl Timed {
    fn new(control: &Arc<Mapping>, header: &ControlHeader) -> Option<Timed> {
        Some(Timed {
            clock: header.clock()?,
            ticks_per_second: header.ticks_per_second,
            anchors: Located::new(control, usize::try_from(header.anchors_offset).ok()?)?,
            threads: Located::new(control, usize::try_from(header.threads_offset).ok()?)?,
        })
    }
}

impl Buffer {
    /// Returns buffer number `index` of a channel, or `None` if the mappings are too short.
    /// `header` is that of the control file, and was checked, see [`ControlHeader::check`].
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
        let block = Located::<BufferBlock>::new(&control, usize::try_from(block_at).ok()?)?;
        let last_record = records_at.checked_add(record_stride.checked_mul(2 * geometry.n_subbufs() - 1)?)?;
        control.get::<Record>(records_at)?;
        control.get::<Record>(last_record)?;
        data.address(0, usize::try_from(geometry.buffer_size()).ok()?)?;
        let widths = Widths::new(&geometry);
        let window = Window::new(&data, &geometry, &block);
        let timed = if geometry.timed() { Some(Timed::new(&control, header)?) } else { None };
        Some(Buffer { window, control, block, records_at, record_stride, data, geometry, widths, timed })
    }

    /// Creates a buffer in private memory, ready for use, whose history begins at `lap`.
    /// Records of a timed one have stamps of CLOCK_MONOTONIC.
    pub fn anonymous(geometry: Geometry, lap: u64) -> std::io::Result<Buffer> {
        Buffer::anonymous_with_clock(geometry, lap, Clock::Monotonic)
    }

    /// Creates a buffer like [`Buffer::anonymous`], with another clock if the channel is timed.
    pub fn anonymous_with_clock(geometry: Geometry, lap: u64, clock: Clock) -> std::io::Result<Buffer> {
        let header = abi::control_header(&geometry, 1);
        let header = header.with_clock(clock, header.ticks_per_second);
        let control = Arc::new(Mapping::anonymous(header.control_len())?);
        let data = Arc::new(Mapping::anonymous(geometry.buffer_size())?);
        let buffer = Buffer::new(control, data, geometry, &header, 0).expect("mappings of the right length");
        buffer.init(lap);
        Ok(buffer)
    }

    /// Stops appends through this value, also of empty messages.
    /// Later appends return [`Appended::Elsewhere`].
    ///
    /// [`Appended::Elsewhere`]: crate::ring::writer::Appended::Elsewhere
    pub fn stop_appending(&self) {
        self.window.close();
    }

    /// Detaches from the files, see [`Mapping::retire`].
    pub fn retire(&self) -> std::io::Result<()> {
        self.control.retire()?;
        self.data.retire()
    }

    /// Keeps the control file by another of its open files, see [`Mapping::remap`].
    /// Other buffers that were made with the same mapping do so, too.
    #[cfg(not(loom))]
    pub fn remap_control(&self, file: impl std::os::fd::AsFd) -> std::io::Result<()> {
        self.control.remap(file)
    }

    /// Opens a buffer that an earlier daemon ended, see [`crate::ring::writer::Writer::close`].
    pub fn reopen(&self) {
        // Relaxed: a producer that still finds the buffer closed detaches and comes back.
        self.block().closed.store(0, Ordering::Relaxed);
    }

    /// Ends a buffer from any CPU: producers notice at their next switch.
    /// Only [`crate::ring::writer::Writer::close`], on the buffer's CPU, makes them notice with their next message.
    pub fn announce_end(&self) {
        // M, pairs with N.
        self.block().closed.store(1, Ordering::Release);
    }

    /// Opens a buffer if only a peer has stored that it is closed. Returns whether it did.
    ///
    /// `is_ending` says whether the daemon ends the buffer, which it notes before it closes the buffer or announces the
    /// end. It is called after the look: an answer from before it could be that of an open buffer.
    pub fn deny_closed(&self, is_ending: impl Fn() -> bool) -> bool {
        let closed = &self.block().closed;
        // N, pairs with M: behind the daemon's own store, `is_ending` finds the note.
        let found = closed.load(Ordering::Acquire);
        if found == 0 || is_ending() {
            return false;
        }
        // N: if the daemon has ended the buffer since the look, this undoes its store, and `is_ending` finds the note.
        if closed.compare_exchange(found, 0, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        let is_ended = is_ending();
        if is_ended {
            self.announce_end();
        }
        !is_ended
    }

    /// Returns whether another process truncated the files.
    /// See [`outlive_truncation`](crate::memory::mapping::outlive_truncation).
    #[cfg(not(loom))]
    pub fn is_torn(&self) -> bool {
        self.control.is_torn() || self.data.is_torn()
    }

    /// Makes a zeroed buffer ready for use: empty, at the start of `lap`.
    /// No other thread may use the buffer yet.
    pub fn init(&self, lap: u64) {
        let start = self.widths.pack(lap, 0, 0);
        let inside = self.data.zero(self.ring_offset(start), self.geometry.header());
        debug_assert!(inside, "the ring was checked in new");
        // Relaxed: the code that hands the buffer to other threads or processes orders these stores.
        let block = self.block();
        block.begun.store(start.0, Ordering::Relaxed);
        block.consumed.store(start.0, Ordering::Relaxed);
        block.state.store(self.widths.at(start, self.geometry.header()).0, Ordering::Relaxed);
    }

    /// Returns the channel's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Returns the clock that stamps the buffer's records; `None` for a raw channel.
    #[inline(always)]
    pub fn clock(&self) -> Option<Clock> {
        self.timed.as_ref().map(|timed| timed.clock)
    }

    /// Returns the ticks per second of a timed channel's clock, as first measured.
    pub fn ticks_per_second(&self) -> Option<u64> {
        self.timed.as_ref().map(|timed| timed.ticks_per_second)
    }

    /// Returns a timed channel's anchors, which all its buffers share.
    pub fn anchors(&self) -> Option<&AnchorTable> {
        self.timed.as_ref().map(|timed| &*timed.anchors)
    }

    /// Returns a timed channel's table of threads, which all its buffers share.
    #[inline(always)]
    pub fn threads(&self) -> Option<&ThreadTable> {
        self.timed.as_ref().map(|timed| &*timed.threads)
    }

    /// Returns the table of threads, if [`Writer::append_record_quick`] is for this buffer: sequences read its clock.
    ///
    /// [`Writer::append_record_quick`]: crate::ring::writer::Writer::append_record_quick
    #[inline(always)]
    pub fn threads_if_quick(&self) -> Option<&ThreadTable> {
        // aarch64 has one way for all clocks.
        let is_quick = |clock| !cfg!(target_arch = "x86_64") || clock == Clock::Tsc;
        self.timed.as_ref().filter(|timed| is_quick(timed.clock)).map(|timed| &*timed.threads)
    }

    /// Returns the widths of the channel's positions.
    pub fn widths(&self) -> &Widths {
        &self.widths
    }

    /// Returns the shared words.
    #[inline]
    pub fn block(&self) -> &BufferBlock {
        &self.block
    }

    /// Returns the record of the sub-buffer at `position`.
    pub fn record(&self, position: Position) -> &Record {
        let number = 2 * self.widths.slot(position) + (self.widths.lap(position) & 1) as usize;
        let at = self.records_at + number * self.record_stride;
        self.control.get(at).expect("first and last record were checked in new, and slots are clamped")
    }

    /// Returns whether every sub-buffer is begun or finished, and none given back.
    /// Another thread may see a newer state.
    pub fn is_full(&self) -> bool {
        let block = self.block();
        // Relaxed, both: the answer may be old by the time the caller uses it.
        let state = Position(block.state.load(Ordering::Relaxed));
        let consumed = Position(block.consumed.load(Ordering::Relaxed));
        self.widths.full(self.widths.at(state, 0), consumed)
    }

    /// Returns the messages lost in this buffer so far, for any cause.
    pub fn lost(&self) -> u64 {
        let block = self.block();
        // Relaxed: the counters are independent, and so is their sum.
        [&block.dropped, &block.too_big, &block.contended, &block.dropped_elsewhere]
            .iter()
            .fold(0, |sum, counter| sum.wrapping_add(counter.load(Ordering::Relaxed)))
    }

    /// Counts messages that the daemon wrote on behalf of producers.
    pub fn count_written(&self, n: u64) {
        add(&self.block().written, n);
    }

    /// Returns the ring.
    #[inline(always)]
    pub(crate) fn data(&self) -> &Mapping {
        &self.data
    }

    /// Returns the window that this process's threads append through.
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
    #[inline(always)]
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Makes sequences copy as on a processor without moves of 32 bytes.
    #[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
    pub(crate) fn copy_narrowly(&mut self) {
        self.window.copy_narrowly();
    }

    /// Returns the offset of `position` in the ring, in bytes.
    #[inline(always)]
    pub(crate) fn ring_offset(&self, position: Position) -> usize {
        self.widths.slot(position) * self.geometry.subbuf_size() + self.widths.offset(position)
    }

    /// Whether the writer has begun to overwrite the sub-buffer at `position`; never in no-overwrite mode.
    pub(crate) fn lapped(&self, position: Position) -> bool {
        self.geometry().mode() == Mode::Overwrite && self.is_begun_again(position)
    }

    /// Whether the writer has begun the sub-buffer at `position` again, in either mode.
    pub(crate) fn is_begun_again(&self, position: Position) -> bool {
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
            window: Window::new(&self.data, &self.geometry, &self.block),
            control: self.control.clone(),
            block: self.block.clone(),
            records_at: self.records_at,
            record_stride: self.record_stride,
            data: self.data.clone(),
            geometry: self.geometry,
            widths: self.widths,
            timed: self.timed.clone(),
        }
    }
}

/// Adds to a counter.
/// Only the calling thread adds to this counter, or the threads that do exclude each other.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    // Relaxed: the count says nothing about other memory.
    counter.fetch_add(n, Ordering::Relaxed);
}
