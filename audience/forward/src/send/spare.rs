//! Memory of sub-buffers that were on the way, for the next ones.
//!
//! An allocator gives the kernel back what is free at its end, and gets it again a moment later, page by page. That
//! costs as much as the copies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

/// Bytes that are kept, at most.
const BYTES_MAX: usize = 16 << 20;

/// Memory that is free. What was used last is used first: the processor's caches may have it still.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spare(Arc<Mutex<Free>>);

#[derive(Debug, Default)]
struct Free {
    pieces: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// Memory that is spare again when the last of its bytes is dropped.
struct Lent {
    piece: Vec<u8>,
    free: Weak<Mutex<Free>>,
}

impl Spare {
    /// Returns an empty vector with room for this many bytes.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let mut free = lock(&self.0);
        let fits = |piece: &Vec<u8>| (len..=len.saturating_mul(2)).contains(&piece.capacity());
        let place = free.pieces.iter().rposition(fits);
        if let Some(piece) = place.and_then(|place| free.pieces.remove(place)) {
            free.bytes -= piece.capacity();
            return piece;
        }
        drop(free);
        Vec::with_capacity(len)
    }

    /// Returns the bytes of a vector, whose memory is spare when all of them are dropped.
    pub(crate) fn lend(&self, piece: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { piece, free: Arc::downgrade(&self.0) })
    }

    /// Gives the memory up.
    pub(crate) fn clear(&self) {
        *lock(&self.0) = Free::default();
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(free) = self.free.upgrade() else { return };
        let mut free = lock(&free);
        let mut piece = std::mem::take(&mut self.piece);
        piece.clear();
        free.bytes += piece.capacity();
        free.pieces.push_back(piece);
        // The oldest may be of a channel that has gone.
        while free.bytes > BYTES_MAX
            && let Some(oldest) = free.pieces.pop_front()
        {
            free.bytes -= oldest.capacity();
        }
    }
}

fn lock(free: &Mutex<Free>) -> MutexGuard<'_, Free> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(spare: &Spare, len: usize) -> (Bytes, *const u8) {
        let mut piece = spare.take(len);
        assert!(piece.is_empty() && piece.capacity() >= len);
        piece.resize(len, b'x');
        let bytes = spare.lend(piece);
        let at = bytes.as_ptr();
        (bytes, at)
    }

    /// Bytes that are kept, and in how many pieces.
    fn kept(spare: &Spare) -> (usize, usize) {
        let free = lock(&spare.0);
        (free.bytes, free.pieces.len())
    }

    #[test]
    fn memory_is_used_again_when_all_of_its_bytes_are_dropped() {
        let spare = Spare::default();
        let (first, at) = body(&spare, 5000);
        let part = first.slice(10..20);
        drop(first);
        let (second, other) = body(&spare, 5000);
        assert_ne!(at, other, "a part of it is in use");
        drop(part);
        let (third, again) = body(&spare, 4000);
        assert_eq!(at, again);
        assert_eq!((&second[..], &third[..]), (&[b'x'; 5000][..], &[b'x'; 4000][..]));
        drop((second, third));
        spare.clear();
        assert_eq!(kept(&spare), (0, 0));
    }

    #[test]
    fn what_is_kept_is_bounded_and_fits() {
        let spare = Spare::default();
        let len = 3 << 20;
        drop((0..10).map(|_| body(&spare, len).0).collect::<Vec<_>>());
        let n = BYTES_MAX / len;
        assert_eq!(kept(&spare), (n * len, n));
        // Small bodies take no large memory, and large memory makes room.
        drop((0..10).map(|_| body(&spare, 1 << 20).0).collect::<Vec<_>>());
        let sizes: Vec<usize> = lock(&spare.0).pieces.iter().map(|piece| piece.capacity() >> 20).collect();
        assert_eq!(sizes, [&[3; 2][..], &[1; 10]].concat());
        let (last, _) = body(&spare, 1000);
        drop(spare);
        assert_eq!(last.len(), 1000);
    }
}
