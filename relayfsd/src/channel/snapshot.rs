//! Frozen copies of buffers: `snapshot/cpuN` shows one from its first open to its last close.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::channel::ChannelRef;
use crate::channel::timed::packets::Marks;
use crate::channel::timed::trace_text;
use crate::hold_point;
use crate::policy::quota::{Quota, Reservation, USED_UP};
use crate::process::free_later;

/// Longest wait for the end of a copy whose users have all closed a descriptor of it.
///
/// A descriptor that was duplicated, or a mapping, may hold it longer. Then it is shared, and later opens do not wait.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// A frozen copy of a buffer.
pub(crate) struct Snapshot {
    bytes: Vec<u8>,
    _memory: Reservation,
    /// Number of its open files of which no process has closed a descriptor.
    users: AtomicUsize,
    /// The copy's end closes it.
    _alive: Sender<Infallible>,
}

/// An open file's use of a copy.
pub(crate) struct SnapshotUse {
    snapshot: Arc<Snapshot>,
    /// Whether a process has closed a descriptor.
    is_closed: AtomicBool,
}

/// A buffer's open copy, if there is one.
///
/// All opens of a file share the bytes that the kernel caches for it. So a buffer has one copy at a time.
#[derive(Default)]
pub(crate) struct SnapshotSlot(Mutex<Option<Open>>);

struct Open {
    snapshot: Weak<Snapshot>,
    /// Is closed at the copy's end.
    end: Receiver<Infallible>,
    /// Whether an open has waited for that as long as it may.
    is_held: bool,
}

impl Snapshot {
    /// Copies a buffer, or shares the open copy. The flag says whether the copy is new.
    ///
    /// Runs on the copier's thread, which alone takes copies, one after another. Fails with an errno if memory is
    /// short.
    pub(crate) fn take(
        memory: &Arc<Quota>,
        channel: &ChannelRef,
        cpu: usize,
    ) -> Result<(SnapshotUse, bool), i32> {
        channel.snapshot_slot(cpu).open(|| Snapshot::copy(memory, channel, cpu))
    }

    /// Copies all buffers as text, or shares the open copy, like [`Snapshot::take`].
    pub(crate) fn trace(memory: &Arc<Quota>, channel: &ChannelRef) -> Result<(SnapshotUse, bool), i32> {
        channel.trace_slot().open(|| trace_text::text(memory, channel))
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

// Relaxed in all that follows: the counts order no other memory. Close(2) returns after its FLUSH was answered, and the
// kernel passes a later open on after that.
impl SnapshotUse {
    fn new(snapshot: Arc<Snapshot>) -> SnapshotUse {
        snapshot.users.fetch_add(1, Ordering::Relaxed);
        SnapshotUse { snapshot, is_closed: AtomicBool::new(false) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.snapshot.bytes
    }

    /// Called when a process closes a descriptor. RELEASE comes later, perhaps after the next open.
    pub(crate) fn close(&self) {
        if !self.is_closed.swap(true, Ordering::Relaxed) {
            self.snapshot.users.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for SnapshotUse {
    fn drop(&mut self) {
        self.close();
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
    /// Shares the open copy, or makes one. The flag says whether it is new.
    ///
    /// A process that has closed its copy finds what was written since: the open waits for the end of the old one.
    fn open(
        &self,
        copy: impl FnOnce() -> Result<(Vec<u8>, Reservation), i32>,
    ) -> Result<(SnapshotUse, bool), i32> {
        let open = |open: &Open| Some((open.snapshot.upgrade()?, open.end.clone(), open.is_held));
        let open = self.lock().as_ref().and_then(open);
        if let Some((snapshot, end, is_held)) = open {
            if is_held || snapshot.users.load(Ordering::Relaxed) > 0 {
                return Ok((SnapshotUse::new(snapshot), false));
            }
            let closed = Arc::downgrade(&snapshot);
            drop(snapshot);
            if end.recv_timeout(CLOSE_MAX) == Err(RecvTimeoutError::Timeout)
                && let Some(held) = closed.upgrade()
            {
                self.lock().iter_mut().for_each(|open| open.is_held = true);
                return Ok((SnapshotUse::new(held), false));
            }
        }
        let (bytes, memory) = copy()?;
        let (alive, end) = bounded(0);
        let snapshot =
            Arc::new(Snapshot { bytes, _memory: memory, users: AtomicUsize::new(0), _alive: alive });
        *self.lock() = Some(Open { snapshot: Arc::downgrade(&snapshot), end, is_held: false });
        Ok((SnapshotUse::new(snapshot), true))
    }

    /// Returns the size of the open copy, in bytes.
    pub(crate) fn len(&self) -> Option<u64> {
        let snapshot = self.lock().as_ref()?.snapshot.upgrade()?;
        Some(snapshot.bytes.len() as u64)
    }

    #[cfg(test)]
    fn is_held(&self) -> Option<bool> {
        self.lock().as_ref().map(|open| open.is_held)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(slot: &SnapshotSlot, bytes: &[u8]) -> (SnapshotUse, bool) {
        let copy = || Ok((bytes.to_vec(), Quota::new(100).claim(0, 10).unwrap()));
        slot.open(copy).unwrap()
    }

    #[test]
    fn copy_is_shared_until_its_users_close_it() {
        let slot = SnapshotSlot::default();
        let (first, is_new) = open(&slot, b"first");
        assert!(is_new);
        let (second, is_new) = open(&slot, b"second");
        assert_eq!((second.bytes(), is_new), (&b"first"[..], false));
        first.close();
        assert!(!open(&slot, b"second").1, "one of two has closed it");
        drop((first, second));
        let (third, is_new) = open(&slot, b"third");
        assert_eq!((third.bytes(), is_new, slot.len()), (&b"third"[..], true, Some(5)));
    }

    /// The file of a closed descriptor may have another one, or reads on their way. Only the first open waits for its end.
    #[test]
    fn copy_that_is_held_is_shared() {
        let slot = SnapshotSlot::default();
        let (held, _) = open(&slot, b"held");
        held.close();
        assert_eq!(held.bytes(), b"held");
        assert_eq!(slot.is_held(), Some(false));
        assert!(!open(&slot, b"second").1);
        assert_eq!(slot.is_held(), Some(true));
        drop(held);
        assert!(open(&slot, b"third").1);
        assert_eq!(slot.is_held(), Some(false));
    }
}
