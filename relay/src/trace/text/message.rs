//! Messages of records.

use std::io::Write;

use crate::trace::definition::Value;
use crate::trace::event::{Cause, Event, STATUS_UNKNOWN, What, id};
use crate::trace::names::Names;
use crate::trace::record::Record;
use crate::trace::text::digits::{push as push_number, push_hex, push_signed};
use crate::trace::text::escape::{escape, escape_value};
use crate::trace::text::who::command as push_command;

/// Names of the built-in events, by id.
pub(in crate::trace) const BUILTINS: [&str; id::BUILTINS as usize] =
    ["text", "raw", "log", "span_begin", "span_end", "lost", "clock", "process", "output"];
/// Names of the signals, from 1 on.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Appends the message of a record.
pub(super) fn push(record: &Record<'_>, event: &Event<'_>, names: &Names, out: &mut Vec<u8>) {
    // Writing to a Vec does not fail.
    let _ = match *event {
        Event::Text(text) | Event::Raw(text) | Event::Log { text, .. } | Event::Output { text, .. } => {
            escape(text, out);
            Ok(())
        }
        Event::SpanBegin { span, parent, name, fields } => {
            let _ = write!(out, "span {span}");
            if parent != 0 {
                let _ = write!(out, " in {parent}");
            }
            out.extend_from_slice(b" begins: ");
            escape(name, out);
            if !fields.is_empty() {
                out.push(b' ');
                escape(fields, out);
            }
            Ok(())
        }
        Event::SpanEnd { span } => write!(out, "span {span} ends"),
        Event::Lost { messages, cause } => {
            lost(messages, None, cause, out);
            Ok(())
        }
        Event::Clock { epoch, reason, .. } => {
            write!(out, "-- clock epoch {epoch} begins: {} --", reason.map_or("?", |reason| reason.text()))
        }
        Event::Process { pid, what, status, command } => {
            out.extend_from_slice(b"-- ");
            push_command(command, out);
            let _ = write!(out, "[{pid}] ");
            process(what, status, out);
            out.extend_from_slice(b" --");
            Ok(())
        }
        Event::Other(payload) => {
            defined(record.id, payload, names, out);
            Ok(())
        }
        Event::Damaged(payload) => {
            let _ = write!(out, "damaged {}: ", BUILTINS.get(usize::from(record.id)).unwrap_or(&"event"));
            escape(payload, out);
            Ok(())
        }
    };
}

/// Appends how many messages were lost, where that is known on which CPU and why.
pub(super) fn lost(messages: u64, cpu: Option<u32>, cause: Option<Cause>, out: &mut Vec<u8>) {
    // Writing to a Vec does not fail.
    let _ = write!(out, "-- {messages} message{} lost", plural(messages));
    if let Some(cpu) = cpu {
        let _ = write!(out, " on cpu{cpu}");
    }
    if let Some(cause) = cause {
        let _ = write!(out, " ({cause})");
    }
    out.extend_from_slice(b" --");
}

pub(super) fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn process(what: Option<What>, status: u32, out: &mut Vec<u8>) {
    let signal = SIGNALS.get((status as usize).wrapping_sub(1)).filter(|_| what == Some(What::Signal));
    // Writing to a Vec does not fail.
    let _ = match (what, signal) {
        (Some(What::Begin), _) => write!(out, "begins"),
        (Some(What::Exit), _) if status == STATUS_UNKNOWN => {
            write!(out, "ended; the kernel does not tell how")
        }
        (Some(What::Exit), _) => write!(out, "exited with status {status}"),
        (Some(What::Signal), Some(name)) => write!(out, "killed by signal {status} (SIG{name})"),
        (Some(What::Signal), None) => write!(out, "killed by signal {status}"),
        (None, _) => write!(out, "has news of an unknown kind, {status}"),
    };
}

/// Appends an event that a program has defined: its message or its name, and its fields as `key=value`.
fn defined(id: u16, payload: &[u8], names: &Names, out: &mut Vec<u8>) {
    let definition = names.definition(id);
    let Some((definition, values)) = definition.and_then(|event| Some((event, event.values(payload)?)))
    else {
        match definition {
            Some(definition) => {
                out.extend_from_slice(b"damaged ");
                escape(definition.name.as_bytes(), out);
            }
            None => {
                out.extend_from_slice(b"event ");
                push_number(id.into(), out);
            }
        }
        out.extend_from_slice(b": ");
        return escape(payload, out);
    };
    let message = values.clone().find_map(|(field, value)| field.message(&value));
    escape(message.unwrap_or(definition.name.as_bytes()), out);
    for (field, value) in values.filter(|(field, value)| field.message(value).is_none()) {
        out.push(b' ');
        escape_value(field.name.as_bytes(), out);
        out.push(b'=');
        match value {
            Value::U64(number) => push_number(number, out),
            Value::I64(number) => push_signed(number, out),
            Value::F64(number) => {
                // Writing to a Vec does not fail.
                let _ = write!(out, "{number:?}");
            }
            Value::Bool(is) => out.extend_from_slice(if is { b"true" } else { b"false" }),
            Value::Str(text) => escape_value(text, out),
            Value::Bytes(bytes) => push_hex(bytes, out),
        }
    }
}
