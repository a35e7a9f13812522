//! Reading one buffer: the kernel's `relay_file_read`, for the one consumer a buffer has.
//!
//! All readers of a buffer share one cursor (R1-R4 are the kernel's rules, see `relay/docs/SEMANTICS.md`). A read crosses
//! sub-buffers, hides their padding, and delivers the unfinished one as far as it is written. A sub-buffer is given
//! back, *credited*, when it is finished and read to its end. If it was read before it was finished, a later read
//! credits it.
//!
//! In no-overwrite mode the writer cannot touch a sub-buffer before it is credited. So bytes go from the ring straight
//! into the reply, and `consumed` is published afterwards. In overwrite mode the writer does not wait for the reader.
//! So bytes are copied, and then `begun` tells whether they were still whole. The reader keeps the rest of a copied
//! sub-buffer, so that a message is never cut, even if the writer laps a reader in the middle of one.

use std::collections::TryReserveError;

mod consume;
#[cfg_attr(loom, path = "reader/integrity_model.rs")]
mod integrity;
mod marks;
mod messages;
mod overwrite;
mod resume;
mod snapshot;
mod take;

pub use consume::ConsumeError;
pub use marks::Mark;
pub use overwrite::Overwritten;
pub use resume::Unsound;
pub use snapshot::Extent;
pub use take::Taken;

use integrity::Checks;
use messages::Counted;

use crate::layout::geometry::Mode;
use crate::layout::position::Position;
use crate::memory::lent::Lent;
use crate::memory::sync::{AtomicU64, Ordering, fence};
use crate::ring::buffer::{Buffer, add};
use crate::ring::writer::{Executor, RetriesExhausted, Writer};

/// Tries to read words that a writer keeps changing, before the reader uses the last value.
const TRIES_MAX: u32 = 1000;
/// Bytes that a reader seeking forward skips at a time.
const SKIP_LEN: usize = 1 << 20;

/// The reading end of a buffer.
#[derive(Debug)]
pub struct Reader {
    buffer: Buffer,
    /// Position of the next byte to deliver: sub-buffer and bytes consumed of it.
    cursor: Position,
    /// Stream position of the cursor.
    stream: u64,
    /// Start of the first sub-buffer since the last reset, or since this reader began.
    floor: Position,
    /// Overwrite mode: a validated copy of the rest of the cursor's sub-buffer.
    /// It is delivered up to `pending_at`.
    pending: Vec<u8>,
    pending_at: usize,
    /// Whether a reader seeks forward, so that bytes passed are discarded and not read.
    skipping: bool,
    /// Sub-buffers given back since `skipping` was set.
    given_back: usize,
    /// Checks of the words that peers write.
    checks: Checks,
    /// How far the records of the writer's sub-buffer were counted.
    counted: Counted,
}

/// The readable part of a sub-buffer.
struct Readable {
    /// Bytes of data in it, from its start.
    len: usize,
    /// Whether it is finished, so that its data is complete.
    finished: bool,
}

impl Reader {
    /// Creates the reading end of `buffer`, which continues where the last one stopped.
    /// There must be only one at a time.
    pub fn new(buffer: Buffer) -> Reader {
        // Relaxed: only the daemon writes it, and the daemon is the reader.
        let cursor = Position(buffer.block().consumed.load(Ordering::Relaxed));
        let begin = buffer.record(cursor).begin.load(Ordering::Relaxed);
        let stream = begin.wrapping_add(buffer.widths().offset(cursor) as u64);
        let floor = buffer.widths().at(cursor, 0);
        let checks = Checks::new(&buffer);
        Reader {
            buffer,
            cursor,
            stream,
            floor,
            pending: Vec::new(),
            pending_at: 0,
            skipping: false,
            given_back: 0,
            checks,
            counted: Counted::default(),
        }
    }

    /// Returns the buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Reads up to `count` bytes from the cursor on, and calls `reply` with them exactly once.
    /// `scratch` holds bytes that cannot be passed straight from the ring. Returns whether a sub-buffer was given back.
    pub fn read(&mut self, count: usize, scratch: &mut Vec<u8>, reply: impl FnOnce(Lent<'_>)) -> bool {
        let consumed = self.cursor;
        self.note_high_water();
        scratch.clear();
        let len = match self.buffer.geometry().mode() {
            Mode::NoOverwrite => self.read_in_place(count, scratch, reply),
            Mode::Overwrite => {
                self.read_copied(count, scratch);
                if self.pending.is_empty() {
                    self.drop_pending();
                }
                reply(Lent::from(&scratch[..]));
                scratch.len()
            }
        };
        self.publish();
        // After `publish`: if this reader dies in between, the next one counts the bytes, see `resume`.
        add(&self.buffer.block().read_bytes, len as u64);
        self.buffer.widths().before(consumed, self.cursor)
    }

    /// Notes the losses so far, so that a later reader can report new ones.
    /// The daemon calls it after each read.
    pub fn note_losses(&self) {
        let block = self.buffer.block();
        // Relaxed: counters say nothing about other memory, and only reports use these.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let dropped = get(&block.dropped).wrapping_add(get(&block.dropped_elsewhere));
        block.old_dropped.store(dropped, Ordering::Relaxed);
        block.old_too_big.store(get(&block.too_big), Ordering::Relaxed);
        block.old_contended.store(get(&block.contended), Ordering::Relaxed);
        block.old_overwritten_bytes.store(get(&block.overwritten_bytes), Ordering::Relaxed);
    }

    /// Reserves the memory that reading `count` bytes may take.
    /// A read of as many bytes then cannot fail for lack of memory.
    pub fn reserve(&mut self, count: usize, scratch: &mut Vec<u8>) -> Result<(), TryReserveError> {
        scratch.clear();
        scratch.try_reserve(count)?;
        let geometry = self.buffer.geometry();
        if geometry.mode() == Mode::Overwrite && self.pending.is_empty() && count < geometry.subbuf_size() {
            self.pending.try_reserve_exact(geometry.subbuf_size())?;
        }
        Ok(())
    }

    /// Returns the stream position of the cursor: that of the next byte to deliver.
    pub fn position(&self) -> u64 {
        self.stream
    }

    /// Skips the bytes before stream position `target`, as far as they exist: a seek forward.
    /// `passed` gets them in pieces, with their stream positions. Returns whether a sub-buffer was given back.
    pub fn skip_to(
        &mut self,
        target: u64,
        scratch: &mut Vec<u8>,
        mut passed: impl FnMut(u64, Lent<'_>),
    ) -> bool {
        if target <= self.stream {
            return false;
        }
        let consumed = self.cursor;
        self.note_high_water();
        let overwrite = self.buffer.geometry().mode() == Mode::Overwrite;
        (self.skipping, self.given_back) = (true, 0);
        let mut discarded = 0;
        let pieces = self.buffer.geometry().buffer_size() / SKIP_LEN as u64;
        for _ in 0..self.steps_max() as u64 + pieces {
            if overwrite && self.pending.is_empty() {
                self.catch_up();
            }
            let at = self.stream;
            let len = target.saturating_sub(at).min(SKIP_LEN as u64) as usize;
            scratch.clear();
            let skipped = if overwrite {
                self.read_copied(len, scratch);
                passed(at, Lent::from(&scratch[..]));
                scratch.len()
            } else {
                self.read_in_place(len, scratch, |bytes| passed(at, bytes))
            };
            discarded += skipped as u64;
            // Each of these calls may give back a ring of sub-buffers, so all of them together must be bounded.
            if self.stream == at || self.given_back > self.steps_max() {
                break;
            }
        }
        self.skipping = false;
        self.publish();
        // After `publish`, as for a read: bytes that the next reader still finds must not count as lost.
        add(&self.buffer.block().discarded_bytes, discarded);
        self.buffer.widths().before(consumed, self.cursor)
    }

    /// Returns whether a finished sub-buffer waits.
    /// That is the kernel's condition for POLLIN, `produced != consumed` (R5).
    pub fn has_finished(&self) -> bool {
        self.buffer.widths().before(self.cursor, self.state())
    }

    /// Returns the number of finished sub-buffers that are not given back yet.
    /// It is clamped to the number that a ring has.
    pub fn n_finished(&self) -> u64 {
        self.n_finished_from(self.cursor)
    }

    fn n_finished_from(&self, position: Position) -> u64 {
        let n = self.buffer.widths().count(position, self.state());
        n.clamp(0, self.buffer.geometry().n_subbufs() as i64).cast_unsigned()
    }

    /// Returns the number of sub-buffers finished since the channel was created.
    pub fn produced(&self) -> u64 {
        self.stable(|buffer, state| buffer.record(state).number.load(Ordering::Relaxed))
    }

    /// Returns the bytes written since the channel was created: the size of the file.
    /// The unfinished sub-buffer counts.
    pub fn size(&self) -> u64 {
        self.stable(|buffer, state| {
            let begin = buffer.record(state).begin.load(Ordering::Relaxed);
            begin.wrapping_add(buffer.widths().offset(state) as u64)
        })
    }

    /// Returns the bytes written but not yet delivered or lost.
    /// In overwrite mode this includes bytes that the writer has given up, until a read notices.
    pub fn unread(&self) -> u64 {
        self.size().saturating_sub(self.stream)
    }

    /// Returns the bytes that a read can still deliver.
    /// Overwritten bytes do not count, nor does a header without a message behind it.
    pub fn unread_data(&self) -> u64 {
        if !self.has_unfinished() && self.n_finished() == 0 {
            return 0;
        }
        let overwritten = self.overwritten_unread().bytes;
        self.unread().saturating_sub(overwritten)
    }

    /// Returns whether the current sub-buffer has data, which a flush would finish.
    pub fn has_unfinished(&self) -> bool {
        self.buffer.widths().offset(self.state()) > self.buffer.geometry().header()
    }

    /// Returns whether the current sub-buffer has undelivered bytes, and no finished one has.
    /// Its header does not count.
    pub fn has_unread_unfinished(&self) -> bool {
        let (widths, state) = (self.buffer.widths(), self.state());
        let delivered = widths.offset(self.cursor).max(self.buffer.geometry().header());
        widths.at(state, 0) == widths.at(self.cursor, 0) && widths.offset(state) > delivered
    }

    /// Raises the high-water mark to the present number of finished sub-buffers.
    /// The number falls only when sub-buffers are given back. Calls before that, and before reports, miss no maximum.
    pub fn note_high_water(&self) {
        let n_finished = self.n_finished();
        let before = self.buffer.block().high_water.fetch_max(n_finished, Ordering::Relaxed);
        self.check_high_water(before, n_finished);
    }

    /// Discards everything unread and starts over with an empty ring (W8).
    /// `executor` is that of a writer of the buffer.
    pub fn reset(&mut self, executor: impl Executor) -> Result<(), RetriesExhausted> {
        self.note_high_water();
        if self.buffer.geometry().mode() == Mode::Overwrite {
            // The reset does not discard what the writer has already taken. It does discard the kept copy.
            let kept = self.pending.len() - self.pending_at;
            add(&self.buffer.block().discarded_bytes, kept as u64);
            self.advance(kept);
            self.drop_pending();
            self.catch_up();
        }
        let block = self.buffer.block();
        let n_finished = self.n_finished();
        let start = match Writer::new(&self.buffer, executor).reset() {
            Ok(start) => start,
            Err(contended) => {
                self.expect_consumed();
                self.publish(); // replaces a `consumed` that an interrupted try may have stored
                return Err(contended);
            }
        };
        // The reset discards everything written before it, also by writers during this call.
        let begin = self.buffer.record(start).begin.load(Ordering::Relaxed);
        add(&block.discarded_bytes, begin.saturating_sub(self.stream));
        add(&block.discarded_subbufs, n_finished);
        (self.cursor, self.stream, self.floor) = (start, begin, start);
        self.expect_consumed();
        Ok(())
    }

    /// Applies R1-R3 to a ring whose unread part does not change.
    /// Returns the number of bytes passed to `reply`.
    fn read_in_place(&mut self, count: usize, scratch: &mut Vec<u8>, reply: impl FnOnce(Lent<'_>)) -> usize {
        // The first run of contiguous bytes in the ring; further runs are gathered in `scratch` behind it.
        let mut run: Option<(usize, usize)> = None;
        let mut left = count;
        self.credit();
        for _ in 0..self.steps_max() {
            if left == 0 {
                break;
            }
            let (readable, offset) = (self.readable(), self.buffer.widths().offset(self.cursor));
            let len = readable.len.saturating_sub(offset).min(left);
            let from = self.buffer.ring_offset(self.cursor);
            match run {
                _ if len == 0 => {}
                None => run = Some((from, len)),
                Some((start, run_len)) if scratch.is_empty() && start + run_len == from => {
                    run = Some((start, run_len + len))
                }
                Some((start, run_len)) => {
                    if scratch.is_empty() {
                        self.buffer.data().copy_out(start, run_len, scratch);
                    }
                    self.buffer.data().copy_out(from, len, scratch);
                }
            }
            left -= len;
            self.advance(len);
            if !(readable.finished && offset + len == readable.len) {
                break;
            }
            self.give_back();
        }
        match run {
            Some((start, len)) if scratch.is_empty() => {
                let lent = self.buffer.data().lend(start, len);
                debug_assert!(lent.is_some(), "the ring was checked when the buffer was mapped");
                reply(lent.unwrap_or(Lent::from(&[])));
            }
            _ => reply(Lent::from(&scratch[..])),
        }
        count - left
    }

    /// Gives back sub-buffers that are finished and read to their end (R1).
    /// All-padding ones are among them.
    fn credit(&mut self) {
        for _ in 0..self.steps_max() {
            let readable = self.readable();
            if !(readable.finished && self.buffer.widths().offset(self.cursor) >= readable.len) {
                return;
            }
            self.give_back();
        }
    }

    /// Returns the most sub-buffers that one call looks at.
    /// Only a very much faster writer makes a call need more. A hostile peer could claim any number of empty ones.
    fn steps_max(&self) -> usize {
        2 * self.buffer.geometry().n_subbufs() + TRIES_MAX as usize
    }

    /// Gives back the cursor's sub-buffer.
    fn give_back(&mut self) {
        self.cursor = self.buffer.widths().next(self.cursor);
        self.check_next();
        self.given_back = self.given_back.wrapping_add(1);
        let block = self.buffer.block();
        add(if self.skipping { &block.discarded_subbufs } else { &block.read_subbufs }, 1);
    }

    /// Returns how far the cursor's sub-buffer can be read now.
    fn readable(&self) -> Readable {
        let readable = self.readable_at(self.cursor, self.state());
        self.check_readable(&readable);
        readable
    }

    /// Returns how far the sub-buffer at `position` can be read when the writer is at `state`.
    fn readable_at(&self, position: Position, state: Position) -> Readable {
        let widths = self.buffer.widths();
        if widths.before(position, state) {
            let padding = self.buffer.record(position).padding.load(Ordering::Relaxed);
            let size = self.buffer.geometry().subbuf_size();
            self.check_padding(padding);
            Readable { len: size - padding.min(size as u64) as usize, finished: true }
        } else if widths.before(state, position) {
            Readable { len: 0, finished: false }
        } else {
            Readable { len: widths.offset(state), finished: false }
        }
    }

    fn advance(&mut self, len: usize) {
        let offset = self.buffer.widths().offset(self.cursor) + len;
        self.cursor = self.buffer.widths().at(self.cursor, offset);
        self.stream = self.stream.wrapping_add(len as u64);
    }

    fn publish(&self) {
        self.check_consumed();
        // C, pairs with D in the writer: our loads from the sub-buffers come before a writer can overwrite them.
        self.buffer.block().consumed.store(self.cursor.0, Ordering::Release);
    }

    fn state(&self) -> Position {
        // B, pairs with A in the writer: not weaker, or bytes and records before the position could be old ones.
        Position(self.buffer.block().state.load(Ordering::Acquire))
    }

    /// Returns the result of `look` for the writer's position.
    /// The writer stays in its sub-buffer during the look.
    fn stable<T>(&self, look: impl Fn(&Buffer, Position) -> T) -> T {
        let mut n_tries = 0;
        loop {
            let state = self.state();
            let value = look(&self.buffer, state);
            // Orders the look before the second load, as F does.
            fence(Ordering::Acquire);
            let (later, widths) = (self.state(), self.buffer.widths());
            n_tries += 1;
            if !widths.before(state, later) && !widths.before(later, state) || n_tries == TRIES_MAX {
                return value;
            }
        }
    }
}
