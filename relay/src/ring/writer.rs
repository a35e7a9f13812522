//! Writing into one buffer: append, switch, flush, reset.
//!
//! Everything depends on one rule: **only a thread on the buffer's CPU writes to it, and it is not interrupted**. The
//! kernel keeps this rule by switching interrupts off. Producers keep it by restartable sequences
//! ([`crate::ring::rseq`]), or by being the only writing thread ([`SoleWriter`]). So there is no reserve and commit. A
//! message is copied behind `state`, where no reader looks, and one store to `state` makes it part of the stream. The
//! whole message is there, or none of it.
//!
//! Each change is one sequence. Its stores mean nothing until the last one, the store to `state`. It makes no store at
//! all unless `state` is still what the change was prepared for. The branches are the kernel's (`relay_write`,
//! `relay_switch_subbuf`); Wn are the numbers of its rules in `relay/docs/SEMANTICS.md`.
//!
//! ```text
//! A  state, Release        with B, the reader's Acquire: bytes and records before it are visible behind it
//! C  consumed, Release     with D, Acquire here: what the reader read, it read before it is overwritten
//! E  begun, then a fence   with F, the reader's fence, then begun: a reader that copied bytes of the new message
//!                          also sees that the sub-buffer was begun again, and throws the copy away
//! ```

mod outcome;

use std::ops::Range;

pub use self::outcome::{Attempt, Outcome, RetriesExhausted, WriteResult};
use crate::layout::abi::BufferBlock;
use crate::layout::geometry::{MESSAGE_MAX, Mode};
use crate::layout::position::Position;
use crate::memory::sync::{AtomicU64, Ordering, fence};
use crate::ring::buffer::Buffer;
use crate::ring::subbuf_start::{SubbufInfo, SubbufStart};

/// Tries of one change before the writer gives it up.
const TRIES_MAX: u32 = 64;

/// The way a thread changes a buffer. False: nothing was changed, look at the buffer again.
pub trait Executor: Copy {
    /// Copies a message behind the last one and advances the state, if the message fits.
    /// The message has at most [`MESSAGE_MAX`] bytes.
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended;
    /// Notes where the sub-buffer at `position` is, for later appends.
    /// The message would have fitted there, but `append` did not know the place.
    fn locate(&self, buffer: &Buffer, position: Position);
    /// Applies a change that finishes or begins a sub-buffer.
    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool;
    /// Adds to a counter that other threads on this CPU add to as well.
    fn count(&self, counter: &AtomicU64, n: u64) -> bool;
}

/// The result of appending a message behind the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The message is in the buffer.
    Done,
    /// The sequence was interrupted. Nothing was changed, look at the buffer again.
    Interrupted,
    /// The message does not fit the current sub-buffer, or the place of that is unknown.
    /// Nothing was changed.
    Elsewhere,
}

/// The only writer of its buffer: no other thread can come between the steps of a change.
#[derive(Clone, Copy, Debug)]
pub struct SoleWriter;

/// An executor for a thread that writes on behalf of producers.
/// Where there are restartable sequences it uses them, since producers may write the same buffer. Elsewhere no producer
/// can, and the thread is the only writer.
#[derive(Clone, Copy, Debug)]
pub enum AnyExecutor {
    /// The only writer.
    SoleWriter,
    /// One of several writers on this CPU.
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
    RseqExecutor(crate::ring::rseq::RseqExecutor),
}

impl AnyExecutor {
    /// Returns the executor for the calling thread on `cpu`. Without a CPU it is the only writer.
    pub fn on(cpu: Option<usize>) -> AnyExecutor {
        #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
        if let (Some(cpu), Some(sequences)) = (cpu, crate::ring::rseq::Sequences::find()) {
            return AnyExecutor::RseqExecutor(sequences.on(cpu));
        }
        let _ = cpu;
        AnyExecutor::SoleWriter
    }

    /// Returns whether the calling thread can write a buffer together with other threads.
    pub fn can_share() -> bool {
        !matches!(AnyExecutor::on(Some(0)), AnyExecutor::SoleWriter)
    }
}

/// A change that finishes or begins a sub-buffer.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// The state that the buffer must still have.
    pub(crate) from: Position,
    pub(crate) stores: Stores<'a>,
    /// The header to zero: a range of the ring.
    pub(crate) zero: Range<usize>,
    /// First bytes of the header, which replace zeroes; not longer than the header.
    pub(crate) start: &'a [u8],
    /// Offset of the message in the ring.
    pub(crate) message_at: usize,
    pub(crate) message: &'a [u8],
    /// The state of the buffer afterwards.
    pub(crate) to: Position,
}

/// Words to store, in order; `begun` last (E).
#[derive(Debug)]
pub(crate) struct Stores<'a> {
    list: [(&'a AtomicU64, u64); Sequence::STORES_MAX],
    len: usize,
}

impl Sequence<'_> {
    /// Most words that a change stores besides the state.
    pub(crate) const STORES_MAX: usize = 5;
}

impl<'a> Stores<'a> {
    fn none(buffer: &'a Buffer) -> Stores<'a> {
        Stores { list: [(&buffer.block().begun, 0); Sequence::STORES_MAX], len: 0 }
    }

    fn push(&mut self, word: &'a AtomicU64, value: u64) {
        self.list[self.len] = (word, value);
        self.len += 1;
    }

    pub(crate) fn as_slice(&self) -> &[(&'a AtomicU64, u64)] {
        &self.list[..self.len]
    }
}

/// The writing end of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a, R> {
    buffer: &'a Buffer,
    executor: R,
}

impl<'a, R: Executor> Writer<'a, R> {
    /// Creates the writing end of `buffer` for the thread of `executor`.
    #[inline(always)]
    pub fn new(buffer: &'a Buffer, executor: R) -> Writer<'a, R> {
        Writer { buffer, executor }
    }

    /// Writes one message wholly, or not at all (W1, W4).
    pub fn try_write(&self, message: &[u8]) -> Attempt {
        if message.len() <= MESSAGE_MAX {
            match self.append(message) {
                Appended::Done => return Attempt::done_without_switch(WriteResult::Written),
                Appended::Interrupted => return Attempt::Interrupted,
                Appended::Elsewhere => {}
            }
        }
        self.write_elsewhere(message)
    }

    /// Appends a message of at most [`MESSAGE_MAX`] bytes behind the last one.
    /// Almost every message takes this path.
    #[inline(always)]
    pub fn append(&self, message: &[u8]) -> Appended {
        self.executor.append(self.buffer, message)
    }

    /// Continues [`Writer::try_write`] after [`Appended::Elsewhere`].
    pub fn write_elsewhere(&self, message: &[u8]) -> Attempt {
        self.write_elsewhere_if(message, None)
    }

    /// Continues [`Writer::try_write`], and calls `callback` before a sub-buffer begins.
    /// If that refuses, the current sub-buffer is finished all the same, and the buffer blocked, as if all were full.
    pub fn write_elsewhere_if(&self, message: &[u8], callback: Option<&mut SubbufStart<'_>>) -> Attempt {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // W2.a. A message that only the header makes too long is W2.e, which the switch decides.
        if message.len() > buffer.geometry().subbuf_size().min(MESSAGE_MAX) {
            return Attempt::done_without_switch(WriteResult::TooBig);
        }
        let from = self.state();
        if widths.append(from, message.len()).is_some() {
            self.executor.locate(buffer, from);
            return Attempt::Located;
        }
        self.switch(from, message, callback).map_or(Attempt::Interrupted, Attempt::Done)
    }

    /// Counts a message of `len` bytes as dropped if the buffer is blocked and still full (W5).
    /// False: the buffer is not blocked, or this is not certain, and nothing was done.
    #[inline(always)]
    pub fn drop_if_blocked(&self, len: usize) -> bool {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        let (from, block) = (self.state(), buffer.block());
        len <= buffer.geometry().subbuf_size()
            && widths.blocked(from)
            // Relaxed: no write depends on these.
            && widths.full(widths.at(from, 0), Position(block.consumed.load(Ordering::Relaxed)))
            && block.closed.load(Ordering::Relaxed) == 0
            && self.executor.count(&block.dropped, 1)
    }

    /// Finishes the current sub-buffer, even if empty, and starts the next if it has room (W7).
    /// `None`: interrupted, nothing was changed.
    pub fn try_flush(&self) -> Option<Outcome> {
        self.switch(self.state(), &[], None)
    }

    /// Calls [`Writer::try_write`] until it succeeds, a bounded number of times.
    pub fn write(&self, message: &[u8]) -> Result<Outcome, RetriesExhausted> {
        (0..TRIES_MAX).find_map(|_| self.try_write(message).done()).ok_or(RetriesExhausted)
    }

    /// Calls [`Writer::try_flush`] until it succeeds, a bounded number of times.
    pub fn flush(&self) -> Result<Outcome, RetriesExhausted> {
        (0..TRIES_MAX).find_map(|_| self.try_flush()).ok_or(RetriesExhausted)
    }

    /// Writes like [`Writer::write`], and counts a message that is too big.
    /// A message refused for lack of room is the caller's to count, since the caller may try again.
    pub fn place(&self, message: &[u8]) -> Result<Outcome, RetriesExhausted> {
        let outcome = self.write(message)?;
        if outcome.placed == WriteResult::TooBig && !self.count(1, |block| &block.too_big) {
            self.buffer.count_dropped_elsewhere(1);
        }
        Ok(outcome)
    }

    /// Adds `n` to one of the buffer's counters.
    /// False: not on its CPU, or every try was interrupted.
    pub fn count(&self, n: u64, counter: impl FnOnce(&BufferBlock) -> &AtomicU64) -> bool {
        let counter = counter(self.buffer.block());
        (0..TRIES_MAX).any(|_| self.executor.count(counter, n))
    }

    /// Moves to the first slot of the next lap, and discards everything before it (W8).
    /// Returns the new position.
    /// The caller is the reader, whose `consumed` moves as well. A `consumed` that is ahead for a moment just means
    /// room.
    pub(crate) fn reset(&self) -> Result<Position, RetriesExhausted> {
        let buffer = self.buffer;
        let done = (0..TRIES_MAX).find_map(|_| {
            let from = self.state();
            let start = buffer.widths().next_lap(from);
            let mut stores = Stores::none(buffer);
            // C, pairs with D: inside the sequence, so that a failed reset does not show room to any writer.
            stores.push(&buffer.block().consumed, start.0);
            // The sub-buffer left behind is not *produced*, so it is not closed. The new one takes over its number and
            // begins at the writer's stream position.
            let number = buffer.record(from).number.load(Ordering::Relaxed);
            self.open_record(&mut stores, start, number, self.end(from));
            stores.push(&buffer.block().begun, start.0);
            self.executor.switch(buffer, &self.beginning(from, stores, start, &[], &[])).then_some(start)
        });
        done.ok_or(RetriesExhausted)
    }

    /// Ends the buffer: every later write returns [`WriteResult::Closed`].
    /// Such a write finds the buffer blocked, and therefore looks at `closed`.
    ///
    /// The state changes even if the buffer is blocked already: it moves on by an empty sub-buffer. Otherwise a writer
    /// interrupted after its look at `closed`, for which there is room by now, would continue from the same state. All
    /// later writers would append there without a look.
    pub fn close(&self) -> Result<(), RetriesExhausted> {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // Relaxed, both: stored before the state, which sends writers to `switch`, where they look.
        let is_closed = buffer.block().closed.load(Ordering::Relaxed) != 0;
        buffer.block().closed.store(1, Ordering::Relaxed);
        let done = (0..TRIES_MAX).any(|_| {
            let from = self.state();
            if is_closed && widths.blocked(from) {
                return true;
            }
            self.executor.switch(buffer, &self.blocking(from, widths.next(from)))
        });
        done.then_some(()).ok_or(RetriesExhausted)
    }

    /// Applies W2, after step a. `None`: interrupted, nothing was changed.
    #[inline(never)]
    fn switch(
        &self,
        from: Position,
        message: &[u8],
        callback: Option<&mut SubbufStart<'_>>,
    ) -> Option<Outcome> {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // Relaxed: the daemon sets it before it blocks the buffer, and the load of the state came first (Acquire).
        if buffer.block().closed.load(Ordering::Relaxed) != 0 {
            return Some(Outcome { placed: WriteResult::Closed, switched: false });
        }
        let geometry = buffer.geometry();
        let closes = !widths.blocked(from);
        let next = if closes { widths.next(from) } else { widths.at(from, 0) };
        // D, pairs with C: not weaker, or our stores into the slot could overtake the reader's loads from it.
        let is_full = || widths.full(next, Position(buffer.block().consumed.load(Ordering::Acquire)));
        let mut full = geometry.mode() == Mode::NoOverwrite && is_full();
        let mut start = None;
        if let (Some(callback), false) = (callback, full) {
            let padding = if closes { geometry.subbuf_size() - widths.offset(from) } else { 0 };
            start = callback(SubbufInfo { padding, full: is_full(), header: geometry.header() });
            full = start.is_none();
        }
        let start =
            start.as_ref().map_or(&[][..], |start| &start.bytes[..geometry.header().min(start.bytes.len())]);
        if full && !closes {
            return Some(Outcome { placed: WriteResult::Full, switched: false }); // W5
        }
        if full {
            let done = self.executor.switch(buffer, &self.blocking(from, next));
            return done.then_some(Outcome { placed: WriteResult::Full, switched: true }); // W2.c
        }
        let mut stores = Stores::none(buffer);
        if closes {
            self.close_record(&mut stores, from, next);
        }
        stores.push(&buffer.block().begun, next.0);
        let fits = message.len() <= geometry.subbuf_size() - geometry.header();
        let sequence = self.beginning(from, stores, next, start, if fits { message } else { &[] }); // W2.d, W2.e
        let placed = if fits { WriteResult::Written } else { WriteResult::TooBig };
        self.executor.switch(buffer, &sequence).then_some(Outcome { placed, switched: closes })
    }

    /// Returns the change that starts the sub-buffer at `next`: header, message.
    fn beginning<'s>(
        &self,
        from: Position,
        stores: Stores<'s>,
        next: Position,
        start: &'s [u8],
        message: &'s [u8],
    ) -> Sequence<'s> {
        let (widths, header) = (self.buffer.widths(), self.buffer.geometry().header());
        let at = self.buffer.ring_offset(next);
        let to = widths.at(next, header + message.len());
        Sequence { from, stores, zero: at..at + header, start, message_at: at + header, message, to }
    }

    /// Returns the change that ends the sub-buffer at `from` without starting the one at `next`.
    fn blocking(&self, from: Position, next: Position) -> Sequence<'a> {
        let buffer = self.buffer;
        let mut stores = Stores::none(buffer);
        self.close_record(&mut stores, from, next);
        let (message_at, to) = (buffer.ring_offset(next), buffer.widths().at_blocked(next));
        Sequence { from, stores, zero: 0..0, start: &[], message_at, message: &[], to }
    }

    /// Adds the stores that record the end of the sub-buffer at `from`, and the start of the next.
    fn close_record(&self, stores: &mut Stores<'a>, from: Position, next: Position) {
        let buffer = self.buffer;
        let record = buffer.record(from);
        let padding = buffer.geometry().subbuf_size() - buffer.widths().offset(from);
        stores.push(&record.padding, padding as u64);
        stores.push(&record.lost, buffer.lost());
        let number = record.number.load(Ordering::Relaxed).wrapping_add(1);
        self.open_record(stores, next, number, self.end(from));
    }

    /// Adds the stores that record the start of a sub-buffer that is not reached yet.
    /// A reader may still need the record of the same slot one lap ago, which is the other of the slot's two.
    fn open_record(&self, stores: &mut Stores<'a>, position: Position, number: u64, begin: u64) {
        let record = self.buffer.record(position);
        stores.push(&record.number, number);
        stores.push(&record.begin, begin);
    }

    /// Returns the stream position of the writer at `position`.
    fn end(&self, position: Position) -> u64 {
        let begin = self.buffer.record(position).begin.load(Ordering::Relaxed);
        begin.wrapping_add(self.buffer.widths().offset(position) as u64)
    }

    fn state(&self) -> Position {
        // Acquire, because of `closed`: a writer that finds the buffer blocked by its end also finds it closed.
        // Otherwise Relaxed would do: the state was stored on this CPU, or the change prepared for it fails.
        Position(self.buffer.block().state.load(Ordering::Acquire))
    }
}

impl Executor for AnyExecutor {
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.append(buffer, message),
            #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => on_cpu.append(buffer, message),
        }
    }

    fn locate(&self, buffer: &Buffer, position: Position) {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.locate(buffer, position),
            #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => on_cpu.locate(buffer, position),
        }
    }

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.switch(buffer, sequence),
            #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => on_cpu.switch(buffer, sequence),
        }
    }

    fn count(&self, counter: &AtomicU64, n: u64) -> bool {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.count(counter, n),
            #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => on_cpu.count(counter, n),
        }
    }
}

impl Executor for SoleWriter {
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        let state = &buffer.block().state;
        // Relaxed: no other thread stores it.
        let from = Position(state.load(Ordering::Relaxed));
        let Some((at, to)) = buffer.widths().append(from, message.len()) else { return Appended::Elsewhere };
        if !buffer.data().copy_in(at, message) {
            return Appended::Interrupted; // a corrupted state that leads out of the ring
        }
        // A, pairs with B.
        state.store(to.0, Ordering::Release);
        Appended::Done
    }

    fn locate(&self, _: &Buffer, _: Position) {}

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        if buffer.block().state.load(Ordering::Relaxed) != sequence.from.0 {
            return false; // a peer has corrupted it
        }
        for (word, value) in sequence.stores.as_slice() {
            // Release, because of `begun`, the last of them: a reader that loads it (E, Acquire in `oldest_whole`)
            // finds the records before it. Release also because of `consumed` in a reset (C). For a reader that loads
            // `state`, A orders the other words.
            word.store(*value, Ordering::Release);
        }
        // E, pairs with F: stores into the sub-buffer must not become visible before `begun`.
        fence(Ordering::Release);
        if !buffer.data().zero(sequence.zero.start, sequence.zero.len())
            || !buffer.data().copy_in(sequence.zero.start, sequence.start)
            || !buffer.data().copy_in(sequence.message_at, sequence.message)
        {
            return false; // as above
        }
        // A, pairs with B.
        buffer.block().state.store(sequence.to.0, Ordering::Release);
        true
    }

    fn count(&self, counter: &AtomicU64, n: u64) -> bool {
        // Relaxed: the count says nothing about other memory.
        counter.fetch_add(n, Ordering::Relaxed);
        true
    }
}
