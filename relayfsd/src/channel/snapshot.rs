//! Frozen copies of buffers: `snapshot/cpuN` shows one from its first open to its last close.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::channel::ChannelRef;
use crate::channel::timed::packets::Marks;
use crate::channel::timed::trace_text;
use crate::hold_point;
use crate::policy::quota::{Quota, Reservation};
use crate::process::free_later;

/// A frozen copy of a buffer.
pub(crate) struct Snapshot {
    bytes: Vec<u8>,
    _memory: Reservation,
}

/// A buffer's open copy, if there is one.
///
/// All opens of a file share the bytes that the kernel caches for it. So a buffer has one copy at a time.
#[derive(Default)]
pub(crate) struct SnapshotSlot(Mutex<Weak<Snapshot>>);

impl Snapshot {
    /// Copies a buffer, or shares the open copy. The flag says whether the copy is new.
    ///
    /// Runs on the copier's thread, which alone takes copies, one after another. Fails with an errno if memory is
    /// short.
    pub(crate) fn take(
        memory: &Arc<Quota>,
        channel: &ChannelRef,
        cpu: usize,
    ) -> Result<(Arc<Snapshot>, bool), i32> {
        if let Some(open) = channel.snapshot_slot(cpu).shared() {
            return Ok((open, false));
        }
        let (bytes, memory) = Snapshot::copy(memory, channel, cpu)?;
        let snapshot = Arc::new(Snapshot { bytes, _memory: memory });
        *channel.snapshot_slot(cpu).lock() = Arc::downgrade(&snapshot);
        Ok((snapshot, true))
    }

    /// Copies all buffers as text, or shares the open copy, like [`Snapshot::take`].
    pub(crate) fn trace(memory: &Arc<Quota>, channel: &ChannelRef) -> Result<(Arc<Snapshot>, bool), i32> {
        if let Some(open) = channel.trace_slot().shared() {
            return Ok((open, false));
        }
        let (bytes, memory) = trace_text::text(memory, channel)?;
        let snapshot = Arc::new(Snapshot { bytes, _memory: memory });
        *channel.trace_slot().lock() = Arc::downgrade(&snapshot);
        Ok((snapshot, true))
    }

    /// Copies a buffer: its bytes, or the packets of a timed channel.
    pub(crate) fn copy(
        memory: &Arc<Quota>,
        channel: &ChannelRef,
        cpu: usize,
    ) -> Result<(Vec<u8>, Reservation), i32> {
        let no_memory = || {
            log::warn!("channel {}: no memory for a snapshot of cpu{cpu}, see --max-memory", channel.name());
            libc::ENOMEM
        };
        let mut extent = channel.read_side(cpu).reader.snapshot_extent();
        let mut memory = memory.claim(0, extent.max()).map_err(|_| no_memory())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(extent.max()).map_err(|_| no_memory())?;
        let mut marks = Marks::default();
        // The lock is released after each sub-buffer: the writer and the socket's thread may be waiting for it.
        loop {
            let side = channel.read_side(cpu);
            let more = side.reader.snapshot_part(&mut extent, &mut bytes);
            if channel.timed().is_some() {
                let mark = side.reader.snapshot_mark(&extent);
                marks.add(mark.at, bytes.len() - mark.at, [mark]);
            }
            drop(side);
            if !more {
                break;
            }
            hold_point!("snapshot-part");
        }
        if channel.is_broken() {
            return Err(libc::EIO);
        }
        let Some(timed) = channel.timed() else { return Ok((bytes, memory)) };
        memory.grow(marks.packets_max()).map_err(|_| no_memory())?;
        let mut packets = Vec::new();
        packets.try_reserve_exact(marks.packets_max()).map_err(|_| no_memory())?;
        let part = |range: Range<usize>| Ok(bytes[range].into());
        marks.packets(channel, timed, cpu, part, |packet| {
            packets.extend_from_slice(packet);
            Ok::<(), i32>(())
        })?;
        drop(bytes);
        memory.shrink(packets.capacity());
        Ok((packets, memory))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Snapshot {
    /// Frees the bytes on another thread: that takes long, and this thread serves files.
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let size = bytes.capacity() as u64;
        free_later::elsewhere(bytes, size);
    }
}

impl SnapshotSlot {
    /// Returns the open copy, if there is one.
    pub(crate) fn shared(&self) -> Option<Arc<Snapshot>> {
        self.lock().upgrade()
    }

    /// Returns the size of the open copy, in bytes.
    pub(crate) fn len(&self) -> Option<u64> {
        self.shared().map(|snapshot| snapshot.bytes.len() as u64)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Weak<Snapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
