//! Writing into one buffer: append, switch, flush, reset.
//!
//! The rule everything hangs on: **only a thread on the buffer's CPU writes to it, and it is not interrupted**. The kernel
//! has this by switching interrupts off, we have it by restartable sequences ([`crate::ring::rseq`]), or by being the only
//! thread that writes at all ([`SoleWriter`]). So there is no reserve and commit: a message is copied behind `state`, where
//! nobody looks, and one store to `state` makes it part of the stream. It is there, whole, or it is not there at all.
//!
//! Each change is one sequence: stores that mean nothing until the last one, the store to `state`, and none of them at all
//! unless `state` is still what the change was made for. The branches are the kernel's (`relay_write`,
//! `relay_switch_subbuf`); Wn are its rules in `relay/docs/SEMANTICS.md`.
//!
//! ```text
//! A  state, Release        with B, the reader's Acquire: bytes and records before it are visible behind it
//! C  consumed, Release     with D, Acquire here: what the reader read, it read before it is overwritten
//! E  begun, then a fence   with F, the reader's fence, then begun: a reader that copied bytes of the new message
//!                          also sees that the sub-buffer was begun again, and throws the copy away
//! ```

use std::ops::Range;

use thiserror::Error;

use crate::layout::abi::BufferBlock;
use crate::layout::geometry::{MESSAGE_MAX, Mode};
use crate::layout::position::Position;
use crate::memory::sync::{AtomicU64, Ordering, fence};
use crate::ring::buffer::Buffer;
use crate::ring::subbuf_start::{SubbufInfo, SubbufStart};

/// Tries at a change that is interrupted each time, before it is given up.
const TRIES_MAX: u32 = 64;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// It is in the buffer.
    Written,
    /// Every sub-buffer is full.
    Full,
    /// No sub-buffer could ever hold it.
    TooBig,
    /// The channel is over.
    Closed,
}

/// What a write or flush did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of the message. If it was not written, nobody has counted it yet.
    pub placed: WriteResult,
    /// Whether a sub-buffer was finished: whoever polls wants to know.
    pub switched: bool,
}

/// A change was interrupted each time it was tried, or this thread is not on the buffer's CPU. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("interrupted each time, or not on the buffer's CPU")]
pub struct RetriesExhausted;

/// How changes are made. False: nothing was changed, look again.
pub trait Executor: Copy {
    /// Copies a message of at most [`MESSAGE_MAX`] bytes behind the last one and moves the state on, if it fits there.
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended;
    /// A message fits the sub-buffer at `position`, but was not appended for not knowing where that is.
    fn locate(&self, buffer: &Buffer, position: Position);
    /// A change that finishes or begins a sub-buffer.
    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool;
    /// Adds to a counter that others on this CPU add to as well.
    fn count(&self, counter: &AtomicU64, n: u64) -> bool;
}

/// What became of a message that was to be put behind the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is there.
    Done,
    /// Something came in between. Nothing was changed, look again.
    Interrupted,
    /// It does not fit the current sub-buffer, or it is not known where that is. Nothing was changed.
    Elsewhere,
}

/// The only writer of its buffer, so that nothing can come between the steps of a change.
#[derive(Clone, Copy, Debug)]
pub struct SoleWriter;

/// A thread that others let write for them: by restartable sequences where there are any, since producers may be writing
/// the same buffer; elsewhere nobody else can, and it is alone.
#[derive(Clone, Copy, Debug)]
pub enum AnyExecutor {
    /// The only writer.
    SoleWriter,
    /// One of those on this CPU.
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
    RseqExecutor(crate::ring::rseq::RseqExecutor),
}

impl AnyExecutor {
    /// The calling thread, which is on `cpu`; without one it is the only writer.
    pub fn on(cpu: Option<usize>) -> AnyExecutor {
        #[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
        if let (Some(cpu), Some(sequences)) = (cpu, crate::ring::rseq::Sequences::find()) {
            return AnyExecutor::RseqExecutor(sequences.on(cpu));
        }
        let _ = cpu;
        AnyExecutor::SoleWriter
    }

    /// Whether the calling thread can write a buffer together with others.
    pub fn can_share() -> bool {
        !matches!(AnyExecutor::on(Some(0)), AnyExecutor::SoleWriter)
    }
}

/// A change that finishes or begins a sub-buffer.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// Where the buffer must still be.
    pub(crate) from: Position,
    pub(crate) stores: Stores<'a>,
    /// The header to zero, a range of the ring.
    pub(crate) zero: Range<usize>,
    /// What it begins with instead of zeroes; no more than there are.
    pub(crate) start: &'a [u8],
    /// Where the message goes in the ring.
    pub(crate) message_at: usize,
    pub(crate) message: &'a [u8],
    /// Where the buffer is afterwards.
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
    run: R,
}

impl<'a, R: Executor> Writer<'a, R> {
    /// The writing end of `buffer` for whoever `run` is.
    #[inline(always)]
    pub fn new(buffer: &'a Buffer, run: R) -> Writer<'a, R> {
        Writer { buffer, run }
    }

    /// Writes one message: wholly, or not at all (W1, W4). `None`: interrupted, nothing was changed.
    pub fn try_write(&self, message: &[u8]) -> Option<Outcome> {
        if message.len() <= MESSAGE_MAX {
            match self.append(message) {
                Appended::Done => return Some(Outcome { placed: WriteResult::Written, switched: false }),
                Appended::Interrupted => return None,
                Appended::Elsewhere => {}
            }
        }
        self.write_elsewhere(message)
    }

    /// The way of almost every message, of at most [`MESSAGE_MAX`] bytes: behind the last one.
    #[inline(always)]
    pub fn append(&self, message: &[u8]) -> Appended {
        self.run.append(self.buffer, message)
    }

    /// [`Writer::try_write`] after [`Appended::Elsewhere`].
    pub fn write_elsewhere(&self, message: &[u8]) -> Option<Outcome> {
        self.write_elsewhere_if(message, None)
    }

    /// The same, asking `gate` before a sub-buffer is begun. Who is refused finds the current one finished all the same, and the
    /// buffer blocked, as if all were full.
    pub fn write_elsewhere_if(&self, message: &[u8], gate: Option<&mut SubbufStart<'_>>) -> Option<Outcome> {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // W2.a. Longer than the header leaves room for is W2.e, which the switch decides.
        if message.len() > buffer.geometry().subbuf_size().min(MESSAGE_MAX) {
            return Some(Outcome { placed: WriteResult::TooBig, switched: false });
        }
        let from = self.state();
        if widths.append(from, message.len()).is_some() {
            self.run.locate(buffer, from);
            return None;
        }
        self.switch(from, message, gate)
    }

    /// Counts a message of `len` bytes as dropped that finds every sub-buffer full, as one before it has (W5). False: it is not so, or not
    /// for certain, and nothing was done.
    #[inline(always)]
    pub fn drop_if_blocked(&self, len: usize) -> bool {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        let (from, block) = (self.state(), buffer.block());
        len <= buffer.geometry().subbuf_size()
            && widths.blocked(from)
            // Relaxed: nothing is written on the strength of these.
            && widths.full(widths.at(from, 0), Position(block.consumed.load(Ordering::Relaxed)))
            && block.closed.load(Ordering::Relaxed) == 0
            && self.run.count(&block.dropped, 1)
    }

    /// Finishes the current sub-buffer, even an empty one, and starts the next if there is room (W7). `None`:
    /// interrupted, nothing was changed.
    pub fn try_flush(&self) -> Option<Outcome> {
        self.switch(self.state(), &[], None)
    }

    /// [`Writer::try_write`] until it succeeds, a bounded number of times.
    pub fn write(&self, message: &[u8]) -> Result<Outcome, RetriesExhausted> {
        (0..TRIES_MAX).find_map(|_| self.try_write(message)).ok_or(RetriesExhausted)
    }

    /// [`Writer::try_flush`] until it succeeds, a bounded number of times.
    pub fn flush(&self) -> Result<Outcome, RetriesExhausted> {
        (0..TRIES_MAX).find_map(|_| self.try_flush()).ok_or(RetriesExhausted)
    }

    /// [`Writer::write`] that counts what was too big. What was refused for lack of room is the caller's to count, who
    /// may rather try again.
    pub fn place(&self, message: &[u8]) -> Result<Outcome, RetriesExhausted> {
        let outcome = self.write(message)?;
        if outcome.placed == WriteResult::TooBig && !self.count(1, |block| &block.too_big) {
            self.buffer.count_dropped_elsewhere(1);
        }
        Ok(outcome)
    }

    /// Adds `n` to one of the buffer's counters. False: not on its CPU, or interrupted each time.
    pub fn count(&self, n: u64, counter: impl FnOnce(&BufferBlock) -> &AtomicU64) -> bool {
        let counter = counter(self.buffer.block());
        (0..TRIES_MAX).any(|_| self.run.count(counter, n))
    }

    /// Goes to the first slot of the next lap, leaving everything behind (W8), and returns where that is. The reader, who
    /// calls, is taken along: a `consumed` that is ahead for a moment just means room.
    pub(crate) fn reset(&self) -> Result<Position, RetriesExhausted> {
        let buffer = self.buffer;
        let done = (0..TRIES_MAX).find_map(|_| {
            let from = self.state();
            let start = buffer.widths().next_lap(from);
            let mut stores = Stores::none(buffer);
            // C, pairs with D: in the sequence, so that nobody finds room who would not if it fails.
            stores.push(&buffer.block().consumed, start.0);
            // The sub-buffer left behind is not *produced*, so it is not closed: the new one takes over its number,
            // and begins where the stream is.
            let number = buffer.record(from).number.load(Ordering::Relaxed);
            self.open_record(&mut stores, start, number, self.end(from));
            stores.push(&buffer.block().begun, start.0);
            self.run.switch(buffer, &self.beginning(from, stores, start, &[], &[])).then_some(start)
        });
        done.ok_or(RetriesExhausted)
    }

    /// Ends the buffer: every later write finds it blocked, looks, and is told [`WriteResult::Closed`].
    ///
    /// The state changes even if the buffer is blocked already, by an empty sub-buffer: a writer that was interrupted
    /// after its look at `closed`, and for which there is room by now, would go on from the same state, and all who come
    /// after it would append there without a look.
    pub fn close(&self) -> Result<(), RetriesExhausted> {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // Relaxed, both: before the state, which is what sends writers here.
        let is_closed = buffer.block().closed.load(Ordering::Relaxed) != 0;
        buffer.block().closed.store(1, Ordering::Relaxed);
        let done = (0..TRIES_MAX).any(|_| {
            let from = self.state();
            if is_closed && widths.blocked(from) {
                return true;
            }
            self.run.switch(buffer, &self.blocking(from, widths.next(from)))
        });
        done.then_some(()).ok_or(RetriesExhausted)
    }

    /// W2, after a.
    #[inline(never)]
    fn switch(&self, from: Position, message: &[u8], gate: Option<&mut SubbufStart<'_>>) -> Option<Outcome> {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // Relaxed: the daemon sets it before it blocks the buffer, and the look at the state came first (Acquire).
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
        if let (Some(gate), false) = (gate, full) {
            let padding = if closes { geometry.subbuf_size() - widths.offset(from) } else { 0 };
            start = gate(SubbufInfo { padding, full: is_full(), header: geometry.header() });
            full = start.is_none();
        }
        let start =
            start.as_ref().map_or(&[][..], |start| &start.bytes[..geometry.header().min(start.bytes.len())]);
        if full && !closes {
            return Some(Outcome { placed: WriteResult::Full, switched: false }); // W5
        }
        if full {
            let done = self.run.switch(buffer, &self.blocking(from, next));
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
        self.run.switch(buffer, &sequence).then_some(Outcome { placed, switched: closes })
    }

    /// The change that starts the sub-buffer at `next`: header, message.
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

    /// The change that ends the sub-buffer at `from` and does not start the one at `next`.
    fn blocking(&self, from: Position, next: Position) -> Sequence<'a> {
        let buffer = self.buffer;
        let mut stores = Stores::none(buffer);
        self.close_record(&mut stores, from, next);
        let (message_at, to) = (buffer.ring_offset(next), buffer.widths().at_blocked(next));
        Sequence { from, stores, zero: 0..0, start: &[], message_at, message: &[], to }
    }

    /// What is to be said of the sub-buffer at `from`, which ends here, and of the next.
    fn close_record(&self, stores: &mut Stores<'a>, from: Position, next: Position) {
        let buffer = self.buffer;
        let record = buffer.record(from);
        let padding = buffer.geometry().subbuf_size() - buffer.widths().offset(from);
        stores.push(&record.padding, padding as u64);
        stores.push(&record.lost, buffer.lost());
        let number = record.number.load(Ordering::Relaxed).wrapping_add(1);
        self.open_record(stores, next, number, self.end(from));
    }

    /// What is to be said of a sub-buffer that is not reached yet. Its record is not the one a reader may still need:
    /// the sub-buffer in the same slot one lap ago has the other of the slot's two.
    fn open_record(&self, stores: &mut Stores<'a>, position: Position, number: u64, begin: u64) {
        let record = self.buffer.record(position);
        stores.push(&record.number, number);
        stores.push(&record.begin, begin);
    }

    /// Stream position of the writer at `position`.
    fn end(&self, position: Position) -> u64 {
        let begin = self.buffer.record(position).begin.load(Ordering::Relaxed);
        begin.wrapping_add(self.buffer.widths().offset(position) as u64)
    }

    fn state(&self) -> Position {
        // Acquire, for the sake of `closed`: who finds the buffer blocked because it is closed, finds it closed. For the
        // rest Relaxed would do: it was stored on this CPU, or the change that is made for it fails.
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
        // Relaxed: nobody else stores it.
        let from = Position(state.load(Ordering::Relaxed));
        let Some((at, to)) = buffer.widths().append(from, message.len()) else { return Appended::Elsewhere };
        if !buffer.data().copy_in(at, message) {
            return Appended::Interrupted; // somebody has damaged the state, which leads out of the ring
        }
        // A, pairs with B.
        state.store(to.0, Ordering::Release);
        Appended::Done
    }

    fn locate(&self, _: &Buffer, _: Position) {}

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        if buffer.block().state.load(Ordering::Relaxed) != sequence.from.0 {
            return false; // somebody has damaged it
        }
        for (word, value) in sequence.stores.as_slice() {
            // Release, for the sake of `begun`, the last of them: a reader that goes by it (E, Acquire in
            // `oldest_whole`) finds the records before it; and of `consumed` in a reset (C). The others A orders for who
            // goes by `state`.
            word.store(*value, Ordering::Release);
        }
        // E, pairs with F: stores into the sub-buffer may not become visible before `begun`.
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
