//! How fast records of timed channels are decoded, merged and written as lines: from memory, and by `audience`.

use std::fs;
use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use relay::GeometrySpec;
use relay::clock::{Anchor, Clock, Timeline};
use relay::trace::Level;
use relay::trace::definition::{Definition, Definitions, Field, FieldType, Value};
use relay::trace::event::{Cause, Event, id};
use relay::trace::merge::{Item, Merge};
use relay::trace::metadata::Metadata;
use relay::trace::names::Names;
use relay::trace::packet::{Losses, PacketMaker, PacketReader, Packets, SubBuffer};
use relay::trace::record::{Record, Records};
use relay::trace::text::{Format, Lines};
use relayfs_tests::measure::{Measurement, alternately, head, on_cpu, row, title};
use relayfs_tests::{program, tool};
use tempfile::TempDir;

/// Records of a measurement, on all CPUs together.
const RECORDS: usize = 2_000_000;
/// CPUs that have written.
const CPUS: u32 = 2;
/// Size of a sub-buffer in bytes.
const SUBBUF_SIZE: usize = 256 << 10;
/// Ticks of the clock per second.
const FREQUENCY: u64 = 2_994_373_000;
/// Ticks from one record of a CPU to the next.
const STEP: u64 = 1000;
/// Text of a message.
const TEXT: &str = "GET /api/v1/rooms/17/messages 200";

fn main() -> ExitCode {
    head("lines");
    let connected = connected();
    let mut definitions = Definitions::new();
    assert!(definitions.insert(id::DEFINED, connected.clone()), "a free id");
    let mut fields = Vec::new();
    let values = [Value::from(17u64), "db1.example.org".into(), true.into()];
    connected.encode(&values, &mut fields).expect("a payload");
    let log = Event::Log { level: Some(Level::Info), target: b"app::db", text: TEXT.as_bytes() };
    let mut log_payload = Vec::new();
    log.encode_into(&mut log_payload).expect("a payload");
    let text = streams(id::TEXT, TEXT.as_bytes(), &definitions);
    let log = streams(id::LOG, &log_payload, &definitions);
    let defined = streams(id::DEFINED, &fields, &definitions);

    let definitions = &definitions;
    title(&format!("decoding, {} bytes of text", TEXT.len()), "million records/s");
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| rate(|| decode(&text))),
        Box::new(|| rate(|| merge(&text, |_| ()))),
        Box::new(|| rate(|| pack(&text, definitions))),
    ];
    let names = ["records of packets in memory", "merging two CPUs", "making packets of sub-buffers"];
    for (name, values) in names.into_iter().zip(alternately(&mut measurements)) {
        row(name, values);
    }

    title("lines into memory, merged", "million lines/s");
    let to_lines = |streams: &[Vec<u8>], format| {
        let names = Names::new(definitions.clone(), "1 1234 0 0 app\t/usr/bin/app\nthread 1234 1\n");
        let mut lines = Lines::new(format, timeline(), names);
        let mut out = Vec::with_capacity(128 << 10);
        rate(|| {
            merge(streams, |entry| {
                lines.line(&entry, &mut out);
                if out.len() > 64 << 10 {
                    black_box(&out[..]);
                    out.clear();
                }
            })
        })
    };
    let cases = [
        ("text", &text, Format::ShortIso),
        ("text, short-monotonic", &text, Format::ShortMonotonic),
        ("text, cat", &text, Format::Cat),
        ("text, json", &text, Format::Json),
        ("log", &log, Format::ShortIso),
        ("an event of three fields", &defined, Format::ShortIso),
        ("an event of three fields, json", &defined, Format::Json),
    ];
    let mut measurements: Vec<Measurement<'_>> = Vec::new();
    for (_, streams, format) in cases {
        measurements.push(Box::new(move || to_lines(streams, format)));
    }
    for ((name, ..), values) in cases.iter().zip(alternately(&mut measurements)) {
        row(name, values);
    }

    title("text lines of one recording, by whole programs", "million lines/s");
    let dir = recording(&text, &connected);
    let audience = || printed(Command::new(program("audience")).arg("--trace").arg(dir.path()));
    let babeltrace = || printed(tool("babeltrace2", "babeltrace2").arg(dir.path()));
    let values = alternately(&mut [Box::new(audience), Box::new(babeltrace)]);
    row("audience --trace", format_args!("{:<36}{} of babeltrace2", values[0], values[0].over(&values[1])));
    row("babeltrace2", &values[1]);
    ExitCode::SUCCESS
}

fn connected() -> Definition {
    let field = |name: &str, kind| Field { name: name.to_owned(), kind };
    Definition {
        name: "connected".to_owned(),
        level: Some(Level::Info),
        target: "app::db".to_owned(),
        file: "src/db.rs".to_owned(),
        line: 42,
        fields: vec![
            field("rows", FieldType::U64),
            field("host", FieldType::Str),
            field("tls", FieldType::Bool),
        ],
    }
}

fn timeline() -> Timeline {
    let anchor = |seconds: u64| Anchor {
        ticks: seconds * FREQUENCY,
        monotonic: seconds * 1_000_000_000,
        realtime: (1_795_370_400 + seconds) * 1_000_000_000,
        boottime: seconds * 1_000_000_000,
        epoch: 0,
    };
    let anchors: Vec<_> = (0..60).map(anchor).collect();
    Timeline::new(Clock::Tsc, FREQUENCY, &anchors)
}

/// The packets of each CPU.
fn streams(id: u16, payload: &[u8], definitions: &Definitions) -> Vec<Vec<u8>> {
    let stream = |cpu: u32| {
        let (mut out, mut subbuf, mut number) = (Vec::new(), Vec::new(), 0);
        let mut maker = PacketMaker::new(cpu, 0, None);
        let mut finish = |subbuf: &mut Vec<u8>, out: &mut Vec<u8>| {
            maker.packet(&subbuf_of(number, subbuf), definitions, out);
            number += 1;
            subbuf.clear();
        };
        for i in 0..(RECORDS / CPUS as usize) as u64 {
            let record = Record { stamp: i * STEP + u64::from(cpu) * 7, id, tid: 1234, payload };
            if subbuf.len() + record.encoded_len() > SUBBUF_SIZE {
                finish(&mut subbuf, &mut out);
            }
            record.encode_into(&mut subbuf);
        }
        finish(&mut subbuf, &mut out);
        out
    };
    (0..CPUS).map(stream).collect()
}

fn subbuf_of(number: u64, records: &[u8]) -> SubBuffer<'_> {
    SubBuffer { number, losses: Losses::default(), newest: u64::MAX, cause: Cause::Full, records }
}

/// Millions of records a second of processor time, of a function that returns how many it has seen.
fn rate(act: impl FnOnce() -> usize) -> f64 {
    on_cpu(0, || {
        let begun = processor_time();
        let n = act();
        let seconds = processor_time() - begun;
        assert_eq!(n, RECORDS, "records seen");
        n as f64 / 1e6 / seconds
    })
}

/// Seconds that this process and its children have used.
fn processor_time() -> f64 {
    let time = |who| {
        let usage = getrusage(who).expect("the use of the processor");
        [usage.user_time(), usage.system_time()].map(|time| time.num_microseconds() as f64 / 1e6)
    };
    [time(UsageWho::RUSAGE_SELF), time(UsageWho::RUSAGE_CHILDREN)].as_flattened().iter().sum()
}

fn decode(streams: &[Vec<u8>]) -> usize {
    let (mut n, mut stamps) = (0, 0u64);
    for packet in streams.iter().flat_map(|stream| Packets::new(stream)) {
        for record in Records::new(packet.expect("a packet").records) {
            let record = record.expect("a record");
            stamps = stamps.wrapping_add(record.stamp ^ u64::from(record.tid));
            n += 1;
        }
    }
    black_box(stamps);
    n
}

fn merge(streams: &[Vec<u8>], mut take: impl FnMut(relay::trace::merge::Entry<'_>)) -> usize {
    let mut merge = Merge::new();
    for (cpu, stream) in (0..).zip(streams) {
        merge.push(cpu, PacketReader::new(&stream[..]));
    }
    let mut n = 0;
    while let Some(entry) = merge.next() {
        n += usize::from(matches!(entry.item, Item::Record(_)));
        take(entry);
    }
    n
}

fn pack(streams: &[Vec<u8>], definitions: &Definitions) -> usize {
    let (mut n, mut out) = (0, Vec::new());
    for stream in streams {
        let mut maker = PacketMaker::new(0, 0, None);
        for packet in Packets::new(stream) {
            let packet = packet.expect("a packet");
            let subbuf = subbuf_of(packet.header.number, packet.records);
            n += maker.packet(&subbuf, definitions, &mut out).records as usize;
            black_box(&out[..]);
            out.clear();
        }
    }
    n
}

/// The same records as the files of a recording.
fn recording(streams: &[Vec<u8>], definition: &Definition) -> TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let metadata = Metadata {
        hostname: "bench".to_owned(),
        channel: "bench".to_owned(),
        geometry: "timed".parse::<GeometrySpec>().and_then(GeometrySpec::build).expect("a geometry"),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        timeline: timeline(),
    };
    let text = metadata.write(&definition.block(id::DEFINED));
    fs::write(dir.path().join("metadata"), text).expect("writing");
    for (cpu, stream) in streams.iter().enumerate() {
        fs::write(dir.path().join(format!("cpu{cpu}")), stream).expect("writing");
    }
    dir
}

/// A program that reads the recording, and prints a line for each record.
fn printed(command: &mut Command) -> f64 {
    command.stdout(Stdio::null());
    rate(|| {
        assert!(command.status().expect("a program").success(), "{command:?} fails");
        RECORDS
    })
}
