//! Perfetto's packets, one after the other.

use relay::clock::Anchor;
use relay::trace::definition::Value;
use relay::trace::level::Level;

use super::fields::{PACKET, annotation, clocks, event, log, packet};
use crate::convert::protobuf::Message;

/// The one sequence of all packets.
const SEQUENCE: u64 = 1;

/// A message of a program, for the view of logs.
#[derive(Debug)]
pub(super) struct LogLine<'a> {
    pub(super) pid: u32,
    pub(super) tid: u32,
    pub(super) uid: Option<u32>,
    /// CLOCK_REALTIME in nanoseconds.
    pub(super) realtime: u64,
    pub(super) level: Option<Level>,
    pub(super) target: &'a [u8],
    pub(super) text: &'a [u8],
}

/// Makes packets.
#[derive(Debug, Default)]
pub(in crate::convert) struct Packets {
    /// Those that are not taken yet.
    trace: Message,
}

impl Packets {
    /// Returns the bytes of the packets.
    pub(in crate::convert) fn as_bytes(&self) -> &[u8] {
        self.trace.as_bytes()
    }

    /// Forgets the packets, which are written.
    pub(in crate::convert) fn clear(&mut self) {
        self.trace.clear();
    }

    /// Adds a packet.
    pub(super) fn add(&mut self, fill: impl FnOnce(&mut Message)) {
        self.trace.message(PACKET, |packet| {
            packet.number(packet::SEQUENCE_ID, SEQUENCE);
            fill(packet);
        });
    }

    /// Says how the clocks go together at a moment.
    pub(super) fn clocks(&mut self, anchor: &Anchor) {
        let readings = [
            (clocks::BOOTTIME, anchor.boottime),
            (clocks::MONOTONIC, anchor.monotonic),
            (clocks::REALTIME, anchor.realtime),
        ];
        self.at(anchor.boottime, |packet| {
            packet.message(packet::CLOCK_SNAPSHOT, |snapshot| {
                for (clock, time) in readings {
                    snapshot.message(clocks::CLOCK, |reading| {
                        reading.number(clocks::CLOCK_ID, clock).number(clocks::CLOCK_TIMESTAMP, time);
                    });
                }
                snapshot.number(clocks::PRIMARY, clocks::BOOTTIME);
            });
        });
    }

    /// Adds an event of a track; `fill` adds name and annotations.
    pub(super) fn event(&mut self, time: u64, kind: u64, track: u64, fill: impl FnOnce(&mut Message)) {
        self.at(time, |packet| {
            packet.message(packet::TRACK_EVENT, |event| {
                event.number(event::TYPE, kind).number(event::TRACK, track);
                fill(event);
            });
        });
    }

    /// Adds a message of a program.
    pub(super) fn log(&mut self, time: u64, line: &LogLine<'_>) {
        self.at(time, |packet| {
            packet.message(packet::ANDROID_LOG, |log| {
                log.message(log::EVENT, |event| {
                    event.signed(log::PID, int32(line.pid)).signed(log::TID, int32(line.tid));
                    if let Some(uid) = line.uid {
                        event.signed(log::UID, int32(uid));
                    }
                    event.number(log::TIMESTAMP, line.realtime).text(log::TAG, line.target);
                    if let Some(level) = line.level {
                        event.number(log::PRIORITY, priority(level));
                    }
                    event.text(log::MESSAGE, line.text);
                });
            });
        });
    }

    fn at(&mut self, time: u64, fill: impl FnOnce(&mut Message)) {
        self.add(|packet| {
            packet.number(packet::TIMESTAMP, time).number(packet::TIMESTAMP_CLOCK_ID, clocks::BOOTTIME);
            fill(packet);
        });
    }
}

/// A number of a process, thread or user as Perfetto has it. One that no kernel gives becomes negative.
pub(super) fn int32(number: u32) -> i64 {
    number.cast_signed().into()
}

/// The priority of a level in Android's log: 2 verbose, to 6 error.
fn priority(level: Level) -> u64 {
    7 - u64::from(level.number())
}

/// Adds a value and its name to an event.
pub(super) fn annotate(event: &mut Message, name: &str, value: Value<'_>) {
    event.message(event::ANNOTATION, |annotation| {
        annotation.text(annotation::NAME, name.as_bytes());
        match value {
            Value::U64(number) => annotation.number(annotation::UINT, number),
            Value::I64(number) => annotation.signed(annotation::INT, number),
            Value::F64(number) => annotation.double(annotation::DOUBLE, number),
            Value::Bool(is) => annotation.number(annotation::BOOL, is.into()),
            Value::Str(bytes) => annotation.text(annotation::STRING, bytes),
            Value::Bytes(bytes) => annotation.hex(annotation::STRING, bytes),
        };
    });
}
