//! A reader with hostile words ends every call, stays inside the ring, and does not panic.
//!
//! The messages it then finds mean nothing. The daemon's other channels depend on its survival.

use proptest::prelude::*;
use relay::GeometrySpec;
use relay::ring::buffer::Buffer;
use relay::ring::mapped_reader::MappedReader;
use relay::ring::reader::Reader;
use relay::ring::writer::{SoleWriter, Writer};
use std::sync::atomic::{AtomicU64, Ordering};

/// A word as a peer might leave it: near the right value, or arbitrary.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0u64..5000, Just(u64::MAX), (0u32..64).prop_map(|bit| 1 << bit)]
}

#[derive(Clone, Debug)]
enum Op {
    /// Overwrites a word of the block or of a record: index and value.
    Scribble(usize, u64),
    Read(usize),
    SkipTo(u64),
    Consume(Option<u64>, u64),
    Snapshot,
    Take,
    ConsumeTaken,
    Reset,
    Write(usize),
    Look,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0usize..64, word()).prop_map(|(place, value)| Op::Scribble(place, value)),
        2 => (0usize..5000).prop_map(Op::Read),
        1 => word().prop_map(Op::SkipTo),
        1 => (proptest::option::of(word()), word()).prop_map(|(from, count)| Op::Consume(from, count)),
        1 => Just(Op::Snapshot),
        2 => Just(Op::Take),
        1 => Just(Op::ConsumeTaken),
        1 => Just(Op::Reset),
        1 => (0usize..200).prop_map(Op::Write),
        1 => Just(Op::Look),
    ]
}

/// Stores a word in one of the places that peers can write.
fn scribble(buffer: &Buffer, place: usize, value: u64) {
    let block = buffer.block();
    let words: [&AtomicU64; 8] = [
        &block.state,
        &block.state,
        &block.begun,
        &block.begun,
        &block.consumed,
        &block.dropped,
        &block.wake,
        &block.high_water,
    ];
    if let Some(word) = words.get(place) {
        return word.store(value, Ordering::Relaxed);
    }
    let n_subbufs = buffer.geometry().n_subbufs() as u64;
    let position = buffer.widths().pack(place as u64 & 1, place as u64 / 2 % n_subbufs, 0);
    let record = buffer.record(position);
    let word = [&record.number, &record.begin, &record.padding, &record.lost][place / 16];
    word.store(value, Ordering::Relaxed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn reader_with_hostile_words_ends_every_call(
        subbuf_size in prop_oneof![Just(64u64), Just(100), Just(4096)],
        n_subbufs in 1u64..6,
        header in prop_oneof![Just(0u64), Just(16)],
        overwrite in any::<bool>(),
        timed in any::<bool>(),
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let mode = if overwrite { "overwrite" } else { "no-overwrite" };
        let spec: GeometrySpec =
            if timed { format!("subbuf-size={subbuf_size}:n-subbufs={n_subbufs}:{mode}:timed") }
            else { format!("subbuf-size={subbuf_size}:n-subbufs={n_subbufs}:header={header}:{mode}") }.parse().unwrap();
        let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
        let ring = buffer.geometry().buffer_size();
        let mut reader = Reader::new(buffer.clone());
        let mut view = MappedReader::new(buffer.clone());
        let (mut scratch, mut taken) = (Vec::new(), reader.take());
        for op in ops {
            match op {
                Op::Scribble(place, value) => scribble(&buffer, place, value),
                Op::Read(count) => {
                    reader.read(count, &mut scratch, |bytes| assert!(bytes.len() <= count));
                }
                Op::SkipTo(target) => {
                    reader.skip_to(target, &mut scratch, |_, bytes| assert!(bytes.len() <= 1 << 20));
                }
                Op::Consume(from, count) => drop(reader.consume(from, count)),
                Op::Snapshot => {
                    let mut copy = Vec::new();
                    let extent = reader.snapshot_extent();
                    reader.snapshot(extent, &mut copy);
                    prop_assert!(copy.len() as u64 <= ring && copy.len() <= extent.max());
                }
                Op::Take => {
                    taken = reader.take();
                    let (mut more, mut steps) = (true, 0);
                    while more {
                        let mut part = Vec::new();
                        more = reader.take_part(&mut taken, &mut part);
                        prop_assert!(part.len() <= taken.len() && taken.len() <= taken.max());
                        prop_assert!(taken.max() as u64 <= ring + subbuf_size);
                        steps += 1;
                    }
                    prop_assert!(steps <= 20_000, "{steps}");
                }
                Op::ConsumeTaken => drop(reader.consume_taken(&taken)),
                Op::Reset => drop(reader.reset(SoleWriter)),
                Op::Write(len) => drop(Writer::new(&buffer, SoleWriter).write(&vec![b'm'; len])),
                Op::Look => {
                    for _ in 0..20 {
                        let Some(sub_buffer) = view.next_finished() else { break };
                        prop_assert!(sub_buffer.bytes().len() <= subbuf_size as usize);
                    }
                    let _ = (view.give_back_range(), view.consumed_bytes());
                    let (left, _) = Reader::look(buffer.clone());
                    let mut copy = Vec::new();
                    let extent = left.snapshot_extent();
                    left.snapshot(extent, &mut copy);
                    prop_assert!(copy.len() as u64 <= ring && copy.len() <= extent.max());
                    let _ = left.overwritten_unread();
                }
            }
            // The values that stat, poll and the counters use.
            let _ = (reader.size(), reader.unread(), reader.unread_data(), reader.produced(), reader.n_finished());
            let _ = (reader.next_number(), reader.has_finished(), reader.has_unfinished(), reader.snapshot_len());
            let _ = reader.take_len();
        }
    }
}

/// A hostile peer claims that the writer is far ahead with little data in between.
/// A seek forward then skips as many sub-buffers as any other call, not as many for each piece of data it finds.
#[test]
fn seek_over_hostile_words_is_bounded() {
    for (mode, consumed) in [("no-overwrite", 0), ("overwrite", 0), ("overwrite", 1 << 63)] {
        let spec: GeometrySpec = format!("subbuf-size=64:n-subbufs=64:{mode}").parse().unwrap();
        let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
        for (lap, slot) in (0..2).flat_map(|lap| (0..64).map(move |slot| (lap, slot))) {
            let padding = if slot == 0 { 63 } else { 64 };
            buffer.record(buffer.widths().pack(lap, slot, 0)).padding.store(padding, Ordering::Relaxed);
        }
        buffer.block().consumed.store(consumed, Ordering::Relaxed);
        buffer.block().state.store(buffer.widths().pack(1 << 20, 0, 0).0, Ordering::Relaxed);
        let (mut reader, mut calls) = (Reader::new(buffer.clone()), 0);
        reader.skip_to(1 << 40, &mut Vec::new(), |_, _| calls += 1);
        assert!(calls <= 3, "{mode}, from {consumed}: {calls} times round");
    }
}

/// A reader lapped by more than any call skips continues with the data that is left.
#[test]
fn seek_far_behind_the_writer_arrives() {
    let spec: GeometrySpec = "subbuf-size=64:n-subbufs=3:overwrite".parse().unwrap();
    let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
    let writer = Writer::new(&buffer, SoleWriter);
    (0..5000).for_each(|_| assert!(writer.write(&[b'm'; 64]).is_ok()));
    let mut reader = Reader::new(buffer.clone());
    reader.skip_to(5000 * 64 - 70, &mut Vec::new(), |_, _| {});
    assert_eq!(reader.position(), 5000 * 64 - 70);
}
