//! Frozen copies of buffers: what `snapshot/cpuN` shows, from its first open to its last close.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::channel::ChannelRef;
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
        let no_memory = || {
            log::warn!("channel {}: no memory for a snapshot of cpu{cpu}, see --max-memory", channel.name());
            libc::ENOMEM
        };
        let mut extent = channel.read_side(cpu).reader.snapshot_extent();
        let memory = memory.claim(0, extent.max()).map_err(|_| no_memory())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(extent.max()).map_err(|_| no_memory())?;
        // The lock is released after each sub-buffer: the writer and the socket's thread may be waiting for it.
        while channel.read_side(cpu).reader.snapshot_part(&mut extent, &mut bytes) {
            hold_point!("snapshot-part");
        }
        if channel.is_broken() {
            return Err(libc::EIO);
        }
        let snapshot = Arc::new(Snapshot { bytes, _memory: memory });
        *channel.snapshot_slot(cpu).lock() = Arc::downgrade(&snapshot);
        Ok((snapshot, true))
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
