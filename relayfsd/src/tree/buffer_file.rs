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
    history: Mutex<ReadHistory>,
    spin: Mutex<Spin>,
}

/// What a read of a buffer's file gets, by its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadClass {
    /// The bytes that the file keeps, once more.
    History,
    /// ESPIPE: the file passed over these bytes and does not keep them now.
    Dropped,
    /// The end of the file, once: the file found its first bytes behind this offset.
    ///
    /// The history then begins here. At offset 0 the file gets it at once.
    EndOnce,
    /// The end of the file: the offset is one of another stream, or of nothing yet.
    ///
    /// What is unread is left for others.
    PastEnd,
    /// What is unread.
    Live,
}

impl ReadClass {
    /// Classifies a read at `at`.
    ///
    /// Calls `size`, which returns the buffer's size, only where the history does not decide.
    fn of(history: &ReadHistory, at: u64, size: impl FnOnce() -> u64) -> ReadClass {
        if history.keeps(at) {
            ReadClass::History
        } else if history.has_dropped(at) {
            ReadClass::Dropped
        } else if history.begins_after(at) {
            ReadClass::EndOnce
        } else if at > size() {
            ReadClass::PastEnd
        } else {
            ReadClass::Live
        }
    }
}

thread_local! {
    /// Memory to gather replies whose bytes do not lie in one piece in the ring.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl OpenBuffer {
    /// Opens the file of a buffer. `room` is for what the file keeps.
    pub(crate) fn new(channel: ChannelRef, cpu: usize, readable: bool, room: Reservation) -> OpenBuffer {
        OpenBuffer {
            channel,
            cpu,
            readable,
            history: Mutex::new(ReadHistory::new(room)),
            spin: Mutex::default(),
        }
    }

    /// Notes that the daemon has refused the kernel bytes for its cache.
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
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if self.channel.is_broken() {
            return reply(Err(libc::EIO));
        }
        self.channel.note_activity();
        let mut side = None;
        let size = || side.insert(self.channel.read_side(self.cpu)).reader.size();
        match ReadClass::of(&history, at, size) {
            ReadClass::History => reply(Ok(history.again(at, count).into())),
            ReadClass::Dropped => reply(Err(libc::ESPIPE)),
            ReadClass::EndOnce => {
                history.begin_at(at);
                // Stdio's fseek(SEEK_END) reads the last page. Rewound, the file reads all that it passed over there.
                let bytes = if at == 0 { history.again(at, count) } else { &[] };
                reply(Ok(bytes.into()));
            }
            // The look at the buffer may have found the damage.
            ReadClass::PastEnd | ReadClass::Live if self.channel.is_broken() => reply(Err(libc::EIO)),
            ReadClass::PastEnd => reply(Ok(Lent::from(&[]))),
            ReadClass::Live => {
                let side = side.unwrap_or_else(|| self.channel.read_side(self.cpu));
                if self.read_live(side, &mut history, at, count, reply) {
                    writers.make_room(&self.channel, self.cpu);
                }
            }
        }
    }

    /// Reads unread bytes, at an offset that is not beyond the end.
    ///
    /// Returns whether a batch waits for the room that this makes.
    fn read_live(
        &self,
        mut side: ReadGuard<'_>,
        history: &mut ReadHistory,
        at: u64,
        count: usize,
        reply: impl FnOnce(Result<Lent<'_>, i32>),
    ) -> bool {
        SCRATCH.with_borrow_mut(|scratch| {
            if side.reader.reserve(count, scratch).is_err() {
                reply(Err(libc::ENOMEM));
                return false;
            }
            let skipped = side.reader.skip_to(at, scratch, |at, bytes| history.add(at, bytes, true));
            if side.reader.position() < at {
                reply(Ok(Lent::from(&[]))); // the stream does not reach the offset yet
                return skipped && std::mem::take(&mut side.parked);
            }
            let consumed_to = side.reader.position();
            let freed = side.reader.read(count, scratch, |bytes| {
                // The read may have found the files truncated.
                if self.channel.is_broken() {
                    return reply(Err(libc::EIO));
                }
                kill_point!("read-found");
                match self.padding(at, count, consumed_to, bytes.is_empty()) {
                    0 => reply(Ok(bytes)),
                    len => reply(Ok(Lent::from(&vec![0; len][..]))),
                }
                history.add(at, bytes, false);
                kill_point!("read-replied");
            });
            kill_point!("read-published");
            side.reader.note_losses();
            (skipped || freed) && std::mem::take(&mut side.parked)
        })
    }

    /// Returns the number of zeroes for a read without bytes, if its program would ask for ever.
    ///
    /// See `endless_copy.rs`.
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

    fn empty_history() -> ReadHistory {
        ReadHistory::new(Quota::new(64 << 20).begin(0))
    }

    fn class(history: &ReadHistory, at: u64) -> ReadClass {
        ReadClass::of(history, at, || SIZE)
    }

    #[test]
    fn offset_of_new_file_is_live_up_to_the_size() {
        let history = empty_history();
        let classes = [0, 5000, SIZE, SIZE + 1].map(|at| class(&history, at));
        assert_eq!(classes, [ReadClass::Live, ReadClass::Live, ReadClass::Live, ReadClass::PastEnd]);
    }

    #[test]
    fn offset_before_all_that_was_read_is_the_end_once() {
        let mut history = empty_history();
        history.add(1000, Lent::from(&[7; 100]), false);
        assert_eq!(class(&history, 1000), ReadClass::History);
        assert_eq!(class(&history, 1099), ReadClass::History);
        assert_eq!(class(&history, 1100), ReadClass::Live);
        assert_eq!(class(&history, 999), ReadClass::EndOnce);
        history.begin_at(999);
        assert_eq!(class(&history, 999), ReadClass::History);
    }

    #[test]
    fn offset_that_was_passed_over_and_is_not_kept_is_dropped() {
        for (passed, expected) in [(true, ReadClass::Dropped), (false, ReadClass::Live)] {
            let mut history = empty_history();
            history.add(1000, Lent::from(&vec![7; 4 << 20][..]), passed);
            assert_eq!(class(&history, 1000), expected, "passed over: {passed}");
            assert_eq!(class(&history, 1000 + (4 << 20) - 1), ReadClass::History);
        }
    }

    #[test]
    fn kept_offset_is_classified_without_a_look_at_the_buffer() {
        let mut history = empty_history();
        history.add(1000, Lent::from(&[7; 100]), false);
        for at in [1050, 999] {
            ReadClass::of(&history, at, || panic!("the history decides"));
        }
    }
}
