//! Bounds what is on the way to the server: messages, and the memory that they take.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of sub-buffers on the way, at most. A sub-buffer that is larger goes alone.
const BYTES_MAX: usize = 32 << 20;
/// Bytes that a unit stands for.
const UNIT: usize = 512;

/// Room for messages, in units. A message takes what its bytes take, and a fair part of the units at least.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    units: Arc<Semaphore>,
    /// Fewest units of a message, so that they are enough for as many messages as the window has.
    each: usize,
    total: usize,
}

/// Room for one message. It is free again when this is dropped.
pub(crate) type Room = OwnedSemaphorePermit;

impl Window {
    /// Returns a window for this many messages.
    pub(crate) fn new(messages: usize) -> Window {
        let each = (BYTES_MAX / UNIT).div_ceil(messages.max(1));
        let total = each * messages.max(1);
        Window { units: Arc::new(Semaphore::new(total)), each, total }
    }

    /// Returns room for a message of this many bytes, if there is room now, and no message waits.
    pub(crate) fn try_enter(&self, bytes: usize) -> Option<Room> {
        self.units.clone().try_acquire_many_owned(self.units_of(bytes)).ok()
    }

    /// Waits for room for a message of this many bytes. The first that waits is the first to get it.
    pub(crate) async fn enter(&self, bytes: usize) -> Option<Room> {
        // It is never closed.
        self.units.clone().acquire_many_owned(self.units_of(bytes)).await.ok()
    }

    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).max(self.each).min(self.total)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many messages of a size have room at the same time.
    fn fit(window: &Window, bytes: usize) -> usize {
        std::iter::from_fn(|| window.try_enter(bytes)).collect::<Vec<Room>>().len()
    }

    #[test]
    fn window_bounds_messages_and_bytes() {
        for messages in [1, 2, 3, 64, 1000, 40_000, 65_536] {
            let window = Window::new(messages);
            assert_eq!(fit(&window, 0), messages);
            assert_eq!(fit(&window, 512), messages);
            assert_eq!(fit(&window, 64 << 20), 1, "a large one goes alone");
            assert_eq!(fit(&window, usize::MAX), 1);
            let n = fit(&window, 4 << 20);
            assert!(n >= messages.min(8) && n * (4 << 20) <= BYTES_MAX + messages * UNIT, "{messages}: {n}");
        }
    }
}
