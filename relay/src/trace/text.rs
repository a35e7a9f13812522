//! Records as lines for people.
//!
//! What another process wrote is shown so that a terminal obeys nothing of it, and one record stays one line.

mod digits;
mod escape;
mod format;
mod message;
mod prefix;
mod time;
mod who;

use std::io::Write;

pub(super) use digits::{push, push_hex, push_signed};
pub(super) use escape::{is_control, is_plain_json};
pub use format::{Format, NotAFormat};
pub(super) use message::BUILTINS;
pub use time::{Utc, Zone};

use crate::clock::Timeline;
use crate::trace::event::Event;
use crate::trace::json;
use crate::trace::level::Level;
use crate::trace::merge::{Entry, Item};
use crate::trace::names::Names;
use crate::trace::record::Record;
use escape::escape;
use message::plural;
use prefix::Prefixes;
use time::Cached;

/// Writes items as lines.
#[derive(Debug)]
pub struct Lines {
    format: Format,
    is_coloured: bool,
    prefixes: Prefixes,
    timeline: Cached,
    names: Names,
}

impl Lines {
    /// Writes in this format, in UTC, without colour.
    pub fn new(format: Format, timeline: Timeline, names: Names) -> Lines {
        Lines {
            format,
            is_coloured: false,
            prefixes: Prefixes::new(format, Box::new(Utc)),
            timeline: Cached::new(timeline),
            names,
        }
    }

    /// Writes times in this zone.
    pub fn with_zone(self, zone: Box<dyn Zone>) -> Lines {
        Lines { prefixes: Prefixes::new(self.format, zone), ..self }
    }

    /// Colours messages by their level, for terminals.
    pub fn with_colour(self, is_coloured: bool) -> Lines {
        Lines { is_coloured, ..self }
    }

    /// Replaces the timeline, when there are new anchors.
    pub fn set_timeline(&mut self, timeline: Timeline) {
        self.timeline = Cached::new(timeline);
    }

    /// Returns the timeline.
    pub fn timeline(&self) -> &Timeline {
        self.timeline.timeline()
    }

    /// Changes the names, when there are new threads, processes or events.
    pub fn change_names(&mut self, change: impl FnOnce(&mut Names)) {
        change(&mut self.names);
        self.prefixes.forget();
    }

    /// Returns the names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Appends a record's message, as the format `cat` shows it, without a newline.
    pub fn message(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        message::push(record, &self.event(record), &self.names, out);
    }

    /// Appends an item as a line, with its newline.
    #[inline]
    pub fn line(&mut self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        match (&entry.item, self.format) {
            (item, Format::Json) => {
                self.prefix(entry, json::writer_of(item), out);
                json::push(entry, &self.names, out);
            }
            (Item::Record(record), format) => {
                let event = self.event(record);
                match event {
                    Event::Lost { messages, cause } => message::lost(messages, Some(entry.cpu), cause, out),
                    event if format == Format::Cat => message::push(record, &event, &self.names, out),
                    event => self.short(entry, record, &event, out),
                }
            }
            (item, _) => self.notice(entry.cpu, item, out),
        }
        out.push(b'\n');
    }

    #[inline]
    fn event<'a>(&self, record: &Record<'a>) -> Event<'a> {
        Event::decode(record.id, record.payload)
    }

    #[inline]
    fn prefix(&mut self, entry: &Entry<'_>, tid: Option<u32>, out: &mut Vec<u8>) {
        let of = (entry.stamp, entry.cpu, tid, entry.late);
        self.prefixes.push(of, &mut self.timeline, &self.names, out);
    }

    /// Appends time, CPU and writer, then level, target and message.
    #[inline]
    fn short(&mut self, entry: &Entry<'_>, record: &Record<'_>, event: &Event<'_>, out: &mut Vec<u8>) {
        let is_notice = matches!(event, Event::Clock { .. } | Event::Process { .. });
        self.prefix(entry, (!is_notice).then_some(record.tid), out);
        if let Event::Text(text) = event {
            out.extend_from_slice(b": ");
            escape(text, out);
        } else {
            self.described(record, event, out);
        }
    }

    fn described(&self, record: &Record<'_>, event: &Event<'_>, out: &mut Vec<u8>) {
        let (level, target): (Option<Level>, &[u8]) = match *event {
            Event::Clock { .. } | Event::Process { .. } => {
                return message::push(record, event, &self.names, out);
            }
            Event::Log { level, target, .. } => (level, target),
            Event::Output { stream, .. } => {
                (None, stream.map_or("output", |stream| stream.text()).as_bytes())
            }
            Event::Other(_) => {
                let definition = self.names.definition(record.id);
                definition.map_or((None, b""), |event| (event.level, event.target.as_bytes()))
            }
            _ => (None, b""),
        };
        let colour = level.filter(|_| self.is_coloured).and_then(colour);
        if let Some(level) = level {
            out.push(b' ');
            out.extend_from_slice(colour.unwrap_or_default());
            out.extend_from_slice(level.name().as_bytes());
        }
        if !target.is_empty() {
            out.push(b' ');
            escape(target, out);
        }
        out.extend_from_slice(b": ");
        message::push(record, event, &self.names, out);
        if colour.is_some() {
            out.extend_from_slice(b"\x1b[0m");
        }
    }

    fn notice(&self, cpu: u32, item: &Item<'_>, out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = match item {
            Item::Record(_) => Ok(()),
            Item::Lost { messages, cause } => {
                message::lost(*messages, Some(cpu), *cause, out);
                Ok(())
            }
            Item::Gap { first, last } => {
                let n = last.saturating_sub(*first).saturating_add(1);
                write!(out, "-- {n} sub-buffer{} overwritten on cpu{cpu} --", plural(n))
            }
            Item::Damaged { bytes } => {
                write!(out, "-- {bytes} damaged byte{} skipped on cpu{cpu} --", plural(*bytes as u64))
            }
            Item::Failed(error) => {
                let mut text = Vec::new();
                let written = write!(text, "{error}");
                out.extend_from_slice(b"-- ");
                escape(&text, out);
                written.and_then(|()| write!(out, " on cpu{cpu} --"))
            }
            Item::Notice(notice) => {
                out.extend_from_slice(b"-- ");
                escape(notice.text.as_bytes(), out);
                write!(out, " on cpu{cpu} --")
            }
        };
    }
}

/// How a terminal shows a level.
fn colour(level: Level) -> Option<&'static [u8]> {
    match level {
        Level::Error => Some(b"\x1b[1;31m"),
        Level::Warn => Some(b"\x1b[1;33m"),
        Level::Info => None,
        Level::Debug | Level::Trace => Some(b"\x1b[2m"),
    }
}

#[cfg(test)]
mod tests;
