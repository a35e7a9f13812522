//! Models of timed buffers: records with stamps, and the anchors of their clock.
//!
//! The clock of a model is a number that grows at each look. What orders records is A to F, as for bare messages; these
//! models show that stamp, head and payload become visible together, and that stamps do not decrease.

use loom::sync::Arc;
use relay::clock::{Anchor, Clock};
use relay::layout::abi::{ANCHORS_MAX, Anchors};
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::scheduler_model::{RseqExecutor, dies_at, on_cpu};
use relay::ring::writer::{Executor, SoleWriter, WriteResult, Writer};
use relay::{GeometrySpec, Mode};

use super::{Ordering, PREEMPTIONS_OF_MANY, model_to, read, thread};

/// Stamp, head, and a payload of one byte.
const RECORD_LEN: usize = 17;

/// Makes a buffer of two sub-buffers, each with room for three records.
fn buffer() -> Buffer {
    relay::memory::mapping::set_racy(false);
    let spec = GeometrySpec {
        subbuf_size: Some(64),
        n_subbufs: Some(2),
        mode: Some(Mode::NoOverwrite),
        timed: Some(true),
        ..GeometrySpec::default()
    };
    Buffer::anonymous(spec.build().unwrap(), 0).unwrap()
}

fn put(buffer: &Buffer, run: impl Executor, number: u8) -> bool {
    let outcome = Writer::new(buffer, run).write_record(u64::from(number), &[number]).unwrap();
    outcome.placed == WriteResult::Written
}

/// Checks that the bytes are whole records with stamps in order, and returns their numbers.
fn numbers(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len().is_multiple_of(RECORD_LEN), "part of a record: {bytes:?}");
    let word = |record: &[u8], at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
    let records: Vec<&[u8]> = bytes.chunks(RECORD_LEN).collect();
    for record in &records {
        assert_eq!(word(record, 8), u64::from(record[16]) | 1 << 48, "damaged: {record:?}");
    }
    assert!(records.is_sorted_by(|a, b| word(a, 0) < word(b, 0)), "stamps out of order: {bytes:?}");
    records.iter().map(|record| record[16]).collect()
}

#[test]
fn records_are_read_whole_with_stamps_in_order() {
    model_to(PREEMPTIONS_OF_MANY, || {
        let buffer = buffer();
        let mut reader = Reader::new(buffer.clone());
        let writer = thread::spawn(move || {
            (1..=7).filter(|number| put(&buffer, SoleWriter, *number)).collect::<Vec<u8>>()
        });
        let mut bytes = Vec::new();
        for _ in 0..2 {
            read(&mut reader, 256, &mut bytes);
        }
        let written = writer.join().unwrap();
        read(&mut reader, 256, &mut bytes);
        assert_eq!(numbers(&bytes), written);
    });
}

/// Two threads of one CPU, each interrupted at any load outside of its sequences.
#[test]
fn stamps_of_threads_on_one_cpu_do_not_decrease() {
    model_to(PREEMPTIONS_OF_MANY, || {
        let buffer = buffer();
        let other = buffer.clone();
        let writer =
            thread::spawn(move || on_cpu(|| (1..=2).for_each(|n| assert!(put(&other, RseqExecutor, n)))));
        on_cpu(|| (11..=12).for_each(|n| assert!(put(&buffer, RseqExecutor, n))));
        writer.join().unwrap();
        let mut bytes = Vec::new();
        read(&mut Reader::new(buffer), 256, &mut bytes);
        let mut numbers = numbers(&bytes);
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 11, 12]);
    });
}

#[test]
fn writer_killed_in_timed_buffer_leaves_whole_records() {
    // Two records and the state, and a switch with its words.
    for stores in 0..2 * (RECORD_LEN as u32 + 1) + 7 {
        model_to(1, move || {
            let buffer = buffer();
            let mut reader = Reader::new(buffer.clone());
            let writer = thread::spawn(move || {
                let mut written = std::cell::RefCell::new(Vec::new());
                let put = |number| {
                    if put(&buffer, SoleWriter, number) {
                        written.borrow_mut().push(number);
                    }
                };
                dies_at(stores, || {
                    put(1);
                    Writer::new(&buffer, SoleWriter).flush().unwrap();
                    put(2);
                });
                put(3);
                std::mem::take(written.get_mut())
            });
            let mut bytes = Vec::new();
            read(&mut reader, 256, &mut bytes);
            let written = writer.join().unwrap();
            for _ in 0..2 {
                read(&mut reader, 256, &mut bytes);
            }
            assert_eq!(numbers(&bytes), written);
        });
    }
}

fn anchor(number: u64) -> Anchor {
    let [ticks, monotonic, realtime, boottime] = [10, 20, 30, 40].map(|of| of * number);
    Anchor { ticks, monotonic, realtime, boottime, epoch: 0 }
}

/// Checks that the anchors are whole and in order, and returns their numbers.
fn anchors_of(list: &[Anchor]) -> Vec<u64> {
    let numbers: Vec<u64> = list.iter().map(|anchor| anchor.ticks / 10).collect();
    assert!(list.iter().zip(&numbers).all(|(found, number)| *found == anchor(*number)), "torn: {list:?}");
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order: {numbers:?}");
    numbers
}

/// Thins a full table for a further anchor while a reader copies. Defends V.
#[test]
fn anchors_are_read_whole_while_the_daemon_adds_some() {
    // Each word can be the old or the new one, so this has many runs without preemptions already.
    model_to(1, || {
        let buffer = Arc::new(buffer());
        let mut anchors = Anchors::default();
        (1..=ANCHORS_MAX as u64).for_each(|n| assert!(anchors.add(buffer.anchors().unwrap(), anchor(n))));
        let other = buffer.clone();
        let daemon = thread::spawn(move || {
            assert!(anchors.add(other.anchors().unwrap(), anchor(ANCHORS_MAX as u64 + 1)));
        });
        if let Some(found) = buffer.anchors().unwrap().try_read() {
            let found = anchors_of(&found);
            assert!([[1, 2], [2, 3]].contains(&found.as_slice().try_into().unwrap()), "{found:?}");
        }
        daemon.join().unwrap();
        assert_eq!(anchors_of(&buffer.anchors().unwrap().try_read().unwrap()), [2, 3]);
    });
}

/// The daemon dies before any store of a change; what a reader and the next daemon find is whole. Defends K.
#[test]
fn anchors_of_a_killed_daemon_are_whole() {
    // Version and count twice, and the words of two anchors.
    for stores in 0..4 + 2 * 5 {
        model_to(1, move || {
            let buffer = Arc::new(buffer());
            let mut anchors = Anchors::default();
            (1..=ANCHORS_MAX as u64).for_each(|n| assert!(anchors.add(buffer.anchors().unwrap(), anchor(n))));
            let other = buffer.clone();
            let daemon = thread::spawn(move || {
                let table = other.anchors().unwrap();
                dies_at(stores, || assert!(anchors.add(table, anchor(ANCHORS_MAX as u64 + 1))));
            });
            daemon.join().unwrap();
            let table = buffer.anchors().unwrap();
            let found = anchors_of(&table.read());
            assert!([vec![1, 2], vec![], vec![2, 3]].contains(&found), "{stores}: {found:?}");
            let mut next = Anchors::resume(table);
            assert!(next.add(table, anchor(9)));
            assert_eq!(anchors_of(&table.try_read().unwrap()).last(), Some(&9));
        });
    }
}

/// A reader that has a thread's record finds the process of the thread.
#[test]
fn process_of_a_record_is_found() {
    model_to(PREEMPTIONS_OF_MANY, || {
        let buffer = buffer();
        let other = buffer.clone();
        let writer = thread::spawn(move || {
            other.threads().unwrap().note(7, 3);
            assert!(put(&other, SoleWriter, 1));
        });
        let mut bytes = Vec::new();
        read(&mut Reader::new(buffer.clone()), 256, &mut bytes);
        if !bytes.is_empty() {
            assert_eq!(buffer.threads().unwrap().process_of(7), Some(3));
        }
        writer.join().unwrap();
        assert_eq!(buffer.clock(), Some(Clock::Monotonic));
        assert_eq!(buffer.block().dropped.load(Ordering::Relaxed), 0);
    });
}
