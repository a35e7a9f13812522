//! Wall times in the place of stamps: a merge over several hosts has nothing else in common.

use relay::clock::{Anchor, Clock, Segment, Timeline};
use relay::trace::packet::{HEADER_LEN, PacketHeader};
use relay::trace::record::first;

/// The most anchors that are kept; the oldest go first.
const ANCHORS_MAX: usize = 256;
/// By how much times of a lane may go back where newer anchors correct older ones, in nanoseconds. A clock that was set
/// back goes back further, and that is shown.
const CORRECTION_MAX: u64 = 100_000_000;
/// By how much a stamp may be younger than the anchors around it, in nanoseconds: a day. Others are made up.
const AHEAD_MAX: u64 = 86_400_000_000_000;
/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// Returns the youngest stamp that can be true.
pub(super) fn newest_stamp(timeline: &Timeline) -> u64 {
    let last = timeline.anchors().next_back().map_or(0, |anchor| anchor.ticks);
    last.saturating_add(timeline.ticks_of(AHEAD_MAX))
}

/// What the stamps of a channel mean, by all anchors that have come with its messages.
#[derive(Debug)]
pub(super) struct Calendar {
    anchors: Vec<Anchor>,
    timeline: Timeline,
}

impl Calendar {
    /// Begins with the clock of a message.
    pub(super) fn new(timeline: &Timeline) -> Calendar {
        let mut calendar = Calendar { anchors: Vec::new(), timeline: timeline.clone() };
        calendar.learn(timeline);
        calendar
    }

    /// Adds the anchors of another message. Returns whether some are new.
    pub(super) fn learn(&mut self, timeline: &Timeline) -> bool {
        let before = self.anchors.len();
        // One without a time stands for no anchor.
        let theirs = timeline.anchors().filter(|anchor| anchor.realtime != 0);
        for anchor in theirs {
            if !self.anchors.contains(anchor) {
                self.anchors.push(*anchor);
            }
        }
        if self.anchors.len() == before {
            return false;
        }
        self.anchors.sort_by_key(|anchor| (anchor.ticks, anchor.epoch));
        let excess = self.anchors.len().saturating_sub(ANCHORS_MAX);
        self.anchors.drain(..excess);
        self.timeline = Timeline::new(timeline.clock(), timeline.ticks_per_second(), &self.anchors);
        true
    }

    /// Returns the timeline of the stamps.
    pub(super) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Returns the timeline of stamps that are wall times: nanoseconds since 1970.
    pub(super) fn of_wall_times(&self) -> Timeline {
        let anchors: Vec<Anchor> =
            self.timeline.anchors().map(|anchor| Anchor { ticks: anchor.realtime, ..*anchor }).collect();
        Timeline::new(Clock::Monotonic, NANOS, &anchors)
    }

    /// Puts wall times in the place of a packet's stamps. Returns the header that it has then.
    ///
    /// `latest` is the last time of the lane.
    pub(super) fn convert(&self, header: PacketHeader, packet: &mut [u8], latest: &mut u64) -> PacketHeader {
        let mut segment: Segment = *self.timeline.segment(header.begin);
        let newest = newest_stamp(&self.timeline);
        let mut time = |stamp: u64| {
            if stamp > newest {
                return *latest;
            }
            if !segment.contains(stamp) {
                segment = *self.timeline.segment(stamp);
            }
            let time = segment.realtime(stamp);
            let is_correction = time < *latest && *latest - time <= CORRECTION_MAX;
            if !is_correction {
                *latest = time;
            }
            *latest
        };
        let begin = time(header.begin);
        let mut at = HEADER_LEN;
        while let Some(record) = packet.get(at..).and_then(first) {
            let (stamp, len) = (record.stamp, record.encoded_len());
            packet[at..at + 8].copy_from_slice(&time(stamp).to_le_bytes());
            at += len;
        }
        let end = time(header.end);
        let header = PacketHeader { begin, end, ..header };
        if let Some(head) = packet.get_mut(..HEADER_LEN) {
            head.copy_from_slice(&header.encode());
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use relay::trace::record::{Record, Records};

    use super::*;

    const DAY: u64 = 1_700_000_000 * NANOS;

    fn anchor(ticks: u64, after: u64) -> Anchor {
        Anchor { ticks, monotonic: after, realtime: DAY + after, boottime: after, epoch: 0 }
    }

    fn packet(stamps: &[u64]) -> (PacketHeader, Vec<u8>) {
        let mut packet = vec![0; HEADER_LEN];
        for stamp in stamps {
            Record { stamp: *stamp, id: 0, tid: 1, payload: b"text" }.encode_into(&mut packet);
        }
        let records_len = (packet.len() - HEADER_LEN) as u64;
        let (begin, end) = (stamps[0], *stamps.last().unwrap());
        let header = PacketHeader { cpu: 0, begin, end, records_len, padding: 0, number: 0, discarded: 0 };
        packet[..HEADER_LEN].copy_from_slice(&header.encode());
        (header, packet)
    }

    fn times(calendar: &Calendar, stamps: &[u64], latest: &mut u64) -> Vec<u64> {
        let (header, mut packet) = packet(stamps);
        let header = calendar.convert(header, &mut packet, latest);
        let times: Vec<u64> =
            Records::new(&packet[HEADER_LEN..]).map(|record| record.unwrap().stamp - DAY).collect();
        assert_eq!((header.begin - DAY, header.end - DAY), (times[0], *times.last().unwrap()));
        assert_eq!(PacketHeader::decode(packet.first_chunk().unwrap(), 0), Ok(header));
        times
    }

    #[test]
    fn stamps_become_wall_times_and_lines_show_them() {
        let clock = Timeline::new(Clock::Tsc, 2 * NANOS, &[anchor(1000, 500), anchor(3000, 1500)]);
        let calendar = Calendar::new(&clock);
        assert_eq!(times(&calendar, &[1000, 2000, 5000], &mut 0), [500, 1000, 2500]);
        let lines = calendar.of_wall_times();
        for after in [0, 500, 1000, 2500] {
            assert_eq!(lines.realtime(DAY + after), DAY + after);
            assert_eq!(lines.boottime(DAY + after), after);
            assert_eq!(lines.monotonic(DAY + after), after);
        }
    }

    #[test]
    fn corrections_do_not_go_back_and_clocks_that_are_set_do() {
        let mut calendar = Calendar::new(&Timeline::new(Clock::Tsc, NANOS, &[anchor(1000, 0)]));
        let mut latest = 0;
        assert_eq!(times(&calendar, &[1000, 10_001_000], &mut latest), [0, 10_000_000]);
        // The clock was slower than it seemed.
        assert!(calendar.learn(&Timeline::new(Clock::Tsc, NANOS, &[anchor(10_001_000, 5_000_000)])));
        assert!(!calendar.learn(&Timeline::new(Clock::Tsc, NANOS, &[anchor(10_001_000, 5_000_000)])));
        assert_eq!(times(&calendar, &[10_001_000, 40_001_000], &mut latest), [10_000_000, 20_000_000]);
        let set = Anchor { realtime: DAY - 5 * NANOS, ..anchor(50_001_000, 25_000_000) };
        calendar.learn(&Timeline::new(Clock::Tsc, NANOS, &[set]));
        let (header, mut packet) = packet(&[50_001_000]);
        assert_eq!(calendar.convert(header, &mut packet, &mut latest).begin, DAY - 5 * NANOS);
    }

    #[test]
    fn many_anchors_and_none_are_bearable() {
        let none = Timeline::new(Clock::Monotonic, 0, &[]);
        let mut calendar = Calendar::new(&none);
        assert!(calendar.anchors.is_empty());
        for n in 1..1000 {
            calendar.learn(&Timeline::new(Clock::Monotonic, NANOS, &[anchor(n * 1000, n * 1000)]));
        }
        assert_eq!(calendar.anchors.len(), ANCHORS_MAX);
        assert_eq!(calendar.timeline().realtime(999_000), DAY + 999_000);
        for stamp in [0, u64::MAX] {
            let (header, mut packet) = packet(&[stamp]);
            calendar.convert(header, &mut packet, &mut 0);
        }
    }
}
