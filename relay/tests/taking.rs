//! Takes: copies of the unread part that are consumed as a whole.
//!
//! Thousands of histories mix them with writes, reads and resets; a further test has a writer that does not stop.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use relay::ring::buffer::Buffer;
use relay::ring::reader::{Reader, Taken};
use relay::ring::writer::{SoleWriter, WriteResult, Writer};
use relay::{Geometry, GeometrySpec, Mode};

fn buffer(spec: &str) -> Buffer {
    let geometry = spec.parse::<GeometrySpec>().unwrap().build().unwrap();
    Buffer::anonymous(geometry, 0).unwrap()
}

/// Takes everything, sub-buffer by sub-buffer, and calls `between` between two of them.
fn take(reader: &mut Reader, mut between: impl FnMut(&mut Reader)) -> (Taken, Vec<u8>) {
    let (mut taken, mut bytes) = (reader.take(), Vec::new());
    loop {
        let mut part = Vec::new();
        let more = reader.take_part(&mut taken, &mut part);
        bytes.truncate(taken.len() - part.len());
        bytes.extend(part);
        if !more {
            break;
        }
        between(reader);
    }
    bytes.truncate(taken.len());
    assert!(bytes.len() <= taken.max());
    (taken, bytes)
}

fn read(reader: &mut Reader, count: usize) -> Vec<u8> {
    let mut out = Vec::new();
    reader.read(count, &mut Vec::new(), |bytes| assert!(bytes.copy_to(&mut out)));
    out
}

/// Bytes read, overwritten, discarded; sub-buffers read, overwritten, discarded.
fn counters(buffer: &Buffer) -> [u64; 6] {
    let block = buffer.block();
    let counters: [&AtomicU64; 6] = [
        &block.read_bytes,
        &block.overwritten_bytes,
        &block.discarded_bytes,
        &block.read_subbufs,
        &block.overwritten_subbufs,
        &block.discarded_subbufs,
    ];
    counters.map(|counter| counter.load(Ordering::Relaxed))
}

fn write(buffer: &Buffer, messages: &[&str]) {
    for message in messages {
        assert_eq!(
            Writer::new(buffer, SoleWriter).write(message.as_bytes()).unwrap().placed,
            WriteResult::Written
        );
    }
}

#[test]
fn take_consumes_nothing_until_it_is_consumed() {
    let buffer = buffer("subbuf-size=8:n-subbufs=2");
    let mut reader = Reader::new(buffer.clone());
    write(&buffer, &["aaaaa", "bbbb", "cc"]);
    let (taken, bytes) = take(&mut reader, |_| {});
    assert_eq!((bytes.as_slice(), taken.ranges()), (&b"aaaaabbbbcc"[..], [0..0, 0..11]));
    assert_eq!((counters(&buffer), reader.position()), ([0; 6], 0));
    assert_eq!(Writer::new(&buffer, SoleWriter).write(b"dddd").unwrap().placed, WriteResult::Full);
    assert!(reader.consume_taken(&taken), "a sub-buffer is free");
    assert_eq!(counters(&buffer), [11, 0, 0, 2, 0, 0], "the second was finished meanwhile");
    assert!(!reader.consume_taken(&taken), "only once");
    assert_eq!((counters(&buffer), reader.unread()), ([11, 0, 0, 2, 0, 0], 0));
    write(&buffer, &["eeee"]);
    assert_eq!(read(&mut reader, 100), b"eeee");
    assert_eq!(buffer.block().corrected.load(Ordering::Relaxed), 0);
}

#[test]
fn bytes_written_behind_a_take_are_not_consumed() {
    let buffer = buffer("subbuf-size=8:n-subbufs=4");
    let mut reader = Reader::new(buffer.clone());
    write(&buffer, &["aaaaa", "b"]);
    let (taken, bytes) = take(&mut reader, |_| {});
    write(&buffer, &["c", "ddd"]);
    assert_eq!(bytes, b"aaaaab");
    assert!(!reader.consume_taken(&taken), "its sub-buffer has more");
    assert_eq!((counters(&buffer)[0], read(&mut reader, 100).as_slice()), (6, &b"cddd"[..]));
}

#[test]
fn bytes_read_by_others_are_not_consumed_again() {
    let buffer = buffer("subbuf-size=8:n-subbufs=4");
    let mut reader = Reader::new(buffer.clone());
    write(&buffer, &["aaaaa", "bbbbb"]);
    let (taken, _) = take(&mut reader, |_| {});
    assert_eq!(read(&mut reader, 7), b"aaaaabb");
    write(&buffer, &["ccccc"]);
    assert!(reader.consume_taken(&taken));
    assert_eq!(counters(&buffer)[..3], [10, 0, 0]);
    assert_eq!(read(&mut reader, 3), b"ccc");
    assert!(!reader.consume_taken(&taken), "all of it is behind the cursor");
    assert_eq!(read(&mut reader, 100), b"cc");
}

#[test]
fn take_from_before_a_reset_consumes_nothing() {
    for mode in ["no-overwrite", "overwrite"] {
        let buffer = buffer(&format!("subbuf-size=8:n-subbufs=4:{mode}"));
        let mut reader = Reader::new(buffer.clone());
        write(&buffer, &["aaaaa", "bbbbb"]);
        let (taken, _) = take(&mut reader, |_| {});
        reader.reset(SoleWriter).unwrap();
        write(&buffer, &["ccccc"]);
        assert!(!reader.consume_taken(&taken));
        assert_eq!((counters(&buffer)[0], read(&mut reader, 100).as_slice()), (0, &b"ccccc"[..]), "{mode}");
    }
}

/// Bytes in the copy count as read, even if the writer has overwritten them since.
/// All others count as overwritten.
#[test]
fn lapped_take_counts_its_bytes_as_read() {
    let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite");
    let mut reader = Reader::new(buffer.clone());
    write(&buffer, &["aaaaa", "bbbbb", "ccccc", "ddddd"]);
    let (taken, bytes) = take(&mut reader, |_| {});
    assert_eq!((bytes.as_slice(), taken.ranges()), (&b"bbbbbcccccddddd"[..], [0..0, 5..20]));
    write(&buffer, &["eeeee", "fffff", "ggggg", "hhhhh"]);
    assert!(reader.consume_taken(&taken));
    assert_eq!(counters(&buffer), [15, 5, 0, 2, 1, 0]);
    assert_eq!(read(&mut reader, 100), b"fffffggggghhhhh");
    assert_eq!(counters(&buffer)[..3], [30, 10, 0]);
}

/// The kept rest of an overwritten sub-buffer belongs to the take, as to the next read.
#[test]
fn kept_rest_of_an_overwritten_sub_buffer_is_taken() {
    let buffer = buffer("subbuf-size=8:n-subbufs=2:overwrite");
    let mut reader = Reader::new(buffer.clone());
    write(&buffer, &["abcde", "fffff"]);
    assert_eq!(read(&mut reader, 2), b"ab");
    write(&buffer, &["ggggg", "hhhhh"]);
    let (taken, bytes) = take(&mut reader, |_| {});
    assert_eq!((bytes.as_slice(), taken.ranges()), (&b"cdeggggghhhhh"[..], [2..5, 10..20]));
    assert_eq!(reader.take_len(), 13);
    assert_eq!(read(&mut reader, 1), b"c");
    assert!(reader.consume_taken(&taken));
    assert_eq!(counters(&buffer)[..3], [15, 5, 0]);
    assert_eq!(reader.unread(), 0);
}

/// A reader that reads on while a take is made may keep bytes that were written after the take began. They are not its own.
#[test]
fn bytes_kept_from_behind_a_take_are_not_in_it() {
    let buffer = buffer("subbuf-size=8:n-subbufs=4:overwrite");
    let mut reader = Reader::new(buffer.clone());
    write(&buffer, &["aaaaa"]);
    for _ in 0..2 {
        Writer::new(&buffer, SoleWriter).flush().unwrap();
    }
    write(&buffer, &["bb"]);
    let mut got = Vec::new();
    let (taken, bytes) = take(&mut reader, |reader| {
        if got.is_empty() {
            write(&buffer, &["cc"]);
            got = read(reader, 6);
        }
    });
    assert_eq!((got.as_slice(), bytes.as_slice()), (&b"aaaaab"[..], &b"b"[..]));
    reader.consume_taken(&taken);
    assert_eq!((reader.position(), read(&mut reader, 100).as_slice()), (7, &b"cc"[..]));
    assert_eq!(counters(&buffer)[..3], [9, 0, 0]);
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize),
    Flush,
    Read(usize),
    /// Begins a take, with this many writes of a few bytes, and reads, between two parts.
    Take(usize, usize),
    /// Consumes the take begun this many takes ago.
    Consume(usize),
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (1usize..40).prop_map(Op::Write),
        2 => Just(Op::Flush),
        5 => (1usize..60).prop_map(Op::Read),
        3 => Just(Op::Take(0, 0)),
        2 => (0usize..3, 0usize..12).prop_map(|(writes, read)| Op::Take(writes, read)),
        5 => (0usize..3).prop_map(Op::Consume),
        1 => Just(Op::Reset),
    ];
    prop::collection::vec(op, 1..100)
}

fn geometries() -> impl Strategy<Value = Geometry> {
    let size = prop_oneof![Just(1u64), Just(7), Just(32), Just(36)];
    let number = prop_oneof![Just(1u64), Just(2), Just(3), Just(5), Just(8)];
    (size, number, prop_oneof![3 => Just(0u64), 1 => Just(5)], any::<bool>()).prop_map(
        |(subbuf_size, n_subbufs, header, overwrite)| {
            let spec = GeometrySpec {
                subbuf_size: Some(subbuf_size),
                n_subbufs: Some(n_subbufs),
                header: Some(header.min(subbuf_size - 1)),
                mode: Some(if overwrite { Mode::Overwrite } else { Mode::NoOverwrite }),
                global: None,
                timed: None,
            };
            spec.build().expect("within limits")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn takes_are_pieces_of_the_stream_and_consume_what_they_have(geometry in geometries(), ops in ops()) {
        history(geometry, &ops);
    }
}

/// A buffer, and all bytes of its stream since creation.
struct Logged {
    buffer: Buffer,
    log: Vec<u8>,
}

impl Logged {
    fn writer(&self) -> Writer<'_, SoleWriter> {
        Writer::new(&self.buffer, SoleWriter)
    }

    /// Notes written bytes: headers of zeroes, and `message` if it was written.
    fn note(&mut self, reader: &Reader, message: &[u8]) {
        self.log.resize(reader.size() as usize - message.len(), 0);
        self.log.extend(message);
    }

    fn write(&mut self, reader: &Reader, len: usize) {
        let message = vec![self.log.len() as u8 | 1; len];
        let is_written = self.writer().write(&message).unwrap().placed == WriteResult::Written;
        self.note(reader, if is_written { &message } else { &[] });
    }

    /// Returns the bytes of a take from the log.
    fn bytes(&self, taken: &Taken) -> Vec<u8> {
        taken.ranges().map(|range| &self.log[range.start as usize..range.end as usize]).concat()
    }
}

fn history(geometry: Geometry, ops: &[Op]) {
    let buffer = Buffer::anonymous(geometry, 0).unwrap();
    let mut reader = Reader::new(buffer.clone());
    let mut logged = Logged { buffer: buffer.clone(), log: Vec::new() };
    logged.note(&reader, &[]);
    // Each take, and whether a reset came after it.
    let mut takes: Vec<(Taken, bool)> = Vec::new();
    for (step, op) in ops.iter().enumerate() {
        let what = format!("step {step}: {op:?}");
        match *op {
            Op::Write(len) => logged.write(&reader, len),
            Op::Flush => {
                logged.writer().flush().unwrap();
                logged.note(&reader, &[]);
            }
            Op::Read(count) => {
                let bytes = read(&mut reader, count);
                let log = &logged.log[..reader.position() as usize];
                let is_stream = log.ends_with(&bytes) || geometry.mode() == Mode::Overwrite;
                assert!(is_stream, "{what}");
            }
            Op::Take(writes, count) => {
                let (len, before, unread) = (reader.take_len(), counters(&buffer), reader.position());
                let (taken, bytes) = take(&mut reader, |reader| {
                    (0..writes).for_each(|_| logged.write(reader, 3));
                    if count > 0 {
                        read(reader, count);
                    }
                });
                assert_eq!(bytes, logged.bytes(&taken), "{what}");
                if (writes, count) == (0, 0) {
                    assert_eq!((bytes.len() as u64, counters(&buffer)), (len, before), "{what}");
                    assert_eq!(taken.ranges()[1].end, reader.size(), "{what}");
                    let has_all = bytes.len() as u64 == reader.size() - unread;
                    assert!(has_all || geometry.mode() == Mode::Overwrite, "{what}");
                }
                takes.push((taken, false));
            }
            Op::Consume(ago) if ago < takes.len() => {
                let (taken, is_void) = takes.remove(takes.len() - 1 - ago);
                let (at, before) = (reader.position(), counters(&buffer));
                reader.consume_taken(&taken);
                let after = counters(&buffer);
                let end = taken.ranges()[1].end.max(at);
                let left = taken.ranges().map(|range| range.end.saturating_sub(range.start.max(at)));
                let read = after[0] - before[0];
                if is_void || taken.is_empty() || end == at {
                    assert_eq!((reader.position(), read, after[1]), (at, 0, before[1]), "{what}");
                } else {
                    let lost = end - at - left.iter().sum::<u64>();
                    assert_eq!((reader.position(), read), (end, left.iter().sum()), "{what}");
                    assert_eq!(after[1] - before[1], lost, "{what}");
                }
                assert_eq!((after[2], after[5]), (before[2], before[5]), "{what}: nothing is discarded");
            }
            Op::Consume(_) => {}
            Op::Reset => {
                reader.reset(SoleWriter).unwrap();
                logged.note(&reader, &[]);
                takes.iter_mut().for_each(|(_, is_void)| *is_void = true);
            }
        }
        let [read, overwritten, discarded, subbufs @ ..] = counters(&buffer);
        assert_eq!(read + overwritten + discarded + reader.unread(), reader.size(), "{what}");
        let finished = reader.n_finished();
        if geometry.mode() == Mode::NoOverwrite {
            assert_eq!(subbufs.iter().sum::<u64>() + finished, reader.produced(), "{what}");
        }
        assert_eq!(reader.corrected(), 0, "{what}");
    }
}

/// While a writer does not stop, a take is a run of messages without a gap.
/// The next take begins behind it.
#[test]
fn takes_of_a_busy_buffer_have_no_gap() {
    for spec in [
        "subbuf-size=64:n-subbufs=64",
        "subbuf-size=4096:n-subbufs=3:overwrite",
        "subbuf-size=64:n-subbufs=64:overwrite",
    ] {
        let buffer = buffer(spec);
        let mut reader = Reader::new(buffer.clone());
        let drops = buffer.geometry().mode() == Mode::NoOverwrite;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let writer = Writer::new(&buffer, SoleWriter);
                let mut number = 0u64;
                while number < 200_000 {
                    number += u64::from(
                        writer.write(&number.to_le_bytes()).unwrap().placed == WriteResult::Written,
                    );
                }
            });
            let (mut next, mut is_last) = (0, false);
            while !is_last {
                is_last = writing.is_finished();
                let (taken, bytes) = take(&mut reader, |_| {});
                let numbers: Vec<u64> =
                    bytes.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
                assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{spec}: a gap");
                if let Some((first, last)) = numbers.first().zip(numbers.last()) {
                    assert!(*first == next || !drops && *first > next, "{spec}: {first} behind {next}");
                    assert_eq!(taken.ranges()[1], first * 8..(last + 1) * 8, "{spec}");
                    next = last + 1;
                }
                reader.consume_taken(&taken);
                assert_eq!(reader.position(), next * 8, "{spec}");
            }
            assert_eq!(next, 200_000, "{spec}");
        });
        let [read, overwritten, discarded, ..] = counters(&buffer);
        assert_eq!((read + overwritten, discarded), (1_600_000, 0), "{spec}");
        assert_eq!(reader.corrected(), 0);
    }
}
