//! Waking the daemon, by producers that map a buffer, when somebody polls it.
//!
//! `wake` is odd while the daemon wants to know of the next switch; each arming takes a new odd value.
//!
//! ```text
//! daemon:   wake <- odd         G     writer:   state <- ..  (a switch)
//!           full fence          H               full fence              J
//!           look at state                       w <- wake; if odd: ring the bell, wake: w -> w + 1
//! ```
//!
//! G: each arming takes a value that no ring under way has, so that a late one does not undo it.
//! H with J: of the two looks at least one sees what the other side stored, so either the daemon finds the switch or the
//! writer finds the word odd; nothing weaker than full fences orders a store before a later load of something else. The
//! bell rings *before* the word is made even: a writer that is killed in between leaves one ring too many, never one too
//! few. The compare-and-exchange cannot undo a newer arming, which has another value. Nobody waits: one load a switch.

use crate::memory::sync::{Ordering, fence};
use crate::ring::buffer::Buffer;

/// A writer's promise to ring; consumed by [`WakeWanted::rung`].
#[derive(Debug)]
#[must_use]
pub struct WakeWanted<'a> {
    buffer: &'a Buffer,
    armed: u64,
}

impl Buffer {
    /// Asks writers to ring the bell at the next switch. To be followed by a look at the buffer: what was switched
    /// before, nobody rings for.
    pub fn arm(&self) {
        let wake = &self.block().wake;
        // Relaxed, both: the fence orders it. One indivisible step, so that the new value differs from every older one.
        let _ =
            wake.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some((now | 1).wrapping_add(2)));
        fence(Ordering::SeqCst); // H, pairs with J
    }

    /// After a switch: whether the bell is to be rung.
    pub fn wake_wanted(&self) -> Option<WakeWanted<'_>> {
        fence(Ordering::SeqCst); // J, pairs with H
        // Relaxed: ordered by the fence.
        let armed = self.block().wake.load(Ordering::Relaxed);
        (armed & 1 == 1).then_some(WakeWanted { buffer: self, armed })
    }
}

impl WakeWanted<'_> {
    /// The bell has been rung: others need not.
    pub fn rung(self) {
        let wake = &self.buffer.block().wake;
        // Relaxed: whether it succeeds only decides who else rings. A failure is a newer arming, which stays.
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
    fn one_ring_for_each_arming_and_a_late_one_does_not_undo_a_newer() {
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
