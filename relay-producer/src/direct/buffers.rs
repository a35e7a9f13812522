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

mod appending;
mod dropping;
mod writing;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use relay::Geometry;
use relay::ring::buffer::Buffer;
use relay::ring::subbuf_start::{SubbufHeader, SubbufInfo};
use relay::ring::writer::Executor;

use crate::definitions::new_instance;
use crate::direct::attachment::Attachment;
use crate::direct::doorbell::{Doorbell, Endpoints};
use crate::direct::rseq::{PerCpu, Sequences};

/// Longest message that is written directly, in bytes.
/// An interrupted sequence starts over, and a longer one is interrupted more often. The daemon's writers get no
/// signals.
pub const DIRECT_MAX: usize = 64 << 10;
/// Refused messages between two checks that the daemon is still there, without those that a sequence drops.
/// With every sub-buffer full there are no switches at which to check.
const REFUSALS_PER_LOOK: usize = 8;

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
    /// It is on another CPU, cannot run sequences, or cannot read the channel's clock.
    WrongCpu,
    /// The message goes over the socket: it is too long for a direct write, or was interrupted too often.
    /// Nothing was done.
    NeedsSocket,
    /// The channel is a raw one, and the message a record; or the message is not for a timed one.
    OtherKind,
    /// The daemon has given the record's event no id here. The message has been counted.
    NotDefined,
}

/// The result of [`DirectBuffers::write_quick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// The message is in the buffer.
    Written,
    /// The buffer is full, and the message is counted as dropped.
    Dropped,
    /// Nothing was done. The caller should use [`Channel::write`](crate::Channel::write).
    Undone,
}

/// Identity of a control file, under any name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A channel's mapped buffers.
#[derive(Debug)]
pub struct DirectBuffers {
    /// One for each CPU; none if the connection brought none.
    cpu_buffers: PerCpu<CpuBuffer>,
    /// Whether writing has ended.
    /// Causes: the channel was closed, no daemon will read the files, or newer files have replaced them.
    over: AtomicBool,
    control: Option<FileId>,
    doorbell: Doorbell,
    /// Length of the longest payload of a record, in bytes; 0 if the channel is raw. The compiler knows that a payload of
    /// this length or less is not too long for any record.
    record_max: u16,
    is_timed: bool,
    /// Number by which ids of defined events are found.
    instance: u32,
    attachment: Attachment,
}

/// One CPU's buffer.
#[derive(Debug)]
#[repr(align(128))] // threads on other CPUs use other cache lines
struct CpuBuffer {
    buffer: Buffer,
    /// Messages without room, approximately, and without those that a sequence drops.
    refused: AtomicUsize,
}

impl CpuBuffer {
    /// Counts a message without room, and returns their number.
    fn count_refused(&self) -> usize {
        // Relaxed, and not one atomic step: a missed count does not matter.
        let refused = self.refused.load(Ordering::Relaxed).wrapping_add(1);
        self.refused.store(refused, Ordering::Relaxed);
        refused
    }
}

impl DirectBuffers {
    /// Wraps the buffers of all CPUs, in order, of the channel with this control file.
    /// `process` is this process's number there, if the channel is timed, and `pid_there` that in the daemon's PID namespace.
    pub(crate) fn new(
        buffers: Vec<Buffer>,
        control: FileId,
        doorbell: Doorbell,
        process: u32,
        pid_there: u32,
    ) -> DirectBuffers {
        let timed = buffers.first().map(Buffer::geometry).filter(|geometry| geometry.timed());
        let record_max = timed.map_or(0, |geometry| geometry.payload_max().try_into().unwrap_or(u16::MAX));
        let is_timed = timed.is_some();
        let attachment = if is_timed { Attachment::new(process, pid_there) } else { Attachment::none() };
        let cpu_buffer = |buffer| CpuBuffer { buffer, refused: AtomicUsize::new(0) };
        DirectBuffers {
            cpu_buffers: PerCpu::new(Sequences::find(), buffers.into_iter().map(cpu_buffer).collect()),
            over: AtomicBool::new(false),
            control: Some(control),
            doorbell,
            record_max,
            is_timed,
            instance: new_instance(),
            attachment,
        }
    }

    /// Returns a placeholder for a connection that brought no buffers. No message is written there.
    pub fn none() -> DirectBuffers {
        DirectBuffers {
            cpu_buffers: PerCpu::new(None, Vec::new()),
            over: AtomicBool::new(true),
            control: None,
            doorbell: Doorbell::none(),
            record_max: 0,
            is_timed: false,
            instance: new_instance(),
            attachment: Attachment::none(),
        }
    }

    fn number(&self, cpu_buffer: &CpuBuffer) -> usize {
        (std::ptr::from_ref(cpu_buffer).addr() - self.cpu_buffers.all().as_ptr().addr())
            / size_of::<CpuBuffer>()
    }

    /// Returns whether all sub-buffers of a CPU are full; `None` if unknown here.
    pub(crate) fn is_full(&self, cpu: usize) -> Option<bool> {
        let cpu_buffer = self.cpu_buffers.all().get(cpu)?;
        (!self.is_over()).then(|| cpu_buffer.buffer.is_full())
    }

    /// Returns whether the caller can write the buffer of its CPU, which must be `only` if given.
    pub(crate) fn is_here(&self, only: Option<usize>) -> bool {
        self.here(only).is_some()
    }

    /// Returns the buffer of the caller's CPU, which must be `only` if given.
    fn here(&self, only: Option<usize>) -> Option<(&CpuBuffer, impl Executor + use<>)> {
        self.cpu_buffers.here(only)
    }

    /// The same where the C library has registered the calling thread; `None` elsewhere, and [`Self::here`] has to look.
    #[inline(always)]
    fn here_by_c_library(&self, only: Option<usize>) -> Option<(&CpuBuffer, impl Executor + use<>)> {
        self.cpu_buffers.here_by_c_library(only)
    }

    /// Returns the length of the channel's longest message, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.cpu_buffers.all().first().map_or(0, |cpu_buffer| cpu_buffer.buffer.geometry().payload_max())
    }

    /// Returns the length of a timed channel's longest payload, in bytes; 0 if the channel is raw.
    #[inline(always)]
    pub(crate) fn record_max(&self) -> usize {
        self.record_max.into()
    }

    /// Returns whether the channel is timed.
    pub(crate) fn is_timed(&self) -> bool {
        self.is_timed
    }

    /// Returns the number by which ids of defined events are found.
    pub(crate) fn instance(&self) -> u32 {
        self.instance
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
            && self.cpu_buffers.all().len() == n_bufs
            && self.cpu_buffers.all().iter().all(|cpu_buffer| cpu_buffer.buffer.geometry() == geometry)
    }

    /// Returns whether this process made the connection.
    pub(crate) fn is_own(&self) -> bool {
        self.doorbell.is_own()
    }

    /// Returns whether the connection was found ended, or another process's.
    pub(crate) fn is_cut(&self) -> bool {
        self.doorbell.is_cut()
    }

    /// Continues with another connection of this process, which has these numbers on a timed channel.
    ///
    /// The mapping of the control file is one of the new open file from then on. The former open file has the mark of an
    /// earlier daemon, and as long as a mapping keeps it, the daemon takes this process for an orphaned producer.
    pub(crate) fn attach(&self, ends: Endpoints, process: u32, pid_there: u32) {
        // All buffers share the mapping of the control file. If this fails, the process stays an orphan, no more.
        if let (Some(control), Some(first)) = (ends.control.get(), self.cpu_buffers.all().first()) {
            let _ = first.buffer.remap_control(control);
        }
        self.doorbell.replace(ends);
        if self.is_timed() {
            self.attachment.renew(process, pid_there);
        }
    }

    /// Ends all writing here.
    #[cold]
    pub(crate) fn end(&self) {
        // Relaxed: as in `is_over`.
        self.over.store(true, Ordering::Relaxed);
        self.cpu_buffers.all().iter().for_each(|cpu_buffer| cpu_buffer.buffer.stop_appending());
    }

    /// Releases the files and the connection.
    /// Threads inside a call then write to memory without a reader.
    pub(crate) fn retire(&self) {
        self.end();
        for cpu_buffer in self.cpu_buffers.all() {
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

    fn after_refusal(&self, cpu_buffer: &CpuBuffer) {
        if cpu_buffer.count_refused().is_multiple_of(REFUSALS_PER_LOOK) {
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
            .all()
            .iter()
            .any(|cpu_buffer| cpu_buffer.buffer.block().closed.load(Ordering::Relaxed) != 0)
        {
            self.end();
        }
        self.look();
    }

    /// Rings for every armed buffer: switches under an earlier connection may have gone unheard.
    pub(crate) fn ring_for_all(&self) {
        for wanted in self.cpu_buffers.all().iter().filter_map(|cpu_buffer| cpu_buffer.buffer.wake_wanted()) {
            if self.doorbell.ring() {
                wanted.rung();
            }
        }
    }
}
