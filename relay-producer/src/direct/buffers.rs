//! Buffers that this process has mapped, and writing them: what `relay::ring::writer` does, with what belongs to a connection.
//!
//! A message that fits the current sub-buffer is one restartable sequence, and nothing else is touched. Everything that
//! costs more happens at a switch, in [`DirectBuffers::settle`]: the daemon is woken if it waits, and every so often somebody
//! looks whether it is still there. If it is not, writing goes on: the next daemon takes over the files. Only what nobody
//! will ever read is not written: a channel that was closed, or files that were removed.
//!
//! Nothing in this file waits, takes memory or takes a lock that another thread could hold against it, so all of it can
//! run in a signal handler.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use relay::Geometry;
use relay::layout::abi::BufferBlock;
use relay::layout::geometry::MESSAGE_MAX;
use relay::ring::buffer::Buffer;
use relay::ring::subbuf_start::{SubbufHeader, SubbufInfo, SubbufStart};
use relay::ring::writer::{Appended, Attempt, Executor, Outcome, WriteResult, Writer};

use crate::direct::doorbell::{Doorbell, Endpoints};
use crate::direct::rseq::Sequences;

/// Longest message that is written directly, in bytes. A sequence that is interrupted starts over, and the longer it is
/// the more often that happens; the daemon's writers have no signals to fear.
pub const DIRECT_MAX: usize = 64 << 10;
/// Tries at a message that is interrupted each time, before it goes by the socket.
const TRIES_MAX: u32 = 64;
/// Tries at a message that should go by the socket, when nobody is at its other end. So many of the longest take about
/// as long as a daemon may.
const INSISTENT_TRIES_MAX: u32 = 1024;
/// One in so many refused messages asks whether the daemon is still there: with every sub-buffer full there are no
/// switches to do that at. A power of two.
const REFUSALS_PER_LOOK: usize = 256;

/// Who is asked before a sub-buffer of a CPU is begun.
pub(crate) type CpuGate<'a> = dyn FnMut(usize, SubbufInfo) -> Option<SubbufHeader> + 'a;

/// What became of a message that was to be written directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direct {
    /// It is in the buffer.
    Written,
    /// It is in the buffer, and the connection was noticed to be over, or another process's: whoever waits for a sub-buffer
    /// may not hear of this one.
    WrittenUnheard,
    /// There is no room.
    Full,
    /// Too big for the channel. It has been counted.
    TooBig,
    /// The channel is over.
    Closed,
    /// The connection is over, or never brought any buffers. Nothing was done.
    Detached,
    /// This thread does not write that buffer: it is on another CPU, or cannot run sequences. Nothing was done.
    WrongCpu,
    /// This message is not to be written directly: too long, or interrupted too often. Nothing was done.
    TooLongOrInterrupted,
}

/// Which file a control file is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A channel's mapped buffers.
#[derive(Debug)]
pub(crate) struct DirectBuffers {
    /// One for each CPU; none at all if the connection brought none.
    lanes: Box<[CpuBuffer]>,
    sequences: Option<Sequences>,
    /// Nothing is to be written here any more: the channel was closed, nobody will read the files, or others have taken
    /// their place.
    over: AtomicBool,
    control: Option<FileId>,
    line: Doorbell,
}

/// One CPU's buffer.
#[derive(Debug)]
#[repr(align(128))] // threads on other CPUs have lines of their own
struct CpuBuffer {
    buffer: Buffer,
    /// Messages for which there was no room, roughly.
    refused: AtomicUsize,
}

impl DirectBuffers {
    /// The buffers of all CPUs, in order, of the channel with this control file.
    pub(crate) fn new(buffers: Vec<Buffer>, control: FileId, line: Doorbell) -> DirectBuffers {
        let lane = |buffer| CpuBuffer { buffer, refused: AtomicUsize::new(0) };
        DirectBuffers {
            lanes: buffers.into_iter().map(lane).collect(),
            sequences: Sequences::find(),
            over: AtomicBool::new(false),
            control: Some(control),
            line,
        }
    }

    /// What stands for the buffers of a connection that brought none.
    pub(crate) fn none() -> DirectBuffers {
        DirectBuffers {
            lanes: Box::default(),
            sequences: None,
            over: AtomicBool::new(true),
            control: None,
            line: Doorbell::none(),
        }
    }

    /// Writes a message into the buffer of the CPU the caller is on, which must be `only` if that is given. With
    /// `drop_if_full`, a message for which there is no room is counted as dropped.
    #[inline(always)]
    pub(crate) fn write(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        if message.len() > DIRECT_MAX {
            return self.refuse(only, message);
        }
        let Some((lane, here)) = self.here(only) else { return self.refuse(only, message) };
        match Writer::new(&lane.buffer, here).append(message) {
            Appended::Done => Direct::Written,
            Appended::Elsewhere if drop_if_full && self.drop_if_blocked(lane, here, message.len()) => {
                Direct::Full
            }
            appended => self.write_elsewhere(TRIES_MAX, appended, only, message, drop_if_full),
        }
    }

    /// Drops a message for which there is no room, if one before it has found out: who goes on writing to full buffers
    /// shall not pay more for it than if there were room.
    #[inline(never)]
    fn drop_if_blocked<R: Executor>(&self, lane: &CpuBuffer, here: R, len: usize) -> bool {
        // Buffers that are over stay full for ever.
        let dropped = !self.is_over() && Writer::new(&lane.buffer, here).drop_if_blocked(len);
        if dropped {
            self.after_refusal(lane);
        }
        dropped
    }

    /// Writes a message behind the last one. False: nothing was done.
    #[inline(always)]
    pub(crate) fn append(&self, message: &[u8]) -> bool {
        message.len() <= DIRECT_MAX
            && self
                .here(None)
                .is_some_and(|(lane, here)| Writer::new(&lane.buffer, here).append(message) == Appended::Done)
    }

    /// Drops a message of which that was said, if there is no room: whether it was.
    pub(crate) fn drop_if_full(&self, message: &[u8]) -> bool {
        message.len() <= DIRECT_MAX
            && self.here(None).is_some_and(|(lane, here)| self.drop_if_blocked(lane, here, message.len()))
    }

    /// [`DirectBuffers::write`], asking `gate`, which is told the CPU, before a sub-buffer is begun.
    #[inline(always)]
    pub(crate) fn write_if(&self, message: &[u8], gate: &mut CpuGate<'_>) -> Direct {
        if message.len() > DIRECT_MAX {
            return self.refuse(None, message);
        }
        let Some((lane, here)) = self.here(None) else { return self.refuse(None, message) };
        match Writer::new(&lane.buffer, here).append(message) {
            Appended::Done => Direct::Written,
            _ => self.write_elsewhere_if(message, gate),
        }
    }

    #[inline(never)]
    fn write_elsewhere_if(&self, message: &[u8], gate: &mut CpuGate<'_>) -> Direct {
        if self.is_over() {
            return Direct::Detached;
        }
        for _ in 0..TRIES_MAX {
            let Some((lane, here)) = self.here(None) else { return Direct::WrongCpu };
            let cpu = self.number(lane);
            let gate: &mut SubbufStart<'_> = &mut |switching| gate(cpu, switching);
            let writer = Writer::new(&lane.buffer, here);
            match writer.append(message) {
                Appended::Done => return Direct::Written,
                Appended::Interrupted => continue,
                Appended::Elsewhere => {}
            }
            if let Attempt::Done(outcome) = writer.write_elsewhere_if(message, Some(gate)) {
                return self.settle(lane, here, outcome, true);
            }
        }
        Direct::TooLongOrInterrupted
    }

    fn number(&self, lane: &CpuBuffer) -> usize {
        (std::ptr::from_ref(lane).addr() - self.lanes.as_ptr().addr()) / size_of::<CpuBuffer>()
    }

    /// Whether all sub-buffers of a CPU are full. `None`: not known here.
    pub(crate) fn is_full(&self, cpu: usize) -> Option<bool> {
        let lane = self.lanes.get(cpu)?;
        (!self.is_over()).then(|| lane.buffer.is_full())
    }

    /// Goes on with a message that was not simply appended: perhaps on another CPU.
    #[inline(never)]
    fn write_elsewhere(
        &self,
        tries_max: u32,
        appended: Appended,
        only: Option<usize>,
        message: &[u8],
        drop_if_full: bool,
    ) -> Direct {
        if self.is_over() {
            return Direct::Detached;
        }
        let mut append_first = appended == Appended::Interrupted;
        for _ in 0..tries_max {
            let Some((lane, here)) = self.here(only) else { return Direct::WrongCpu };
            let writer = Writer::new(&lane.buffer, here);
            let attempt =
                if append_first { writer.try_write(message) } else { writer.write_elsewhere(message) };
            match attempt {
                Attempt::Done(outcome) => return self.settle(lane, here, outcome, drop_if_full),
                Attempt::Interrupted | Attempt::Located => append_first = true,
            }
        }
        Direct::TooLongOrInterrupted
    }

    /// [`Self::write`] of a message that is [`Direct::TooLongOrInterrupted`], for want of a daemon that could write it.
    #[cold]
    pub(crate) fn insist(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        self.write_elsewhere(INSISTENT_TRIES_MAX, Appended::Interrupted, only, message, drop_if_full)
    }

    /// Says why a message is not even tried. What no sub-buffer could hold is counted.
    #[cold]
    #[inline(never)]
    fn refuse(&self, only: Option<usize>, message: &[u8]) -> Direct {
        if self.is_over() {
            return Direct::Detached;
        }
        let Some((lane, here)) = self.here(only) else { return Direct::WrongCpu };
        if message.len() <= lane.buffer.geometry().subbuf_size().min(MESSAGE_MAX) {
            return Direct::TooLongOrInterrupted;
        }
        count_in(&lane.buffer, here, |block| &block.too_big);
        Direct::TooBig
    }

    /// What is to be done after a try that was not interrupted, but is not over with the message either.
    #[inline(never)]
    fn settle<R: Executor>(&self, lane: &CpuBuffer, here: R, outcome: Outcome, drop_if_full: bool) -> Direct {
        match outcome.placed {
            WriteResult::Written => {
                // Not where a sub-buffer only begins, after a full buffer: who waits, waits for one that ends, and a ring
                // for nothing would use up his.
                if outcome.switched {
                    self.after_switch(&lane.buffer);
                    if self.line.is_cut() {
                        return Direct::WrittenUnheard;
                    }
                }
                Direct::Written
            }
            WriteResult::Full => {
                if drop_if_full {
                    count_in(&lane.buffer, here, |block| &block.dropped);
                }
                if outcome.switched {
                    self.after_switch(&lane.buffer);
                } else {
                    self.after_refusal(lane);
                }
                Direct::Full
            }
            WriteResult::TooBig => {
                count_in(&lane.buffer, here, |block| &block.too_big);
                if outcome.switched {
                    self.after_switch(&lane.buffer);
                } else {
                    self.after_refusal(lane);
                }
                Direct::TooBig
            }
            WriteResult::Closed => {
                self.end();
                Direct::Closed
            }
        }
    }

    /// Counts a message that is too big even to be shown to [`Self::write`]. False: this thread does not write there.
    pub(crate) fn count_too_big(&self, only: Option<usize>) -> bool {
        let place = self.here(only);
        if let Some((lane, here)) = place {
            count_in(&lane.buffer, here, |block| &block.too_big);
        }
        place.is_some()
    }

    /// Counts a message that was interrupted each time.
    #[cold]
    pub(crate) fn count_contended(&self, only: Option<usize>) {
        if let Some((lane, _)) = self.here(only) {
            lane.buffer.count_contended(1);
        }
    }

    /// Whether the caller is on a CPU, which must be `only` if that is given, whose buffer it can write.
    pub(crate) fn is_here(&self, only: Option<usize>) -> bool {
        self.here(only).is_some()
    }

    #[inline(always)]
    fn here(&self, only: Option<usize>) -> Option<(&CpuBuffer, impl Executor + use<>)> {
        let sequences = self.sequences?;
        // More than there are buffers if the thread is not registered.
        let cpu = sequences.cpu();
        if only.is_some_and(|only| only != cpu) {
            return None;
        }
        Some((self.lanes.get(cpu)?, sequences.on(cpu)))
    }

    /// Longest message of the channel, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.lanes.first().map_or(0, |lane| lane.buffer.geometry().message_max())
    }

    /// Whether nothing is to be written here any more.
    pub(crate) fn is_over(&self) -> bool {
        // Relaxed: nothing else is read on the strength of it, and who sees it late writes to a buffer nobody reads.
        self.over.load(Ordering::Relaxed)
    }

    /// Whether these are the buffers of the channel with this control file, and good for writing.
    pub(crate) fn is_of(&self, control: FileId, geometry: &Geometry, n_bufs: usize) -> bool {
        self.control == Some(control)
            && !self.is_over()
            && self.lanes.len() == n_bufs
            && self.lanes.iter().all(|lane| lane.buffer.geometry() == geometry)
    }

    /// Whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        self.line.is_own()
    }

    /// Whether it was noticed that the connection is over, or another process's.
    pub(crate) fn is_cut(&self) -> bool {
        self.line.is_cut()
    }

    /// Goes on with another connection of this process.
    pub(crate) fn attach(&self, ends: Endpoints) {
        self.line.replace(ends);
    }

    /// From now on nothing is written here.
    #[cold]
    pub(crate) fn end(&self) {
        // Relaxed: as in `is_over`.
        self.over.store(true, Ordering::Relaxed);
        self.lanes.iter().for_each(|lane| lane.buffer.stop_appending());
    }

    /// Lets go of the files and of the connection. Threads that are still inside write to memory that nobody reads.
    pub(crate) fn retire(&self) {
        self.end();
        for lane in &self.lanes {
            // Should it fail, the memory is wasted; nothing else depends on it.
            let _ = lane.buffer.retire();
        }
        self.line.close();
    }

    #[cold]
    fn after_switch(&self, buffer: &Buffer) {
        if let Some(wanted) = buffer.wake_wanted() {
            // What is not certain to be heard is still wanted from the next who switches, and of who connects again.
            if self.line.ring() {
                wanted.rung();
                return;
            }
        }
        self.look();
    }

    #[inline]
    fn after_refusal(&self, lane: &CpuBuffer) {
        // Relaxed, and not one step: whoever is not counted is one of many.
        let refused = lane.refused.load(Ordering::Relaxed).wrapping_add(1);
        lane.refused.store(refused, Ordering::Relaxed);
        if refused.is_multiple_of(REFUSALS_PER_LOOK) {
            self.look();
        }
    }

    #[cold]
    #[inline(never)]
    fn look(&self) {
        if self.line.is_found_abandoned() {
            self.end();
        }
    }

    /// Looks whether the buffers are over, which otherwise those notice who write.
    pub(crate) fn look_for_end(&self) {
        // Relaxed: as in `is_over`.
        if self.lanes.iter().any(|lane| lane.buffer.block().closed.load(Ordering::Relaxed) != 0) {
            self.end();
        }
        self.look();
    }

    /// Rings for whoever waits for any of the buffers: switches of an earlier connection may have gone unheard.
    pub(crate) fn ring_for_all(&self) {
        for wanted in self.lanes.iter().filter_map(|lane| lane.buffer.wake_wanted()) {
            if self.line.ring() {
                wanted.rung();
            }
        }
    }
}

/// Counts a message in a buffer: on its CPU if the thread is still there.
fn count_in<R: Executor>(buffer: &Buffer, here: R, counter: impl FnOnce(&BufferBlock) -> &AtomicU64) {
    if !Writer::new(buffer, here).count(1, counter) {
        buffer.count_dropped_elsewhere(1);
    }
}
