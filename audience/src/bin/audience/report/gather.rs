//! What a page shows, gathered from records and from counters.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use relay::trace::event::{Event, What, id};
use relay::trace::merge::{Entry, Item};
use relay::trace::names::Names;
use relay::trace::record::RECORD_OVERHEAD;
use relay::trace::text::Lines;

use super::json::{push_all, push_name, push_numbers, push_text, push_texts};
use super::series::{Series, Step};
use super::spans::Spans;

/// Longest text of a message, in bytes. Longer ones are cut.
const TEXT_MAX: usize = 16 << 10;
/// Level of lines that are no messages of a program: losses and the like.
const NOTICE: u8 = 9;

/// All that a page shows.
#[derive(Debug)]
pub(super) struct Gathered {
    channels: Vec<Channel>,
    /// The newest messages of all channels, by time and by the order in which they came. Channels come one after another.
    messages: BTreeMap<(u64, u64), Message>,
    messages_max: usize,
    /// Messages that are left out: older ones.
    left_out: u64,
    writers: Table,
    targets: Table,
    spans: Spans,
    /// The newest time so far, of each channel.
    newest: Vec<u64>,
}

/// A channel, by CPU.
#[derive(Debug)]
struct Channel {
    name: String,
    /// Geometry, and what the numbers mean.
    about: String,
    cpus: BTreeMap<u32, Series>,
    kind: Kind,
}

/// What a channel's numbers are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records and packets: the fill is that of each sub-buffer.
    Recording,
    /// One look, and the records of copies: the fill is that of the buffers.
    Snapshot,
    /// Looks at this distance in nanoseconds.
    Live(u64),
}

#[derive(Debug)]
struct Message {
    channel: usize,
    cpu: u32,
    level: u8,
    writer: usize,
    target: usize,
    text: String,
}

/// A name, and the number of each message that goes by it.
type Numbers = (&'static str, fn(&Message) -> i128);

/// Texts that many messages share.
#[derive(Debug, Default)]
struct Table {
    texts: Vec<String>,
    by_text: HashMap<String, usize>,
}

impl Table {
    fn number(&mut self, text: &str) -> usize {
        if let Some(number) = self.by_text.get(text) {
            return *number;
        }
        self.texts.push(text.to_owned());
        self.by_text.insert(text.to_owned(), self.texts.len() - 1);
        self.texts.len() - 1
    }
}

impl Gathered {
    pub(super) fn new(messages_max: usize) -> Gathered {
        let (channels, messages, newest) = Default::default();
        let (writers, targets, spans) = Default::default();
        Gathered { channels, messages, messages_max, left_out: 0, writers, targets, spans, newest }
    }

    /// Begins a channel. Returns its number.
    pub(super) fn channel(&mut self, name: &str, about: String, kind: Kind) -> usize {
        self.channels.push(Channel { name: name.to_owned(), about, cpus: BTreeMap::new(), kind });
        self.newest.push(0);
        self.channels.len() - 1
    }

    /// Adds numbers of a CPU.
    pub(super) fn add(&mut self, channel: usize, cpu: u32, time: u64, what: Step) {
        let channel = &mut self.channels[channel];
        let step = if let Kind::Live(step) = channel.kind { step } else { 0 };
        channel.cpus.entry(cpu).or_insert_with(|| Series::new(step)).add(time, what);
    }

    /// Adds an item of a channel.
    pub(super) fn entry(&mut self, channel: usize, entry: &Entry<'_>, lines: &mut Lines) {
        let time = lines.timeline().realtime(entry.stamp);
        self.newest[channel] = self.newest[channel].max(time);
        let mut what = Step::default();
        match &entry.item {
            Item::Record(record) => {
                what.messages = u64::from(record.id != id::LOST);
                what.bytes = (RECORD_OVERHEAD + record.payload.len()) as u64;
                self.record(channel, time, record, lines);
            }
            Item::Lost { messages, .. } => what.lost = *messages,
            Item::Gap { .. } | Item::Damaged { .. } | Item::Failed(_) | Item::Notice(_) => {}
        }
        match self.channels[channel].kind {
            Kind::Recording | Kind::Snapshot => self.add(channel, entry.cpu, time, what),
            // The counters have them.
            Kind::Live(_) => {}
        }
        self.message(channel, time, entry, lines);
    }

    /// Notes begins and ends of spans.
    fn record(
        &mut self,
        channel: usize,
        time: u64,
        record: &relay::trace::record::Record<'_>,
        lines: &Lines,
    ) {
        let (names, boottime) = (lines.names(), lines.timeline().boottime(record.stamp));
        let owner = names.process(record.tid, boottime).map_or(0, |process| process.number);
        match Event::decode(record.id, record.payload) {
            Event::SpanBegin { span, name, .. } => {
                self.spans.begin((channel, owner, span), &writer(names, record.tid, boottime), name, time);
            }
            Event::SpanEnd { span } => self.spans.end((channel, owner, span), time, false),
            Event::Process { what: Some(What::Exit | What::Signal), .. } if owner != 0 => {
                self.spans.end_all(channel, Some(owner), time);
            }
            _ => {}
        }
    }

    fn message(&mut self, channel: usize, time: u64, entry: &Entry<'_>, lines: &mut Lines) {
        let number = self.left_out + self.messages.len() as u64;
        let mut text = Vec::new();
        let (level, writer, target) = match &entry.item {
            Item::Record(record) if record.id != id::LOST => {
                lines.message(record, &mut text);
                let names = lines.names();
                let level = names.level(record).map_or(0, |level| level.number());
                let target = String::from_utf8_lossy(names.target(record).unwrap_or_default()).into_owned();
                let boottime = lines.timeline().boottime(record.stamp);
                (level, writer(names, record.tid, boottime), target)
            }
            _ => {
                lines.line(entry, &mut text);
                (NOTICE, String::new(), String::new())
            }
        };
        let end = text.trim_ascii_end().len().min(TEXT_MAX);
        let message = Message {
            channel,
            cpu: entry.cpu,
            level,
            writer: self.writers.number(&writer),
            target: self.targets.number(&target),
            text: String::from_utf8_lossy(&text[..end]).into_owned(),
        };
        self.messages.insert((time, number), message);
        if self.messages.len() > self.messages_max {
            self.messages.pop_first();
            self.left_out += 1;
        }
    }

    /// Ends the spans of a channel that have no end.
    pub(super) fn end(&mut self, channel: usize) {
        self.spans.end_all(channel, None, self.newest[channel]);
    }

    /// Writes all of it as the JSON that the page reads. `facts` are shown at the page's top.
    pub(super) fn json(&self, facts: &[(&str, String)]) -> String {
        // Times are relative, so that JavaScript's numbers have the nanoseconds.
        let starts = self.channels.iter().flat_map(|channel| channel.cpus.values().filter_map(Series::begin));
        let base = starts.chain(self.messages.keys().map(|(time, _)| *time)).min().unwrap_or(0);
        let relative = |time: u64| i128::from(time) - i128::from(base);
        let mut out = String::from("{");
        push_name("base", &mut out);
        push_text(&base.to_string(), &mut out);
        out.push(',');
        push_name("facts", &mut out);
        push_all(facts, &mut out, |(name, text), out| push_all([*name, text], out, push_text));
        let _ = write!(out, ",\"leftOut\":{},\"spansLeftOut\":{},", self.left_out, self.spans.left_out);
        push_name("channels", &mut out);
        push_all(&self.channels, &mut out, |channel, out| channel.json(base, out));
        out.push(',');
        push_texts("writers", self.writers.texts.iter().map(String::as_str), &mut out);
        out.push(',');
        push_texts("targets", self.targets.texts.iter().map(String::as_str), &mut out);
        out.push_str(",\"messages\":{");
        let numbers: [Numbers; 5] = [
            ("channel", |message| message.channel as i128),
            ("cpu", |message| message.cpu.into()),
            ("level", |message| message.level.into()),
            ("writer", |message| message.writer as i128),
            ("target", |message| message.target as i128),
        ];
        push_numbers("time", self.messages.keys().map(|(time, _)| relative(*time)), &mut out);
        for (name, of) in numbers {
            out.push(',');
            push_numbers(name, self.messages.values().map(of), &mut out);
        }
        out.push(',');
        push_texts("text", self.messages.values().map(|message| &message.text[..]), &mut out);
        out.push_str("},");
        push_texts("lines", self.spans.lines.iter().map(String::as_str), &mut out);
        out.push(',');
        push_name("spans", &mut out);
        push_all(&self.spans.bars, &mut out, |bar, out| {
            let (begin, end) = (relative(bar.begin), relative(bar.end));
            let _ = write!(out, "[{begin},{end},{},{},{},", bar.line, bar.depth, u8::from(bar.is_open));
            push_text(&bar.name, out);
            out.push(']');
        });
        out.push('}');
        out
    }
}

impl Channel {
    fn json(&self, base: u64, out: &mut String) {
        out.push('{');
        push_name("name", out);
        push_text(&self.name, out);
        out.push(',');
        push_name("about", out);
        push_text(&self.about, out);
        let _ = write!(out, ",\"fillsBuffer\":{},", self.kind != Kind::Recording);
        push_name("cpus", out);
        push_all(&self.cpus, out, |(cpu, series), out| {
            let begin = i128::from(series.begin().unwrap_or(base)) - i128::from(base);
            let _ = write!(out, "{{\"cpu\":{cpu},\"begin\":{begin},\"step\":{},", series.step());
            let steps = series.steps();
            push_numbers("messages", steps.iter().map(|step| step.messages.into()), out);
            out.push(',');
            push_numbers("bytes", steps.iter().map(|step| step.bytes.into()), out);
            out.push(',');
            push_numbers("lost", steps.iter().map(|step| step.lost.into()), out);
            out.push(',');
            push_numbers("fill", steps.iter().map(|step| step.fill.map_or(-1, i128::from)), out);
            out.push('}');
        });
        out.push('}');
    }
}

/// Names the thread that wrote a record at this time of CLOCK_BOOTTIME.
fn writer(names: &Names, tid: u32, boottime: u64) -> String {
    match names.process(tid, boottime) {
        Some(process) if process.pid == tid => format!("{}[{tid}]", process.command),
        Some(process) => format!("{}[{}:{tid}]", process.command, process.pid),
        None => format!("[{tid}]"),
    }
}
