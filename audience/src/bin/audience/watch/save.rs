//! Saves a trace: the last seconds of all buffers.

use std::path::PathBuf;
use std::time::Duration;

use audience_common::trace_dir::METADATA;
use audience_common::trace_dir::stream::{Course, StreamFile};
use relay::trace::metadata::Metadata;
use relay::trace::packet::{HEADER_LEN, PacketHeader};
use relay::trace::record::Records;

use super::kept::{Draft, Kept};
use super::look::Copy;
use super::trigger::Hit;
use crate::channel_files::Place;
use crate::error::Failure;
use crate::timed::meaning::texts_of_channel;

/// Saves what the copies have from `last` before the hit on. Returns the directory.
pub(super) fn save(
    place: &Place,
    kept: &Kept,
    hit: &Hit,
    last: Duration,
    copies: &[Copy],
) -> Result<PathBuf, Failure> {
    // Behind the copies, so that it has the events of all their records.
    let texts = texts_of_channel(place)?;
    let path = place.control_path(METADATA);
    let (metadata, _) =
        Metadata::parse(&texts.metadata).map_err(|error| Failure::Metadata { path, error })?;
    let timeline = metadata.timeline;
    let nanos = u64::try_from(last.as_nanos()).unwrap_or(u64::MAX);
    let from = hit.stamp.saturating_sub(timeline.ticks_of(nanos));
    let draft = kept.begin()?;
    texts.write(draft.dir())?;
    copies.iter().try_for_each(|copy| stream(&draft, copy, from))?;
    kept.finish(draft, timeline.realtime(hit.stamp), &hit.reason)
}

/// Saves the packets of a copy.
fn stream(draft: &Draft, copy: &Copy, from: u64) -> Result<(), Failure> {
    let (mut file, mut course, mut packet) = (None, Course::default(), Vec::new());
    // Messages lost up to the packet before. What was lost before the first one is not known.
    let mut discarded = None;
    let mut at = 0;
    while let Some(header) = copy.header(at)? {
        let lost = header.discarded.saturating_sub(discarded.replace(header.discarded).unwrap_or(u64::MAX));
        if header.end >= from {
            copy.packet(&header, at, &mut packet)?;
            if let Some((header, is_cut)) = cut(header, &mut packet, from) {
                let file = match &mut file {
                    Some(file) => file,
                    none => none.insert(StreamFile::create(draft.dir(), copy.cpu)?),
                };
                // A packet's losses are before its first record.
                file.append(&mut course, &header, if is_cut { 0 } else { lost }, &mut packet)?;
            }
        }
        at += header.packet_len();
    }
    Ok(())
}

/// Removes the records of a packet that are older. Returns its header, and whether records were removed.
fn cut(header: PacketHeader, packet: &mut Vec<u8>, from: u64) -> Option<(PacketHeader, bool)> {
    let mut records = Records::new(packet.get(HEADER_LEN..)?);
    let mut rest = 0;
    let begin = loop {
        let record = records.next()?.ok()?;
        if record.stamp >= from {
            break record.stamp;
        }
        rest = records.at();
    };
    if rest == 0 {
        return Some((PacketHeader { padding: 0, ..header }, false));
    }
    packet.drain(HEADER_LEN..HEADER_LEN + rest);
    let records_len = (packet.len() - HEADER_LEN) as u64;
    Some((PacketHeader { begin, records_len, padding: 0, ..header }, true))
}

#[cfg(test)]
mod tests {
    use relay::trace::record::Record;

    use super::*;

    #[test]
    fn packets_are_cut_between_records() {
        let mut whole = vec![0; HEADER_LEN];
        for stamp in [10, 20, 20, 30] {
            Record { stamp, id: 0, tid: 1, payload: b"text" }.encode_into(&mut whole);
        }
        let header =
            PacketHeader { cpu: 0, begin: 10, end: 30, records_len: 80, padding: 4, number: 3, discarded: 7 };
        whole.extend([0; 4]);
        whole.truncate(HEADER_LEN + 80);
        for (from, stamps) in
            [(0, &[10, 20, 20, 30][..]), (10, &[10, 20, 20, 30]), (11, &[20, 20, 30]), (30, &[30])]
        {
            let mut packet = whole.clone();
            let (cut, is_cut) = cut(header, &mut packet, from).unwrap();
            let found: Vec<u64> =
                Records::new(&packet[HEADER_LEN..]).map(|record| record.unwrap().stamp).collect();
            assert_eq!((&found[..], is_cut), (stamps, stamps.len() < 4), "{from}");
            assert_eq!((cut.begin, cut.end, cut.padding), (stamps[0], 30, 0));
            assert_eq!(cut.records_len as usize, packet.len() - HEADER_LEN);
        }
        assert_eq!(cut(header, &mut whole, 31), None);
    }
}
