//! Reads Perfetto's traces by the definitions that Perfetto publishes, and writes recordings of any content.

use std::fs;
use std::path::Path;

use relay::clock::{Anchor, Clock, Timeline};
use relay::trace::definition::Definition;
use relay::trace::metadata::Metadata;
use relay::trace::packet::PacketHeader;
use relay::trace::record::Record;

use crate::{exit_code, run, text, tool};

/// Prints a trace, a line each for tracks, events, and messages of Android's log, in the order of the file.
const DECODE: &str = r#"
import sys
try:
    from google.protobuf.unknown_fields import UnknownFieldSet
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
except ImportError as error:
    sys.exit(f'{error}: pip install perfetto protobuf')
trace = pb.Trace()
with open(sys.argv[1], 'rb') as file:
    trace.ParseFromString(file.read())

def known(message):
    assert len(UnknownFieldSet(message)) == 0, message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                known(inner)

def value(a):
    kind = a.WhichOneof('value')
    return f'{a.name}={getattr(a, kind)}'

kinds = {1: 'begin', 2: 'end', 3: 'instant', 4: 'counter'}
tracks = {}
for packet in trace.packet:
    known(packet)
    assert packet.trusted_packet_sequence_id == 1
    if packet.HasField('track_descriptor'):
        track = packet.track_descriptor
        assert track.uuid not in tracks and (track.parent_uuid == 0 or track.parent_uuid in tracks)
        if track.HasField('process'):
            name = f'{track.process.process_name}[{track.process.pid}]'
        elif track.HasField('thread'):
            parent = tracks.get(track.parent_uuid, '?')
            name = f'{parent}/{track.thread.tid}'
        else:
            name = track.name
        tracks[track.uuid] = name
        print('track', name)
    elif packet.HasField('clock_snapshot'):
        clocks = {clock.clock_id: clock.timestamp for clock in packet.clock_snapshot.clocks}
        print('clocks', clocks[6], clocks[3], clocks[1])
    elif packet.HasField('track_event'):
        event = packet.track_event
        assert packet.timestamp_clock_id == 6
        rest = [event.name] if event.HasField('name') else []
        if event.type == 4:
            rest = [str(event.counter_value)]
        rest += [value(a) for a in event.debug_annotations] + ['#' + c for c in event.categories]
        print(kinds[event.type], packet.timestamp, tracks[event.track_uuid], *rest)
    elif packet.HasField('android_log'):
        for event in packet.android_log.events:
            print('log', event.timestamp, event.pid, event.tid, event.prio, event.tag, event.message)
    else:
        sys.exit(f'another packet: {packet}')
"#;

/// Returns what is in a trace: a line for each track, event, and message of the log.
///
/// A field that the definitions do not have fails the test.
#[track_caller]
pub fn decode(file: &Path) -> Vec<String> {
    let output = run(tool("python3", "python3").args(["-c", DECODE]).arg(file));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// The clock of written recordings: stamps are nanoseconds of CLOCK_MONOTONIC; this is CLOCK_REALTIME at stamp 0.
pub const REALTIME: u64 = 1_795_370_400_000_000_000;
/// CLOCK_BOOTTIME at stamp 0.
pub const BOOTTIME: u64 = 5000;

/// A recording, or a piece of one, that a test writes.
#[derive(Debug)]
pub struct Written<'a>(pub &'a Path);

impl Written<'_> {
    /// Writes the texts.
    pub fn texts(&self, events: &[(u16, Definition)], processes: &str) {
        let anchor = |ticks| Anchor {
            ticks,
            monotonic: ticks,
            realtime: REALTIME + ticks,
            boottime: BOOTTIME + ticks,
            epoch: 0,
        };
        let metadata = Metadata {
            hostname: "host".to_owned(),
            channel: "app/log".to_owned(),
            geometry: "timed"
                .parse::<relay::GeometrySpec>()
                .and_then(|spec| spec.build())
                .expect("a geometry"),
            release: "0.1.0".to_owned(),
            timeline: Timeline::new(Clock::Monotonic, 1_000_000_000, &[anchor(0), anchor(1_000_000)]),
        };
        let events: String = events.iter().map(|(id, event)| event.block(*id)).collect();
        fs::create_dir_all(self.0).expect("a directory");
        fs::write(self.0.join("metadata"), metadata.write(&events)).expect("a file");
        fs::write(self.0.join(".processes"), processes).expect("a file");
    }

    /// Appends a packet to a CPU's file.
    pub fn packet(&self, cpu: u32, number: u64, discarded: u64, records: &[Record<'_>]) {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode_into(&mut bytes));
        let stamp = |record: Option<&Record<'_>>| record.map_or(0, |record| record.stamp);
        let (begin, end) = (stamp(records.first()), stamp(records.last()));
        let records_len = bytes.len() as u64;
        let header = PacketHeader { cpu, begin, end, records_len, padding: 0, number, discarded };
        let path = self.0.join(format!("cpu{cpu}"));
        let mut file = fs::read(&path).unwrap_or_default();
        file.extend_from_slice(&header.encode());
        file.extend_from_slice(&bytes);
        fs::write(&path, file).expect("a file");
    }
}
