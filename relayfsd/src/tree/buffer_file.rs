//! A buffer's open file: which bytes a read at an offset gets.
//!
//! The file keeps the end of what it has read or passed over, for a reader that seeks back ([`ReadHistory`]).
//!
//! ```text
//! history of the file         begin             kept_at            end
//!                               |  not kept now    |      kept      |
//! ------------------------------+------------------+----------------+-----------------------------+---------->
//!     EndOnce, if kept_at       |  Dropped, if the |    History     |            Live             |  PastEnd
//!     is still begin            |  file passed by  |                |                             |
//! ------------------------------+------------------+----------------+-----------------------------+---------->
//! stream of the buffer                                       position, of all readers          size
//!                                         consumed by a reader |            unread                |
//! ```
//!
//! Where the file passed by, offsets before `begin` are `Dropped` as well. Every other offset up to `size` is `Live`.
//! The continuation of a live read starts at the later one of its offset and `position`. Where the offset is later, the
//! read passes over what is unread before it, and the history keeps that. Where `position` is later, another reader has
//! consumed the bytes at the offset, and the file gets the next unread ones in their place.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use relay::memory::lent::Lent;

use crate::channel::ChannelRef;
use crate::channel::integrity::ReadGuard;
use crate::kill_point;
use crate::policy::quota::Reservation;
use crate::tree::endless_copy::Spin;
use crate::tree::read_history::ReadHistory;
use crate::writers::Writers;

/// A buffer's open file.
pub(crate) struct OpenBuffer {
    pub(crate) channel: ChannelRef,
    pub(crate) cpu: usize,
    /// Whether it was opened for reading.
    pub(crate) readable: bool,
    past: Mutex<ReadHistory>,
    spin: Mutex<Spin>,
}

/// What a read of a buffer's file gets, by its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadClass {
    /// The bytes that the file keeps, once more.
    History,
    /// ESPIPE: the file passed over these bytes and does not keep them now.
    Dropped,
    /// The end of the file, once: the file found its first bytes behind this offset. The history then begins here.
    EndOnce,
    /// The end of the file: the offset is one of another stream, or of nothing yet. What is unread is left for others.
    PastEnd,
    /// What is unread.
    Live,
}

impl ReadClass {
    /// Classifies a read at `at`. Calls `size`, which returns the buffer's size, only where the history does not decide.
    fn of(past: &ReadHistory, at: u64, size: impl FnOnce() -> u64) -> ReadClass {
        if past.keeps(at) {
            ReadClass::History
        } else if past.has_dropped(at) {
            ReadClass::Dropped
        } else if past.begins_after(at) {
            ReadClass::EndOnce
        } else if at > size() {
            ReadClass::PastEnd
        } else {
            ReadClass::Live
        }
    }
}

thread_local! {
    /// Where replies are gathered that do not lie in one piece in the ring.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl OpenBuffer {
    /// Opens the file of a buffer. `room` is for what the file keeps.
    pub(crate) fn new(channel: ChannelRef, cpu: usize, readable: bool, room: Reservation) -> OpenBuffer {
        OpenBuffer {
            channel,
            cpu,
            readable,
            past: Mutex::new(ReadHistory::new(room)),
            spin: Mutex::default(),
        }
    }

    /// The kernel was refused bytes for its cache.
    pub(crate) fn refuse_fill(&self) {
        self.spin.lock().unwrap_or_else(PoisonError::into_inner).refuse();
    }

    /// Reads at an offset: passes the bytes, or an errno, to `reply`, once.
    pub(crate) fn read(
        &self,
        writers: &Writers,
        at: u64,
        count: usize,
        reply: impl FnOnce(Result<Lent<'_>, i32>),
    ) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if self.channel.is_broken() {
            return reply(Err(libc::EIO));
        }
        let mut side = None;
        let size = || side.insert(self.channel.read_side(self.cpu)).reader.size();
        match ReadClass::of(&past, at, size) {
            ReadClass::History => reply(Ok(past.again(at, count).into())),
            ReadClass::Dropped => reply(Err(libc::ESPIPE)),
            ReadClass::EndOnce => {
                past.begin_at(at);
                reply(Ok(Lent::from(&[])));
            }
            // The look at the buffer may have found that out.
            ReadClass::PastEnd | ReadClass::Live if self.channel.is_broken() => reply(Err(libc::EIO)),
            ReadClass::PastEnd => reply(Ok(Lent::from(&[]))),
            ReadClass::Live => {
                let side = side.unwrap_or_else(|| self.channel.read_side(self.cpu));
                if self.read_live(side, &mut past, at, count, reply) {
                    writers.make_room(&self.channel, self.cpu);
                }
            }
        }
    }

    /// Reads what is unread, at an offset that is not past the end. Returns whether a batch waits for the room that this
    /// makes.
    fn read_live(
        &self,
        mut side: ReadGuard<'_>,
        past: &mut ReadHistory,
        at: u64,
        count: usize,
        reply: impl FnOnce(Result<Lent<'_>, i32>),
    ) -> bool {
        SCRATCH.with_borrow_mut(|scratch| {
            if side.reader.reserve(count, scratch).is_err() {
                reply(Err(libc::ENOMEM));
                return false;
            }
            let skipped = side.reader.skip_to(at, scratch, |at, bytes| past.add(at, bytes, true));
            if side.reader.position() < at {
                reply(Ok(Lent::from(&[]))); // there is not as much yet
                return skipped && std::mem::take(&mut side.parked);
            }
            let consumed_to = side.reader.position();
            let freed = side.reader.read(count, scratch, |bytes| {
                // What is not there any more was found out by now.
                if self.channel.is_broken() {
                    return reply(Err(libc::EIO));
                }
                kill_point!("read-found");
                match self.padding(at, count, consumed_to, bytes.is_empty()) {
                    0 => reply(Ok(bytes)),
                    len => reply(Ok(Lent::from(&vec![0; len][..]))),
                }
                past.add(at, bytes, false);
                kill_point!("read-replied");
            });
            kill_point!("read-published");
            side.reader.note_losses();
            (skipped || freed) && std::mem::take(&mut side.parked)
        })
    }

    /// Zeroes for a read that otherwise gets nothing, if its program would ask for ever, see `endless_copy.rs`.
    fn padding(&self, at: u64, count: usize, consumed_to: u64, is_empty: bool) -> usize {
        let mut spin = self.spin.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_empty {
            spin.clear();
        }
        if is_empty && at < consumed_to {
            return spin.end_of_file(at, count, consumed_to, Instant::now());
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::quota::Quota;

    const SIZE: u64 = 10_000_000;

    fn history() -> ReadHistory {
        ReadHistory::new(Quota::new(64 << 20).begin(0))
    }

    fn class(past: &ReadHistory, at: u64) -> ReadClass {
        ReadClass::of(past, at, || SIZE)
    }

    #[test]
    fn offset_of_new_file_is_live_up_to_the_size() {
        let past = history();
        let classes = [0, 5000, SIZE, SIZE + 1].map(|at| class(&past, at));
        assert_eq!(classes, [ReadClass::Live, ReadClass::Live, ReadClass::Live, ReadClass::PastEnd]);
    }

    #[test]
    fn offset_before_all_that_was_read_is_the_end_once() {
        let mut past = history();
        past.add(1000, Lent::from(&[7; 100]), false);
        assert_eq!(class(&past, 1000), ReadClass::History);
        assert_eq!(class(&past, 1099), ReadClass::History);
        assert_eq!(class(&past, 1100), ReadClass::Live);
        assert_eq!(class(&past, 999), ReadClass::EndOnce);
        past.begin_at(999);
        assert_eq!(class(&past, 999), ReadClass::History);
    }

    #[test]
    fn offset_that_was_passed_over_and_is_not_kept_is_dropped() {
        for (passed, expected) in [(true, ReadClass::Dropped), (false, ReadClass::Live)] {
            let mut past = history();
            past.add(1000, Lent::from(&vec![7; 4 << 20][..]), passed);
            assert_eq!(class(&past, 1000), expected, "passed over: {passed}");
            assert_eq!(class(&past, 1000 + (4 << 20) - 1), ReadClass::History);
        }
    }

    #[test]
    fn kept_offset_is_classified_without_a_look_at_the_buffer() {
        let mut past = history();
        past.add(1000, Lent::from(&[7; 100]), false);
        for at in [1050, 999] {
            ReadClass::of(&past, at, || panic!("the history decides"));
        }
    }
}
