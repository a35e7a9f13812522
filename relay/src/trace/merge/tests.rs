//! Tests of the merge.

use proptest::prelude::*;

use super::*;
use crate::trace::definition::Definitions;
use crate::trace::event::id;
use crate::trace::packet::{Losses, PacketError, PacketMaker, SubBuffer};

/// Sub-buffers of a CPU: number, messages lost so far, stamps of the records.
type Buffer<'a> = &'a [(u64, u64, &'a [u64])];

fn stream(cpu: u32, buffer: Buffer<'_>) -> Vec<u8> {
    let mut maker = PacketMaker::new(cpu, 0, Some(Losses::default()));
    let mut out = Vec::new();
    for (number, lost, stamps) in buffer {
        let mut records = Vec::new();
        for stamp in *stamps {
            Record { stamp: *stamp, id: id::TEXT, tid: cpu, payload: b"text" }.encode_into(&mut records);
        }
        let losses = Losses { lost: *lost, too_big: 0 };
        let subbuf =
            SubBuffer { number: *number, losses, newest: u64::MAX, cause: Cause::Full, records: &records };
        maker.packet(&subbuf, &Definitions::new(), &mut out);
    }
    out
}

fn reader(bytes: &[u8]) -> PacketReader<&[u8]> {
    PacketReader::new(bytes)
}

/// All items up to the horizon, each as a short text.
fn items<S: Source>(merge: &mut Merge<S>) -> Vec<String> {
    let mut items = Vec::new();
    while let Some(Entry { cpu, stamp, late, item }) = merge.next() {
        let what = match item {
            Item::Record(_) => String::new(),
            Item::Lost { messages, cause } => format!(" lost {messages} {cause:?}"),
            Item::Gap { first, last } => format!(" gap {first}-{last}"),
            Item::Damaged { bytes } => format!(" damaged {bytes}"),
            Item::Failed(error) => format!(" failed: {error}"),
            Item::Notice(notice) => format!(" {}", notice.text),
        };
        items.push(format!("{cpu}@{stamp}{}{what}", if late { " late" } else { "" }));
    }
    items
}

#[test]
fn items_come_by_stamp_and_cpu() {
    let cpu0 = stream(0, &[(0, 0, &[10, 30, 30]), (1, 0, &[31, 60])]);
    let cpu1 = stream(1, &[(0, 0, &[10, 20, 30, 70])]);
    let cpu2 = stream(2, &[]);
    let mut merge = Merge::new();
    // The order of the streams does not matter.
    for (cpu, bytes) in [(2, &cpu2), (1, &cpu1), (0, &cpu0)] {
        merge.push(cpu, reader(bytes));
    }
    let expected = ["0@10", "1@10", "1@20", "0@30", "0@30", "1@30", "0@31", "0@60", "1@70"];
    assert_eq!(items(&mut merge), expected);
    assert!(merge.next().is_none());
}

#[test]
fn losses_gaps_and_damage_stand_where_they_happened() {
    let mut cpu0 = stream(0, &[(0, 0, &[10]), (1, 0, &[]), (2, 3, &[20]), (7, 3, &[30])]);
    let cpu1 = stream(1, &[(5, 0, &[15, 25])]);
    // The last packet of CPU 0 lies about its length; the stream of CPU 1 is cut.
    let len = cpu0.len();
    cpu0[len - 6] = 200;
    let mut merge = Merge::new();
    merge.push(0, reader(&cpu0));
    merge.push(1, reader(&cpu1));
    merge.push(1, reader(&cpu1[..100]));
    let expected = [
        "0@10",
        "0@10 lost 3 Some(Full)",
        "1@15",
        "0@20",
        "0@20 gap 3-6",
        "1@25",
        "1@25 failed: the packet at byte 0 is cut: 100 bytes of it are there",
        "0@30 damaged 20",
    ];
    assert_eq!(items(&mut merge), expected);
}

#[test]
fn losses_without_a_record_have_no_cause() {
    let mut maker = PacketMaker::new(0, 0, None);
    let mut cpu0 = Vec::new();
    let text = |stamp| {
        let mut bytes = Vec::new();
        Record { stamp, id: id::TEXT, tid: 1, payload: b"" }.encode_into(&mut bytes);
        bytes
    };
    let mut packet = |number, lost, records: &[u8], out: &mut Vec<u8>| {
        let losses = Losses { lost, too_big: 0 };
        let subbuf = SubBuffer { number, losses, newest: u64::MAX, cause: Cause::Full, records };
        maker.packet(&subbuf, &Definitions::new(), out);
    };
    packet(4, 7, &text(10), &mut cpu0);
    let second = cpu0.len();
    let damaged = [text(20), vec![0; 5]].concat();
    packet(5, 7, &damaged, &mut cpu0);
    let mut merge = Merge::new();
    merge.push(0, reader(&cpu0));
    assert_eq!(items(&mut merge), ["0@10", "0@20", "0@20 lost 1 None"], "damage");
    // Another program's packet: only its header counts the losses.
    cpu0[second + 56] += 2;
    let mut merge = Merge::new();
    merge.push(0, reader(&cpu0));
    assert_eq!(items(&mut merge), ["0@10", "0@20 lost 2 None", "0@20", "0@20 lost 1 None"]);
}

#[test]
fn loss_that_is_told_late_is_marked_on_no_line() {
    let cpu0 = stream(0, &[(0, 0, &[10])]);
    let cpu1 = stream(1, &[(0, 0, &[50])]);
    let mut merge = Merge::new();
    merge.push(0, reader(&cpu0));
    merge.push(1, reader(&cpu1));
    assert_eq!(items(&mut merge), ["0@10", "1@50"]);
    // The buffer of CPU 0 was full since 10.
    let next = stream(0, &[(1, 4, &[60])]);
    merge.push(0, reader(&next));
    assert_eq!(items(&mut merge), ["0@10 lost 4 Some(Full)", "0@60"]);
}

#[test]
fn what_is_younger_than_the_horizon_waits() {
    let cpu0 = stream(0, &[(0, 0, &[10, 20, 30])]);
    let cpu1 = stream(1, &[(0, 0, &[15, 40])]);
    let mut merge = Merge::new();
    merge.push(0, reader(&cpu0));
    merge.push(1, reader(&cpu1));
    merge.set_horizon(20);
    assert_eq!(items(&mut merge), ["0@10", "1@15", "0@20"]);
    assert_eq!(items(&mut merge), [""; 0]);
    // The next copies: CPU 1 was idle, CPU 0 continues its sub-buffer.
    let next = stream(0, &[(0, 0, &[35])]);
    let third = stream(2, &[(9, 0, &[5, 34])]);
    merge.push(0, reader(&next));
    merge.push(2, reader(&third));
    merge.set_horizon(39);
    assert_eq!(items(&mut merge), ["2@5 late", "0@30", "2@34", "0@35"]);
    merge.set_horizon(u64::MAX);
    assert_eq!(items(&mut merge), ["1@40"]);
}

#[test]
fn a_gap_shows_across_streams_and_an_older_number_begins_over() {
    let streams = [stream(0, &[(0, 0, &[1])]), stream(0, &[(3, 0, &[2])]), stream(0, &[(0, 0, &[3])])];
    let mut merge = Merge::new();
    for bytes in &streams {
        merge.push(0, reader(bytes));
    }
    assert_eq!(items(&mut merge), ["0@1", "0@1 gap 1-2", "0@2", "0@3"]);
}

/// Packets that no maker made.
struct Wild(Vec<(PacketHeader, Vec<u8>)>);

impl Source for Wild {
    fn next_packet(&mut self, packet: &mut Vec<u8>) -> Result<Option<PacketHeader>, ReadError> {
        let Some((header, bytes)) = self.0.pop() else { return Ok(None) };
        if header.cpu == 3 {
            return Err(PacketError::Magic { at: 0 }.into());
        }
        *packet = bytes;
        Ok(Some(header))
    }
}

fn wild() -> impl Strategy<Value = Vec<(PacketHeader, Vec<u8>)>> {
    let number = || prop_oneof![0u64..100, any::<u64>()];
    let header = (0u32..4, number(), number(), number(), number(), number()).prop_map(
        |(cpu, begin, end, records_len, number, discarded)| PacketHeader {
            cpu,
            begin,
            end,
            records_len,
            padding: 0,
            number,
            discarded,
        },
    );
    proptest::collection::vec((header, proptest::collection::vec(0u8..9, 0..200)), 0..4)
}

proptest! {
    #[test]
    fn any_packets_are_merged(lanes in proptest::collection::vec((0u32..3, wild()), 0..4), horizon: u64) {
        let mut merge = Merge::new();
        for (cpu, packets) in lanes {
            merge.push(cpu, Wild(packets));
        }
        merge.set_horizon(horizon);
        items(&mut merge);
        merge.set_horizon(u64::MAX);
        items(&mut merge);
    }

    #[test]
    fn a_merge_is_a_sort(cpus in proptest::collection::vec(proptest::collection::vec(0u64..50, 0..30), 0..5), per_packet in 1usize..6, horizon in 0u64..50) {
        let mut merge = Merge::new();
        let mut all = Vec::new();
        let mut streams = Vec::new();
        for (cpu, mut stamps) in (0..).zip(cpus) {
            stamps.sort_unstable();
            all.extend(stamps.iter().map(|stamp| (*stamp, cpu)));
            let subbufs: Vec<_> = (0..).zip(stamps.chunks(per_packet)).map(|(number, stamps)| (number, 0, stamps)).collect();
            streams.push((cpu, stream(cpu, &subbufs)));
        }
        for (cpu, bytes) in streams.iter().rev() {
            merge.push(*cpu, reader(bytes));
        }
        all.sort_unstable();
        let mut merged = Vec::new();
        for horizon in [horizon, u64::MAX] {
            merge.set_horizon(horizon);
            while let Some(entry) = merge.next() {
                prop_assert!(entry.stamp <= horizon && !entry.late);
                merged.push((entry.stamp, entry.cpu));
            }
        }
        prop_assert_eq!(merged, all);
    }
}
