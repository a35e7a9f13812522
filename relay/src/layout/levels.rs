//! The levels file of a timed channel: the directives that say which messages producers write.
//!
//! The daemon is the only writer. Producers map the file, and look at [`LevelPage::change`] before each message.
//!
//! ```text
//! daemon   release fence                                producer   c <- change (Acquire)
//!          the other slot's text and length                        copy slot c % 2
//!          change <- change + 1 (Release)                          acquire fence; change is still c, or once more
//! ```
//!
//! L: a producer that copied a byte of a later text also sees a later number, by the two fences; and one that sees the
//! number sees its whole text. A daemon that dies in between leaves the number, and with it the text before.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::thread::futex::{self, Flags, Timespec};

use crate::memory::sync::AtomicByte;

/// Length of the file in bytes.
pub const LEVELS_LEN: u64 = 4096;
/// Version of the file's layout.
pub const LEVELS_VERSION: u32 = 1;
/// Longest text of directives, in bytes.
pub const LEVELS_TEXT_MAX: usize = 1024;
/// First bytes of the file.
const MAGIC: u64 = u64::from_le_bytes(*b"relaylev");
/// Copies that a producer makes before it continues without a text.
const TRIES: usize = 64;

/// The contents of a levels file.
#[repr(C)]
pub struct LevelPage {
    magic: AtomicU64,
    version: AtomicU32,
    pad0: [AtomicByte; 52],
    /// Number of changes so far; the text is in slot `change % 2`. Producers wait for changes by futex(2).
    change: AtomicU32,
    pad1: [AtomicByte; 60],
    slots: [Slot; 2],
    pad2: [AtomicByte; 1792],
}

/// A text of directives.
#[repr(C)]
struct Slot {
    len: AtomicU32,
    pad: [AtomicByte; 60],
    text: [AtomicByte; LEVELS_TEXT_MAX],
}

impl fmt::Debug for LevelPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelPage").field("change", &self.change).finish_non_exhaustive()
    }
}

/// A copy of a text of directives.
#[derive(Clone, Copy)]
pub struct LevelText {
    change: u32,
    len: usize,
    bytes: [u8; LEVELS_TEXT_MAX],
}

impl LevelText {
    /// Returns the number of the change that made it.
    pub fn change(&self) -> u32 {
        self.change
    }

    /// Returns the text. Only the daemon can have written it, and the caller checks it all the same.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl LevelPage {
    /// Makes a new, zeroed file one without directives.
    pub fn init(&self) {
        // Relaxed, both: no other process has the file yet.
        self.version.store(LEVELS_VERSION, Ordering::Relaxed);
        self.magic.store(MAGIC, Ordering::Relaxed);
    }

    /// Returns whether it is a levels file that this release can read.
    pub fn is_known(&self) -> bool {
        // Relaxed, both: they never change in a file that other processes have.
        self.magic.load(Ordering::Relaxed) == MAGIC && self.version.load(Ordering::Relaxed) == LEVELS_VERSION
    }

    /// Returns the number of changes so far.
    #[inline(always)]
    pub fn change(&self) -> u32 {
        // Relaxed: `text` orders the rest.
        self.change.load(Ordering::Relaxed)
    }

    /// Returns the present text; `None` if it changes without end.
    pub fn text(&self) -> Option<LevelText> {
        (0..TRIES).find_map(|_| {
            // L: Acquire, pairs with the Release of a change.
            let change = self.change.load(Ordering::Acquire);
            let slot = &self.slots[change as usize % 2];
            let mut text = LevelText {
                change,
                // Relaxed, here and below: L orders them.
                len: (slot.len.load(Ordering::Relaxed) as usize).min(LEVELS_TEXT_MAX),
                bytes: [0; LEVELS_TEXT_MAX],
            };
            for (to, from) in text.bytes[..text.len].iter_mut().zip(&slot.text) {
                *to = from.load(Ordering::Relaxed);
            }
            // L: pairs with the fence before a change.
            fence(Ordering::Acquire);
            (self.change.load(Ordering::Relaxed) == change).then_some(text)
        })
    }

    /// Sets the text, and wakes those that wait for a change. Only one thread of the daemon may call it at a time.
    /// False: the text is too long.
    pub fn set(&self, text: &str) -> bool {
        if text.len() > LEVELS_TEXT_MAX {
            return false;
        }
        // Relaxed: the daemon is the only writer.
        let next = self.change.load(Ordering::Relaxed).wrapping_add(1);
        // L: the bytes below are not seen before the last change.
        fence(Ordering::Release);
        let slot = &self.slots[next as usize % 2];
        slot.len.store(text.len() as u32, Ordering::Relaxed);
        for (to, from) in slot.text.iter().zip(text.as_bytes()) {
            to.store(*from, Ordering::Relaxed);
        }
        // L: Release, pairs with the Acquire in `text`.
        self.change.store(next, Ordering::Release);
        self.wake();
        true
    }

    /// Wakes those that wait for a change, though there is none.
    pub fn wake(&self) {
        // Without futex(2) they look after a while.
        let _ = futex::wake(&self.change, Flags::empty(), i32::MAX.unsigned_abs());
    }

    /// Waits until the number of changes is another one, at most this long. It may return early.
    pub fn wait(&self, change: u32, limit: Duration) {
        let limit = Timespec::try_from(limit).ok();
        // An error is a change, a signal, the end of the time, or memory that the file has lost: the caller looks again.
        let _ = futex::wait(&self.change, Flags::empty(), change, limit.as_ref());
    }
}

const _: () = {
    use std::mem::offset_of;

    assert!(size_of::<LevelPage>() == LEVELS_LEN as usize);
    assert!(offset_of!(LevelPage, version) == 8);
    assert!(offset_of!(LevelPage, change) == 64);
    assert!(offset_of!(LevelPage, slots) == 128);
    assert!(size_of::<Slot>() == 1088);
    assert!(offset_of!(Slot, text) == 64);
};

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::memory::mapping::{Located, Mapping};

    fn page() -> Located<LevelPage> {
        let page = Located::<LevelPage>::new(&Arc::new(Mapping::anonymous(LEVELS_LEN).unwrap()), 0).unwrap();
        assert!(!page.is_known());
        page.init();
        assert!(page.is_known());
        page
    }

    #[test]
    fn text_is_the_last_one_and_bounded() {
        let page = page();
        assert_eq!((page.change(), page.text().unwrap().bytes()), (0, &b""[..]));
        for (text, change) in [("info,app::db=debug", 1), ("off", 2), ("", 3), ("trace", 4)] {
            assert!(page.set(text));
            let found = page.text().unwrap();
            assert_eq!((found.change(), found.bytes()), (change, text.as_bytes()));
        }
        assert!(!page.set(&"x".repeat(LEVELS_TEXT_MAX + 1)));
        assert!(page.set(&"x".repeat(LEVELS_TEXT_MAX)));
        assert_eq!(page.text().unwrap().bytes().len(), LEVELS_TEXT_MAX);
        // What only a damaged file says.
        page.slots[1].len.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(page.text().unwrap().bytes().len(), LEVELS_TEXT_MAX);
    }

    #[test]
    fn copies_are_whole_while_the_text_changes_and_waiters_wake() {
        const LAST: u32 = 2000;
        let page = &page();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    while page.change() < LAST {
                        if let Some(text) = page.text() {
                            let first = text.bytes().first().copied();
                            assert!(text.bytes().iter().all(|byte| Some(*byte) == first));
                        }
                    }
                });
            }
            scope.spawn(move || {
                while page.change() < LAST {
                    page.wait(page.change(), Duration::from_secs(1000));
                }
            });
            for number in 0..LAST as usize {
                let text = ["a", "b", "c"][number % 3].repeat(1 + number % LEVELS_TEXT_MAX);
                assert!(page.set(&text));
            }
        });
    }
}
