//! Headers: what a message says about its body.

use std::fmt;
use std::str::FromStr;

use async_nats::HeaderMap;
use relay::clock::{Anchor, Timeline};
use relay::{Geometry, GeometrySpec};
use thiserror::Error;

use super::subject::Kind;

/// Version of the messages. A reader refuses others.
const FORMAT: u64 = 1;
/// Most anchors in a message.
pub(crate) const ANCHORS_MAX: usize = 4;
/// Longest value that an error shows, in bytes.
const SHOWN_MAX: usize = 60;

const FORMAT_NAME: &str = "Relay-Format";
const INSTANCE: &str = "Relay-Instance";
const PART: &str = "Relay-Part";
const GEOMETRY: &str = "Relay-Geometry";
const NUMBER: &str = "Relay-Number";
const POSITION: &str = "Relay-Position";
const LOST: &str = "Relay-Lost";
const TOO_BIG: &str = "Relay-Lost-Too-Big";
const CLOCK: &str = "Relay-Clock";
const ANCHOR: &str = "Relay-Anchor";
const DICTIONARY: &str = "Relay-Dictionary";
const PROCESSES: &str = "Relay-Processes";

/// Headers of a message.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    /// Identifies the channel: one that was created again under its name has another.
    pub(crate) instance: u64,
    /// Number of the sub-buffer in its buffer; of a text, how often the forwarders have sent it before.
    pub(crate) number: u64,
    /// Which part of a body the message has.
    pub(crate) part: Part,
    /// Of a sub-buffer: what it is. `None` for a text.
    pub(crate) sub_buffer: Option<SubBuffer>,
}

/// What a sub-buffer is.
#[derive(Clone, Debug)]
pub(crate) struct SubBuffer {
    /// The channel's geometry.
    pub(crate) geometry: Geometry,
    /// Bytes written to the buffer before those of the body.
    pub(crate) position: u64,
    /// Messages lost in the buffer up to the sub-buffer's end.
    pub(crate) lost: u64,
    /// How many of them were too big.
    pub(crate) too_big: u64,
    /// Of a timed channel: what the records mean.
    pub(crate) meaning: Option<Meaning>,
}

/// Where the texts are that belong to a packet, and its clock.
#[derive(Clone, Debug)]
pub(crate) struct Meaning {
    /// The clock, with some of its anchors.
    pub(crate) timeline: Timeline,
    /// Sequence in the stream of the first part of a dictionary that has every event of the packet.
    pub(crate) dictionary: u64,
    /// The same for the processes; `None`: there were none.
    pub(crate) processes: Option<u64>,
}

/// A part of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Number of the part, from 1.
    number: u32,
    /// How many parts there are.
    count: u32,
}

impl Part {
    /// The only part.
    pub(crate) const WHOLE: Part = Part { number: 1, count: 1 };

    /// Returns part `number` of `count`, counted from 1. `None` if there is no such part.
    pub(crate) fn new(number: u32, count: u32) -> Option<Part> {
        (1..=count).contains(&number).then_some(Part { number, count })
    }

    /// Returns the number of the part, from 1.
    pub(crate) fn number(self) -> u32 {
        self.number
    }

    /// Returns how many parts there are.
    pub(crate) fn count(self) -> u32 {
        self.count
    }

    /// Returns whether the body ends with this part.
    pub(crate) fn is_last(self) -> bool {
        self.number == self.count
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

/// Why the headers of a message cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum WrongHeader {
    /// A header is not there.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// A value is not one that a forwarder writes.
    #[error("the header {name} is '{value}'")]
    Value {
        /// Name of the header.
        name: &'static str,
        /// Its value, shortened.
        value: String,
    },
    /// The message is of another release.
    #[error("its format is {0}, this release reads {FORMAT}: install the release that wrote it")]
    Format(u64),
}

impl Headers {
    /// Returns the headers of the stream's message.
    pub(crate) fn encode(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(FORMAT_NAME, FORMAT.to_string());
        map.insert(INSTANCE, format!("{:016x}", self.instance));
        map.insert(NUMBER, self.number.to_string());
        if self.part.count > 1 {
            map.insert(PART, self.part.to_string());
        }
        let Some(sub_buffer) = &self.sub_buffer else { return map };
        map.insert(GEOMETRY, sub_buffer.geometry.to_string());
        map.insert(POSITION, sub_buffer.position.to_string());
        map.insert(LOST, sub_buffer.lost.to_string());
        map.insert(TOO_BIG, sub_buffer.too_big.to_string());
        let Some(meaning) = &sub_buffer.meaning else { return map };
        let timeline = &meaning.timeline;
        map.insert(CLOCK, format!("{} {}", timeline.clock().name(), timeline.ticks_per_second()));
        let anchors: Vec<String> = timeline.anchors().take(ANCHORS_MAX).map(Anchor::to_string).collect();
        if !anchors.is_empty() {
            // One header, since a client may keep only the last of several.
            map.insert(ANCHOR, anchors.join(","));
        }
        map.insert(DICTIONARY, meaning.dictionary.to_string());
        if let Some(processes) = meaning.processes {
            map.insert(PROCESSES, processes.to_string());
        }
        map
    }

    /// Reads the headers of a message of a subject of this kind.
    pub(crate) fn decode(kind: Kind, map: &HeaderMap) -> Result<Headers, WrongHeader> {
        match number(map, FORMAT_NAME)? {
            FORMAT => {}
            other => return Err(WrongHeader::Format(other)),
        }
        let part = match map.get_last(PART) {
            None => Part::WHOLE,
            Some(value) => part(value.as_str()).ok_or_else(|| wrong(PART, value.as_str()))?,
        };
        let instance = text(map, INSTANCE)?;
        let is_hex = instance.len() == 16 && instance.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = u64::from_str_radix(instance, 16).ok().filter(|_| is_hex);
        let instance = digits.ok_or_else(|| wrong(INSTANCE, instance))?;
        let sub_buffer = match kind {
            Kind::Cpu(_) => Some(SubBuffer::decode(map)?),
            Kind::Metadata | Kind::Processes => None,
        };
        Ok(Headers { instance, number: number(map, NUMBER)?, part, sub_buffer })
    }
}

impl SubBuffer {
    fn decode(map: &HeaderMap) -> Result<SubBuffer, WrongHeader> {
        let geometry = text(map, GEOMETRY)?;
        let spec: Option<GeometrySpec> = geometry.parse().ok();
        let geometry = spec.and_then(|spec| spec.build().ok()).ok_or_else(|| wrong(GEOMETRY, geometry))?;
        let (lost, too_big) = (number(map, LOST)?, number(map, TOO_BIG)?);
        Ok(SubBuffer {
            geometry,
            position: number(map, POSITION)?,
            lost,
            too_big: too_big.min(lost),
            meaning: if geometry.timed() { Some(Meaning::decode(map)?) } else { None },
        })
    }
}

impl Meaning {
    fn decode(map: &HeaderMap) -> Result<Meaning, WrongHeader> {
        let clock = text(map, CLOCK)?;
        let timeline: Timeline = format!("clock {clock}").parse().map_err(|_| wrong(CLOCK, clock))?;
        let mut anchors = Vec::new();
        // A server may give only the last of several headers of a name.
        let values = map.get_all(ANCHOR).flat_map(|value| value.as_str().split(','));
        for value in values.take(ANCHORS_MAX) {
            let anchor: Anchor = value.trim().parse().map_err(|_| wrong(ANCHOR, value))?;
            anchors.push(anchor);
        }
        let processes = map.get_last(PROCESSES).map(|_| number(map, PROCESSES)).transpose()?;
        Ok(Meaning {
            timeline: Timeline::new(timeline.clock(), timeline.ticks_per_second(), &anchors),
            dictionary: number(map, DICTIONARY)?,
            processes,
        })
    }
}

fn text<'m>(map: &'m HeaderMap, name: &'static str) -> Result<&'m str, WrongHeader> {
    map.get_last(name).map(|value| value.as_str()).ok_or(WrongHeader::Missing(name))
}

fn number(map: &HeaderMap, name: &'static str) -> Result<u64, WrongHeader> {
    let value = text(map, name)?;
    digits(value).ok_or_else(|| wrong(name, value))
}

fn part(value: &str) -> Option<Part> {
    let (number, count) = value.split_once('/')?;
    Part::new(digits(number)?, digits(count)?)
}

/// Parses a number of digits alone.
fn digits<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn wrong(name: &'static str, value: &str) -> WrongHeader {
    let shown = value.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= SHOWN_MAX);
    let end = shown.last().unwrap_or(0);
    let more = if end < value.len() { "..." } else { "" };
    WrongHeader::Value { name, value: format!("{}{more}", value[..end].escape_debug()) }
}

#[cfg(test)]
mod tests;
