//! Frozen copies of buffers: what `snapshot/cpuN` shows, from the first who opens it until the last who closes it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::channel::ChannelRef;
use crate::hold_point;
use crate::policy::quota::{Quota, Reservation};
use crate::process::free_later;

/// A copy of a buffer.
pub(crate) struct Snapshot {
    bytes: Vec<u8>,
    _memory: Reservation,
}

/// The copy of a buffer that is open, if one is. All opens of a file share what the kernel caches of it, so there is one
/// at a time.
#[derive(Default)]
pub(crate) struct SnapshotSlot(Mutex<Weak<Snapshot>>);

impl Snapshot {
    /// Takes a copy of a buffer, or shares the open one; the flag says whether it is new. On the copier's thread, which
    /// alone takes copies, one after another. An errno if there is no memory for it.
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
        // The lock is let go after each sub-buffer: the writer and the socket's thread may be waiting for it.
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
    /// The last close is a file operation, and freeing a large copy takes long.
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let size = bytes.capacity() as u64;
        free_later::elsewhere(bytes, size);
    }
}

impl SnapshotSlot {
    /// The copy that is open, if one is.
    pub(crate) fn shared(&self) -> Option<Arc<Snapshot>> {
        self.lock().upgrade()
    }

    /// Size of the copy that is open, in bytes.
    pub(crate) fn len(&self) -> Option<u64> {
        self.shared().map(|snapshot| snapshot.bytes.len() as u64)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Weak<Snapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
