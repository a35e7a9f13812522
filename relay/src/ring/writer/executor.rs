//! The ways a thread changes a buffer: alone, or by restartable sequences.

use super::{Message, Sequence};
use crate::layout::geometry::RECORD_OVERHEAD;
use crate::layout::position::Position;
use crate::memory::sync::{AtomicU64, Ordering, fence};
use crate::ring::buffer::Buffer;

/// The way a thread changes a buffer. False: nothing was changed, look at the buffer again.
pub trait Executor: Copy {
    /// Copies a message behind the last one and advances the state, if the message fits.
    /// The message has at most [`MESSAGE_MAX`](crate::layout::geometry::MESSAGE_MAX) bytes.
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended;
    /// Stamps a record, copies it behind the last one and advances the state, if the record fits.
    /// `head` has the payload's length, which is at most [`RECORD_PAYLOAD_MAX`].
    ///
    /// [`RECORD_PAYLOAD_MAX`]: crate::layout::geometry::RECORD_PAYLOAD_MAX
    fn append_record(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended;
    /// Notes where the sub-buffer at `position` is, for later appends.
    /// The message would have fitted there, but `append` did not know the place.
    fn locate(&self, buffer: &Buffer, position: Position);
    /// Applies a change that finishes or begins a sub-buffer.
    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool;
    /// Adds to a counter that other threads on this CPU add to as well.
    fn count(&self, counter: &AtomicU64, n: u64) -> bool;
    /// Appends like [`Executor::append`]. Counts the message as dropped instead, if the buffer is as
    /// [`Executor::note_full`] has noted it, and a message of this length or a longer one was dropped before.
    fn append_or_drop(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        self.append(buffer, message)
    }
    /// Appends a record to a buffer with [`Buffer::threads_if_quick`]. With `DROPS`, counts it as dropped instead, like
    /// [`Executor::append_or_drop`].
    fn append_record_quick<const DROPS: bool>(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        self.append_record(buffer, head, payload)
    }
    /// Notes a state and a `consumed` at which the buffer has no room for any message.
    /// A number of the next messages may be dropped there without another look.
    fn note_full(&self, _: &Buffer, _state: Position, _consumed: Position) {}
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
    /// The buffer is full, and the message is counted as dropped. Only the calls that say so drop.
    Dropped,
}

/// The only writer of its buffer: no other thread can come between the steps of a change.
#[derive(Clone, Copy, Debug)]
pub struct SoleWriter;

/// An executor for a thread that writes on behalf of producers.
/// Where there are restartable sequences it uses them, since producers may write the same buffer. Elsewhere no producer
/// can, and the thread is the only writer.
///
/// The thread has got the message from another process, so its stamp must not be older than that. It waits for its
/// loads before it reads the clock.
#[derive(Clone, Copy, Debug)]
pub enum AnyExecutor {
    /// The only writer.
    SoleWriter,
    /// One of several writers on this CPU.
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
    RseqExecutor(crate::ring::rseq::RseqExecutor),
}

impl AnyExecutor {
    /// Returns the executor for the calling thread on `cpu`. Without a CPU it is the only writer.
    pub fn on(cpu: Option<usize>) -> AnyExecutor {
        #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
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

impl Executor for AnyExecutor {
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.append(buffer, message),
            #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => on_cpu.append(buffer, message),
        }
    }

    fn append_record(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.append_record(buffer, head, payload),
            #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => {
                crate::clock::Clock::wait_for_loads();
                on_cpu.append_record(buffer, head, payload)
            }
        }
    }

    fn locate(&self, buffer: &Buffer, position: Position) {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.locate(buffer, position),
            #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => on_cpu.locate(buffer, position),
        }
    }

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.switch(buffer, sequence),
            #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => {
                if matches!(sequence.message, Message::Record { .. }) {
                    crate::clock::Clock::wait_for_loads();
                }
                on_cpu.switch(buffer, sequence)
            }
        }
    }

    fn count(&self, counter: &AtomicU64, n: u64) -> bool {
        match self {
            AnyExecutor::SoleWriter => SoleWriter.count(counter, n),
            #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
            AnyExecutor::RseqExecutor(on_cpu) => on_cpu.count(counter, n),
        }
    }
}

impl Executor for SoleWriter {
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        if buffer.geometry().timed() {
            return Appended::Elsewhere; // as the window of a timed buffer has no room for bare messages
        }
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

    fn append_record(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        let Some(clock) = buffer.clock() else { return Appended::Elsewhere };
        let state = &buffer.block().state;
        // Relaxed: no other thread stores it.
        let from = Position(state.load(Ordering::Relaxed));
        let Some((at, to)) = buffer.widths().append(from, RECORD_OVERHEAD + payload.len()) else {
            return Appended::Elsewhere;
        };
        if !put_record(buffer, at, clock.now(), head, payload) {
            return Appended::Interrupted; // as above
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
        // Relaxed: a thread that stored it for an end that counts was the only writer then, as this one is now.
        if sequence.unless.is_some_and(|word| word.load(Ordering::Relaxed) != 0) {
            return false;
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
            || !put(buffer, sequence.message_at, sequence.message)
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

/// Copies a message to `at` of the ring, with its stamp if it is a record.
/// False: it does not lie inside, or the buffer has no clock for it.
fn put(buffer: &Buffer, at: usize, message: Message<'_>) -> bool {
    match (message, buffer.clock()) {
        (Message::Bare(message), _) => buffer.data().copy_in(at, message),
        (Message::Record { head, payload }, Some(clock)) => {
            put_record(buffer, at, clock.now(), head, payload)
        }
        (Message::Record { .. }, None) => false,
    }
}

fn put_record(buffer: &Buffer, at: usize, stamp: u64, head: u64, payload: &[u8]) -> bool {
    let words = [stamp, head].map(u64::to_le_bytes);
    let Some(payload_at) = at.checked_add(RECORD_OVERHEAD) else { return false };
    buffer.data().copy_in(at, words.as_flattened()) && buffer.data().copy_in(payload_at, payload)
}
