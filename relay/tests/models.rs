//! Models of one writer and one reader under loom, which tries every interleaving and every reordering that the memory
//! model allows, a number of preemptions per run apart. Run with
//! `RUSTFLAGS="--cfg loom" cargo test --release -p relay --test models`.
//!
//! The code is the real one; only its memory is loom's. The letters are those of `writer.rs` and `wake.rs`.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use relay::buffer::Buffer;
use relay::reader::Reader;
use relay::shm::set_racy;
use relay::writer::{Alone, Placed, Writer};
use relay::{GeometrySpec, Mode};

fn buffer(mode: Mode, subbuf_size: u64, n_subbufs: u64) -> Buffer {
    set_racy(mode == Mode::Overwrite);
    let spec = GeometrySpec {
        subbuf_size: Some(subbuf_size),
        n_subbufs: Some(n_subbufs),
        mode: Some(mode),
        ..GeometrySpec::default()
    };
    Buffer::anonymous(spec.build().unwrap(), 0).unwrap()
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// Writes messages of two equal bytes, numbered from 1, and returns those that were written. Stops after `messages`,
/// as a writer that is killed between two of its changes would.
fn write(buffer: &Buffer, messages: u8) -> Vec<u8> {
    let writer = Writer::new(buffer, Alone);
    (1..=messages).filter(|n| writer.write(&[*n, *n]).unwrap().placed == Placed::Written).collect()
}

fn read(reader: &mut Reader, count: usize, out: &mut Vec<u8>) {
    let mut scratch = Vec::new();
    reader.read(count, &mut scratch, |bytes| out.extend_from_slice(bytes));
}

/// Whole messages, in order; returns their numbers.
fn numbers(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() % 2 == 0, "part of a message: {bytes:?}");
    let numbers: Vec<u8> = bytes.chunks(2).map(|pair| pair[0]).collect();
    assert!(bytes.chunks(2).all(|pair| pair[0] == pair[1]), "damaged: {bytes:?}");
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order: {numbers:?}");
    numbers
}

/// Everything that was written is read, once, in order; a slot is not written before it was read. Defends A, B (bytes and
/// records behind the position) and C, D (the slot given back): the payload is in cells that loom watches.
fn no_overwrite(subbuf_size: u64, n_subbufs: u64, messages: u8) {
    model(move || {
        let buffer = buffer(Mode::NoOverwrite, subbuf_size, n_subbufs);
        let mut reader = Reader::new(buffer.clone());
        let writer = thread::spawn(move || write(&buffer, messages));
        let mut bytes = Vec::new();
        for _ in 0..2 {
            read(&mut reader, 16, &mut bytes);
        }
        let written = writer.join().unwrap();
        read(&mut reader, 16, &mut bytes);
        assert_eq!(numbers(&bytes), written);
    });
}

#[test]
fn no_overwrite_one_message_a_subbuf() {
    no_overwrite(2, 1, 3);
    no_overwrite(2, 2, 4);
}

#[test]
fn no_overwrite_with_padding() {
    no_overwrite(5, 2, 5);
}

/// Only whole messages are read, in order, and every byte is read or counted as overwritten. Defends E, F: a reader that
/// copied bytes of a newer message throws the copy away.
fn overwrite(subbuf_size: u64, n_subbufs: u64, messages: u8, count: usize) {
    model(move || {
        let buffer = buffer(Mode::Overwrite, subbuf_size, n_subbufs);
        let mut reader = Reader::new(buffer.clone());
        let other = buffer.clone();
        let writer = thread::spawn(move || write(&other, messages));
        let mut bytes = Vec::new();
        read(&mut reader, count, &mut bytes);
        assert_eq!(writer.join().unwrap().len(), usize::from(messages));
        for _ in 0..4 {
            read(&mut reader, 16, &mut bytes);
        }
        assert_eq!(numbers(&bytes).last(), Some(&messages));
        let lost = buffer.block().overwritten_bytes.load(Ordering::Relaxed);
        assert_eq!(bytes.len() as u64 + lost, 2 * u64::from(messages));
    });
}

#[test]
fn overwrite_laps_a_reader() {
    overwrite(2, 2, 3, 16);
    overwrite(2, 2, 4, 16);
    overwrite(4, 2, 5, 16);
}

#[test]
fn overwrite_laps_a_reader_in_the_middle_of_a_subbuf() {
    overwrite(4, 2, 5, 2);
    overwrite(2, 1, 3, 16);
}

/// A reader that arms and finds nothing is rung for, or finds it at a second look that the ring brings. Defends H, J. The
/// writer may be killed between ringing and disarming: a later arming is rung for all the same.
#[test]
fn nobody_sleeps_through_a_switch() {
    for dies in [false, true] {
        model(move || {
            let buffer = buffer(Mode::NoOverwrite, 2, 4);
            let bell = Arc::new(AtomicUsize::new(0));
            let (other, ring) = (buffer.clone(), bell.clone());
            let writer = thread::spawn(move || {
                for _ in 0..2 {
                    Writer::new(&other, Alone).flush().unwrap();
                    if let Some(wanted) = other.wake_wanted() {
                        ring.fetch_add(1, Ordering::AcqRel);
                        if dies {
                            return; // killed here: the word stays odd
                        }
                        wanted.rung();
                    }
                }
            });
            let reader = Reader::new(buffer.clone());
            buffer.arm();
            let found = reader.has_finished();
            writer.join().unwrap();
            assert!(found || bell.load(Ordering::Acquire) > 0, "asleep for ever");
        });
    }
}

/// A late disarming does not undo a newer arming.
#[test]
fn a_newer_arming_survives() {
    model(|| {
        let buffer = buffer(Mode::NoOverwrite, 2, 4);
        let bell = Arc::new(AtomicBool::new(false));
        buffer.arm();
        let (other, ring) = (buffer.clone(), bell.clone());
        let writer = thread::spawn(move || {
            Writer::new(&other, Alone).flush().unwrap();
            if let Some(wanted) = other.wake_wanted() {
                ring.store(true, Ordering::Release);
                wanted.rung();
            }
        });
        let mut reader = Reader::new(buffer.clone());
        if bell.load(Ordering::Acquire) {
            // Woken: reads everything, then arms again. Whoever switches next must ring.
            read(&mut reader, 16, &mut Vec::new());
            buffer.arm();
            writer.join().unwrap();
            assert!(reader.has_finished() || buffer.wake_wanted().is_some(), "a newer arming was undone");
        } else {
            writer.join().unwrap();
        }
    });
}
