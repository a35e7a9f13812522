//! Bounds the memory of what waits: bodies in parts, sub-buffers before their turn, and texts that are kept.
//!
//! A merge needs a sub-buffer of each lane. So lanes stop reading ahead first, and beyond the bound bodies are refused.

use std::sync::{Arc, Mutex, PoisonError};

/// Most bytes of all lanes together.
pub(super) const MAX: usize = 1 << 30;
/// Bytes beyond which no lane reads ahead.
const TIGHT: usize = 256 << 20;

/// Memory that all lanes share.
#[derive(Debug)]
pub(super) struct Room {
    used: Mutex<usize>,
    max: usize,
    tight: usize,
}

impl Default for Room {
    fn default() -> Room {
        Room { used: Mutex::new(0), max: MAX, tight: TIGHT }
    }
}

impl Room {
    /// Returns room for this much.
    #[cfg(test)]
    pub(super) fn of(max: usize) -> Arc<Room> {
        Arc::new(Room { used: Mutex::new(0), max, tight: max / 4 })
    }

    /// Returns a share without bytes.
    pub(super) fn share(self: &Arc<Room>) -> Share {
        Share { room: Arc::clone(self), bytes: 0 }
    }

    /// Whether a lane should wait with what is not needed yet.
    pub(super) fn is_tight(&self) -> bool {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) > self.tight
    }
}

/// The memory of a body or a text; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    room: Arc<Room>,
    bytes: usize,
}

impl Share {
    /// Takes more bytes. Returns whether there is room for them.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let mut used = self.room.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(more) = used.checked_add(bytes).filter(|more| *more <= self.room.max) else {
            return false;
        };
        *used = more;
        self.bytes += bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.room.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_and_comes_back() {
        let room = Room::of(100);
        let (mut one, mut two) = (room.share(), room.share());
        assert!(one.grow(20) && !room.is_tight());
        assert!(two.grow(60) && two.grow(20) && room.is_tight());
        assert!(!one.grow(1) && !one.grow(usize::MAX));
        drop(two);
        assert!(!room.is_tight() && one.grow(80) && !one.grow(1));
    }
}
