//! Frozen copies of buffers: `snapshot/cpuN` shows one from its first open to its last close.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::channel::open_copy::{CopyRef, CopyUse};
use crate::channel::timed::packets::Marks;
use crate::channel::timed::trace_text;
use crate::channel::{Channel, ChannelRef};
use crate::hold_point;
use crate::policy::quota::{Quota, Reservation, USED_UP};
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
pub(crate) struct SnapshotSlot(Mutex<CopyRef<Snapshot>>);

impl Snapshot {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Copies a buffer, or shares the open copy. The flag says whether the copy is new.
    ///
    /// Runs on the copier's thread, which alone takes copies, one after another. Fails with an errno if memory is
    /// short.
    pub(crate) fn take(
        memory: &Arc<Quota>,
        channel: &ChannelRef,
        cpu: usize,
        thread: u32,
    ) -> Result<(CopyUse<Snapshot>, bool), i32> {
        channel.snapshot_slot(cpu).open(thread, || Snapshot::copy(memory, channel, cpu))
    }

    /// Copies all buffers as text, or shares the open copy, like [`Snapshot::take`].
    pub(crate) fn trace(
        memory: &Arc<Quota>,
        channel: &ChannelRef,
        thread: u32,
    ) -> Result<(CopyUse<Snapshot>, bool), i32> {
        channel.trace_slot().open(thread, || trace_text::text(memory, channel))
    }

    /// Copies a buffer: its bytes, or the packets of a timed channel.
    pub(crate) fn copy(
        memory: &Arc<Quota>,
        channel: &ChannelRef,
        cpu: usize,
    ) -> Result<(Vec<u8>, Reservation), i32> {
        let no_memory = |why: &dyn fmt::Display| {
            log::warn!("channel {}: no memory for a snapshot of cpu{cpu}: {why}", channel.name());
            libc::ENOMEM
        };
        let used_up = |_| no_memory(&USED_UP);
        let mut extent = channel.read_side(cpu).reader.snapshot_extent();
        let mut memory = memory.claim(0, extent.max()).map_err(used_up)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(extent.max()).map_err(|error| no_memory(&error))?;
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
        memory.grow(marks.packets_max()).map_err(used_up)?;
        let mut packets = Vec::new();
        packets.try_reserve_exact(marks.packets_max()).map_err(|error| no_memory(&error))?;
        let part = |range: Range<usize>| Ok(bytes[range].into());
        marks.packets(channel, timed, cpu, part, |packet| {
            packets.extend_from_slice(packet);
            Ok::<(), i32>(())
        })?;
        drop(bytes);
        memory.shrink(packets.capacity());
        Ok((packets, memory))
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
    /// Shares the open copy with a file that a thread has opened, or makes one. The flag says whether it is new.
    fn open(
        &self,
        thread: u32,
        copy: impl FnOnce() -> Result<(Vec<u8>, Reservation), i32>,
    ) -> Result<(CopyUse<Snapshot>, bool), i32> {
        let found = self.lock().clone();
        if let Some(shared) = found.share_unless_closed(thread) {
            return Ok((shared, false));
        }
        let (bytes, memory) = copy()?;
        let (new, found) = CopyUse::new(Snapshot { bytes, _memory: memory }, thread);
        *self.lock() = found;
        Ok((new, true))
    }

    /// Returns the size of the open copy, in bytes.
    pub(crate) fn len(&self) -> Option<u64> {
        let snapshot = self.lock().get()?;
        Some(snapshot.bytes.len() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, CopyRef<Snapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    /// Returns the size of the open text of all buffers.
    ///
    /// If there is none, returns that of their packets: only an open makes the text.
    pub(crate) fn trace_len(&self) -> u64 {
        self.trace.len().unwrap_or_else(|| {
            (0..self.n_bufs())
                .fold(0, |sum: u64, cpu| sum.saturating_add(self.read_side(cpu).reader.snapshot_len()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_is_made_again_after_its_end() {
        let slot = SnapshotSlot::default();
        let open = |bytes: &[u8]| {
            let copy = || Ok((bytes.to_vec(), Quota::new(100).claim(0, 10).unwrap()));
            slot.open(std::process::id(), copy).unwrap()
        };
        let (first, is_new) = open(b"first");
        assert!(is_new);
        let (second, is_new) = open(b"second");
        assert_eq!((second.bytes(), is_new), (&b"first"[..], false));
        drop((first, second));
        let (third, is_new) = open(b"third");
        assert_eq!((third.bytes(), is_new, slot.len()), (&b"third"[..], true, Some(5)));
    }
}
