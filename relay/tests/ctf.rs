//! Debian's babeltrace2 reads packets and metadata as they are written.

use std::fs;
use std::process::Command;

use relay::GeometrySpec;
use relay::clock::{Anchor, Clock, Timeline};
use relay::trace::Level;
use relay::trace::definition::{Definition, Definitions, Field, FieldType, Value};
use relay::trace::event::{Cause, Event, Reason, Stream, What};
use relay::trace::metadata::Metadata;
use relay::trace::packet::{Losses, PacketMaker, SubBuffer};
use relay::trace::record::Record;

/// Frequency of the clock, in ticks per second.
const FREQUENCY: u64 = 2_000_000_000;
/// CLOCK_REALTIME at tick 0: 2023-11-14T22:13:20Z.
const START: u64 = 1_700_000_000_000_000_000;

/// Every line of babeltrace2 has it.
const HOSTNAME: &str = "host \"1\" */";

/// Writes a trace of one CPU and returns what babeltrace2 says: the lines, and what it complains about.
fn read(metadata: &str, stream: &[u8]) -> (Vec<String>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("metadata"), metadata).expect("writing");
    fs::write(dir.path().join("cpu1"), stream).expect("writing");
    let mut command = Command::new("babeltrace2");
    command.args(["--clock-gmt", "--clock-date", "--names=payload,context", "--no-delta"]).arg(dir.path());
    let output = command.output().expect("babeltrace2, which apt-get install babeltrace2 installs");
    let text = String::from_utf8_lossy(&output.stdout).replace(&format!(" {HOSTNAME} "), " ");
    let lines = text.lines().map(str::to_owned).collect();
    (lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn metadata(events: &str) -> String {
    let monotonic = 1_000_000_000;
    let first = Anchor { ticks: FREQUENCY, monotonic, realtime: START + monotonic, boottime: 1, epoch: 0 };
    let second = Anchor {
        ticks: 5 * FREQUENCY,
        monotonic: 5 * monotonic,
        realtime: START + 5 * monotonic,
        boottime: 2,
        epoch: 0,
    };
    let metadata = Metadata {
        hostname: HOSTNAME.to_owned(),
        channel: "app/log".to_owned(),
        geometry: "timed".parse::<GeometrySpec>().and_then(GeometrySpec::build).expect("a geometry"),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        timeline: Timeline::new(Clock::Tsc, FREQUENCY, &[first, second]),
    };
    metadata.write(events)
}

/// The records of a sub-buffer: each with its stamp, id and payload, by thread 77.
fn records(of: &[(u64, u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (stamp, id, payload) in of {
        Record { stamp: *stamp, id: *id, tid: 77, payload }.encode_into(&mut bytes);
    }
    bytes
}

fn payload(event: &Event<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    event.encode_into(&mut bytes).expect("a payload");
    bytes
}

fn subbuf(number: u64, lost: u64, records: &[u8]) -> SubBuffer<'_> {
    let losses = Losses { lost, too_big: lost / 3 };
    SubBuffer { number, losses, newest: u64::MAX, cause: Cause::Full, records }
}

fn within(newest: u64, subbuf: SubBuffer<'_>) -> SubBuffer<'_> {
    SubBuffer { newest, ..subbuf }
}

#[test]
fn every_event_is_read_right() {
    let events = [
        Event::Text("text é".as_bytes()),
        Event::Raw(b"\0\xff"),
        Event::Log { level: Some(Level::Warn), target: b"app::db", text: b"slow" },
        Event::SpanBegin { span: 7, parent: 1, name: b"query", fields: b"rows=3" },
        Event::SpanEnd { span: 7 },
        Event::Lost { messages: 12, cause: Some(Cause::Contended) },
        Event::Clock { epoch: 1, monotonic: 2, realtime: 3, reason: Some(Reason::Suspend) },
        Event::Process { pid: 9, what: Some(What::Signal), status: 6, command: b"app" },
        Event::Output { stream: Some(Stream::Stderr), text: b"a line" },
    ];
    let all: Vec<_> =
        events.iter().zip(0u16..).map(|(event, id)| (u64::from(id), id, payload(event))).collect();
    let mut stream = Vec::new();
    let made =
        PacketMaker::new(1, 0, None).packet(&subbuf(0, 0, &records(&all)), &Definitions::new(), &mut stream);
    assert_eq!((made.records, made.renamed, made.restamped, made.damaged_bytes), (9, 0, 0, 0));
    let (lines, complaints) = read(&metadata(""), &stream);
    assert_eq!(complaints, "");
    let cpu = "{ cpu_id = 1 }, { tid = 77 }, ";
    let fields = [
        "text: #{ len = 7, msg = \"text é\" }",
        "raw: #{ len = 2, data = [ [0] = 0x0, [1] = 0xFF ] }",
        "log: #{ len = 15, level = ( \"WARN\" : container = 2 ), target_len = 7, target = \"app::db\", msg_len = 4, msg = \"slow\" }",
        "span_begin: #{ len = 31, span = 7, parent = 1, name_len = 5, name = \"query\", args_len = 6, args = \"rows=3\" }",
        "span_end: #{ len = 8, span = 7 }",
        "lost: #{ len = 9, messages = 12, cause = ( \"CONTENDED\" : container = 3 ) }",
        "clock: #{ len = 25, epoch = 1, monotonic = 2, realtime = 3, reason = ( \"SUSPEND\" : container = 2 ) }",
        "process: #{ len = 14, pid = 9, what = ( \"SIGNAL\" : container = 3 ), status = 6, command_len = 3, command = \"app\" }",
        "output: #{ len = 9, source = ( \"STDERR\" : container = 2 ), msg_len = 6, msg = \"a line\" }",
    ];
    let expected: Vec<String> = fields
        .iter()
        .zip(0u64..)
        .map(|(fields, stamp)| format!("[2023-11-14 22:13:20.{:09}] {}", stamp / 2, fields.replace('#', cpu)))
        .collect();
    assert_eq!(lines, expected);
}

#[test]
fn a_defined_event_of_every_type_and_hostile_names_are_read_right() {
    let hostile = "a\"b\\c*/\n};\n/* 1";
    let field = |name: &str, kind| Field { name: name.to_owned(), kind };
    let fields = vec![
        field("rows", FieldType::U64),
        field("len", FieldType::I64),
        field("event", FieldType::F64),
        field("http.ok", FieldType::Bool),
        field("host_len", FieldType::U64),
        field("host", FieldType::Str),
        field(hostile, FieldType::Bytes),
        field("1st", FieldType::U64),
        field("é", FieldType::U64),
    ];
    let definition = Definition {
        name: hostile.to_owned(),
        level: Some(Level::Info),
        target: hostile.to_owned(),
        file: hostile.to_owned(),
        line: u32::MAX,
        fields,
    };
    definition.check().expect("a definition within the limits");
    let other = Definition { name: hostile.to_owned(), ..Definition::default() };
    let mut definitions = Definitions::new();
    assert!(definitions.insert(256, definition.clone()) && definitions.insert(65535, other.clone()));
    let values: [Value<'_>; 9] = [
        u64::MAX.into(),
        i64::MIN.into(),
        (-2.5).into(),
        true.into(),
        3u64.into(),
        "höst".into(),
        (&[1u8, 0xfe][..]).into(),
        4u64.into(),
        5u64.into(),
    ];
    let mut bytes = Vec::new();
    definition.encode(&values, &mut bytes).expect("a payload");
    let mut stream = Vec::new();
    let all = records(&[(10, 256, bytes), (12, 65535, Vec::new())]);
    let made = PacketMaker::new(1, 0, None).packet(&subbuf(0, 0, &all), &definitions, &mut stream);
    assert_eq!(made.renamed, 0);
    let (lines, complaints) = read(&metadata(&(definition.block(256) + &other.block(65535))), &stream);
    assert_eq!(complaints, "");
    let name = "a\"b\\c*/\n};\n/* 1";
    let context = "{ cpu_id = 1 }, { tid = 77 }";
    let expected = format!(
        "[2023-11-14 22:13:20.000000005] {name}: {context}, {{ len = 60, rows = 18446744073709551615, \
         len_2 = -9223372036854775808, event_ = -2.5, http_ok = ( \"true\" : container = 1 ), host_len = 3, \
         host_2_len = 5, host_2 = \"höst\", a_b_c_________1_len = 2, \
         a_b_c_________1 = [ [0] = 0x1, [1] = 0xFE ], 1st = 4, field = 5 }}\n\
         [2023-11-14 22:13:20.000000006] {name}: {context}, {{ len = 0 }}"
    );
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn damaged_memory_becomes_a_trace_that_is_read() {
    let log = Event::Log { level: Some(Level::Info), target: b"db", text: b"ok" };
    let mut lying = payload(&log);
    lying[1] = 200;
    let mut first = records(&[
        (100, 0, b"one".to_vec()),
        (90, 0, b"back".to_vec()),
        (u64::MAX, 0, b"future".to_vec()),
        (102, 2, lying),
        (104, 300, b"unknown".to_vec()),
        (106, 2, payload(&log)),
    ]);
    first.extend_from_slice(&[0xff; 30]);
    let second = records(&[(50, 0, b"back again".to_vec())]);
    let third = records(&[(300, 0, b"last".to_vec())]);
    let mut maker = PacketMaker::new(1, 0, Some(Losses::default()));
    let (definitions, mut stream) = (Definitions::new(), Vec::new());
    let made = maker.packet(&within(1000, subbuf(5, 0, &first)), &definitions, &mut stream);
    assert_eq!((made.records, made.renamed, made.restamped, made.damaged_bytes), (6, 2, 2, 30));
    maker.packet(&within(1000, subbuf(6, 4, &second)), &definitions, &mut stream);
    maker.packet(&within(1000, subbuf(7, 4, &[])), &definitions, &mut stream);
    maker.packet(&within(1000, subbuf(10, 4, &third)), &definitions, &mut stream);
    let (lines, complaints) = read(&metadata(""), &stream);
    let text: Vec<_> = lines.iter().map(|line| line.rsplit_once("20.").expect("a time").1).collect();
    let head = |nanos: &str, name: &str| format!("{nanos}] {name}: {{ cpu_id = 1 }}, {{ tid = ");
    let expected = [
        head("000000050", "text") + "77 }, { len = 3, msg = \"one\" }",
        head("000000050", "text") + "77 }, { len = 4, msg = \"back\" }",
        head("000000050", "text") + "77 }, { len = 6, msg = \"future\" }",
    ];
    assert_eq!(text[..3], expected);
    let names: Vec<_> =
        text[3..].iter().map(|line| line.split(": ").next().expect("a name").to_owned()).collect();
    let expected = [
        "000000051] raw",
        "000000052] raw",
        "000000053] log",
        "000000053] lost",
        "000000053] lost",
        "000000053] lost",
        "000000053] text",
        "000000150] text",
    ];
    assert_eq!(names, expected);
    // The damaged rest is the first of the losses that records report. The buffer counts the other four.
    assert!(complaints.contains("discarded 4 events"), "{complaints}");
    assert!(complaints.contains("discarded 2 packets"), "{complaints}");
    assert!(!complaints.contains("rror"), "{complaints}");
}
