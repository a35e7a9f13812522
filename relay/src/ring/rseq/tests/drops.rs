//! Messages that find no room, counted by sequences.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::gettid;

use super::{geometry, get, here};
use crate::clock::Clock;
use crate::layout::geometry::RECORD_OVERHEAD;
use crate::memory::sync::{AtomicU64, Ordering};
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Appended, WriteResult, Writer};

/// Messages that may now be dropped without another look.
fn drops_left(buffer: &Buffer) -> i64 {
    let block = buffer.block();
    buffer.window().drops_left(get(&block.state).wrapping_add(get(&block.consumed)))
}

/// A full buffer of bare messages or of records, with the bytes that a message needs besides its own.
struct Full {
    buffer: Buffer,
    overhead: usize,
}

impl Full {
    fn new(text: &str) -> Full {
        let geometry = geometry(&format!("subbuf-size=64:n-subbufs=2{text}"));
        let buffer = Buffer::anonymous_with_clock(geometry, 0, Clock::Tsc).unwrap();
        let full = Full { buffer, overhead: if geometry.timed() { RECORD_OVERHEAD } else { 0 } };
        for expected in [WriteResult::Written, WriteResult::Written, WriteResult::Full] {
            let placed = here(|on_cpu| {
                let writer = Writer::new(&full.buffer, on_cpu);
                if geometry.timed() { writer.write_record(0, &[1; 40]) } else { writer.write(&[1; 56]) }.ok()
            });
            assert_eq!(placed.placed, expected);
        }
        full
    }

    /// Writes or drops a message that would take `len` bytes in a sub-buffer, until it is not interrupted.
    fn append_or_drop(&self, len: usize) -> Appended {
        let message = vec![1; len - self.overhead];
        here(|on_cpu| {
            let writer = Writer::new(&self.buffer, on_cpu);
            let appended = match self.overhead {
                0 => writer.append_or_drop(&message),
                _ => writer.append_record_quick::<true>(0, &message),
            };
            (appended != Appended::Interrupted).then_some(appended)
        })
    }

    /// Drops messages of 56 bytes until the next ones need no look. Returns their number.
    fn remember(&self) -> u64 {
        // The first one is not of a burst. Of the next ones one is, unless each comes a long time after the last.
        let mut dropped = 0;
        while drops_left(&self.buffer) <= 0 {
            here(|on_cpu| Writer::new(&self.buffer, on_cpu).drop_if_blocked(56).then_some(()));
            dropped += 1;
        }
        dropped
    }

    fn counts(&self) -> (u64, u64) {
        let block = self.buffer.block();
        let elsewhere = get(&block.dropped_bytes_elsewhere);
        (get(&block.dropped), get(&block.dropped_bytes).wrapping_add(elsewhere))
    }
}

/// The end of a full buffer changes neither its state nor what is consumed.
#[test]
fn full_buffer_that_is_closed_drops_few_more_messages() {
    let full = Full::new("");
    full.remember();
    let before = full.counts().0;
    here(|on_cpu| Writer::new(&full.buffer, on_cpu).close().ok());
    while full.append_or_drop(56) == Appended::Dropped {}
    assert!(full.counts().0 - before <= 63);
    let refused = here(|on_cpu| {
        let writer = Writer::new(&full.buffer, on_cpu);
        assert!(!writer.drop_if_blocked(56));
        writer.write_elsewhere(&[1; 56]).done()
    });
    assert_eq!(refused.placed, WriteResult::Closed);
}

#[test]
fn drops_are_counted_the_quick_way_only_while_nothing_has_changed() {
    for text in ["", ":timed"] {
        let full = Full::new(text);
        let block = full.buffer.block();
        assert_eq!(full.append_or_drop(56), Appended::Elsewhere, "no drop has found it full");
        assert_eq!(full.counts(), (0, 0));
        let dropped = full.remember();
        assert!(dropped > 1, "the first one");
        let bytes = dropped * 56;
        assert_eq!(full.counts(), (dropped, bytes));
        assert_eq!(
            (full.append_or_drop(56), full.append_or_drop(20)),
            (Appended::Dropped, Appended::Dropped)
        );
        assert_eq!(full.counts(), (dropped + 2, bytes + 76));
        assert_eq!(get(&block.longest_dropped), 56);
        // Longer than all of them, perhaps too long for a sub-buffer; room; another state.
        assert_eq!(full.append_or_drop(57), Appended::Elsewhere);
        assert_eq!(full.append_or_drop(65), Appended::Elsewhere);
        let (state, consumed) = (get(&block.state), get(&block.consumed));
        block.consumed.store(consumed + 1, Ordering::Relaxed);
        assert_eq!(full.append_or_drop(20), Appended::Elsewhere);
        block.consumed.store(consumed, Ordering::Relaxed);
        block.state.store(state + 1, Ordering::Relaxed);
        assert_eq!(full.append_or_drop(20), Appended::Elsewhere);
        block.state.store(state, Ordering::Relaxed);
        assert_eq!(full.counts(), (dropped + 2, bytes + 76));
        assert_eq!(full.append_or_drop(20), Appended::Dropped, "as before");
        assert_eq!(full.counts(), (dropped + 3, bytes + 96));
        // A caller that does not want drops gets none.
        let plain = here(|on_cpu| {
            let writer = Writer::new(&full.buffer, on_cpu);
            let appended = if text.is_empty() {
                writer.append(&[1; 20])
            } else {
                writer.append_record_quick::<false>(0, &[1; 4])
            };
            (appended != Appended::Interrupted).then_some(appended)
        });
        assert_eq!((plain, full.counts().0), (Appended::Elsewhere, dropped + 3));
    }
}

#[test]
fn number_of_quick_drops_between_two_looks_has_a_bound() {
    for text in ["", ":timed"] {
        let full = Full::new(text);
        full.remember();
        let (before, left) = (full.counts().0, drops_left(&full.buffer));
        let mut dropped = 0;
        while full.append_or_drop(56) == Appended::Dropped {
            dropped += 1;
        }
        // A sequence that was interrupted has counted down all the same.
        assert!(dropped > 0 && dropped <= left as u64, "{dropped} of {left}");
        assert_eq!(full.counts().0, before + dropped);
        // It stays so until the next look.
        assert_eq!(full.append_or_drop(56), Appended::Elsewhere);
        full.remember();
        assert_eq!(full.append_or_drop(56), Appended::Dropped);
    }
}

/// Moves the thread that has made it from one CPU to another, again and again, until it is dropped.
struct Migrations {
    is_over: Arc<AtomicU64>,
    mover: Option<JoinHandle<()>>,
}

impl Migrations {
    fn start() -> Migrations {
        let thread = gettid();
        let all = sched_getaffinity(thread).unwrap();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap()).collect();
        let is_over = Arc::new(AtomicU64::new(0));
        let seen_by_mover = Arc::clone(&is_over);
        let mover = thread::spawn(move || {
            for cpu in cpus.iter().cycle() {
                let mut only = CpuSet::new();
                only.set(*cpu).unwrap();
                sched_setaffinity(thread, &only).unwrap();
                if get(&seen_by_mover) != 0 {
                    break;
                }
            }
            sched_setaffinity(thread, &all).unwrap();
        });
        Migrations { is_over, mover: Some(mover) }
    }
}

impl Drop for Migrations {
    fn drop(&mut self) {
        self.is_over.store(1, Ordering::Relaxed);
        self.mover.take().map(JoinHandle::join);
    }
}

#[test]
fn interrupted_drops_are_counted_once_with_their_bytes() {
    let full = Full::new("");
    let elsewhere = &full.buffer.block().dropped_bytes_elsewhere;
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut dropped, migrations) = (0, Migrations::start());
    // Some interruptions come between the two counters.
    while get(elsewhere) < 56 * 5 {
        assert!(Instant::now() < deadline, "{dropped} dropped, {} bytes elsewhere", get(elsewhere));
        dropped += full.remember();
        for _ in 0..1000 {
            match full.append_or_drop(56) {
                Appended::Dropped => dropped += 1,
                _ => dropped += full.remember(),
            }
        }
    }
    drop(migrations);
    assert_eq!(full.counts(), (dropped, dropped * 56));
}
