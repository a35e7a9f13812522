//! What a dead daemon left of a timed channel: its buffers as packets, and what their records mean.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use relay::Mode;
use relay::clock::Timeline;
use relay::layout::channel_files::{events_name, processes_name};
use relay::ring::buffer::Buffer;
use relay::ring::reader::{Extent, Mark, Reader};
use relay::trace::definition;
use relay::trace::event::Cause;
use relay::trace::packet::{Losses, PacketMaker, SubBuffer};

use super::meaning::Meaning;
use audience_common::note::newest_stamp;

/// Returns what the records mean, by the files of a channel. `None` if the channel is not timed.
pub(crate) fn meaning(dir: &Path, id: u32, buffer: &Buffer) -> Option<Meaning> {
    let (clock, ticks_per_second) = (buffer.clock()?, buffer.ticks_per_second()?);
    let text = |name| String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap_or_default()).into_owned();
    let definitions = definition::parse(&text(events_name(id))).definitions;
    let mut processes = text(processes_name(id));
    for (tid, number) in buffer.threads()?.threads().chain(buffer.threads()?.older()) {
        // Writing to a String does not fail.
        let _ = writeln!(processes, "thread {tid} {number}");
    }
    let timeline = Timeline::new(clock, ticks_per_second, &buffer.anchors()?.read());
    Some(Meaning { timeline, definitions, processes: vec![processes] })
}

/// Copies the content of a buffer as packets. `bytes` is empty, and has memory for it.
pub(crate) fn packets(
    reader: &Reader,
    mut extent: Extent,
    cpu: usize,
    mut bytes: Vec<u8>,
    Meaning { timeline, definitions, .. }: &Meaning,
) -> Vec<u8> {
    let mut marks: Vec<Mark> = Vec::new();
    loop {
        let more = reader.snapshot_part(&mut extent, &mut bytes);
        let mark = reader.snapshot_mark(&extent);
        // What was copied for that place, or behind it, is void.
        marks.retain(|other| other.at < mark.at && other.number < mark.number);
        marks.push(mark);
        if !more {
            break;
        }
    }
    let cause = match reader.buffer().geometry().mode() {
        Mode::NoOverwrite => Cause::Full,
        Mode::Overwrite => Cause::Contended,
    };
    let newest = newest_stamp(timeline);
    let in_packets =
        |losses: crate::losses::Losses| Losses { lost: losses.messages(), too_big: losses.too_big() };
    let before = in_packets(crate::losses::Losses::before(reader));
    let now = in_packets(crate::losses::Losses::of(reader));
    let mut maker = PacketMaker::new(cpu as u32, 0, Some(before));
    let (mut losses, mut packets) = (before, Vec::new());
    for (index, mark) in marks.iter().enumerate() {
        let end = marks.get(index + 1).map_or(bytes.len(), |next| next.at);
        let begin = mark.skip.map_or(end, |skip| mark.at.saturating_add(skip)).min(end);
        // Other processes can write these counters.
        losses.lost = losses.lost.max(mark.lost);
        losses.too_big = losses.too_big.max(mark.too_big).min(losses.lost);
        let records = bytes.get(begin..end).unwrap_or_default();
        let subbuf = SubBuffer { number: mark.number, losses, newest, cause, records };
        if mark.skip != Some(0) {
            maker.note_cut();
        }
        maker.packet(&subbuf, definitions, &mut packets);
    }
    // Behind the last sub-buffer, while there was no room for another.
    if now.lost > losses.lost {
        let number = marks.last().map_or(0, |mark| mark.number);
        let losses = Losses { too_big: now.too_big.max(losses.too_big), ..now };
        let subbuf = SubBuffer { number, losses, newest, cause, records: &[] };
        maker.packet(&subbuf, definitions, &mut packets);
    }
    packets
}
