//! Perfetto's format: packets of Protocol Buffers, for ui.perfetto.dev.
//!
//! ```text
//! a process, a thread      a track each; a thread whose process is not known shows as a process
//! span_begin, span_end     slices of the thread's track, nested
//! other records            instants, with fields, level and target as debug annotations
//! log                      also a message of Android's log, which Perfetto shows in another view
//! losses, sub-buffers      counters of each CPU
//! ```
//!
//! Times are those of CLOCK_BOOTTIME, in nanoseconds; snapshots of the clocks lead to the others.

mod fields;
mod packets;
mod spans;
mod tracks;

use std::collections::HashMap;

use relay::clock::Timeline;
use relay::trace::definition::{Definition, Value};
use relay::trace::event::{Event, What};
use relay::trace::merge::{Entry, Item};
use relay::trace::names::{Names, Process};
use relay::trace::packet::PacketHeader;
use relay::trace::record::Record;

use self::fields::event;
use self::packets::{LogLine, Packets, annotate};
use self::spans::{Span, Spans, Step};
use self::tracks::{Counter, Tracks};
use super::protobuf::Message;

/// Writes a trace.
#[derive(Debug)]
pub(super) struct Perfetto {
    packets: Packets,
    timeline: Timeline,
    tracks: Tracks,
    spans: Spans,
    /// The counters that only grow.
    counts: HashMap<(Counter, u32), u64>,
    /// The time of the newest record.
    newest: u64,
}

impl Perfetto {
    /// Begins a trace: says how its clocks go together, and which processes and threads there are.
    pub(super) fn begin(timeline: Timeline, names: &Names) -> Perfetto {
        let mut packets = Packets::default();
        timeline.anchors().for_each(|anchor| packets.clocks(anchor));
        let mut tracks = Tracks::default();
        tracks.known(&mut packets, names);
        let (spans, counts) = Default::default();
        Perfetto { packets, timeline, tracks, spans, counts, newest: 0 }
    }

    /// Ends the slices that are open.
    pub(super) fn end(&mut self) {
        let steps = self.spans.end_all();
        self.take(steps, self.newest);
    }

    /// Returns the packets that are not written yet.
    pub(super) fn packets(&mut self) -> &mut Packets {
        &mut self.packets
    }

    /// Adds how full a packet's sub-buffer is.
    pub(super) fn packet(&mut self, header: &PacketHeader) {
        let time = self.timeline.boottime(header.begin);
        self.sample(Counter::Fill, header.cpu, time, header.records_len)
    }

    /// Adds an item.
    pub(super) fn entry(&mut self, entry: &Entry<'_>, names: &Names) {
        match &entry.item {
            Item::Record(record) => self.record(entry.cpu, record, names),
            Item::Lost { messages, .. } => self.count(Counter::Lost, entry, *messages),
            Item::Gap { first, last } => {
                self.count(Counter::Overwritten, entry, last.saturating_sub(*first).saturating_add(1))
            }
            // The caller reports these.
            Item::Damaged { .. } | Item::Failed(_) | Item::Notice(_) => {}
        }
    }

    fn record(&mut self, cpu: u32, record: &Record<'_>, names: &Names) {
        let time = self.timeline.boottime(record.stamp);
        self.newest = self.newest.max(time);
        let process = names.process(record.tid, time);
        let owner = process.map_or(0, |process| process.number);
        let decoded = Event::decode(record.id, record.payload);
        if let Event::Process { what, .. } = decoded {
            return self.process(time, process, what, record, &decoded);
        }
        let track = self.tracks.thread(&mut self.packets, record.tid, process);
        match decoded {
            Event::SpanBegin { span, parent, name, .. } => {
                let span = Span { owner, id: span, parent, name: name.to_vec(), begun: time };
                let begun = self.spans.begin(track, span);
                let kind = if begun { event::SLICE_BEGIN } else { event::INSTANT };
                self.packets.event(time, kind, track, |message| describe(message, record.id, &decoded))
            }
            Event::SpanEnd { span } => {
                let steps = self.spans.end(track, owner, span, time);
                if steps.is_empty() {
                    // Its begin is lost, or was before the trace.
                    return self.packets.event(time, event::INSTANT, track, |message| {
                        describe(message, record.id, &decoded);
                    });
                }
                self.take(steps, time)
            }
            _ => {
                let definition = names.definition(record.id);
                self.packets.event(time, event::INSTANT, track, |message| {
                    if !definition
                        .is_some_and(|definition| describe_defined(message, definition, record.payload))
                    {
                        describe(message, record.id, &decoded);
                    }
                    annotate(message, "cpu", Value::U64(cpu.into()));
                });
                let Event::Log { level, target, text } = decoded else { return };
                let (pid, uid) =
                    (process.map_or(record.tid, |process| process.pid), process.map(|process| process.uid));
                let realtime = self.timeline.realtime(record.stamp);
                self.packets.log(time, &LogLine { pid, tid: record.tid, uid, realtime, level, target, text })
            }
        }
    }

    /// Adds the begin or the end of a process, on the track of the process.
    fn process(
        &mut self,
        time: u64,
        process: Option<&Process>,
        what: Option<What>,
        record: &Record<'_>,
        decoded: &Event<'_>,
    ) {
        let track = match process {
            Some(process) => {
                if matches!(what, Some(What::Exit | What::Signal)) {
                    let steps = self.spans.end_process(process.number);
                    self.take(steps, time);
                }
                self.tracks.process(&mut self.packets, process)
            }
            None => self.tracks.thread(&mut self.packets, record.tid, None),
        };
        self.packets.event(time, event::INSTANT, track, |message| describe(message, record.id, decoded))
    }

    /// Ends and begins slices.
    fn take(&mut self, steps: Vec<Step>, time: u64) {
        for step in steps {
            match step {
                Step::End { track, begun, unfinished } => {
                    // No slice ends before its begin: the threads of two CPUs may see the clock a little apart.
                    self.packets.event(time.max(begun), event::SLICE_END, track, |message| {
                        if unfinished {
                            annotate(message, "unfinished", Value::Bool(true));
                        }
                    });
                }
                Step::Again { track, id, name } => {
                    self.packets.event(time, event::SLICE_BEGIN, track, |message| {
                        message.text(event::NAME, &name);
                        annotate(message, "span", Value::U64(id));
                        annotate(message, "continued", Value::Bool(true));
                    });
                }
            }
        }
    }

    fn count(&mut self, counter: Counter, entry: &Entry<'_>, n: u64) {
        let count = self.counts.entry((counter, entry.cpu)).or_default();
        *count = count.saturating_add(n);
        let (value, time) = (*count, self.timeline.boottime(entry.stamp));
        self.sample(counter, entry.cpu, time, value)
    }

    fn sample(&mut self, counter: Counter, cpu: u32, time: u64, value: u64) {
        let track = self.tracks.counter(&mut self.packets, counter, cpu);
        self.packets.event(time, event::COUNTER, track, |message| {
            message.signed(event::COUNTER_VALUE, i64::try_from(value).unwrap_or(i64::MAX));
        })
    }
}

/// Adds name and annotations of an event that a program has defined. Returns false if the payload does not fit.
///
/// The name is the event's message, as in a line; then an annotation has the name of the event.
fn describe_defined(message: &mut Message, definition: &Definition, payload: &[u8]) -> bool {
    let Some(values) = definition.values(payload) else { return false };
    let name = definition.name.as_bytes();
    let said = values.clone().find_map(|(field, value)| field.message(&value));
    message.text(event::NAME, said.unwrap_or(name));
    if said.is_some() {
        annotate(message, "event", Value::Str(name));
    }
    if let Some(level) = definition.level {
        annotate(message, "level", Value::Str(level.name().as_bytes()));
    }
    target(message, definition.target.as_bytes());
    for (field, value) in values.filter(|(field, value)| field.message(value).is_none()) {
        annotate(message, &field.name, value);
    }
    true
}

/// Adds a target as category and annotation.
fn target(message: &mut Message, target: &[u8]) {
    if !target.is_empty() {
        message.text(event::CATEGORY, target);
        annotate(message, "target", Value::Str(target));
    }
}

/// Adds name and annotations of a built-in event, or of one that is not known.
fn describe(message: &mut Message, id: u16, decoded: &Event<'_>) {
    match *decoded {
        Event::Text(text) => {
            message.text(event::NAME, text);
        }
        Event::Log { level, target: of, text } => {
            message.text(event::NAME, text);
            if let Some(level) = level {
                annotate(message, "level", Value::Str(level.name().as_bytes()));
            }
            target(message, of);
        }
        Event::Output { stream, text } => {
            message.text(event::NAME, text);
            if let Some(stream) = stream {
                message.text(event::CATEGORY, stream.text().as_bytes());
            }
        }
        Event::SpanBegin { span, parent, name, fields } => {
            message.text(event::NAME, name);
            annotate(message, "span", Value::U64(span));
            if parent != 0 {
                annotate(message, "parent", Value::U64(parent));
            }
            if !fields.is_empty() {
                annotate(message, "args", Value::Str(fields));
            }
        }
        Event::SpanEnd { span } => {
            message.text(event::NAME, b"span end");
            annotate(message, "span", Value::U64(span));
        }
        Event::Lost { messages, cause } => {
            message.text(event::NAME, b"lost");
            annotate(message, "messages", Value::U64(messages));
            if let Some(cause) = cause {
                annotate(message, "cause", Value::Str(cause.text().as_bytes()));
            }
        }
        Event::Clock { epoch, reason, .. } => {
            message.text(event::NAME, b"clock");
            annotate(message, "epoch", Value::U64(epoch));
            if let Some(reason) = reason {
                annotate(message, "reason", Value::Str(reason.text().as_bytes()));
            }
        }
        Event::Process { pid, what, status, command } => {
            message.text(event::NAME, what.map_or("process", |what| what.text()).as_bytes());
            annotate(message, "pid", Value::U64(pid.into()));
            annotate(message, "status", Value::U64(status.into()));
            annotate(message, "command", Value::Str(command));
        }
        Event::Raw(bytes) => {
            message.text(event::NAME, b"raw");
            annotate(message, "data", Value::Bytes(bytes));
        }
        Event::Other(bytes) | Event::Damaged(bytes) => {
            message.text(event::NAME, b"unknown");
            annotate(message, "id", Value::U64(id.into()));
            annotate(message, "data", Value::Bytes(bytes));
        }
    }
}
