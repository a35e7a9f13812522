//! Writing into one buffer: append, switch, flush.
//!
//! The rule everything hangs on: **only one thread at a time writes to a buffer**, a thread on the buffer's CPU. So
//! there is no reserve and commit: a message is copied behind `state`, where nobody looks, and one store to `state`
//! makes it part of the stream. It is there, whole, or it is not there at all.
//!
//! Each change is one `Sequence`: some stores that mean nothing until the last one, the store to `state`. The
//! branches are the kernel's (`relay_write`, `relay_switch_subbuf`); Wn are the numbers of its rules in `DESIGN.md`.
//!
//! ```text
//! A  state, Release        with B, the reader's Acquire: bytes and records before it are visible behind it
//! C  consumed, Release     with D, Acquire here: what the reader read, it read before it is overwritten
//! E  begun, then a fence   with F, the reader's fence, then begun: a reader that copied bytes of the new message
//!                          also sees that the sub-buffer was begun again, and throws the copy away
//! ```

use crate::buffer::{Buffer, add};
use crate::geometry::{MESSAGE_MAX, Mode};
use crate::position::Position;
use crate::sync::{Ordering, fence};

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is in the buffer.
    Written,
    /// Every sub-buffer is full. Not counted: the caller may wait and try again, or [`Writer::count_dropped`].
    Full,
    /// No sub-buffer could ever hold it. Counted.
    TooBig,
}

/// What a write or flush did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of the message.
    pub placed: Placed,
    /// Whether a sub-buffer was finished: whoever polls wants to know.
    pub switched: bool,
}

/// The writing end of a buffer. Whoever makes one sees to it that it is the only one in use at a time.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a Buffer,
}

/// One indivisible change of a buffer.
struct Sequence<'a> {
    /// Where the buffer must still be.
    from: Position,
    /// Whether the sub-buffer of `from` is finished by it.
    closes: bool,
    /// The sub-buffer to start writing into, if any.
    begins: Option<Position>,
    /// Where the message goes, and the message.
    message: (Position, &'a [u8]),
    /// Where the buffer is afterwards.
    to: Position,
}

impl<'a> Writer<'a> {
    /// The writing end of `buffer`.
    pub fn new(buffer: &'a Buffer) -> Writer<'a> {
        Writer { buffer }
    }

    /// Writes one message: wholly, or not at all (W1, W4).
    pub fn write(&self, message: &[u8]) -> Outcome {
        let geometry = self.buffer.geometry();
        // W2.a. Longer than the header leaves room for is W2.e, which the switch decides.
        if message.len() > geometry.subbuf_size().min(MESSAGE_MAX) {
            add(&self.buffer.block().too_big, 1);
            return Outcome { placed: Placed::TooBig, switched: false };
        }
        let from = self.state();
        let widths = self.buffer.widths();
        let offset = widths.offset(from);
        if !widths.blocked(from) && offset + message.len() <= geometry.subbuf_size() {
            let to = widths.at(from, offset + message.len());
            self.run(&Sequence { from, closes: false, begins: None, message: (from, message), to });
            return Outcome { placed: Placed::Written, switched: false };
        }
        self.switch(from, message)
    }

    /// Finishes the current sub-buffer, even an empty one, and starts the next if there is room (W7).
    pub fn flush(&self) -> Outcome {
        self.switch(self.state(), &[])
    }

    /// Counts messages that their producers gave up.
    pub fn count_dropped(&self, messages: u64) {
        add(&self.buffer.block().dropped, messages);
    }

    /// Counts messages that were written for somebody else.
    pub fn count_written(&self, messages: u64) {
        add(&self.buffer.block().written, messages);
    }

    /// Goes to the first slot of the next lap, leaving everything behind (W8). `before` learns where to before
    /// anybody can see it, so that the reader is never found behind the writer.
    pub(crate) fn reset(&self, before: impl FnOnce(Position)) {
        let from = self.state();
        let start = self.buffer.widths().next_lap(from);
        before(start);
        let to = self.buffer.widths().at(start, self.buffer.geometry().header());
        // The sub-buffer left behind is not *produced*, so it is not closed: the new one takes over its number, and
        // begins where the stream is.
        self.open_record(start, self.buffer.record(from).number.load(Ordering::Relaxed), self.end(from));
        self.run(&Sequence { from, closes: false, begins: Some(start), message: (to, &[]), to });
    }

    /// W2, after a.
    fn switch(&self, from: Position, message: &[u8]) -> Outcome {
        let (buffer, widths) = (self.buffer, self.buffer.widths());
        let geometry = buffer.geometry();
        let closes = !widths.blocked(from);
        let next = if closes { widths.next(from) } else { widths.at(from, 0) };

        if geometry.mode() == Mode::NoOverwrite {
            // D, pairs with C: not weaker, or our stores into the slot could overtake the reader's loads from it.
            let consumed = Position(buffer.block().consumed.load(Ordering::Acquire));
            if widths.full(next, consumed) {
                if closes {
                    let to = widths.at_blocked(next);
                    self.run(&Sequence { from, closes, begins: None, message: (next, &[]), to });
                }
                return Outcome { placed: Placed::Full, switched: closes }; // W2.c, W5
            }
        }
        let start = widths.at(next, geometry.header());
        let fits = message.len() <= geometry.subbuf_size() - geometry.header();
        let message = if fits { message } else { &[] };
        let to = widths.at(start, geometry.header() + message.len());
        self.run(&Sequence { from, closes, begins: Some(next), message: (start, message), to });
        if !fits {
            add(&buffer.block().too_big, 1); // W2.e
        }
        Outcome { placed: if fits { Placed::Written } else { Placed::TooBig }, switched: closes }
    }

    /// Runs a sequence. With one writing thread for each buffer nothing can come between its steps.
    fn run(&self, sequence: &Sequence<'_>) {
        let buffer = self.buffer;
        if sequence.closes {
            let record = buffer.record(sequence.from);
            let next = buffer.widths().next(sequence.from);
            let padding = buffer.geometry().subbuf_size() - buffer.widths().offset(sequence.from);
            // Relaxed, like everything before the store to state: A orders it.
            record.padding.store(padding as u64, Ordering::Relaxed);
            record.lost.store(buffer.lost(), Ordering::Relaxed);
            self.open_record(
                next,
                record.number.load(Ordering::Relaxed).wrapping_add(1),
                self.end(sequence.from),
            );
        }
        if let Some(begins) = sequence.begins {
            // Release: a reader that goes by `begun` (Acquire, in `oldest_whole`) finds the records stored before it.
            buffer.block().begun.store(begins.0, Ordering::Release);
            // E, pairs with F: stores into the sub-buffer may not become visible before `begun`.
            fence(Ordering::Release);
            buffer.zero_header(begins);
        }
        let (at, message) = sequence.message;
        let inside = buffer.data().copy_in(buffer.ring_offset(at), message);
        debug_assert!(inside, "the ring was checked when the buffer was mapped");
        // A, pairs with B.
        buffer.block().state.store(sequence.to.0, Ordering::Release);
    }

    /// Says what is known of a sub-buffer that is not reached yet. Its record is not the one a reader may still need:
    /// the sub-buffer in the same slot one lap ago has the other of the slot's two.
    fn open_record(&self, position: Position, number: u64, begin: u64) {
        let record = self.buffer.record(position);
        record.number.store(number, Ordering::Relaxed);
        record.begin.store(begin, Ordering::Relaxed);
    }

    /// Stream position of the writer at `position`.
    fn end(&self, position: Position) -> u64 {
        let begin = self.buffer.record(position).begin.load(Ordering::Relaxed);
        begin.wrapping_add(self.buffer.widths().offset(position) as u64)
    }

    fn state(&self) -> Position {
        // Relaxed: this thread stored it, or was handed the buffer by the one that did.
        Position(self.buffer.block().state.load(Ordering::Relaxed))
    }
}
