//! Packets of a timed channel, and what the daemon says that they mean.

use std::collections::HashSet;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use audience_common::note::newest_stamp;
use relay::ChannelName;
use relay::clock::{Anchor, Timeline};
use relay::trace::definition::Definitions;
use relay::trace::event::{Cause, id};
use relay::trace::metadata::Metadata;
use relay::trace::names::Names;
use relay::trace::packet::{HEADER_LEN, Losses, PacketHeader, PacketMaker, SubBuffer};
use relay::trace::record::Records;

use super::link::Link;
use super::source::Files;
use super::spare::Spare;
use super::texts::Texts;
use super::written::End;
use crate::message::ANCHORS_MAX;

/// Time between two looks at clock and processes, if no thread is new.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a timed channel's packets mean.
pub(crate) struct Packets {
    files: Files,
    instance: u64,
    /// The texts for the stream.
    pub(crate) texts: Rc<Texts>,
    definitions: Definitions,
    timeline: Timeline,
    looked: Instant,
    /// Threads that need no look before it is time: those of the text, and those that it lacked.
    threads: HashSet<u32>,
    cause: Cause,
}

/// A packet.
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    /// The clock, with the anchors around its stamps.
    pub(crate) timeline: Timeline,
    /// How it ends.
    pub(crate) end: End,
}

impl Packets {
    /// Reads what the daemon says about a channel.
    pub(crate) fn begin(
        link: &Rc<Link>,
        files: Files,
        names: (&str, &ChannelName),
        instance: u64,
        overwrites: bool,
    ) -> io::Result<Packets> {
        let mut packets = Packets {
            instance,
            texts: Rc::new(Texts::new(link, names, instance)),
            definitions: Definitions::new(),
            timeline: files.read(instance, "clock")?.parse().map_err(io::Error::other)?,
            looked: Instant::now(),
            threads: HashSet::new(),
            // In overwrite mode there is always room.
            cause: if overwrites { Cause::Contended } else { Cause::Full },
            files,
        };
        let processes = packets.files.read(instance, "processes").unwrap_or_default();
        packets.set_processes(processes);
        packets.read_metadata()?;
        Ok(packets)
    }

    /// Whether the packets are of this channel.
    pub(crate) fn are_of(&self, instance: u64) -> bool {
        self.instance == instance
    }

    /// Reads the dictionary again if the records have an event that is not in it. False: it is still not in it.
    pub(crate) fn learn(&mut self, records: &[u8]) -> bool {
        self.knows(records) || self.read_metadata().is_ok() && self.knows(records)
    }

    fn knows(&self, records: &[u8]) -> bool {
        let mut records = Records::new(records).map_while(Result::ok);
        records.all(|record| record.id < id::BUILTINS || self.definitions.get(record.id).is_some())
    }

    /// Returns the packet of a sub-buffer.
    pub(crate) fn make(
        &mut self,
        maker: &mut PacketMaker,
        number: u64,
        losses: Losses,
        records: &[u8],
        spare: &Spare,
    ) -> Packet {
        self.look(records);
        let newest = newest_stamp(&self.timeline);
        let subbuf = SubBuffer { number, losses, newest, cause: self.cause, records };
        let mut bytes = spare.take(HEADER_LEN + records.len() + 64);
        maker.packet(&subbuf, &self.definitions, &mut bytes);
        let header = bytes.first_chunk().and_then(|header| PacketHeader::decode(header, 0).ok());
        let span = header.map_or((0, u64::MAX), |header| (header.begin, header.end));
        Packet { bytes, timeline: around(&self.timeline, span), end: (maker.end(), Some(losses)) }
    }

    /// Keeps up with clock and processes. Without a daemon, what was known last stays.
    ///
    /// The daemon knows a process before that writes its first record. So a look at a process whose records are here
    /// finds it, however short its life was.
    fn look(&mut self, records: &[u8]) {
        if self.looked.elapsed() >= LOOK_AGAIN {
            self.looked = Instant::now();
            self.threads.clear();
        } else if !self.has_new_threads(records) {
            return;
        }
        if let Some(timeline) =
            self.files.read(self.instance, "clock").ok().and_then(|text| text.parse().ok())
        {
            self.timeline = timeline;
        }
        if let Ok(processes) = self.files.read(self.instance, "processes") {
            self.set_processes(processes);
        }
        // A thread that no text has is looked for once in this time.
        self.threads.extend(threads_of(records));
    }

    fn has_new_threads(&self, records: &[u8]) -> bool {
        let mut last = None;
        threads_of(records).any(|tid| last.replace(tid) != Some(tid) && !self.threads.contains(&tid))
    }

    fn set_processes(&mut self, text: String) {
        let names = Names::new(Definitions::new(), &text);
        let threads = names.threads().map(|(tid, _)| tid);
        self.threads.extend(names.processes().map(|process| process.pid).chain(threads));
        self.texts.set_processes(text);
    }

    fn read_metadata(&mut self) -> io::Result<()> {
        let text = self.files.read(self.instance, "metadata")?;
        let (_, events) = Metadata::parse(&text).map_err(io::Error::other)?;
        self.definitions = events.definitions;
        self.texts.set_metadata(text);
        Ok(())
    }
}

/// Iterates over the threads of records, as often as they have records.
fn threads_of(records: &[u8]) -> impl Iterator<Item = u32> {
    Records::new(records).map_while(Result::ok).map(|record| record.tid)
}

/// Returns the timeline with some of its anchors: those around these stamps, and two at least, for the rate.
fn around(timeline: &Timeline, (begin, end): (u64, u64)) -> Timeline {
    let anchors: Vec<Anchor> = timeline.anchors().copied().collect();
    let last =
        anchors.partition_point(|anchor| anchor.ticks < end).max(1).min(anchors.len().saturating_sub(1));
    let first = anchors.partition_point(|anchor| anchor.ticks <= begin).saturating_sub(1);
    let first = first.min(last.saturating_sub(1));
    let steps = ANCHORS_MAX - 1;
    let chosen: Vec<Anchor> = match anchors.get(first..=last) {
        Some(few) if few.len() <= ANCHORS_MAX => few.to_vec(),
        Some(many) => (0..=steps).map(|n| many[n * (many.len() - 1) / steps]).collect(),
        None => anchors,
    };
    Timeline::new(timeline.clock(), timeline.ticks_per_second(), &chosen)
}

#[cfg(test)]
mod tests {
    use relay::clock::Clock;

    use super::*;

    #[test]
    fn anchors_are_those_around_the_packet() {
        let anchor = |second: u64| {
            let ticks = second * 1_000_000_000;
            Anchor { ticks, monotonic: ticks, realtime: 5 + ticks, boottime: ticks, epoch: 0 }
        };
        let all: Vec<Anchor> = (1..=20).map(anchor).collect();
        let timeline = Timeline::new(Clock::Monotonic, 1_000_000_000, &all);
        for (span, expected) in [
            ((0, 0), &[1, 2][..]),
            ((500_000_000, 700_000_000), &[1, 2]),
            ((1_500_000_000, 1_600_000_000), &[1, 2]),
            ((2_000_000_000, 2_000_000_000), &[1, 2]),
            ((2_500_000_000, 3_500_000_000), &[2, 3, 4]),
            ((2_500_000_000, 19_500_000_000), &[2, 8, 14, 20]),
            ((30_000_000_000, 40_000_000_000), &[19, 20]),
            ((5_500_000_000, u64::MAX), &[5, 10, 15, 20]),
        ] {
            let around = around(&timeline, span);
            let seconds: Vec<u64> = around.anchors().map(|anchor| anchor.ticks / 1_000_000_000).collect();
            assert_eq!(
                seconds.first().zip(seconds.last()),
                expected.first().zip(expected.last()),
                "{span:?}"
            );
            assert_eq!(seconds, expected, "{span:?}");
        }
        let alone = Timeline::new(Clock::Monotonic, 1_000_000_000, &all[..1]);
        assert_eq!(around(&alone, (5, 6)).anchors().count(), 1);
    }
}
