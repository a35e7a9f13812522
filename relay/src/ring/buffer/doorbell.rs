//! The doorbell: direct producers wake the daemon while a process polls the buffer.
//!
//! `wake` is odd while the daemon waits for the next switch; each arming stores a new odd value.
//!
//! ```text
//! daemon:   wake <- odd         G     writer:   state <- ..  (a switch)
//!           full fence          H               full fence              J
//!           look at state                       w <- wake; if odd: ring the bell, wake: w -> w + 1
//! ```
//!
//! G: each arming stores a value that no ring in progress has, so that a late ring does not undo a newer arming. H with
//! J: at least one side sees what the other side stored. Either the daemon finds the switch, or the writer finds the
//! word odd. Only full fences order a store before a later load of another word.
//!
//! The bell rings *before* the word becomes even. A writer killed in between leaves one ring too many, never one too
//! few. The compare-and-exchange cannot undo a newer arming, which has another value. No thread waits: the price is one
//! load a switch.

use crate::memory::sync::{Ordering, fence};
use crate::ring::buffer::Buffer;

/// A writer's duty to ring; [`WakeWanted::rung`] ends it.
#[derive(Debug)]
#[must_use]
pub struct WakeWanted<'a> {
    buffer: &'a Buffer,
    armed: u64,
}

impl Buffer {
    /// Asks writers to ring the bell at the next switch.
    /// The caller must look at the buffer afterwards: no writer rings for an earlier switch.
    pub fn arm(&self) {
        let wake = &self.block().wake;
        // Relaxed, both: the fence orders them. One atomic step, so that the new value differs from every older one.
        let _ =
            wake.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some((now | 1).wrapping_add(2)));
        fence(Ordering::SeqCst); // H, pairs with J
    }

    /// Returns a duty to ring if the daemon waits. Call it after a switch.
    pub fn wake_wanted(&self) -> Option<WakeWanted<'_>> {
        fence(Ordering::SeqCst); // J, pairs with H
        // Relaxed: ordered by the fence.
        let armed = self.block().wake.load(Ordering::Relaxed);
        (armed & 1 == 1).then_some(WakeWanted { buffer: self, armed })
    }
}

impl WakeWanted<'_> {
    /// Records that the bell has rung, so that other writers need not ring.
    pub fn rung(self) {
        let wake = &self.buffer.block().wake;
        // Relaxed: success only decides whether other writers ring as well. Failure means a newer arming, which stays.
        let _ = wake.compare_exchange(
            self.armed,
            self.armed.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::GeometrySpec;
    use crate::ring::buffer::Buffer;

    #[test]
    fn late_ring_does_not_undo_newer_arming() {
        let buffer = Buffer::anonymous(GeometrySpec::default().build().unwrap(), 0).unwrap();
        assert!(buffer.wake_wanted().is_none());
        buffer.arm();
        let late = buffer.wake_wanted().unwrap();
        buffer.wake_wanted().unwrap().rung();
        assert!(buffer.wake_wanted().is_none());
        buffer.arm();
        late.rung();
        assert!(buffer.wake_wanted().is_some());
    }
}
