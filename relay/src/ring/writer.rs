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
//! M  closed, Release       with N, Acquire in `buffer.rs`: what the daemon has noted before it ended the buffer is found
//! ```

mod executor;
mod message;
mod outcome;

use std::ops::Range;

pub use self::executor::{AnyExecutor, Appended, Executor, SoleWriter};
pub use self::message::Message;
use self::message::with_len;
pub use self::outcome::{Attempt, Outcome, RetriesExhausted, WriteResult};
use crate::layout::abi::BufferBlock;
use crate::layout::geometry::{MESSAGE_MAX, Mode, RECORD_OVERHEAD, RECORD_PAYLOAD_MAX};
use crate::layout::position::Position;
use crate::memory::sync::{AtomicU64, Ordering};
use crate::ring::buffer::Buffer;
use crate::ring::subbuf_start::{SubbufInfo, SubbufStart};

/// Tries of one change before the writer gives it up.
const TRIES_MAX: u32 = 64;

/// A change that finishes or begins a sub-buffer.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// The state that the buffer must still have.
    pub(crate) from: Position,
    /// A word that must be 0.
    pub(crate) unless: Option<&'a AtomicU64>,
    pub(crate) stores: Stores<'a>,
    /// The header to zero: a range of the ring.
    pub(crate) zero: Range<usize>,
    /// First bytes of the header, which replace zeroes; not longer than the header.
    pub(crate) start: &'a [u8],
    /// Offset of the message in the ring.
    pub(crate) message_at: usize,
    pub(crate) message: Message<'a>,
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
    pub(crate) const STORES_MAX: usize = 7;
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
    /// In a timed buffer the message is a record's head and payload, like in a WRITE; see [`Message::of_wire`].
    pub fn try_write(&self, message: &[u8]) -> Attempt {
        self.try_message(self.of_wire(message))
    }

    /// Writes one record wholly, or not at all. The ring puts the stamp in front, and the payload's length into `head`.
    pub fn try_write_record(&self, head: u64, payload: &[u8]) -> Attempt {
        self.try_message(Message::record(head, payload))
    }

    fn try_message(&self, message: Message<'_>) -> Attempt {
        let appended = match message {
            Message::Bare(bytes) if bytes.len() <= MESSAGE_MAX => self.append(bytes),
            Message::Bare(_) => Appended::Elsewhere,
            Message::Record { head, payload } => self.append_record(head, payload),
        };
        match appended {
            Appended::Done => Attempt::done_without_switch(WriteResult::Written),
            Appended::Interrupted => Attempt::Interrupted,
            Appended::Elsewhere | Appended::Dropped => self.elsewhere(message, None),
        }
    }

    /// Appends a message of at most [`MESSAGE_MAX`] bytes behind the last one.
    /// Almost every message takes this path.
    #[inline(always)]
    pub fn append(&self, message: &[u8]) -> Appended {
        self.executor.append(self.buffer, message)
    }

    /// Appends like [`Writer::append`]. Instead, drops and counts the message if [`Writer::drop_if_blocked`] has found the
    /// buffer full, it is as it was then, and that call has dropped a message of this length or a longer one.
    ///
    /// A number of messages are dropped like this. Then one is [`Appended::Elsewhere`] again, so that the caller looks at
    /// what else there is.
    #[inline(always)]
    pub fn append_or_drop(&self, message: &[u8]) -> Appended {
        self.executor.append_or_drop(self.buffer, message)
    }

    /// Appends a record like [`Writer::append_record`], to a buffer with [`Buffer::threads_if_quick`].
    /// With `DROPS`, it may drop the record like [`Writer::append_or_drop`].
    #[inline(always)]
    pub fn append_record_quick<const DROPS: bool>(&self, head: u64, payload: &[u8]) -> Appended {
        if payload.len() > RECORD_PAYLOAD_MAX {
            return Appended::Elsewhere;
        }
        let head = with_len(head, payload.len());
        self.executor.append_record_quick::<DROPS>(self.buffer, head, payload)
    }

    /// Stamps a record and appends it behind the last one.
    /// Almost every record takes this path. The payload's length replaces that in `head`.
    ///
    /// A buffer of a raw channel takes no records: the result is [`Appended::Elsewhere`].
    #[inline(always)]
    pub fn append_record(&self, head: u64, payload: &[u8]) -> Appended {
        if payload.len() > RECORD_PAYLOAD_MAX {
            return Appended::Elsewhere;
        }
        self.executor.append_record(self.buffer, with_len(head, payload.len()), payload)
    }

    /// Continues [`Writer::try_write`] after [`Appended::Elsewhere`].
    pub fn write_elsewhere(&self, message: &[u8]) -> Attempt {
        self.write_elsewhere_if(message, None)
    }

    /// Continues [`Writer::try_write_record`] after [`Appended::Elsewhere`].
    pub fn write_record_elsewhere(&self, head: u64, payload: &[u8]) -> Attempt {
        self.write_record_elsewhere_if(head, payload, None)
    }

    /// Continues [`Writer::try_write`], and calls `callback` before a sub-buffer begins.
    /// If that refuses, the current sub-buffer is finished all the same, and the buffer blocked, as if all were full.
    pub fn write_elsewhere_if(&self, message: &[u8], callback: Option<&mut SubbufStart<'_>>) -> Attempt {
        self.elsewhere(self.of_wire(message), callback)
    }

    /// Continues [`Writer::try_write_record`] like [`Writer::write_elsewhere_if`].
    pub fn write_record_elsewhere_if(
        &self,
        head: u64,
        payload: &[u8],
        callback: Option<&mut SubbufStart<'_>>,
    ) -> Attempt {
        self.elsewhere(Message::record(head, payload), callback)
    }

    fn elsewhere(&self, message: Message<'_>, callback: Option<&mut SubbufStart<'_>>) -> Attempt {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        let geometry = buffer.geometry();
        // W2.a. A message that only the header makes too long is W2.e, which the switch decides.
        if message.is_too_big(geometry) {
            return Attempt::done_without_switch(WriteResult::TooBig);
        }
        let from = self.state();
        if widths.append(from, message.len_in_ring()).is_some() {
            if message.is_nothing() && geometry.timed() {
                // There is room, which is all that was asked: the window has none for bare messages.
                return Attempt::done_without_switch(WriteResult::Written);
            }
            self.executor.locate(buffer, from);
            return Attempt::Located;
        }
        self.switch(from, message, callback).map_or(Attempt::Interrupted, Attempt::Done)
    }

    /// Counts a message of `len` bytes as dropped if the buffer is blocked and still full (W5).
    /// False: the buffer is not blocked, or this is not certain, and nothing was done.
    pub fn drop_if_blocked(&self, len: usize) -> bool {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        let (from, block) = (self.state(), buffer.block());
        // Relaxed, also below: no write depends on these.
        let consumed = Position(block.consumed.load(Ordering::Relaxed));
        // In overwrite mode a buffer is blocked where a callback has refused to begin the next sub-buffer.
        let dropped = len <= buffer.geometry().subbuf_size()
            && buffer.geometry().mode() == Mode::NoOverwrite
            && widths.blocked(from)
            && widths.full(widths.at(from, 0), consumed)
            && block.closed.load(Ordering::Relaxed) == 0
            && self.executor.count(&block.dropped, 1);
        if dropped {
            self.note_bytes_dropped(len);
            if buffer.note_dropped(len) {
                self.executor.note_full(buffer, from, consumed);
            }
        }
        dropped
    }

    /// Counts a message of `len` bytes as dropped for lack of room.
    /// False: the calling thread is not on the buffer's CPU, and nothing was done.
    pub fn count_dropped(&self, len: usize) -> bool {
        let is_here = self.count(1, |block| &block.dropped);
        if is_here {
            self.note_bytes_dropped(len);
            self.buffer.note_dropped(len);
        }
        is_here
    }

    fn note_bytes_dropped(&self, len: usize) {
        if !cfg!(loom) && !self.executor.count(&self.buffer.block().dropped_bytes, len as u64) {
            self.buffer.note_bytes_dropped_elsewhere(len);
        }
    }

    /// Counts a record with a payload of `len` bytes as dropped, like [`Writer::drop_if_blocked`].
    #[inline(always)]
    pub fn drop_record_if_blocked(&self, len: usize) -> bool {
        len <= RECORD_PAYLOAD_MAX && self.drop_if_blocked(RECORD_OVERHEAD + len)
    }

    /// Finishes the current sub-buffer, even if empty, and starts the next if it has room (W7).
    /// An empty one of a timed channel stays: it has nothing for a reader, and records need its room.
    /// `None`: interrupted, nothing was changed.
    pub fn try_flush(&self) -> Option<Outcome> {
        let (from, widths) = (self.state(), self.buffer.widths());
        if self.buffer.geometry().timed() && !widths.blocked(from) && widths.offset(from) == 0 {
            return Some(Outcome { placed: WriteResult::Written, switched: false });
        }
        self.switch(from, Message::Bare(&[]), None)
    }

    /// Calls [`Writer::try_write`] until it succeeds, a bounded number of times.
    pub fn write(&self, message: &[u8]) -> Result<Outcome, RetriesExhausted> {
        self.write_message(self.of_wire(message))
    }

    /// Calls [`Writer::try_write_record`] until it succeeds, a bounded number of times.
    pub fn write_record(&self, head: u64, payload: &[u8]) -> Result<Outcome, RetriesExhausted> {
        self.write_message(Message::record(head, payload))
    }

    fn write_message(&self, message: Message<'_>) -> Result<Outcome, RetriesExhausted> {
        // Each try looks at the clock again.
        (0..TRIES_MAX).find_map(|_| self.try_message(message).done()).ok_or(RetriesExhausted)
    }

    fn of_wire<'m>(&self, message: &'m [u8]) -> Message<'m> {
        Message::of_wire(self.buffer.geometry(), message)
    }

    /// Calls [`Writer::try_flush`] until it succeeds, a bounded number of times.
    pub fn flush(&self) -> Result<Outcome, RetriesExhausted> {
        (0..TRIES_MAX).find_map(|_| self.try_flush()).ok_or(RetriesExhausted)
    }

    /// Writes like [`Writer::write`], and counts a message that is too big.
    /// A message refused for lack of room is the caller's to count, since the caller may try again.
    pub fn place(&self, message: &[u8]) -> Result<Outcome, RetriesExhausted> {
        self.place_message(self.of_wire(message))
    }

    /// Writes like [`Writer::write_record`], and counts a record that is too big.
    pub fn place_record(&self, head: u64, payload: &[u8]) -> Result<Outcome, RetriesExhausted> {
        self.place_message(Message::record(head, payload))
    }

    fn place_message(&self, message: Message<'_>) -> Result<Outcome, RetriesExhausted> {
        let outcome = self.write_message(message)?;
        if outcome.placed == WriteResult::TooBig {
            if !self.count(1, |block| &block.too_big) {
                self.buffer.count_dropped_elsewhere(1);
            }
            self.buffer.note_too_big(message.len_in_ring());
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
            self.open_record(&mut stores, start, number, from);
            stores.push(&buffer.block().begun, start.0);
            self.executor
                .switch(buffer, &self.beginning(from, stores, start, &[], Message::Bare(&[])))
                .then_some(start)
        });
        done.ok_or(RetriesExhausted)
    }

    /// Ends the buffer: every later write returns [`WriteResult::Closed`]. The caller has it reset no more.
    /// Such a write finds the buffer blocked, and therefore looks at `closed`. Only [`Writer::append_or_drop`] may first
    /// drop the few messages that it drops without a look.
    ///
    /// A buffer that is blocked already stays as it is. A writer may have looked at `closed` before, and there may be
    /// room for it by now. So the sequence that begins a sub-buffer looks again. This thread runs a sequence on the CPU
    /// behind its store to `closed`, so no sequence of another thread that looked earlier is left.
    pub fn close(&self) -> Result<(), RetriesExhausted> {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // M, pairs with N in `buffer.rs`. Stored before the state, which sends writers to `switch`, where they look.
        buffer.block().closed.store(1, Ordering::Release);
        let done = (0..TRIES_MAX).any(|_| {
            let from = self.state();
            if widths.blocked(from) {
                // Counts nothing, but fails elsewhere than on the CPU.
                return self.executor.count(&buffer.block().dropped, 0);
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
        message: Message<'_>,
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
        let has_no_room = geometry.mode() == Mode::NoOverwrite && is_full();
        let mut full = has_no_room;
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
            if done && has_no_room {
                buffer.note_full();
            }
            return done.then_some(Outcome { placed: WriteResult::Full, switched: true }); // W2.c
        }
        let mut stores = Stores::none(buffer);
        if closes {
            self.close_record(&mut stores, from, next);
        }
        stores.push(&buffer.block().begun, next.0);
        let fits = message.len_in_ring() <= geometry.subbuf_size() - geometry.header();
        let message = if fits { message } else { Message::Bare(&[]) };
        let gives_up = geometry.mode() == Mode::Overwrite && is_full();
        let sequence = self.beginning(from, stores, next, start, message); // W2.d, W2.e
        let sequence = Sequence { unless: Some(&buffer.block().closed), ..sequence };
        let placed = if fits { WriteResult::Written } else { WriteResult::TooBig };
        let done = self.executor.switch(buffer, &sequence);
        if done && gives_up {
            buffer.note_overwritten();
        }
        done.then_some(Outcome { placed, switched: closes })
    }

    /// Returns the change that starts the sub-buffer at `next`: header, message.
    fn beginning<'s>(
        &self,
        from: Position,
        stores: Stores<'s>,
        next: Position,
        start: &'s [u8],
        message: Message<'s>,
    ) -> Sequence<'s> {
        let (widths, header) = (self.buffer.widths(), self.buffer.geometry().header());
        let at = self.buffer.ring_offset(next);
        let to = widths.at(next, header + message.len_in_ring());
        let (zero, message_at) = (at..at + header, at + header);
        Sequence { from, unless: None, stores, zero, start, message_at, message, to }
    }

    /// Returns the change that ends the sub-buffer at `from` without starting the one at `next`.
    fn blocking(&self, from: Position, next: Position) -> Sequence<'a> {
        let buffer = self.buffer;
        let mut stores = Stores::none(buffer);
        self.close_record(&mut stores, from, next);
        let (message_at, to) = (buffer.ring_offset(next), buffer.widths().at_blocked(next));
        let message = Message::Bare(&[]);
        Sequence { from, unless: None, stores, zero: 0..0, start: &[], message_at, message, to }
    }

    /// Adds the stores that record the end of the sub-buffer at `from`, and the start of the next.
    fn close_record(&self, stores: &mut Stores<'a>, from: Position, next: Position) {
        let buffer = self.buffer;
        let record = buffer.record(from);
        let padding = buffer.geometry().subbuf_size() - buffer.widths().offset(from);
        stores.push(&record.padding, padding as u64);
        stores.push(&record.lost, buffer.lost());
        if buffer.geometry().timed() {
            // Relaxed, as in `lost`.
            stores.push(&record.too_big, buffer.block().too_big.load(Ordering::Relaxed));
        }
        let number = record.number.load(Ordering::Relaxed).wrapping_add(1);
        self.open_record(stores, next, number, from);
    }

    /// Adds the stores that record the start of a sub-buffer that is not reached yet; the writer is at `from`.
    /// A reader may still need the record of the same slot one lap ago, which is the other of the slot's two.
    fn open_record(&self, stores: &mut Stores<'a>, position: Position, number: u64, from: Position) {
        let record = self.buffer.record(position);
        stores.push(&record.number, number);
        stores.push(&record.begin, self.end(from));
        if self.buffer.geometry().timed() {
            stores.push(&record.messages, self.messages(from));
        }
    }

    /// Returns the records in the buffer before `position`, where the writer is.
    /// The records themselves say how many they are, so a message need not count.
    fn messages(&self, position: Position) -> u64 {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        // Relaxed: stored on this CPU.
        let before = buffer.record(position).messages.load(Ordering::Relaxed);
        let end = if widths.blocked(position) { 0 } else { widths.offset(position) };
        before.wrapping_add(buffer.count_records(widths.at(position, 0), 0, end).0)
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
