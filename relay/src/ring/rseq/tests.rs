//! What sequences copy and count. Other tests change buffers by them as well, with few lengths.

use super::{RseqExecutor, Sequences};
use crate::clock::Clock;
use crate::layout::geometry::{Geometry, GeometrySpec};
use crate::memory::sync::{AtomicU64, Ordering};
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Appended, SoleWriter, WriteResult, Writer};

// On aarch64 each drop takes the way without a sequence.
#[cfg(target_arch = "x86_64")]
mod drops;

const SUBBUF: usize = 16384;

fn geometry(text: &str) -> Geometry {
    text.parse::<GeometrySpec>().unwrap().build().unwrap()
}

/// Runs `act` with executors until it is not interrupted: for the CPU that the thread is on.
fn here<T>(mut act: impl FnMut(RseqExecutor) -> Option<T>) -> T {
    let sequences = Sequences::find().expect("sequences");
    loop {
        if let Some(result) = act(sequences.on(sequences.cpu())) {
            return result;
        }
    }
}

/// Every length up to several moves of each kind, and some further ones.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=700).chain([1023, 1024, 1025, 2047, 2048, 4095, 4096, 4097, 8191])
}

/// Writes messages of all lengths, one behind the other, and compares the ring with what it should be.
fn copies_all_lengths(buffer: &Buffer, record: bool) {
    let bytes: Vec<u8> = (0..SUBBUF).map(|n| (n * 7 + n / 251) as u8).collect();
    let mut written = 0;
    for len in lengths() {
        // The source begins at different offsets, and so does the destination.
        let message = &bytes[len % 37..][..len];
        let overhead = if record { 16 } else { 0 };
        if written + overhead + len > SUBBUF {
            let flushed = here(|on_cpu| Writer::new(buffer, on_cpu).try_flush());
            assert!(flushed.switched);
            written = 0;
        }
        let result = here(|on_cpu| {
            let writer = Writer::new(buffer, on_cpu);
            let attempt =
                if record { writer.try_write_record(0, message) } else { writer.try_write(message) };
            attempt.done()
        });
        assert_eq!(result.placed, WriteResult::Written, "{len}");
        let slot = buffer
            .widths()
            .slot(crate::layout::position::Position(buffer.block().state.load(Ordering::Relaxed)));
        let base = slot * SUBBUF;
        let mut found = Vec::new();
        let up_to = (overhead + len + 64).min(SUBBUF - written);
        assert!(buffer.data().copy_out(base + written, up_to, &mut found));
        assert_eq!(&found[overhead..][..len], message, "{len} bytes");
        assert!(found[overhead + len..].iter().all(|byte| *byte == 0), "{len} bytes and no more");
        written += overhead + len;
    }
}

#[test]
fn each_length_is_copied_whole_and_alone() {
    // Enough room that no sub-buffer is used twice.
    for (name, record) in [("", false), (":timed", true)] {
        let geometry = geometry(&format!("subbuf-size={SUBBUF}:n-subbufs=64{name}"));
        for is_narrow in [false, true] {
            let mut buffer = Buffer::anonymous(geometry, 0).unwrap();
            if is_narrow {
                buffer.copy_narrowly();
            }
            copies_all_lengths(&buffer, record);
        }
    }
}

fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

#[test]
fn quick_records_stay_in_timed_buffers_that_are_open() {
    let append = |buffer: &Buffer, payload: &[u8]| {
        here(|on_cpu| {
            let appended = Writer::new(buffer, on_cpu).append_record_quick::<true>(0, payload);
            (appended != Appended::Interrupted).then_some(appended)
        })
    };
    let timed = geometry("timed:subbuf-size=64:n-subbufs=2");
    let buffer = Buffer::anonymous_with_clock(timed, 0, Clock::Tsc).unwrap();
    assert!(buffer.threads_if_quick().is_some());
    assert_eq!(append(&buffer, &[1; 49]), Appended::Elsewhere);
    assert_eq!(append(&buffer, &[1; 48]), Appended::Done);
    assert_eq!(append(&buffer, &[]), Appended::Elsewhere, "there is no room for its stamp");
    assert_eq!(get(&buffer.block().state), 64);
    let ended = Buffer::anonymous_with_clock(timed, 0, Clock::Tsc).unwrap();
    ended.stop_appending();
    // Here a record would be longer than a sub-buffer.
    let raw = Buffer::anonymous(geometry("subbuf-size=8:n-subbufs=2"), 0).unwrap();
    assert!(raw.threads_if_quick().is_none());
    for buffer in [&ended, &raw] {
        for payload in [&[1; 8][..], &[]] {
            assert_eq!(append(buffer, payload), Appended::Elsewhere);
        }
        assert_eq!(get(&buffer.block().state), 0);
    }
}

/// An empty message of a timed buffer is a record, so an append must not take it for nothing.
#[test]
fn only_open_buffers_without_records_take_bare_messages() {
    let append = |buffer: &Buffer, message: &[u8]| {
        here(|on_cpu| {
            let appended = Writer::new(buffer, on_cpu).append_or_drop(message);
            (appended != Appended::Interrupted).then_some(appended)
        })
    };
    let raw = || Buffer::anonymous(geometry("subbuf-size=8:n-subbufs=2"), 0).unwrap();
    let (open, ended) = (raw(), raw());
    ended.stop_appending();
    let timed = Buffer::anonymous(geometry("timed:subbuf-size=64:n-subbufs=2"), 0).unwrap();
    for message in [&[][..], &[1; 3], &[1; 5], &[]] {
        assert_eq!(append(&open, message), Appended::Done);
        for buffer in [&ended, &timed] {
            assert_eq!(append(buffer, message), Appended::Elsewhere);
        }
        assert_eq!(Writer::new(&timed, SoleWriter).append(message), Appended::Elsewhere);
    }
    assert_eq!(append(&open, &[1]), Appended::Elsewhere);
    assert_eq!([&open, &timed].map(|buffer| get(&buffer.block().state)), [8, 0]);
}

#[test]
fn sequence_of_another_cpu_changes_nothing() {
    let buffer = Buffer::anonymous(geometry("subbuf-size=64:n-subbufs=2"), 0).unwrap();
    let elsewhere = Sequences::find().expect("sequences").on(usize::from(u16::MAX));
    let writer = Writer::new(&buffer, elsewhere);
    assert_eq!(writer.append(&[1; 8]), Appended::Interrupted);
    assert!(!writer.count(1, |block| &block.dropped) && !writer.drop_if_blocked(0));
    assert_eq!(writer.append_or_drop(&[1; 8]), Appended::Interrupted);
    assert_eq!((get(&buffer.block().state), get(&buffer.block().dropped)), (0, 0));
}
