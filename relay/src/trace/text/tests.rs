//! Tests of lines, and of JSON.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::trace::definition::{Definition, Definitions, Field, FieldType, Value};
use crate::trace::event::{Cause, Reason, Stream, What, id};
use crate::trace::packet::PacketError;

/// 2026-11-22T18:00:00.123456Z.
const STAMP: u64 = 1_795_370_400_123_456_789;
const PROCESSES: &str = "1 1234 5 0 app\t/usr/bin/app\nthread 1235 1\n";

fn names() -> Names {
    let field = |name: &str, kind| Field { name: name.to_owned(), kind };
    let event = |name: &str, level, target: &str, fields| Definition {
        name: name.to_owned(),
        level,
        target: target.to_owned(),
        fields,
        ..Definition::default()
    };
    let mut definitions = Definitions::new();
    let fields = vec![field("host", FieldType::Str), field("rows", FieldType::U64)];
    definitions.insert(256, event("connected", Some(Level::Info), "app::db", fields));
    let names = ["u64", "i64", "f64", "bool", "str", "b\n\"y"];
    let fields = names.into_iter().zip(FieldType::ALL).map(|(name, kind)| field(name, kind)).collect();
    definitions.insert(257, event("a\"b\x1b", None, "", fields));
    let fields = vec![field("span", FieldType::U64), field("message", FieldType::Str)];
    definitions.insert(258, event("src/db.rs:42", None, "", fields));
    definitions.insert(259, event("count", None, "", vec![field("message", FieldType::U64)]));
    Names::new(definitions, PROCESSES)
}

fn lines(format: Format) -> Lines {
    Lines::new(format, Timeline::new(Clock::Monotonic, 0, &[]), names())
}

fn line_of(lines: &mut Lines, item: Item<'_>, late: bool) -> String {
    let mut out = Vec::new();
    lines.line(&Entry { cpu: 1, stamp: STAMP, late, item }, &mut out);
    String::from_utf8(out).unwrap()
}

fn record(id: u16, tid: u32, payload: &[u8]) -> Item<'_> {
    Item::Record(Record { stamp: STAMP, id, tid, payload })
}

fn builtin(lines: &mut Lines, event: &Event<'_>) -> String {
    let mut payload = Vec::new();
    event.encode_into(&mut payload).unwrap();
    line_of(lines, record(event.id().unwrap(), 1235, &payload), false)
}

/// Payloads of the two defined events.
fn connected() -> Vec<u8> {
    let mut payload = Vec::new();
    names().definition(256).unwrap().encode(&[Value::from("a"), Value::from(3u64)], &mut payload).unwrap();
    payload
}

fn all_types(float: f64) -> Vec<u8> {
    let (text, bytes) = ("a b\u{85}é", &[0, 0xff][..]);
    let values = [u64::MAX.into(), i64::MIN.into(), float.into(), true.into(), text.into(), bytes.into()];
    let mut payload = Vec::new();
    names().definition(257).unwrap().encode(&values, &mut payload).unwrap();
    payload
}

#[test]
fn every_event_has_its_line() {
    let mut lines = lines(Format::ShortIso);
    let head = "2026-11-22T18:00:00.123456Z cpu1 ";
    let cases = [
        (Event::Text(b"hello\nworld"), "app[1234]: hello\\nworld"),
        (Event::Raw(b"\0a"), "app[1234]: \\x00a"),
        (Event::Log { level: Some(Level::Warn), target: b"db", text: b"slow" }, "app[1234] WARN db: slow"),
        (Event::Log { level: None, target: b"", text: b"slow" }, "app[1234]: slow"),
        (
            Event::SpanBegin { span: 7, parent: 5, name: b"query", fields: b"rows=3" },
            "app[1234]: span 7 in 5 begins: query rows=3",
        ),
        (Event::SpanBegin { span: 7, parent: 0, name: b"q", fields: b"" }, "app[1234]: span 7 begins: q"),
        (Event::SpanEnd { span: 7 }, "app[1234]: span 7 ends"),
        (
            Event::Clock { epoch: 1, monotonic: 2, realtime: 3, reason: Some(Reason::Suspend) },
            "-- clock epoch 1 begins: the machine slept --",
        ),
        (
            Event::Process { pid: 9, what: Some(What::Signal), status: 6, command: b"app" },
            "-- app[9] killed by signal 6 (SIGABRT) --",
        ),
        (
            Event::Process { pid: 9, what: Some(What::Signal), status: 64, command: b"app" },
            "-- app[9] killed by signal 64 --",
        ),
        (
            Event::Process { pid: 9, what: Some(What::Exit), status: 1, command: b"app" },
            "-- app[9] exited with status 1 --",
        ),
        (
            Event::Process { pid: 9, what: Some(What::Exit), status: u32::MAX, command: b"app" },
            "-- app[9] ended; the kernel does not tell how --",
        ),
        (
            Event::Process { pid: 9, what: Some(What::Begin), status: 0, command: b"app" },
            "-- app[9] begins --",
        ),
        (Event::Output { stream: Some(Stream::Stderr), text: b"oops" }, "app[1234] stderr: oops"),
    ];
    for (event, line) in cases {
        assert_eq!(builtin(&mut lines, &event), format!("{head}{line}\n"));
    }
    let mut other = |id, payload: &[u8]| line_of(&mut lines, record(id, 7, payload), false);
    assert_eq!(other(id::TEXT, b"x"), format!("{head}tid 7: x\n"));
    assert_eq!(other(id::LOG, b"\x01\xff"), format!("{head}tid 7: damaged log: \\x01\\xff\n"));
    assert_eq!(other(256, &connected()), format!("{head}tid 7 INFO app::db: connected host=a rows=3\n"));
    assert_eq!(other(256, b"x"), format!("{head}tid 7 INFO app::db: damaged connected: x\n"));
    let message = [&7u64.to_le_bytes()[..], b"\x05\0a b\x1b="].concat();
    assert_eq!(other(258, &message), format!("{head}tid 7: a b\\x1b= span=7\n"));
    assert_eq!(other(259, &3u64.to_le_bytes()), format!("{head}tid 7: count message=3\n"));
    assert_eq!(other(300, b"x"), format!("{head}tid 7: event 300: x\n"));
    let fields = "u64=18446744073709551615 i64=-9223372036854775808 f64=2.5 bool=true \
                  str=\"a b\\u{85}é\" \"b\\n\\\"y\"=00ff";
    assert_eq!(other(257, &all_types(2.5)), format!("{head}tid 7: a\"b\\x1b {fields}\n"));
}

#[test]
fn what_is_missing_has_its_line() {
    let mut lines = lines(Format::ShortIso);
    let mut line = |item| line_of(&mut lines, item, false);
    let lost = |messages, cause| Item::Lost { messages, cause };
    assert_eq!(line(lost(12, Some(Cause::Full))), "-- 12 messages lost on cpu1 (buffer full) --\n");
    assert_eq!(line(lost(1, None)), "-- 1 message lost on cpu1 --\n");
    assert_eq!(line(Item::Gap { first: 3, last: 5 }), "-- 3 sub-buffers overwritten on cpu1 --\n");
    assert_eq!(
        line(Item::Gap { first: 0, last: u64::MAX }),
        "-- 18446744073709551615 sub-buffers overwritten on cpu1 --\n"
    );
    assert_eq!(line(Item::Damaged { bytes: 30 }), "-- 30 damaged bytes skipped on cpu1 --\n");
    let torn = Item::Failed(PacketError::Torn { at: 64, bytes: 5 }.into());
    assert_eq!(line(torn), "-- the packet at byte 64 is cut: 5 bytes of it are there on cpu1 --\n");
    let mut payload = Vec::new();
    Event::Lost { messages: 2, cause: Some(Cause::TooBig) }.encode_into(&mut payload).unwrap();
    assert_eq!(line(record(id::LOST, 0, &payload)), "-- 2 messages lost on cpu1 (too big) --\n");
}

#[test]
fn formats_colours_and_marks() {
    let log = Event::Log { level: Some(Level::Error), target: b"db", text: b"no" };
    let unix = builtin(&mut lines(Format::ShortUnix), &log);
    assert_eq!(unix, "1795370400.123456 cpu1 app[1234] ERROR db: no\n");
    assert_eq!(builtin(&mut lines(Format::Cat), &log), "no\n");
    let coloured = builtin(&mut lines(Format::ShortUnix).with_colour(true), &log);
    assert_eq!(coloured, "1795370400.123456 cpu1 app[1234] \x1b[1;31mERROR db: no\x1b[0m\n");
    let text = builtin(&mut lines(Format::ShortUnix).with_colour(true), &Event::Text(b"x"));
    assert_eq!(text, "1795370400.123456 cpu1 app[1234]: x\n");
    let late = line_of(&mut lines(Format::ShortMonotonic), record(id::TEXT, 7, b"x"), true);
    assert_eq!(late, "[1795370400.123456] cpu1 late tid 7: x\n");
    let mut lines = lines(Format::Cat);
    assert_eq!(line_of(&mut lines, record(256, 7, &connected()), false), "connected host=a rows=3\n");
    lines.change_names(|names| names.set_definitions(Definitions::new()));
    assert_eq!(line_of(&mut lines, record(256, 7, b"x"), false), "event 256: x\n");
}

#[test]
fn every_item_is_an_object() {
    let mut lines = lines(Format::Json);
    let head = "{\"time\":\"1795370400123456789\",\"cpu\":1";
    let who = ",\"pid\":1234,\"tid\":1235,\"command\":\"app\"";
    let cases = [
        (Event::Text(b"a\"b\\\n\x1b\xff"), "\"event\":\"text\",\"message\":\"a\\\"b\\\\\\n\\u001b\\\\xff\""),
        (Event::Raw(b"\0a"), "\"event\":\"raw\",\"data\":\"0061\""),
        (
            Event::Log { level: Some(Level::Warn), target: b"db", text: b"slow" },
            "\"level\":\"WARN\",\"target\":\"db\",\"event\":\"log\",\"message\":\"slow\"",
        ),
        (Event::SpanEnd { span: 7 }, "\"event\":\"span_end\",\"fields\":{\"span\":7}"),
        (
            Event::Process { pid: 9, what: Some(What::Exit), status: 1, command: b"x" },
            "\"event\":\"process\",\"fields\":{\"pid\":9,\"what\":\"exited\",\"status\":1,\"command\":\"x\"}",
        ),
        (
            Event::Output { stream: Some(Stream::Stdout), text: b"x" },
            "\"event\":\"output\",\"stream\":\"stdout\",\"message\":\"x\"",
        ),
    ];
    for (event, object) in cases {
        assert_eq!(builtin(&mut lines, &event), format!("{head}{who},{object}}}\n"));
    }
    let connected = connected();
    let mut line = |item| line_of(&mut lines, item, true);
    let head = "{\"time\":\"1795370400123456789\",\"cpu\":1,\"late\":true";
    let object = ",\"tid\":7,\"level\":\"INFO\",\"target\":\"app::db\",\"event\":\"connected\",\"fields\":{\"host\":\"a\",\"rows\":3}}";
    assert_eq!(line(record(256, 7, &connected)), format!("{head}{object}\n"));
    assert_eq!(line(record(300, 7, b"x")), format!("{head},\"tid\":7,\"id\":300,\"data\":\"78\"}}\n"));
    let lost = Item::Lost { messages: 12, cause: Some(Cause::Full) };
    let object = ",\"notice\":\"lost\",\"messages\":12,\"cause\":\"buffer full\"}";
    assert_eq!(line(lost), format!("{head}{object}\n"));
    let object = ",\"notice\":\"overwritten\",\"first\":3,\"last\":5}";
    assert_eq!(line(Item::Gap { first: 3, last: 5 }), format!("{head}{object}\n"));
}

#[test]
fn python_reads_every_object() {
    let mut lines = lines(Format::Json);
    let mut text = String::new();
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut log = Vec::new();
    Event::Log { level: None, target: &every_byte[..255], text: &every_byte }.encode_into(&mut log).unwrap();
    let floats = [2.5, 1e300, -0.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE].map(all_types);
    let mut items = vec![
        record(id::TEXT, 7, &every_byte),
        record(id::LOG, 7, &log),
        record(id::LOG, 7, b"damaged"),
        record(id::RAW, 7, &every_byte),
        Item::Damaged { bytes: 3 },
        Item::Failed(PacketError::Magic { at: 1 }.into()),
    ];
    items.extend(floats.iter().map(|payload| record(257, 7, payload)));
    let n = items.len();
    for item in items {
        text.push_str(&line_of(&mut lines, item, false));
    }
    let script = "import json, sys\nfor line in sys.stdin: print(sorted(json.loads(line)))";
    let mut python = Command::new("python3");
    let mut python = python.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let python = python.as_mut().expect("python3, which apt-get install python3 installs");
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let mut output = String::new();
    std::io::Read::read_to_string(&mut python.stdout.take().unwrap(), &mut output).unwrap();
    assert!(python.wait().unwrap().success(), "{text}");
    assert_eq!(output.lines().count(), n);
    assert_eq!(output.lines().next(), Some("['cpu', 'event', 'message', 'tid', 'time']"));
}

proptest! {
    #[test]
    fn any_record_is_one_visible_line(id in prop_oneof![0u16..10, 255u16..259], payload in prop_oneof![any::<Vec<u8>>(), any::<String>().prop_map(String::into_bytes)], stamp: u64, tid: u32) {
        for format in Format::ALL {
            let mut out = Vec::new();
            let item = Item::Record(Record { stamp, id, tid, payload: &payload });
            lines(format).line(&Entry { cpu: tid, stamp, late: false, item }, &mut out);
            let line = String::from_utf8(out).unwrap();
            prop_assert_eq!(line.find(is_control), Some(line.len() - 1), "{}", line);
        }
    }
}
