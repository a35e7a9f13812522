//! Mapped buffers and direct writes to them.
//!
//! A message that fits the current sub-buffer is one restartable sequence, which touches nothing else. Everything more
//! expensive happens at a switch, in [`DirectBuffers::settle`]. There the daemon is woken if it waits, and from time to
//! time the writer checks that the daemon is still there. If it is not, writing continues, since the next daemon takes
//! over the files. Writing ends only where no reader will come: in a channel that was closed, or in files that were
//! removed.
//!
//! Code in this file does not wait, allocates no memory, and takes no lock that another thread could hold. So all of it
//! can run in a signal handler.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use relay::Geometry;
use relay::layout::abi::BufferBlock;
use relay::layout::geometry::MESSAGE_MAX;
use relay::ring::buffer::Buffer;
use relay::ring::subbuf_start::{SubbufHeader, SubbufInfo, SubbufStart};
use relay::ring::writer::{Appended, Attempt, Executor, Outcome, WriteResult, Writer};

use crate::direct::doorbell::{Doorbell, Endpoints};
use crate::direct::rseq::Sequences;

/// Longest message that is written directly, in bytes.
/// An interrupted sequence starts over, and a longer one is interrupted more often. The daemon's writers get no
/// signals.
pub const DIRECT_MAX: usize = 64 << 10;
/// Tries of one message before it goes over the socket.
const TRIES_MAX: u32 = 64;
/// Tries of a message that should go over the socket, while no daemon is at its other end.
/// For the longest messages they take about as long as a daemon may.
const INSISTENT_TRIES_MAX: u32 = 1024;
/// Refused messages between two checks that the daemon is still there. A power of two.
/// With every sub-buffer full there are no switches at which to check.
const REFUSALS_PER_LOOK: usize = 256;

/// Callback before a sub-buffer of a CPU begins.
pub(crate) type CpuSubbufStart<'a> = dyn FnMut(usize, SubbufInfo) -> Option<SubbufHeader> + 'a;

/// The result of a direct write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direct {
    /// The message is in the buffer.
    Written,
    /// The message is in the buffer, but the connection has ended, or is another process's.
    /// A process that waits for a sub-buffer may not be woken by this one.
    WrittenUnheard,
    /// The buffer has no room.
    Full,
    /// The message is too big for the channel. It has been counted.
    TooBig,
    /// The channel has ended.
    Closed,
    /// The connection has ended, or never brought buffers. Nothing was done.
    Detached,
    /// The calling thread does not write that buffer. Nothing was done.
    /// It is on another CPU, or cannot run sequences.
    WrongCpu,
    /// The message is too long for a direct write, or was interrupted too often.
    /// Nothing was done.
    TooLongOrInterrupted,
}

/// Identity of a control file, under any name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A channel's mapped buffers.
#[derive(Debug)]
pub(crate) struct DirectBuffers {
    /// One for each CPU; none if the connection brought none.
    cpu_buffers: Box<[CpuBuffer]>,
    sequences: Option<Sequences>,
    /// Whether writing has ended.
    /// Causes: the channel was closed, no daemon will read the files, or newer files have replaced them.
    over: AtomicBool,
    control: Option<FileId>,
    doorbell: Doorbell,
}

/// One CPU's buffer.
#[derive(Debug)]
#[repr(align(128))] // threads on other CPUs use other cache lines
struct CpuBuffer {
    buffer: Buffer,
    /// Messages without room, approximately.
    refused: AtomicUsize,
}

impl DirectBuffers {
    /// Wraps the buffers of all CPUs, in order, of the channel with this control file.
    pub(crate) fn new(buffers: Vec<Buffer>, control: FileId, doorbell: Doorbell) -> DirectBuffers {
        let cpu_buffer = |buffer| CpuBuffer { buffer, refused: AtomicUsize::new(0) };
        DirectBuffers {
            cpu_buffers: buffers.into_iter().map(cpu_buffer).collect(),
            sequences: Sequences::find(),
            over: AtomicBool::new(false),
            control: Some(control),
            doorbell,
        }
    }

    /// Returns a placeholder for a connection that brought no buffers.
    pub(crate) fn none() -> DirectBuffers {
        DirectBuffers {
            cpu_buffers: Box::default(),
            sequences: None,
            over: AtomicBool::new(true),
            control: None,
            doorbell: Doorbell::none(),
        }
    }

    /// Writes a message into the buffer of the caller's CPU.
    /// If `only` is given, the CPU must be that one. With `drop_if_full`, a message without room is counted as dropped.
    #[inline(always)]
    pub(crate) fn write(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        if message.len() > DIRECT_MAX {
            return self.refuse(only, message);
        }
        let Some((cpu_buffer, here)) = self.here(only) else { return self.refuse(only, message) };
        match Writer::new(&cpu_buffer.buffer, here).append(message) {
            Appended::Done => Direct::Written,
            Appended::Elsewhere if drop_if_full && self.drop_if_blocked(cpu_buffer, here, message.len()) => {
                Direct::Full
            }
            appended => self.write_elsewhere(TRIES_MAX, appended, only, message, drop_if_full),
        }
    }

    /// Drops a message without room, if an earlier message found the buffer blocked.
    /// Writing to full buffers should not cost more than writing to others.
    #[inline(never)]
    fn drop_if_blocked<R: Executor>(&self, cpu_buffer: &CpuBuffer, here: R, len: usize) -> bool {
        // Buffers whose writing has ended stay full for ever.
        let dropped = !self.is_over() && Writer::new(&cpu_buffer.buffer, here).drop_if_blocked(len);
        if dropped {
            self.after_refusal(cpu_buffer);
        }
        dropped
    }

    /// Appends a message behind the last one. False: nothing was done.
    #[inline(always)]
    pub(crate) fn append(&self, message: &[u8]) -> bool {
        message.len() <= DIRECT_MAX
            && self.here(None).is_some_and(|(cpu_buffer, here)| {
                Writer::new(&cpu_buffer.buffer, here).append(message) == Appended::Done
            })
    }

    /// Drops a message that was not appended, if there is no room. Returns whether it did.
    pub(crate) fn drop_if_full(&self, message: &[u8]) -> bool {
        message.len() <= DIRECT_MAX
            && self
                .here(None)
                .is_some_and(|(cpu_buffer, here)| self.drop_if_blocked(cpu_buffer, here, message.len()))
    }

    /// Writes like [`DirectBuffers::write`], but calls `subbuf_start` before a sub-buffer begins.
    #[inline(always)]
    pub(crate) fn write_if(&self, message: &[u8], subbuf_start: &mut CpuSubbufStart<'_>) -> Direct {
        if message.len() > DIRECT_MAX {
            return self.refuse(None, message);
        }
        let Some((cpu_buffer, here)) = self.here(None) else { return self.refuse(None, message) };
        match Writer::new(&cpu_buffer.buffer, here).append(message) {
            Appended::Done => Direct::Written,
            _ => self.write_elsewhere_if(message, subbuf_start),
        }
    }

    #[inline(never)]
    fn write_elsewhere_if(&self, message: &[u8], subbuf_start: &mut CpuSubbufStart<'_>) -> Direct {
        if self.is_over() {
            return Direct::Detached;
        }
        for _ in 0..TRIES_MAX {
            let Some((cpu_buffer, here)) = self.here(None) else { return Direct::WrongCpu };
            let cpu = self.number(cpu_buffer);
            let callback: &mut SubbufStart<'_> = &mut |switching| subbuf_start(cpu, switching);
            let writer = Writer::new(&cpu_buffer.buffer, here);
            match writer.append(message) {
                Appended::Done => return Direct::Written,
                Appended::Interrupted => continue,
                Appended::Elsewhere => {}
            }
            if let Attempt::Done(outcome) = writer.write_elsewhere_if(message, Some(callback)) {
                return self.settle(cpu_buffer, here, outcome, true);
            }
        }
        Direct::TooLongOrInterrupted
    }

    fn number(&self, cpu_buffer: &CpuBuffer) -> usize {
        (std::ptr::from_ref(cpu_buffer).addr() - self.cpu_buffers.as_ptr().addr()) / size_of::<CpuBuffer>()
    }

    /// Returns whether all sub-buffers of a CPU are full; `None` if unknown here.
    pub(crate) fn is_full(&self, cpu: usize) -> Option<bool> {
        let cpu_buffer = self.cpu_buffers.get(cpu)?;
        (!self.is_over()).then(|| cpu_buffer.buffer.is_full())
    }

    /// Continues with a message that was not simply appended, perhaps on another CPU.
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
            let Some((cpu_buffer, here)) = self.here(only) else { return Direct::WrongCpu };
            let writer = Writer::new(&cpu_buffer.buffer, here);
            let attempt =
                if append_first { writer.try_write(message) } else { writer.write_elsewhere(message) };
            match attempt {
                Attempt::Done(outcome) => return self.settle(cpu_buffer, here, outcome, drop_if_full),
                Attempt::Interrupted | Attempt::Located => append_first = true,
            }
        }
        Direct::TooLongOrInterrupted
    }

    /// Writes a message that is [`Direct::TooLongOrInterrupted`], when no daemon can write it.
    #[cold]
    pub(crate) fn insist(&self, only: Option<usize>, message: &[u8], drop_if_full: bool) -> Direct {
        self.write_elsewhere(INSISTENT_TRIES_MAX, Appended::Interrupted, only, message, drop_if_full)
    }

    /// Returns why a message is not even tried. Counts one that is too big for the channel.
    #[cold]
    #[inline(never)]
    fn refuse(&self, only: Option<usize>, message: &[u8]) -> Direct {
        if self.is_over() {
            return Direct::Detached;
        }
        let Some((cpu_buffer, here)) = self.here(only) else { return Direct::WrongCpu };
        if message.len() <= cpu_buffer.buffer.geometry().subbuf_size().min(MESSAGE_MAX) {
            return Direct::TooLongOrInterrupted;
        }
        count_in(&cpu_buffer.buffer, here, |block| &block.too_big);
        Direct::TooBig
    }

    /// Completes a try that was not interrupted: wakes, counts, and returns the result.
    #[inline(never)]
    fn settle<R: Executor>(
        &self,
        cpu_buffer: &CpuBuffer,
        here: R,
        outcome: Outcome,
        drop_if_full: bool,
    ) -> Direct {
        match outcome.placed {
            WriteResult::Written => {
                // Only after a switch that ended a sub-buffer. A waiter waits for an ended one, and a ring without one
                // would use up its arming.
                if outcome.switched {
                    self.after_switch(&cpu_buffer.buffer);
                    if self.doorbell.is_cut() {
                        return Direct::WrittenUnheard;
                    }
                }
                Direct::Written
            }
            WriteResult::Full => {
                if drop_if_full {
                    count_in(&cpu_buffer.buffer, here, |block| &block.dropped);
                }
                if outcome.switched {
                    self.after_switch(&cpu_buffer.buffer);
                } else {
                    self.after_refusal(cpu_buffer);
                }
                Direct::Full
            }
            WriteResult::TooBig => {
                count_in(&cpu_buffer.buffer, here, |block| &block.too_big);
                if outcome.switched {
                    self.after_switch(&cpu_buffer.buffer);
                } else {
                    self.after_refusal(cpu_buffer);
                }
                Direct::TooBig
            }
            WriteResult::Closed => {
                self.end();
                Direct::Closed
            }
        }
    }

    /// Counts a message that is too big even for [`Self::write`].
    /// False: this thread does not write there.
    pub(crate) fn count_too_big(&self, only: Option<usize>) -> bool {
        let place = self.here(only);
        if let Some((cpu_buffer, here)) = place {
            count_in(&cpu_buffer.buffer, here, |block| &block.too_big);
        }
        place.is_some()
    }

    /// Counts a message whose tries were all interrupted.
    #[cold]
    pub(crate) fn count_contended(&self, only: Option<usize>) {
        if let Some((cpu_buffer, _)) = self.here(only) {
            cpu_buffer.buffer.count_contended(1);
        }
    }

    /// Returns whether the caller can write the buffer of its CPU, which must be `only` if given.
    pub(crate) fn is_here(&self, only: Option<usize>) -> bool {
        self.here(only).is_some()
    }

    #[inline(always)]
    fn here(&self, only: Option<usize>) -> Option<(&CpuBuffer, impl Executor + use<>)> {
        let sequences = self.sequences?;
        // The number exceeds that of the buffers if the thread is not registered.
        let cpu = sequences.cpu();
        if only.is_some_and(|only| only != cpu) {
            return None;
        }
        Some((self.cpu_buffers.get(cpu)?, sequences.on(cpu)))
    }

    /// Returns the length of the channel's longest message, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.cpu_buffers.first().map_or(0, |cpu_buffer| cpu_buffer.buffer.geometry().message_max())
    }

    /// Returns whether writing here has ended.
    pub(crate) fn is_over(&self) -> bool {
        // Relaxed: no other load depends on it. A thread that sees it late writes to a buffer without a reader.
        self.over.load(Ordering::Relaxed)
    }

    /// Returns whether these are the writable buffers of the channel with this control file.
    pub(crate) fn is_of(&self, control: FileId, geometry: &Geometry, n_bufs: usize) -> bool {
        self.control == Some(control)
            && !self.is_over()
            && self.cpu_buffers.len() == n_bufs
            && self.cpu_buffers.iter().all(|cpu_buffer| cpu_buffer.buffer.geometry() == geometry)
    }

    /// Returns whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        self.doorbell.is_own()
    }

    /// Returns whether the connection was found ended, or another process's.
    pub(crate) fn is_cut(&self) -> bool {
        self.doorbell.is_cut()
    }

    /// Continues with another connection of this process.
    pub(crate) fn attach(&self, ends: Endpoints) {
        self.doorbell.replace(ends);
    }

    /// Ends all writing here.
    #[cold]
    pub(crate) fn end(&self) {
        // Relaxed: as in `is_over`.
        self.over.store(true, Ordering::Relaxed);
        self.cpu_buffers.iter().for_each(|cpu_buffer| cpu_buffer.buffer.stop_appending());
    }

    /// Releases the files and the connection.
    /// Threads inside a call then write to memory without a reader.
    pub(crate) fn retire(&self) {
        self.end();
        for cpu_buffer in &self.cpu_buffers {
            // If this fails, the memory is wasted; nothing else depends on it.
            let _ = cpu_buffer.buffer.retire();
        }
        self.doorbell.close();
    }

    #[cold]
    fn after_switch(&self, buffer: &Buffer) {
        if let Some(wanted) = buffer.wake_wanted() {
            // If the daemon may not hear the ring, the wake stays wanted: from the next writer that switches, and from
            // the next connection.
            if self.doorbell.ring() {
                wanted.rung();
                return;
            }
        }
        self.look();
    }

    #[inline]
    fn after_refusal(&self, cpu_buffer: &CpuBuffer) {
        // Relaxed, and not one atomic step: a missed count does not matter.
        let refused = cpu_buffer.refused.load(Ordering::Relaxed).wrapping_add(1);
        cpu_buffer.refused.store(refused, Ordering::Relaxed);
        if refused.is_multiple_of(REFUSALS_PER_LOOK) {
            self.look();
        }
    }

    #[cold]
    #[inline(never)]
    fn look(&self) {
        if self.doorbell.is_found_abandoned() {
            self.end();
        }
    }

    /// Checks whether the channel was closed. Otherwise only a writer notices.
    pub(crate) fn look_for_end(&self) {
        // Relaxed: as in `is_over`.
        if self
            .cpu_buffers
            .iter()
            .any(|cpu_buffer| cpu_buffer.buffer.block().closed.load(Ordering::Relaxed) != 0)
        {
            self.end();
        }
        self.look();
    }

    /// Rings for every armed buffer: switches under an earlier connection may have gone unheard.
    pub(crate) fn ring_for_all(&self) {
        for wanted in self.cpu_buffers.iter().filter_map(|cpu_buffer| cpu_buffer.buffer.wake_wanted()) {
            if self.doorbell.ring() {
                wanted.rung();
            }
        }
    }
}

/// Counts a message in a buffer: in the given counter if the thread is still on its CPU.
fn count_in<R: Executor>(buffer: &Buffer, here: R, counter: impl FnOnce(&BufferBlock) -> &AtomicU64) {
    if !Writer::new(buffer, here).count(1, counter) {
        buffer.count_dropped_elsewhere(1);
    }
}
