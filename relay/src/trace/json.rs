//! Records as JSON objects, one a line.

use std::io::Write;

use crate::trace::definition::Value;
use crate::trace::event::{Cause, Event, id};
use crate::trace::merge::{Entry, Item};
use crate::trace::names::Names;
use crate::trace::record::Record;
use crate::trace::text::{BUILTINS, is_control, is_plain_json, push as push_number, push_hex, push_signed};

/// Appends what an object has behind its time, which is a string that still lacks its end.
/// The writer is a thread, at a time of CLOCK_BOOTTIME.
pub(super) fn writer(cpu: u32, writer: Option<(u32, u64)>, late: bool, names: &Names, out: &mut Vec<u8>) {
    out.push(b'"');
    number("cpu", cpu.into(), out);
    if late {
        out.extend_from_slice(b",\"late\":true");
    }
    let Some((tid, boottime)) = writer else { return };
    if let Some(process) = names.process(tid, boottime) {
        number("pid", process.pid.into(), out);
        number("tid", tid.into(), out);
        text("command", process.command.as_bytes(), out);
    } else {
        number("tid", tid.into(), out);
    }
}

/// Returns the thread that wrote an item, if its object says that.
pub(super) fn writer_of(item: &Item<'_>) -> Option<u32> {
    match item {
        Item::Record(record) if record.id != id::LOST => Some(record.tid),
        _ => None,
    }
}

/// Appends the rest of an item's object.
pub(super) fn push(entry: &Entry<'_>, names: &Names, out: &mut Vec<u8>) {
    match &entry.item {
        Item::Record(record) => match Event::decode(record.id, record.payload) {
            Event::Lost { messages, cause } => lost(messages, cause, out),
            Event::Text(message) => {
                out.extend_from_slice(b",\"event\":\"text\"");
                text("message", message, out);
            }
            event => of_record(record, &event, names, out),
        },
        Item::Lost { messages, cause } => lost(*messages, *cause, out),
        Item::Gap { first, last } => {
            text("notice", b"overwritten", out);
            number("first", *first, out);
            number("last", *last, out);
        }
        Item::Damaged { bytes } => {
            text("notice", b"damaged", out);
            number("bytes", *bytes as u64, out);
        }
        Item::Failed(error) => {
            text("notice", b"failed", out);
            text("message", error.to_string().as_bytes(), out);
        }
        Item::Notice(notice) => {
            text("notice", notice.kind.as_bytes(), out);
            text("message", notice.text.as_bytes(), out);
        }
    }
    out.push(b'}');
}

fn lost(messages: u64, cause: Option<Cause>, out: &mut Vec<u8>) {
    text("notice", b"lost", out);
    number("messages", messages, out);
    if let Some(cause) = cause {
        text("cause", cause.text().as_bytes(), out);
    }
}

fn of_record(record: &Record<'_>, event: &Event<'_>, names: &Names, out: &mut Vec<u8>) {
    if let Some(level) = names.level(record) {
        text("level", level.name().as_bytes(), out);
    }
    if let Some(target) = names.target(record) {
        text("target", target, out);
    }
    if let Some(name) = BUILTINS.get(usize::from(record.id)) {
        text("event", name.as_bytes(), out);
    }
    match *event {
        Event::Log { text: message, .. } => text("message", message, out),
        Event::Output { stream, text: message } => {
            text("stream", stream.map_or("unknown", |stream| stream.text()).as_bytes(), out);
            text("message", message, out);
        }
        Event::Raw(bytes) => data(bytes, out),
        Event::Damaged(bytes) => {
            out.extend_from_slice(b",\"damaged\":true");
            data(bytes, out);
        }
        Event::Other(payload) => defined(record.id, payload, names, out),
        _ => {
            out.extend_from_slice(b",\"fields\":{");
            let start = out.len();
            fields(event, out);
            end_of_fields(start, out);
        }
    }
}

/// Appends the fields of a built-in event, each behind a comma.
fn fields(event: &Event<'_>, out: &mut Vec<u8>) {
    match *event {
        Event::SpanBegin { span, parent, name, fields } => {
            number("span", span, out);
            number("parent", parent, out);
            text("name", name, out);
            text("args", fields, out);
        }
        Event::SpanEnd { span } => number("span", span, out),
        Event::Clock { epoch, monotonic, realtime, reason } => {
            number("epoch", epoch, out);
            text("monotonic", monotonic.to_string().as_bytes(), out);
            text("realtime", realtime.to_string().as_bytes(), out);
            text("reason", reason.map_or("unknown", |reason| reason.text()).as_bytes(), out);
        }
        Event::Process { pid, what, status, command } => {
            number("pid", pid.into(), out);
            text("what", what.map_or("unknown", |what| what.text()).as_bytes(), out);
            number("status", status.into(), out);
            text("command", command, out);
        }
        _ => {}
    }
}

fn defined(id: u16, payload: &[u8], names: &Names, out: &mut Vec<u8>) {
    let Some(definition) = names.definition(id) else {
        number("id", id.into(), out);
        return data(payload, out);
    };
    text("event", definition.name.as_bytes(), out);
    let Some(values) = definition.values(payload) else {
        out.extend_from_slice(b",\"damaged\":true");
        return data(payload, out);
    };
    out.extend_from_slice(b",\"fields\":{");
    let start = out.len();
    for (field, value) in values {
        out.push(b',');
        string(field.name.as_bytes(), out);
        out.push(b':');
        match value {
            Value::U64(value) => push_number(value, out),
            Value::I64(value) => push_signed(value, out),
            // JSON has no word for them.
            Value::F64(value) if !value.is_finite() => string(value.to_string().as_bytes(), out),
            Value::F64(value) => {
                // Writing to a Vec does not fail.
                let _ = write!(out, "{value:?}");
            }
            Value::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
            Value::Str(value) => string(value, out),
            Value::Bytes(value) => hex(value, out),
        }
    }
    end_of_fields(start, out);
}

/// Ends an object whose members, each behind a comma, begin at `start`.
fn end_of_fields(start: usize, out: &mut Vec<u8>) {
    if out.get(start) == Some(&b',') {
        out.remove(start);
    }
    out.push(b'}');
}

/// Appends a comma and a member's name, which needs no escapes.
fn key(name: &'static str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn number(name: &'static str, value: u64, out: &mut Vec<u8>) {
    key(name, out);
    push_number(value, out);
}

fn text(name: &'static str, value: &[u8], out: &mut Vec<u8>) {
    key(name, out);
    string(value, out);
}

fn data(bytes: &[u8], out: &mut Vec<u8>) {
    key("data", out);
    hex(bytes, out);
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    push_hex(bytes, out);
    out.push(b'"');
}

/// Appends a string. A byte that is no UTF-8 becomes the text `\xff`.
fn string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    if is_plain_json(bytes) {
        out.extend_from_slice(bytes);
    } else {
        odd(bytes, out);
    }
    out.push(b'"');
}

fn odd(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                // All of them have at most 16 bits.
                c if is_control(c) => {
                    out.extend_from_slice(b"\\u");
                    push_hex(&(u32::from(c) as u16).to_be_bytes(), out);
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for byte in chunk.invalid() {
            out.extend_from_slice(b"\\\\x");
            push_hex(&[*byte], out);
        }
    }
}
