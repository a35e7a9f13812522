//! Writes a frame on the thread that received it, without a job for the buffer's writer.
//!
//! Only the socket thread does this, and only while no other process writes the channel (`channel/write_side.rs`). It
//! never waits: what it cannot do at once becomes a job, and so does everything behind it for that buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use relay::clock::realtime_tick;
use relay::ring::writer::{SoleWriter, WriteResult, Writer};
use relay::wire::frame::{Messages, Write, WriteReply};

use super::worker::{count_dropped, has_switched};
use super::{WorkerQueue, Writers};
use crate::channel::{Channel, ChannelRef};

/// What was done with the messages of a frame.
pub(crate) struct Here {
    pub(crate) counts: WriteReply,
    /// Bytes of the frame's messages that are done. The rest is for the buffer's writer.
    pub(crate) len: usize,
}

impl Writers {
    /// Writes a frame's messages on the calling thread. `None`: the buffer's writer must do that, and nothing was done.
    ///
    /// Messages that wait for room, and find none, are left. The caller has checked the frame's lengths.
    pub(crate) fn write_here(&self, channel: &ChannelRef, cpu: usize, frame: &Write) -> Option<Here> {
        if !self.queue_of(channel, cpu)?.is_home() {
            return None;
        }
        let (messages, wait) = (frame.messages, frame.wait_ms != 0);
        let writing = channel.try_lock_to_write(cpu)?;
        channel.note_activity();
        // First: the losses came before the messages.
        channel.buffer(cpu).count_dropped_elsewhere(frame.lost.into());
        let writer = Writer::new(channel.buffer(cpu), SoleWriter);
        let (mut here, mut switched) = (Here { counts: WriteReply::default(), len: 0 }, false);
        let mut rest = Messages(messages);
        while let Some(Ok(message)) = rest.next() {
            let mut placed = writer.place(message);
            switched |= has_switched(placed);
            if placed.is_ok_and(|outcome| outcome.placed == WriteResult::Full) && !wait {
                // As the buffer's writer does, see `worker.rs`.
                let Some(_side) = channel.try_read_side(cpu) else { break };
                placed = writer.place(message);
                switched |= has_switched(placed);
            }
            match placed.map(|outcome| outcome.placed) {
                Ok(WriteResult::Written) => here.counts.written += 1,
                Ok(WriteResult::TooBig) => here.counts.too_big += 1,
                Ok(WriteResult::Full) if !wait => {
                    count_dropped(channel.buffer(cpu), message);
                    here.counts.dropped += 1;
                }
                Ok(WriteResult::Full | WriteResult::Closed) | Err(_) => break,
            }
            here.len = messages.len() - rest.0.len();
        }
        drop(writing);
        note_written(channel, cpu, &mut here.counts);
        if switched {
            channel.wake(cpu);
        }
        Some(here)
    }

    /// Finishes a buffer's current sub-buffer on the calling thread. False: its writer must do that.
    pub(crate) fn flush_here(&self, channel: &ChannelRef, cpu: usize) -> bool {
        if !self.queue_of(channel, cpu).is_some_and(WorkerQueue::is_home) {
            return false;
        }
        let Some(writing) = channel.try_lock_to_write(cpu) else { return false };
        let flushed = Writer::new(channel.buffer(cpu), SoleWriter).flush();
        drop(writing);
        if has_switched(flushed) {
            channel.wake(cpu);
        }
        flushed.is_ok_and(|outcome| outcome.placed == WriteResult::Written) && !channel.is_broken()
    }
}

/// Adds to the buffer's count of written messages. Of a channel that has broken meanwhile, no reader gets them.
fn note_written(channel: &Channel, cpu: usize, counts: &mut WriteReply) {
    if channel.is_broken() {
        counts.dropped += std::mem::take(&mut counts.written);
    }
    channel.buffer(cpu).count_written(counts.written);
}

/// Where a writer runs, as far as the socket thread knows.
#[derive(Default)]
pub(super) struct Home {
    /// The writer's thread id, once it was pinned to its CPU.
    thread: Arc<AtomicI32>,
    /// The kernel's tick in which the socket thread last saw it pinned.
    seen: AtomicU64,
}

impl Home {
    pub(super) fn thread(&self) -> Arc<AtomicI32> {
        Arc::clone(&self.thread)
    }
}

impl WorkerQueue {
    /// Returns whether the writer's CPU can be used.
    ///
    /// When a CPU goes offline, the kernel lets its threads run anywhere. Then the writer pins itself again, or refuses.
    /// The answer may be a tick of the kernel old: a look costs as much as half a message.
    fn is_home(&self) -> bool {
        let Some(cpu) = self.cpu else { return true };
        // Relaxed, all: only the socket thread uses `seen`, and the id says nothing about other memory.
        let now = realtime_tick();
        if self.home.seen.load(Ordering::Relaxed) == now {
            return true;
        }
        let thread = self.home.thread.load(Ordering::Relaxed);
        let mut pinned = CpuSet::new();
        let is_home = thread != 0
            && pinned.set(cpu).is_ok()
            && sched_getaffinity(Pid::from_raw(thread)).is_ok_and(|set| set == pinned);
        if is_home {
            self.home.seen.store(now, Ordering::Relaxed);
        }
        is_home
    }
}
