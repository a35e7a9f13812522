//! What is in a stream: sub-buffers joined of their parts, each once and in order.

use std::collections::BTreeMap;

use async_nats::jetstream::message::StreamMessage;
use relay::trace::event::id;
use relay::trace::packet::Packet;
use relay::trace::record::Records;

/// A sub-buffer.
pub(crate) struct Body {
    pub(crate) number: u64,
    pub(crate) position: u64,
    pub(crate) bytes: Vec<u8>,
    /// Number of its messages.
    pub(crate) parts: u32,
    instance: String,
}

/// Returns a header.
#[track_caller]
pub(crate) fn header<'m>(message: &'m StreamMessage, name: &str) -> &'m str {
    let value = message.headers.get(name).unwrap_or_else(|| panic!("{}: no {name}", message.subject));
    value.as_str()
}

/// Returns the sub-buffers of each subject. Fails if one is there twice, is missing, or is not whole.
#[track_caller]
pub(crate) fn sub_buffers(messages: &[StreamMessage]) -> BTreeMap<String, Vec<Body>> {
    let mut stored: BTreeMap<String, Vec<Body>> = BTreeMap::new();
    let mut open: BTreeMap<String, Body> = BTreeMap::new();
    for message in messages.iter().filter(|message| message.subject.contains(".cpu")) {
        let subject = message.subject.to_string();
        if !subject.rsplit('.').next().is_some_and(|kind| kind.starts_with("cpu")) {
            continue;
        }
        let number: u64 = header(message, "Relay-Number").parse().expect("a number");
        let part = message.headers.get("Relay-Part").map_or("1/1", |value| value.as_str());
        let (part, count) = part.split_once('/').expect("a part");
        let (part, count): (u32, u32) = (part.parse().expect("a part"), count.parse().expect("parts"));
        if part == 1 {
            let body = Body {
                number,
                position: header(message, "Relay-Position").parse().expect("a position"),
                bytes: Vec::new(),
                parts: 0,
                instance: header(message, "Relay-Instance").to_owned(),
            };
            open.insert(subject.clone(), body);
        }
        let body =
            open.get_mut(&subject).unwrap_or_else(|| panic!("{subject}: part {part} without the first"));
        body.parts += 1;
        assert_eq!((body.number, body.parts), (number, part), "{subject}: the parts are not in order");
        body.bytes.extend_from_slice(&message.payload);
        if part == count {
            let bodies = stored.entry(subject.clone()).or_default();
            if let Some(last) = bodies.last().filter(|last| last.instance == body.instance) {
                assert_eq!(number, last.number + 1, "{subject}: twice, or a gap");
            }
            bodies.extend(open.remove(&subject));
        }
    }
    assert!(open.is_empty(), "not whole: {:?}", open.keys());
    stored
}

/// Returns the bytes of each buffer of a raw channel. Fails if they are not back to back.
#[track_caller]
pub(crate) fn raw(stored: &BTreeMap<String, Vec<Body>>, host: &str, channel: &str) -> Vec<Vec<u8>> {
    let of = |(subject, bodies): (&String, &Vec<Body>)| {
        let mut bytes = Vec::new();
        for body in bodies {
            assert_eq!(body.position, bytes.len() as u64, "{subject}: sub-buffer {}", body.number);
            bytes.extend_from_slice(&body.bytes);
        }
        bytes
    };
    buffers(stored, host, channel).map(of).collect()
}

/// Returns the texts in the packets of each buffer of a timed channel.
#[track_caller]
pub(crate) fn texts(stored: &BTreeMap<String, Vec<Body>>, host: &str, channel: &str) -> Vec<Vec<String>> {
    let of = |(subject, bodies): (&String, &Vec<Body>)| {
        let mut texts = Vec::new();
        let mut end = 0;
        for body in bodies {
            let packet = Packet::of(&body.bytes).unwrap_or_else(|| panic!("{subject}: no packet"));
            assert_eq!(packet.header.number, body.number, "{subject}");
            assert!(packet.header.begin >= end, "{subject}: packet {} goes back", body.number);
            end = packet.header.end;
            let records = Records::new(packet.records).map(|record| record.expect("a record"));
            let records = records.filter(|record| [id::TEXT, id::RAW].contains(&record.id));
            texts.extend(records.map(|record| String::from_utf8_lossy(record.payload).into_owned()));
        }
        texts
    };
    buffers(stored, host, channel).map(of).collect()
}

fn buffers<'s>(
    stored: &'s BTreeMap<String, Vec<Body>>,
    host: &str,
    channel: &str,
) -> impl Iterator<Item = (&'s String, &'s Vec<Body>)> {
    let prefix = format!("relay.{host}.{channel}.cpu");
    stored.iter().filter(move |(subject, _)| subject.starts_with(&prefix))
}
