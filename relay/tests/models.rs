//! Models of one writer and one reader under loom.
//!
//! loom tries every interleaving and every reordering that the memory model allows, up to a number of preemptions in a
//! run. `tests/models.sh` runs them. `tests/mutations.sh` weakens each rule that they defend, and names the models that
//! fail.
//!
//! The code is the real one; only its memory is loom's. The letters are those of `writer.rs` and `doorbell.rs`. One
//! thread here stands for all writers of a CPU, since the CPU itself orders them. Where they preempt each other outside
//! of sequences, [`on_cpu`] models it.
#![cfg(loom)]

#[path = "models/areas.rs"]
mod areas;
#[path = "models/ending.rs"]
mod ending;
#[path = "models/timed.rs"]
mod timed;

use std::cell::RefCell;

use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use relay::memory::mapping::set_racy;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::scheduler_model::{RseqExecutor, dies_at, on_cpu};
use relay::ring::writer::{Executor, SoleWriter, WriteResult, Writer};
use relay::{GeometrySpec, Mode};

/// Preemptions in a run, unless `LOOM_MAX_PREEMPTIONS` sets another number.
const PREEMPTIONS: usize = 3;
/// Preemptions in models that would take minutes otherwise, or run once for each store.
const PREEMPTIONS_OF_MANY: usize = 2;

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
    model_to(PREEMPTIONS, check);
}

fn model_to(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(check);
}

/// Runs two functions at once, each in a thread, and returns both results.
/// loom takes pure loads of a model's first thread for done before the others, hence two further threads.
fn beside<A, B>(one: impl FnOnce() -> A + 'static, other: impl FnOnce() -> B + 'static) -> (A, B)
where
    A: 'static,
    B: 'static,
{
    let (one, other) = (thread::spawn(one), thread::spawn(other));
    (one.join().unwrap(), other.join().unwrap())
}

/// Writes a message of two equal bytes.
fn put(buffer: &Buffer, run: impl Executor, number: u8) -> WriteResult {
    Writer::new(buffer, run).write(&[number, number]).unwrap().placed
}

/// Writes messages numbered from 1, and returns the numbers of the written ones.
fn write(buffer: &Buffer, messages: u8) -> Vec<u8> {
    (1..=messages).filter(|n| put(buffer, SoleWriter, *n) == WriteResult::Written).collect()
}

fn read(reader: &mut Reader, count: usize, out: &mut Vec<u8>) -> bool {
    let mut scratch = Vec::new();
    reader.read(count, &mut scratch, |bytes| assert!(bytes.copy_to(out)))
}

/// Checks that the bytes are whole messages in order, and returns their numbers.
fn numbers(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() % 2 == 0, "part of a message: {bytes:?}");
    let numbers: Vec<u8> = bytes.chunks(2).map(|pair| pair[0]).collect();
    assert!(bytes.chunks(2).all(|pair| pair[0] == pair[1]), "damaged: {bytes:?}");
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order: {numbers:?}");
    numbers
}

/// Everything written is read once, in order, and no slot is written before it was read.
/// Defends A, B (bytes and records before the position) and C, D (the slot given back). The payload is in cells that
/// loom watches.
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
fn no_overwrite_reads_messages_of_a_subbuf_once_in_order() {
    no_overwrite(2, 1, 3);
    no_overwrite(2, 2, 4);
}

#[test]
fn no_overwrite_with_padding_reads_messages_once_in_order() {
    no_overwrite(5, 2, 5);
}

/// Only whole messages are read, in order, and every byte is read or counted as overwritten.
/// Defends E, F: a reader that copied bytes of a newer message discards the copy.
fn overwrite(subbuf_size: u64, n_subbufs: u64, messages: u8, count: usize) {
    overwrite_to(PREEMPTIONS, subbuf_size, n_subbufs, messages, count);
}

fn overwrite_to(preemptions: usize, subbuf_size: u64, n_subbufs: u64, messages: u8, count: usize) {
    model_to(preemptions, move || {
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
fn lapped_reader_reads_whole_messages() {
    overwrite(2, 2, 3, 16);
    overwrite(2, 2, 4, 16);
    overwrite(4, 2, 5, 16);
}

#[test]
fn reader_lapped_in_the_middle_of_a_subbuf_reads_whole_messages() {
    overwrite(4, 2, 5, 2);
    overwrite(2, 1, 3, 16);
}

/// The record of a sub-buffer is reused two laps later.
#[test]
fn reader_lapped_twice_reads_whole_messages() {
    overwrite_to(1, 2, 1, 4, 16);
}

/// A lapped reader finds the newer data: with two sub-buffers one is always whole.
/// Defends E and F again: a reader that uses `begun` sees the position behind it.
#[test]
fn lapped_reader_finds_newer_data() {
    model(|| {
        let buffer = buffer(Mode::Overwrite, 2, 2);
        let mut reader = Reader::new(buffer.clone());
        assert_eq!(put(&buffer, SoleWriter, 1), WriteResult::Written);
        let reads = move || {
            let mut bytes = Vec::new();
            read(&mut reader, 16, &mut bytes);
            bytes
        };
        let writer =
            move || (2..=3).for_each(|n| assert_eq!(put(&buffer, SoleWriter, n), WriteResult::Written));
        let ((), bytes) = beside(writer, reads);
        assert_ne!(numbers(&bytes), []);
    });
}

/// The size of the file never decreases while the writer laps the thread that asks.
/// Defends the fence in `stable`, which is an F.
#[test]
fn size_read_while_writing_never_shrinks() {
    model(|| {
        let buffer = buffer(Mode::Overwrite, 2, 1);
        let reader = Reader::new(buffer.clone());
        let sizes = move || {
            let sizes = [reader.size(), reader.size()];
            (reader, sizes)
        };
        let (_, (reader, [first, second])) = beside(move || write(&buffer, 4), sizes);
        assert!(first <= second && second <= reader.size(), "{first}, {second}, {}", reader.size());
        assert_eq!(reader.size(), 8);
    });
}

/// What a reader sees of losses that no read has counted is exact for some moment: bytes and sub-buffers belong together.
/// Defends the fence in `overwritten_unread`, which is an F.
#[test]
fn unread_losses_are_those_of_one_moment() {
    model_to(PREEMPTIONS_OF_MANY, || {
        let buffer = buffer(Mode::Overwrite, 2, 1);
        let reader = Reader::new(buffer.clone());
        let (_, seen) = beside(move || write(&buffer, 4), move || reader.overwritten_unread());
        assert_eq!(seen.bytes, 2 * seen.subbufs);
    });
}

/// A writer is killed before any of its stores, and another continues on the same CPU.
/// A reader reads meanwhile.
/// Every message that the dead writer reported as written is there, its last one is not, and no message is corrupted.
/// To a reader an aborted and repeated sequence looks the same. Defends the order of the stores in a sequence, and A to
/// F again.
fn killed(mode: Mode, subbuf_size: u64, n_subbufs: u64, reads_meanwhile: usize) {
    // Two messages of two bytes and a position, of which at most one switches, and an explicit switch.
    for stores in 0..2 * 3 + 5 + 6 {
        model_to(PREEMPTIONS_OF_MANY, move || {
            let buffer = buffer(mode, subbuf_size, n_subbufs);
            let mut reader = Reader::new(buffer.clone());
            let writer_of = buffer.clone();
            let writer = thread::spawn(move || {
                let written = RefCell::new(Vec::new());
                let put = |n| {
                    if put(&writer_of, SoleWriter, n) == WriteResult::Written {
                        written.borrow_mut().push(n);
                    }
                };
                dies_at(stores, || {
                    put(1);
                    Writer::new(&writer_of, SoleWriter).flush().unwrap();
                    put(2);
                });
                (3..=4).for_each(put);
                written.into_inner()
            });
            let mut bytes = Vec::new();
            for _ in 0..reads_meanwhile {
                read(&mut reader, 16, &mut bytes);
            }
            let written = writer.join().unwrap();
            for _ in 0..4 {
                read(&mut reader, 16, &mut bytes);
            }
            let numbers = numbers(&bytes);
            if mode == Mode::NoOverwrite {
                assert_eq!(numbers, written);
            } else {
                assert_eq!(numbers.last(), written.last());
                assert!(numbers.iter().all(|n| written.contains(n)), "{numbers:?} of {written:?}");
                let lost = buffer.block().overwritten_bytes.load(Ordering::Relaxed);
                assert_eq!(bytes.len() as u64 + lost, 2 * written.len() as u64);
            }
        });
    }
}

#[test]
fn writer_killed_in_no_overwrite_mode_leaves_whole_messages() {
    killed(Mode::NoOverwrite, 2, 1, 2);
    killed(Mode::NoOverwrite, 5, 2, 1);
}

#[test]
fn writer_killed_in_overwrite_mode_leaves_whole_messages() {
    killed(Mode::Overwrite, 2, 2, 1);
    killed(Mode::Overwrite, 4, 2, 1);
    killed(Mode::Overwrite, 4, 1, 1);
}

/// A reader that arms and finds nothing is woken.
/// Defends H, J, and that the bell rings before the word is made even.
///
/// The writer may be killed before any of its stores, the bell included; its hang-up then makes the daemon look. The
/// next process that switches on the same CPU rings all the same.
#[test]
fn armed_reader_is_woken_by_a_switch() {
    // A sequence with 5 words and the position, the bell, the word made even; the last number is after all of them.
    for stores in 0..=8 {
        model(move || {
            let buffer = buffer(Mode::NoOverwrite, 2, 4);
            let bell = Arc::new(AtomicUsize::new(0));
            let (other, ring) = (buffer.clone(), bell.clone());
            let writer = move || {
                let switch = || {
                    Writer::new(&other, SoleWriter).flush().unwrap();
                    if let Some(wanted) = other.wake_wanted() {
                        other.count_written(0); // a store to die at, before the system call that rings
                        ring.fetch_add(1, Ordering::AcqRel);
                        wanted.rung();
                    }
                };
                let hung_up = dies_at(stores, switch).is_none();
                if hung_up {
                    let before = other.block().state.load(Ordering::Relaxed);
                    switch();
                    assert_ne!(before, other.block().state.load(Ordering::Relaxed));
                }
            };
            let reader = Reader::new(buffer.clone());
            let look = move || {
                buffer.arm();
                reader.has_finished()
            };
            let ((), found) = beside(writer, look);
            assert!(found || bell.load(Ordering::Acquire) > 0, "asleep for ever");
        });
    }
}

/// Each arming has a distinct value, so that a late ring does not undo a newer arming.
#[test]
fn late_ring_does_not_undo_newer_arming() {
    model(|| {
        let buffer = buffer(Mode::NoOverwrite, 2, 4);
        let bell = Arc::new(AtomicBool::new(false));
        buffer.arm();
        let (other, ring) = (buffer.clone(), bell.clone());
        let writer = move || {
            Writer::new(&other, SoleWriter).flush().unwrap();
            if let Some(wanted) = other.wake_wanted() {
                ring.store(true, Ordering::Release);
                wanted.rung();
            }
        };
        let mut reader = Reader::new(buffer.clone());
        let armed = buffer.clone();
        let woken = move || {
            let rung = bell.load(Ordering::Acquire);
            if rung {
                // Reads everything, then arms again. The next writer that switches must ring.
                read(&mut reader, 16, &mut Vec::new());
                armed.arm();
            }
            rung.then_some(reader)
        };
        if let ((), Some(reader)) = beside(writer, woken) {
            assert!(reader.has_finished() || buffer.wake_wanted().is_some(), "a newer arming was undone");
        }
    });
}

/// Waiting for room goes through the daemon, whose worker parks the batch.
/// This is `worker.rs` and `open_file.rs` in short. What a lock orders needs no model. Two things do: the worker looks
/// without the lock first, and a flag says that a batch waits, not the room itself. A waiting batch is resumed, or the
/// buffer is still full. The worker does not die alone. A producer that dies leaves the flag set, hence one look too
/// many.
#[test]
fn parked_batch_is_resumed_when_there_is_room() {
    struct Side {
        reader: Reader,
        parked: bool,
    }
    model(|| {
        let buffer = buffer(Mode::NoOverwrite, 2, 1);
        assert_eq!(put(&buffer, SoleWriter, 1), WriteResult::Written);
        let side = Arc::new(Mutex::new(Side { reader: Reader::new(buffer.clone()), parked: false }));
        let worker_side = side.clone();
        let worker = thread::spawn(move || {
            let mut placed = put(&buffer, SoleWriter, 2);
            if placed == WriteResult::Full {
                let mut side = worker_side.lock().unwrap();
                placed = put(&buffer, SoleWriter, 2);
                side.parked = placed == WriteResult::Full;
            }
            placed
        });
        let mut bytes = Vec::new();
        let mut read_and_tell = || {
            let mut side = side.lock().unwrap();
            let freed = read(&mut side.reader, 16, &mut bytes);
            freed && std::mem::take(&mut side.parked)
        };
        let told = (0..2).fold(false, |told, _| read_and_tell() || told);
        let placed = worker.join().unwrap();
        let told = told || read_and_tell();
        assert!(placed == WriteResult::Written || told, "waits for ever");
    });
}

/// Two threads of one CPU, one of which closes the buffer at any load of the other.
/// Messages written before the end stay, and later ones are refused. Defends that closing changes the state of a buffer
/// that is not blocked, and that a writer that begins a sub-buffer looks at `closed` in its sequence.
/// The end may have been announced from another CPU before.
fn closed(subbuf_size: u64, room_while_blocked: bool, is_announced: bool) {
    model(move || {
        let buffer = buffer(Mode::NoOverwrite, subbuf_size, 1);
        let mut reader = Reader::new(buffer.clone());
        let mut expected = Vec::new();
        let mut bytes = Vec::new();
        let mut first = 1;
        if room_while_blocked {
            while put(&buffer, SoleWriter, first) == WriteResult::Written {
                expected.push(first);
                first += 1;
            }
            read(&mut reader, 16, &mut bytes);
        }
        let is_closed = Arc::new(AtomicBool::new(false));
        let (other, was_closed) = (buffer.clone(), is_closed.clone());
        let writer = thread::spawn(move || {
            on_cpu(|| {
                let mut written = Vec::new();
                for n in first + 1..=first + 3 {
                    let closed_before = was_closed.load(Ordering::Relaxed);
                    match put(&other, RseqExecutor, n) {
                        WriteResult::Written => {
                            assert!(!closed_before, "message {n} was written after the end");
                            written.push(n);
                        }
                        WriteResult::Full => {
                            assert!(!closed_before, "message {n} waits for room after the end")
                        }
                        WriteResult::Closed => {}
                        WriteResult::TooBig => panic!("every message fits"),
                    }
                }
                written
            })
        });
        if is_announced {
            buffer.announce_end();
        }
        on_cpu(|| {
            Writer::new(&buffer, RseqExecutor).close().unwrap();
            is_closed.store(true, Ordering::Relaxed);
        });
        expected.extend(writer.join().unwrap());
        read(&mut reader, 64, &mut bytes);
        assert_eq!(numbers(&bytes), expected);
        assert_eq!(put(&buffer, SoleWriter, 99), WriteResult::Closed);
    });
}

#[test]
fn closed_buffer_takes_no_message() {
    closed(8, false, false);
    closed(2, false, false);
}

#[test]
fn closed_blocked_buffer_takes_no_message() {
    closed(4, true, false);
}

#[test]
fn buffer_whose_end_was_announced_takes_no_message_once_it_is_closed() {
    closed(8, false, true);
    closed(4, true, true);
}

/// Two threads of one CPU, one of which resets the buffer on behalf of the reader.
/// Every message is read or discarded as a whole, and messages after the reset are there. Defends that `consumed` comes
/// before the state.
fn reset(mode: Mode, subbuf_size: u64, n_subbufs: u64) {
    model(move || {
        let buffer = buffer(mode, subbuf_size, n_subbufs);
        let mut reader = Reader::new(buffer.clone());
        assert_eq!(put(&buffer, SoleWriter, 1), WriteResult::Written);
        let other = buffer.clone();
        let writer = thread::spawn(move || {
            on_cpu(|| {
                (2..=4).filter(|n| put(&other, RseqExecutor, *n) == WriteResult::Written).collect::<Vec<u8>>()
            })
        });
        on_cpu(|| reader.reset(RseqExecutor).unwrap());
        let mut bytes = Vec::new();
        read(&mut reader, 16, &mut bytes);
        let written = writer.join().unwrap();
        for _ in 0..4 {
            read(&mut reader, 16, &mut bytes);
        }
        let numbers = numbers(&bytes);
        assert!(numbers.iter().all(|n| written.contains(n)), "{numbers:?} of {written:?}");
        let block = buffer.block();
        let lost =
            [&block.overwritten_bytes, &block.discarded_bytes].map(|lost| lost.load(Ordering::Relaxed));
        let lost: u64 = lost.iter().sum();
        assert_eq!(bytes.len() as u64 + lost, 2 + 2 * written.len() as u64);
        assert_eq!(reader.unread(), 0);
    });
}

#[test]
fn reset_between_writes_keeps_later_messages() {
    reset(Mode::NoOverwrite, 2, 2);
    reset(Mode::NoOverwrite, 4, 1);
    reset(Mode::Overwrite, 2, 2);
}
