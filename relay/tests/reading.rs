//! Reading by means other than read(): giving back by number, snapshots and mapped readers.
//!
//! Thousands of histories mix them with writes, reads, flushes and resets, and compare with a log of everything
//! written.

use proptest::prelude::*;
use relay::ring::buffer::Buffer;
use relay::ring::mapped_reader::MappedReader;
use relay::ring::reader::{ConsumeError, Reader};
use relay::ring::writer::{Outcome, SoleWriter, WriteResult, Writer};
use relay::{Geometry, GeometrySpec, Mode};

/// Bytes written to each sub-buffer since creation, by number; with headers, without padding.
struct Log {
    subbufs: Vec<Vec<u8>>,
    /// Number of the first sub-buffer since the last reset.
    floor: usize,
    /// Bytes of sub-buffers that a reset left unfinished: these have no number.
    forgotten: u64,
    n_resets: usize,
}

impl Log {
    fn new(geometry: &Geometry) -> Log {
        Log { subbufs: vec![vec![0; geometry.header()]], floor: 0, forgotten: 0, n_resets: 0 }
    }

    /// Returns the number of the current sub-buffer.
    fn current(&self) -> usize {
        self.subbufs.len() - 1
    }

    /// Returns the stream position of the first byte of a sub-buffer that is not from before the last reset.
    fn begin(&self, number: usize) -> u64 {
        self.forgotten + self.subbufs[..number].iter().map(|subbuf| subbuf.len() as u64).sum::<u64>()
    }

    /// Returns all bytes of the sub-buffers since the last reset.
    fn since_reset(&self) -> Vec<u8> {
        self.subbufs[self.floor..].concat()
    }

    fn note(&mut self, geometry: &Geometry, outcome: Outcome, message: &[u8], was_blocked: &mut bool) {
        let opened = outcome.placed != WriteResult::Full && (outcome.switched || *was_blocked);
        if outcome.switched {
            self.subbufs.push(Vec::new());
        }
        // A message that is longer than a sub-buffer changes nothing.
        if outcome.placed == WriteResult::TooBig && message.len() > geometry.subbuf_size() {
            return;
        }
        let current = self.current();
        if opened {
            self.subbufs[current].resize(geometry.header(), 0);
        }
        *was_blocked = outcome.placed == WriteResult::Full;
        if outcome.placed == WriteResult::Written {
            self.subbufs[current].extend_from_slice(message);
        }
    }

    fn reset(&mut self, geometry: &Geometry) {
        let current = self.current();
        self.forgotten += self.subbufs[current].len() as u64;
        self.subbufs[current] = vec![0; geometry.header()];
        self.floor = current;
        self.n_resets += 1;
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize),
    Flush,
    Read(usize),
    /// Distance of the named first number from the next one, if it is named; and the count.
    Consume(Option<i64>, u64),
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let from = prop_oneof![4 => Just(Some(0)), 4 => Just(None), 1 => (-3i64..3).prop_map(Some)];
    let op = prop_oneof![
        12 => (0usize..40).prop_map(Op::Write),
        6 => (0usize..12).prop_map(Op::Write),
        3 => Just(Op::Flush),
        6 => (1usize..60).prop_map(Op::Read),
        6 => (from, 0u64..4).prop_map(|(from, count)| Op::Consume(from, count)),
        1 => Just(Op::Reset),
    ];
    prop::collection::vec(op, 1..120)
}

fn geometries() -> impl Strategy<Value = Geometry> {
    (
        prop_oneof![Just(1u64), Just(7), Just(32), Just(36)],
        prop_oneof![Just(1u64), Just(2), Just(3), Just(5), Just(8)],
        prop_oneof![3 => Just(0u64), 1 => Just(5)],
        any::<bool>(),
    )
        .prop_map(|(subbuf_size, n_subbufs, header, overwrite)| {
            let spec = GeometrySpec {
                subbuf_size: Some(subbuf_size),
                n_subbufs: Some(n_subbufs),
                header: Some(header.min(subbuf_size - 1)),
                mode: Some(if overwrite { Mode::Overwrite } else { Mode::NoOverwrite }),
                global: None,
                timed: None,
            };
            spec.build().expect("within limits")
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn every_way_to_read_agrees_with_the_log(geometry in geometries(), lap in 0u64..3, ops in ops()) {
        history(geometry, lap, &ops)?;
    }
}

/// Plays one history, and compares all observations after each step.
fn history(geometry: Geometry, lap: u64, ops: &[Op]) -> Result<(), TestCaseError> {
    let buffer = Buffer::anonymous(geometry, lap).unwrap();
    let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
    let mut log = Log::new(&geometry);
    let (mut scratch, mut is_blocked) = (Vec::new(), false);
    for (step, op) in ops.iter().cloned().enumerate() {
        match op {
            Op::Write(len) => {
                let message: Vec<u8> = (0..len).map(|i| (step * 7 + i) as u8 | 1).collect();
                log.note(&geometry, writer.write(&message).unwrap(), &message, &mut is_blocked);
            }
            Op::Flush => log.note(&geometry, writer.flush().unwrap(), &[], &mut is_blocked),
            Op::Read(count) => {
                let before = reader.next_number();
                reader.read(count, &mut scratch, |_| {});
                prop_assert!(reader.next_number() >= before, "step {}", step);
            }
            Op::Consume(from, count) => consume(&buffer, &mut reader, &log, from, count, step)?,
            Op::Reset => {
                reader.reset(SoleWriter).unwrap();
                log.reset(&geometry);
                is_blocked = false;
            }
        }
        look(&buffer, &reader, &log, step)?;
    }
    Ok(())
}

/// Gives back, or is refused and changes nothing.
fn consume(
    buffer: &Buffer,
    reader: &mut Reader,
    log: &Log,
    from: Option<i64>,
    count: u64,
    step: usize,
) -> Result<(), TestCaseError> {
    let next = reader.next_number();
    let (finished, position) = (log.current() as u64 - next, reader.position());
    let from = from.map(|more| next.wrapping_add_signed(more));
    let expected = if from.is_some_and(|from| from != next) {
        Err(ConsumeError::Stale { next })
    } else if count > finished {
        Err(ConsumeError::TooMany { finished })
    } else {
        Ok(count > 0)
    };
    let counters = counters(buffer);
    prop_assert_eq!(reader.consume(from, count), expected, "step {}", step);
    if expected == Ok(true) {
        prop_assert_eq!(reader.next_number(), next + count, "step {}", step);
        prop_assert_eq!(reader.position(), log.begin((next + count) as usize), "step {}", step);
        let unread = buffer.block().consumed.load(std::sync::atomic::Ordering::Relaxed);
        prop_assert_eq!(
            buffer.widths().offset(relay::layout::position::Position(unread)),
            0,
            "step {}",
            step
        );
    } else {
        prop_assert_eq!((reader.next_number(), reader.position()), (next, position), "step {}", step);
        prop_assert_eq!(self::counters(buffer), counters, "step {}", step);
    }
    Ok(())
}

/// Compares numbers, a snapshot, a mapped reader, and read() of a copy of this reader.
fn look(buffer: &Buffer, reader: &Reader, log: &Log, step: usize) -> Result<(), TestCaseError> {
    let geometry = buffer.geometry();
    let (current, next) = (log.current(), reader.next_number() as usize);
    let oldest = (current + 1).saturating_sub(geometry.n_subbufs()).max(log.floor);
    let counters = counters(buffer);
    prop_assert!(next <= current, "step {}", step);

    let mut snapshot = Vec::new();
    let extent = reader.snapshot_extent();
    reader.snapshot(extent, &mut snapshot);
    prop_assert!(snapshot.len() <= extent.max(), "step {}", step);
    if geometry.mode() == Mode::Overwrite {
        prop_assert!(next >= oldest, "step {}", step);
        prop_assert_eq!(&snapshot, &log.subbufs[oldest..].concat(), "step {}", step);
    } else {
        let all = log.since_reset();
        let read = (reader.position() - log.begin(log.floor)) as usize;
        prop_assert_eq!(&snapshot, &all[read..], "step {}", step);
        prop_assert_eq!(snapshot.len() as u64, reader.snapshot_len());
    }

    // An observer that has only the files finds the same.
    let (left, unsound) = Reader::look(buffer.clone());
    prop_assert_eq!(unsound, None, "step {}", step);
    prop_assert_eq!((left.position(), left.unread()), (reader.position(), reader.unread()), "step {}", step);
    let mut found = Vec::new();
    left.snapshot(left.snapshot_extent(), &mut found);
    // After a reset some of the discarded bytes may show.
    let same = if log.n_resets > 0 { found.ends_with(&snapshot) } else { found == snapshot };
    prop_assert!(same, "step {}: {:?} and {:?}", step, found, snapshot);
    let is_overwrite = geometry.mode() == Mode::Overwrite;
    let overwritten = if is_overwrite { log.begin(oldest).saturating_sub(reader.position()) } else { 0 };
    prop_assert_eq!(left.overwritten_unread().bytes, overwritten, "step {}", step);
    // A reader that keeps the rest of a sub-buffer has lost no more than the bytes behind it.
    let still_there = reader.overwritten_unread();
    prop_assert!(still_there.bytes <= overwritten, "step {}", step);
    prop_assert_eq!(still_there.subbufs, left.overwritten_unread().subbufs, "step {}", step);

    let mut view = MappedReader::new(buffer.clone());
    let consumed = view.consumed_bytes();
    let may_be_gone = is_overwrite && current >= geometry.n_subbufs();
    prop_assert!(consumed == Some(reader.position()) || consumed.is_none() && may_be_gone, "step {}", step);
    let mut number = next;
    while let Some(sub_buffer) = view.next_finished() {
        prop_assert_eq!(sub_buffer.number, number as u64, "step {}", step);
        let mut bytes = Vec::new();
        sub_buffer.copy_to(&mut bytes);
        prop_assert!(log.subbufs[number].ends_with(&bytes), "step {}: {:?}", step, bytes);
        let is_whole = bytes.len() == log.subbufs[number].len();
        prop_assert!(is_whole || number == next, "step {}: only the first may be read partly", step);
        let end = sub_buffer.begin + sub_buffer.len() as u64;
        prop_assert_eq!(end, log.begin(number) + log.subbufs[number].len() as u64, "step {}", step);
        number += 1;
    }
    prop_assert_eq!(number, current, "step {}", step);
    let taken = (current > next).then(|| (next as u64, (current - next) as u64));
    prop_assert_eq!(view.give_back_range(), taken, "step {}", step);
    prop_assert_eq!(self::counters(buffer), counters, "looking at step {} changed a counter", step);
    // No byte is lost without a count.
    let [read, overwritten, discarded, ..] = counters;
    prop_assert_eq!(read + overwritten + discarded + reader.unread(), reader.size(), "step {}", step);
    Ok(())
}

fn counters(buffer: &Buffer) -> [u64; 7] {
    let block = buffer.block();
    let counters = [
        &block.read_bytes,
        &block.overwritten_bytes,
        &block.discarded_bytes,
        &block.read_subbufs,
        &block.overwritten_subbufs,
        &block.discarded_subbufs,
        &block.high_water,
    ];
    counters.map(|counter| counter.load(std::sync::atomic::Ordering::Relaxed))
}

/// A snapshot taken while a thread writes ends at the end of a message.
/// It begins at the reader's position, or, in overwrite mode, at a sub-buffer, and has all bytes in between.
#[test]
fn snapshot_of_a_busy_buffer_is_whole() {
    for spec in [
        "subbuf-size=64:n-subbufs=4096",
        "subbuf-size=4096:n-subbufs=3:overwrite",
        "subbuf-size=64:n-subbufs=64:overwrite",
    ] {
        let geometry = spec.parse::<GeometrySpec>().unwrap().build().unwrap();
        let buffer = Buffer::anonymous(geometry, 0).unwrap();
        let reader = Reader::new(buffer.clone());
        let n_messages = if geometry.mode() == Mode::Overwrite { 400_000u64 } else { 32_000 };
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let writer = Writer::new(&buffer, SoleWriter);
                for number in 0..n_messages {
                    assert_eq!(writer.write(&number.to_le_bytes()).unwrap().placed, WriteResult::Written);
                }
            });
            let (mut last_end, mut is_last) = (0, false);
            while !is_last {
                is_last = writing.is_finished();
                let extent = reader.snapshot_extent();
                let mut bytes = Vec::new();
                reader.snapshot(extent, &mut bytes);
                assert_eq!(bytes.len() % 8, 0, "{spec}: ends in a message");
                let numbers: Vec<u64> =
                    bytes.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
                let Some((first, last)) = numbers.first().zip(numbers.last()) else { continue };
                assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{spec}: a gap");
                assert!(*last >= last_end, "{spec}: goes backwards");
                last_end = *last;
                match geometry.mode() {
                    Mode::NoOverwrite => assert_eq!(*first, 0, "{spec}: nothing was read"),
                    Mode::Overwrite => assert_eq!(first % (geometry.subbuf_size() as u64 / 8), 0, "{spec}"),
                }
            }
            assert_eq!(last_end, n_messages - 1, "{spec}");
        });
    }
}

/// A snapshot is taken in parts, while others write, read or reset in between.
/// It is a piece of the stream without a gap, up to the announced end.
#[test]
fn snapshot_in_parts_has_no_gap() {
    let alphabet: Vec<u8> = (b'a'..=b'z').flat_map(|letter| [letter; 3]).collect();
    for mode in ["no-overwrite", "overwrite"] {
        for (read, written, reset) in (0..12).flat_map(|read| [(read, 0, 9), (read, 2, 9), (read, 1, 1)]) {
            let spec: GeometrySpec = format!("subbuf-size=8:n-subbufs=5:{mode}").parse().unwrap();
            let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
            let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
            let mut messages = alphabet.chunks(3);
            for message in messages.by_ref().take(9) {
                assert_eq!(writer.write(message).unwrap().placed, WriteResult::Written);
            }
            let (mut extent, mut bytes, mut part) = (reader.snapshot_extent(), Vec::new(), 0);
            while reader.snapshot_part(&mut extent, &mut bytes) {
                reader.read(read, &mut Vec::new(), |_| {});
                for message in messages.by_ref().take(written) {
                    let _ = writer.write(message).unwrap();
                }
                if part == reset {
                    reader.reset(SoleWriter).unwrap();
                }
                part += 1;
            }
            let what = format!("{mode} {read} {written} {reset}: {}", String::from_utf8_lossy(&bytes));
            let found = alphabet.windows(bytes.len().max(1)).any(|piece| piece == bytes) || bytes.is_empty();
            assert!(found && bytes.len() <= extent.max(), "{what}");
            assert!(part <= 3 * 16, "{what}");
            if (written, read) == (0, 0) {
                assert_eq!(bytes, alphabet[..27], "{what}");
            }
        }
    }
}

/// Others read or write between the sizing of a snapshot and its copy.
/// That moves its beginning or end, and cuts no message.
#[test]
fn snapshot_ends_where_it_was_announced() {
    for mode in ["no-overwrite", "overwrite"] {
        let spec: GeometrySpec = format!("subbuf-size=8:n-subbufs=4:{mode}").parse().unwrap();
        let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let snapshot = |reader: &Reader, extent| {
            let mut bytes = Vec::new();
            reader.snapshot(extent, &mut bytes);
            String::from_utf8(bytes).unwrap()
        };
        writer.write(b"aaaaa").unwrap();
        writer.write(b"bbb").unwrap();
        writer.write(b"cc").unwrap();
        let extent = reader.snapshot_extent();
        writer.write(b"dddd").unwrap();
        writer.write(b"eeee").unwrap();
        assert_eq!(snapshot(&reader, extent), "aaaaabbbcc", "{mode}");
        reader.read(6, &mut Vec::new(), |bytes| assert_eq!(bytes, b"aaaaab"));
        let rest = if mode == "overwrite" { "aaaaabbbcc" } else { "bbcc" };
        assert_eq!(snapshot(&reader, extent), rest, "{mode}");
        reader.read(100, &mut Vec::new(), |_| {});
        let rest = if mode == "overwrite" { "aaaaabbbcc" } else { "" };
        assert_eq!(snapshot(&reader, extent), rest, "{mode}");
        for letter in b'f'..=b'j' {
            writer.write(&[letter; 6]).unwrap();
        }
        let now = if mode == "overwrite" { "gggggghhhhhhiiiiiijjjjjj" } else { "" };
        assert_eq!(snapshot(&reader, extent), now, "{mode}: the writer went round");
    }
}
