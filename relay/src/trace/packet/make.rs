//! Makes packets of sub-buffers.

use crate::clock::SLACK;
use crate::trace::definition::Definitions;
use crate::trace::event::{Cause, id};
use crate::trace::packet::{HEADER_LEN, PacketHeader, put_lost};
use crate::trace::record::{Head, RECORD_OVERHEAD, first};

/// Messages lost in a buffer so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// All of them.
    pub lost: u64,
    /// Those of them that were too big.
    pub too_big: u64,
}

/// A copy of a sub-buffer, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct SubBuffer<'a> {
    /// Number of the sub-buffer in its buffer.
    pub number: u64,
    /// Messages lost up to the sub-buffer's end.
    pub losses: Losses,
    /// The clock, read behind the copy; `u64::MAX` if there is no clock. No true record is much younger.
    pub newest: u64,
    /// Why messages that were not too big were lost.
    pub cause: Cause,
    /// The records, without padding. The first byte is the start of a record.
    pub records: &'a [u8],
}

/// What became of a sub-buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Records in the packet, without those that report losses.
    pub records: u64,
    /// Records whose payload is not what their id says: they became `raw`.
    pub renamed: u64,
    /// Records whose stamp went back or lies in the future: they got the stamp before theirs.
    pub restamped: u64,
    /// Bytes at the end that are no records. A `lost` record without a cause stands for them.
    pub damaged_bytes: usize,
}

/// Makes the packets of one buffer, in order: one packet stream.
///
/// A reader of CTF gives up at a stamp that goes back, an unknown id, or a payload that is not as its event says. So
/// the maker mends what hostile or damaged memory holds.
#[derive(Clone, Debug)]
pub struct PacketMaker {
    cpu: u32,
    end: u64,
    /// Losses up to the last packet.
    losses: Option<Losses>,
    /// Sub-buffers without records that were left out, if they are.
    left_out: Option<u64>,
    /// Whether the next sub-buffer's first record is cut.
    is_cut: bool,
}

impl PacketMaker {
    /// Makes packets of this CPU's buffer.
    ///
    /// `end` is a stamp that no packet begins before. `losses` are those up to the first sub-buffer, if they are known.
    pub fn new(cpu: u32, end: u64, losses: Option<Losses>) -> PacketMaker {
        PacketMaker { cpu, end, losses, left_out: None, is_cut: false }
    }

    /// Leaves sub-buffers without records out, also of the numbers, for readers that stop at packets without records.
    pub fn without_empty(self) -> PacketMaker {
        PacketMaker { left_out: Some(0), ..self }
    }

    /// Notes that the next sub-buffer lacks the begin of its first record: another program has read that.
    ///
    /// A `lost` record without a cause says so. The buffer has lost nothing, so `events_discarded` does not count it.
    pub fn note_cut(&mut self) {
        self.is_cut = true;
    }

    /// Returns the end of the last packet.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends a sub-buffer to `out`, as a packet.
    ///
    /// New losses become `lost` records at the packet's start. Damage becomes one at its end, without a cause: the buffer
    /// counts no such loss, so `events_discarded` does not either. A sub-buffer without records becomes a packet without
    /// records, so that readers see no gap in the numbers; see also [`PacketMaker::without_empty`].
    pub fn packet(&mut self, subbuf: &SubBuffer<'_>, definitions: &Definitions, out: &mut Vec<u8>) -> Mended {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        let begin = self.begin_of(subbuf);
        self.report_losses(subbuf, begin, out);
        let records_at = out.len();
        out.extend_from_slice(subbuf.records);
        let made = self.mend(&mut out[records_at..], subbuf.newest, definitions);
        out.truncate(out.len() - made.damaged_bytes);
        if made.damaged_bytes > 0 {
            put_lost(self.end, 1, None, out);
        }
        if let Some(left_out) = &mut self.left_out
            && out.len() == start + HEADER_LEN
        {
            *left_out += 1;
            out.truncate(start);
            return made;
        }
        let header = PacketHeader {
            cpu: self.cpu,
            begin,
            end: self.end,
            records_len: (out.len() - start - HEADER_LEN) as u64,
            padding: 0,
            number: subbuf.number.wrapping_sub(self.left_out.unwrap_or(0)),
            discarded: subbuf.losses.lost,
        };
        out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
        made
    }

    /// The stamp with which the packet begins: that of its first record, if that can be true.
    fn begin_of(&self, subbuf: &SubBuffer<'_>) -> u64 {
        let stamp = first(subbuf.records).map_or(self.end, |record| record.stamp);
        if self.can_follow(stamp, subbuf.newest) { stamp } else { self.end }
    }

    /// Returns whether a stamp goes not back, and lies not in the future.
    fn can_follow(&self, stamp: u64, newest: u64) -> bool {
        (self.end..=newest.saturating_add(SLACK)).contains(&stamp)
    }

    fn report_losses(&mut self, subbuf: &SubBuffer<'_>, stamp: u64, out: &mut Vec<u8>) {
        let now = subbuf.losses;
        let before = self.losses.replace(now).unwrap_or(now);
        let lost = now.lost.saturating_sub(before.lost);
        let too_big = now.too_big.saturating_sub(before.too_big).min(lost);
        let cut = u64::from(std::mem::take(&mut self.is_cut));
        let (other, too_big) = ((lost - too_big, Some(subbuf.cause)), (too_big, Some(Cause::TooBig)));
        for (messages, cause) in [(cut, None), other, too_big] {
            if messages > 0 {
                put_lost(stamp, messages, cause, out);
            }
        }
    }

    /// Mends records in place.
    fn mend(&mut self, mut records: &mut [u8], newest: u64, definitions: &Definitions) -> Mended {
        let mut made = Mended::default();
        while let Some(record) = first(records) {
            let (stamp, id, tid) = (record.stamp, record.id, record.tid);
            let len = record.payload.len();
            let is_known = definitions.fits(id, record.payload);
            if self.can_follow(stamp, newest) {
                self.end = stamp;
            } else {
                records[..8].copy_from_slice(&self.end.to_le_bytes());
                made.restamped += 1;
            }
            if !is_known {
                let head = Head { id: id::RAW, tid, len: len as u16 };
                records[8..RECORD_OVERHEAD].copy_from_slice(&head.to_word().to_le_bytes());
                made.renamed += 1;
            }
            made.records += 1;
            records = &mut records[RECORD_OVERHEAD + len..];
        }
        made.damaged_bytes = records.len();
        made
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::definition::{Definition, Field, FieldType};
    use crate::trace::event::Event;
    use crate::trace::packet::{Packet, Packets};
    use crate::trace::record::{Record, Records};

    fn subbuf(number: u64, records: &[u8]) -> SubBuffer<'_> {
        SubBuffer { number, losses: Losses::default(), newest: 1000, cause: Cause::Full, records }
    }

    fn text(stamp: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        Record { stamp, id: id::TEXT, tid: 7, payload: b"text" }.encode_into(&mut bytes);
        bytes
    }

    #[test]
    fn losses_are_records_and_a_running_total() {
        let mut maker = PacketMaker::new(3, 5, None);
        let (definitions, mut out) = (Definitions::new(), Vec::new());
        let records = [text(10), text(20), text(30)];
        let totals = [(4, 1), (4, 1), (9, 3)];
        for (number, (records, (lost, too_big))) in (0..).zip(records.iter().zip(totals)) {
            let losses = Losses { lost, too_big };
            maker.packet(&SubBuffer { losses, ..subbuf(number, records) }, &definitions, &mut out);
        }
        let packets: Vec<Packet<'_>> = Packets::new(&out).map(Result::unwrap).collect();
        let headers: Vec<_> = packets
            .iter()
            .map(|Packet { header, .. }| (header.begin, header.end, header.discarded))
            .collect();
        assert_eq!(headers, [(10, 10, 4), (20, 20, 4), (30, 30, 9)]);
        // What was lost before the first packet is not known.
        assert_eq!(packets.iter().map(|packet| packet.records.len()).collect::<Vec<_>>(), [20, 20, 70]);
        let events = Records::new(packets[2].records).map(|record| record.unwrap());
        let events: Vec<_> =
            events.map(|record| (record.stamp, Event::decode(record.id, record.payload))).collect();
        let lost = |messages, cause| (30, Event::Lost { messages, cause: Some(cause) });
        let expected = [lost(3, Cause::Full), lost(2, Cause::TooBig), (30, Event::Text(b"text"))];
        assert_eq!(events, expected);
    }

    #[test]
    fn cut_record_is_a_loss_without_a_cause() {
        let mut maker = PacketMaker::new(0, 5, Some(Losses::default()));
        let (mut out, records) = (Vec::new(), [text(10), text(20)]);
        maker.note_cut();
        for (number, records) in (0..).zip(&records) {
            let losses = Losses { lost: 2, too_big: 0 };
            maker.packet(&SubBuffer { losses, ..subbuf(number, records) }, &Definitions::new(), &mut out);
        }
        let packets: Vec<Packet<'_>> = Packets::new(&out).map(Result::unwrap).collect();
        let events = packets.iter().flat_map(|packet| Records::new(packet.records));
        let events: Vec<_> = events.map(|record| record.unwrap()).collect();
        let events: Vec<_> = events.iter().map(|record| Event::decode(record.id, record.payload)).collect();
        let cut = Event::Lost { messages: 1, cause: None };
        let full = Event::Lost { messages: 2, cause: Some(Cause::Full) };
        assert_eq!(events, [cut, full, Event::Text(b"text"), Event::Text(b"text")]);
        assert!(packets.iter().all(|packet| packet.header.discarded == 2));
    }

    #[test]
    fn damage_is_a_loss_without_a_cause_behind_the_last_whole_record() {
        let mut maker = PacketMaker::new(0, 5, Some(Losses::default()));
        let (mut out, records) = (Vec::new(), [[text(10), vec![7; 9]].concat(), text(20)]);
        for (number, records) in (0..).zip(&records) {
            let losses = Losses { lost: 2 * number, too_big: 0 };
            maker.packet(&SubBuffer { losses, ..subbuf(number, records) }, &Definitions::new(), &mut out);
        }
        let packets: Vec<Packet<'_>> = Packets::new(&out).map(Result::unwrap).collect();
        let events = packets.iter().flat_map(|packet| Records::new(packet.records));
        let events: Vec<_> = events.map(|record| record.unwrap()).collect();
        let events: Vec<_> =
            events.iter().map(|record| (record.stamp, Event::decode(record.id, record.payload))).collect();
        let damage = (10, Event::Lost { messages: 1, cause: None });
        let full = (20, Event::Lost { messages: 2, cause: Some(Cause::Full) });
        assert_eq!(events, [(10, Event::Text(b"text")), damage, full, (20, Event::Text(b"text"))]);
        let totals: Vec<u64> = packets.iter().map(|packet| packet.header.discarded).collect();
        assert_eq!(totals, [0, 2], "the buffer's own losses alone");
    }

    #[test]
    fn stamps_that_cannot_be_are_replaced() {
        let mut maker = PacketMaker::new(0, 5, None);
        let stamps = [10, 9, 1000 + SLACK + 1, 1000 + SLACK, 4];
        let records = stamps.map(text).concat();
        let mut out = Vec::new();
        let made = maker.packet(&subbuf(0, &records), &Definitions::new(), &mut out);
        assert_eq!((made.restamped, maker.end()), (3, 1000 + SLACK));
        let packet = Packet::of(&out).unwrap();
        let found: Vec<u64> = Records::new(packet.records).map(|record| record.unwrap().stamp).collect();
        assert_eq!(found, [10, 10, 10, 1000 + SLACK, 1000 + SLACK]);
        assert_eq!((packet.header.begin, packet.header.end), (10, 1000 + SLACK));
    }

    #[test]
    fn empty_sub_buffers_are_packets_or_left_out() {
        let subbufs = [text(10), Vec::new(), text(20), Vec::new()];
        let numbers = |mut maker: PacketMaker| {
            let mut out = Vec::new();
            for (number, records) in (7..).zip(&subbufs) {
                maker.packet(&subbuf(number, records), &Definitions::new(), &mut out);
            }
            Packets::new(&out).map(|packet| packet.unwrap().header.number).collect::<Vec<_>>()
        };
        let maker = PacketMaker::new(0, 0, None);
        assert_eq!(numbers(maker.clone()), [7, 8, 9, 10]);
        assert_eq!(numbers(maker.without_empty()), [7, 8]);
    }

    /// Bytes as a hostile process leaves them: records, some of which lie, and anything.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let payload = || proptest::collection::vec(any::<u8>(), 0..30);
        let stamp = prop_oneof![0u64..2000, any::<u64>()];
        let id = prop_oneof![0u16..10, 255u16..259, any::<u16>()];
        let record = (stamp, id, any::<u32>(), payload()).prop_map(|(stamp, id, tid, payload)| {
            let mut bytes = Vec::new();
            Record { stamp, id, tid, payload: &payload }.encode_into(&mut bytes);
            bytes
        });
        let piece = prop_oneof![8 => record, 1 => payload()];
        proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_bytes_make_packets_that_every_reader_takes(subbufs in proptest::collection::vec(bytes(), 0..4), newest: u64, leave_out: bool, totals: [u64; 2]) {
            let mut definitions = Definitions::new();
            let fields = vec![Field { name: "host".to_owned(), kind: FieldType::Str }];
            definitions.insert(256, Definition { name: "a".to_owned(), fields, ..Definition::default() });
            let mut maker = PacketMaker::new(1, 3, None);
            if leave_out {
                maker = maker.without_empty();
            }
            let (mut out, mut n_records) = (Vec::new(), 0);
            for (number, records) in (0..).zip(&subbufs) {
                let losses = Losses { lost: totals[number as usize % 2], too_big: totals[0] };
                let before = out.len();
                let made = maker.packet(&SubBuffer { losses, newest, ..subbuf(number, records) }, &definitions, &mut out);
                n_records += made.records;
                prop_assert!(made.damaged_bytes <= records.len());
                prop_assert!(out.len() <= before + HEADER_LEN + 75 + records.len() - made.damaged_bytes);
            }
            let (mut end, mut found) = (3, 0);
            for packet in Packets::new(&out) {
                let packet = packet.unwrap();
                prop_assert!(end <= packet.header.begin);
                end = packet.header.begin;
                for record in Records::new(packet.records) {
                    let record = record.unwrap();
                    prop_assert!((end..=packet.header.end).contains(&record.stamp));
                    prop_assert!(definitions.fits(record.id, record.payload));
                    end = record.stamp;
                    found += u64::from(record.id != id::LOST || record.tid != 0);
                }
                prop_assert_eq!(end, packet.header.end);
            }
            prop_assert!(found <= n_records);
        }
    }
}
