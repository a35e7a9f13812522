//! How much of a batch is written: writes what has room, waits for more, hands back the rest.

use std::sync::atomic::Ordering;
use std::time::Instant;

use relay::ring::writer::{AnyExecutor, Outcome, RetriesExhausted, WriteResult, Writer};
use relay::wire::frame::{Messages, WriteReply};

use super::worker::{answer, count_dropped, has_switched};
use crate::channel::{ChannelRef, Turn};
use crate::writers::{Batch, Wait};

/// Times that a writer yields its CPU and tries again when all tries of a message were interrupted.
const CONTENDED_TRIES_MAX: u32 = 64;

/// A batch, and how much of it is written.
pub(super) struct Progress {
    batch: Batch,
    /// Offset of the next message, with its length before it.
    at: usize,
    counts: WriteReply,
    /// The CPU of the writing thread.
    thread_cpu: Option<usize>,
    /// The batch's place in the order of its buffer.
    turn: Option<Turn>,
}

impl Progress {
    pub(super) fn new(mut batch: Batch, turn: Option<Turn>, thread_cpu: Option<usize>) -> Progress {
        batch.channel.buffer(batch.cpu).count_dropped_elsewhere(std::mem::take(&mut batch.lost));
        Progress { at: 0, counts: std::mem::take(&mut batch.counts), batch, thread_cpu, turn }
    }

    pub(super) fn batch(&self) -> &Batch {
        &self.batch
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.batch.wait, Wait::Until(_) | Wait::Forever)
    }

    /// Lets the batch try once more, but not wait for room.
    pub(super) fn end_wait(&mut self) {
        let is_returned = self.batch.hand_back && self.batch.wait_end.is_of_daemon();
        self.batch.wait = if is_returned { Wait::HandBack } else { Wait::No };
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        if let Wait::Until(deadline) = self.batch.wait { Some(deadline) } else { None }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
            || self.batch.wait_end.is_set()
            || self.batch.channel.is_broken()
    }

    pub(super) fn is_for(&self, channel: &ChannelRef, cpu: usize) -> bool {
        self.batch.channel.id() == channel.id() && self.batch.cpu == cpu
    }

    /// Writes what has room. Returns false if the batch has to wait for room, otherwise the caller finishes it.
    pub(super) fn resume(&mut self) -> bool {
        let is_writable = self.batch.channel.may_be_written();
        if self.batch.wait == Wait::HandBack && (!is_writable || self.is_behind_handed_back()) {
            self.note_handed_back();
            return true;
        }
        if !is_writable {
            if self.waits() {
                return false;
            }
            self.drop_messages();
            return true;
        }
        self.batch.channel.note_activity();
        let before = self.counts.written;
        let (switched, finished) = self.write_messages();
        if self.batch.channel.is_broken() {
            // Its files were truncated meanwhile: no reader gets what was written just now.
            self.counts.dropped += self.counts.written - before;
            self.counts.written = before;
        }
        self.batch.channel.buffer(self.batch.cpu).count_written(self.counts.written - before);
        if switched {
            self.batch.channel.wake(self.batch.cpu);
        }
        finished
    }

    /// Reports the result. Messages that it does not count are handed back.
    pub(super) fn finish(mut self) {
        drop(self.turn.take());
        if let Some(done) = self.batch.done.take() {
            answer(self.batch.channel, done, Ok(self.counts));
        }
    }

    /// Returns whether an earlier batch of the connection was handed back.
    ///
    /// The producer would otherwise send that one again behind this one.
    fn is_behind_handed_back(&self) -> bool {
        // Relaxed: all batches for one buffer that may be handed back are written by one thread.
        self.batch.wait_end.handed_back.load(Ordering::Relaxed)
    }

    /// Notes that the remaining messages are not counted, and are the producer's again.
    pub(super) fn note_handed_back(&self) {
        self.batch.wait_end.handed_back.store(true, Ordering::Relaxed); // as in `is_behind_handed_back`
    }

    /// Drops the batch.
    pub(super) fn drop_rest(mut self) {
        self.drop_messages();
        self.finish();
    }

    /// Counts the remaining messages as dropped.
    fn drop_messages(&mut self) {
        let before = self.counts.dropped;
        while let Some((_, next)) = self.message() {
            self.counts.dropped += 1;
            self.at = next;
        }
        self.batch.channel.buffer(self.batch.cpu).count_dropped_elsewhere(self.counts.dropped - before);
    }

    fn write_messages(&mut self) -> (bool, bool) {
        let batch = &self.batch;
        let _writing = batch.channel.lock_to_write(batch.cpu);
        let writer = Writer::new(batch.channel.buffer(batch.cpu), AnyExecutor::on(self.thread_cpu));
        let mut switched = false;
        while let Some((message, next)) = self.message() {
            let mut placed = writer.place(message);
            // A long message takes a good part of a time slice, and a busy CPU interrupts it each time.
            for _ in 0..CONTENDED_TRIES_MAX {
                if placed.is_ok() {
                    break;
                }
                std::thread::yield_now();
                placed = writer.place(message);
            }
            switched |= has_switched(placed);
            if placed.is_ok_and(|outcome| outcome.placed == WriteResult::Full) {
                // Once more with the reader's lock. Room that readers gave back before is seen now. Readers that give
                // back room later find `parked` set.
                let mut side = batch.channel.read_side(batch.cpu);
                placed = writer.place(message);
                switched |= has_switched(placed);
                if placed.is_ok_and(|outcome| outcome.placed == WriteResult::Full) && self.waits() {
                    side.parked = true;
                    return (switched, false);
                }
            }
            let not_taken =
                |outcome: Outcome| matches!(outcome.placed, WriteResult::Full | WriteResult::Closed);
            if batch.wait == Wait::HandBack && placed.is_ok_and(not_taken) {
                // The reply does not count the rest, and so hands it back.
                self.note_handed_back();
                return (switched, true);
            }
            let buffer = batch.channel.buffer(batch.cpu);
            match placed.map(|outcome| outcome.placed) {
                Ok(WriteResult::Written) => self.counts.written += 1,
                Ok(WriteResult::Full | WriteResult::Closed) => {
                    count_dropped(buffer, message);
                    self.counts.dropped += 1;
                }
                Ok(WriteResult::TooBig) => self.counts.too_big += 1,
                Err(RetriesExhausted) => {
                    buffer.count_contended(1);
                    self.counts.dropped += 1;
                }
            }
            self.at = next;
        }
        (switched, true)
    }

    /// Returns the next message and the offset behind it.
    ///
    /// The lengths were checked when the frame came.
    fn message(&self) -> Option<(&[u8], usize)> {
        let rest = self.batch.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        if self.batch.single {
            return Some((rest, self.batch.bytes.len())); // longer than a frame, so never empty
        }
        let mut messages = Messages(rest);
        let message = messages.next()?.ok()?;
        Some((message, self.batch.bytes.len() - messages.0.len()))
    }
}
