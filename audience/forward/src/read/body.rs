//! Joins the parts of a body again.
//!
//! Parts of a body are consecutive messages of a subject. A part that does not continue the one before is discarded,
//! and so is what it leaves incomplete.

use async_nats::HeaderMap;
use relay::trace::merge::Notice;

use super::delivery::{kind, notice};
use crate::message::{Headers, Kind};

/// Bytes that a packet may have beside those of its sub-buffer: the header, and records of losses.
const BESIDE: usize = 64 << 10;
/// Longest text of a dictionary or of processes, in bytes.
const TEXT_MAX: usize = 64 << 20;

/// A body, whole.
#[derive(Debug)]
pub(super) struct Body {
    /// Headers of its first part.
    pub(super) headers: Headers,
    /// The bytes of all parts.
    pub(super) bytes: Vec<u8>,
    /// Sequence of its first part.
    pub(super) sequence: u64,
}

/// Joins the parts of a subject's bodies.
#[derive(Debug)]
pub(super) struct Joiner {
    kind: Kind,
    /// The body whose parts are coming.
    begun: Option<Begun>,
    /// The body whose parts are discarded, to say so once.
    discarded: Option<Id>,
}

#[derive(Debug)]
struct Begun {
    body: Body,
    /// Number of the last part that is there.
    part: u32,
    /// Most bytes that the body may have.
    max: usize,
}

/// Which body a part belongs to: instance of the channel, number, how many parts.
type Id = (u64, u64, u32);

fn id(headers: &Headers) -> Id {
    (headers.instance, headers.number, headers.part.count())
}

/// Which sub-buffer a part is of. A server that takes less than before gets more parts.
fn number_of(headers: &Headers) -> (u64, u64) {
    (headers.instance, headers.number)
}

/// What a body is called in notices.
fn name(headers: &Headers) -> String {
    match &headers.sub_buffer {
        Some(_) => format!("sub-buffer {}", headers.number),
        None => "the text".to_owned(),
    }
}

impl Joiner {
    pub(super) fn new(kind: Kind) -> Joiner {
        Joiner { kind, begun: None, discarded: None }
    }

    /// Takes the next message of the subject. Returns what there is to say, and then a body, if it is whole now.
    pub(super) fn add(
        &mut self,
        sequence: u64,
        headers: &HeaderMap,
        payload: &[u8],
    ) -> (Vec<Notice>, Option<Body>) {
        let headers = match Headers::decode(self.kind, headers) {
            Ok(headers) => headers,
            Err(error) => {
                return (
                    vec![notice(kind::REFUSED, format!("message {sequence} is refused: {error}"))],
                    None,
                );
            }
        };
        let (part, this) = (headers.part, id(&headers));
        let mut told = Vec::new();
        let begun = self.begun.take();
        let begun = if part.number() == 1 {
            // A forwarder that is in doubt sends a sub-buffer again from its first part.
            let other = begun.filter(|begun| number_of(&begun.body.headers) != number_of(&headers));
            told.extend(other.map(missing));
            let max = match &headers.sub_buffer {
                Some(sub_buffer) => sub_buffer.geometry.subbuf_size().saturating_add(BESIDE),
                None => TEXT_MAX,
            };
            Begun { body: Body { headers, bytes: Vec::new(), sequence }, part: 0, max }
        } else {
            match begun {
                Some(begun) if id(&begun.body.headers) == this && begun.part + 1 == part.number() => begun,
                other => {
                    told.extend(other.map(missing));
                    if told.is_empty() && self.discarded != Some(this) {
                        let text = format!("{} is incomplete: its first part is missing", name(&headers));
                        told.push(notice(kind::INCOMPLETE, text));
                    }
                    self.discarded = Some(this);
                    return (told, None);
                }
            }
        };
        let Begun { mut body, max, .. } = begun;
        if payload.len() > max - body.bytes.len() {
            let text = format!(
                "message {sequence} is refused: {} would have more than {max} bytes",
                name(&body.headers)
            );
            told.push(notice(kind::REFUSED, text));
            self.discarded = Some(this);
            return (told, None);
        }
        body.bytes.extend_from_slice(payload);
        if part.is_last() {
            return (told, Some(body));
        }
        self.begun = Some(Begun { body, part: part.number(), max });
        (told, None)
    }
}

/// Says that a body is given up, since its next part did not come.
fn missing(begun: Begun) -> Notice {
    let Begun { body: Body { headers, .. }, part, .. } = begun;
    let text =
        format!("{} is incomplete: part {} of {} is missing", name(&headers), part + 1, headers.part.count());
    notice(kind::INCOMPLETE, text)
}

#[cfg(test)]
mod tests {
    use relay::GeometrySpec;

    use super::*;
    use crate::message::{Part, SubBuffer};

    fn headers(number: u64, part: u32, count: u32) -> HeaderMap {
        let geometry = "subbuf-size=4K".parse::<GeometrySpec>().unwrap().build().unwrap();
        let sub_buffer = SubBuffer { geometry, position: 0, lost: 0, too_big: 0, meaning: None };
        Headers { instance: 7, number, part: Part::new(part, count).unwrap(), sub_buffer: Some(sub_buffer) }
            .encode()
    }

    /// Adds parts, each as number of the sub-buffer, part and count; returns what comes of them.
    fn joined(parts: &[(u64, u32, u32)]) -> Vec<String> {
        let mut joiner = Joiner::new(Kind::Cpu(0));
        let mut all = Vec::new();
        for (sequence, (number, part, count)) in (1..).zip(parts) {
            let payload = format!("[{number}.{part}]");
            let (told, body) = joiner.add(sequence, &headers(*number, *part, *count), payload.as_bytes());
            all.extend(told.into_iter().map(|notice| notice.text));
            all.extend(body.map(|body| String::from_utf8(body.bytes).unwrap()));
        }
        all
    }

    #[test]
    fn parts_are_joined_in_order() {
        assert_eq!(joined(&[(0, 1, 1), (1, 1, 2), (1, 2, 2), (2, 1, 1)]), ["[0.1]", "[1.1][1.2]", "[2.1]"]);
    }

    #[test]
    fn incomplete_bodies_are_told_once() {
        let told = "sub-buffer 1 is incomplete: part 2 of 3 is missing";
        assert_eq!(joined(&[(1, 1, 3), (2, 1, 1)]), [told, "[2.1]"]);
        assert_eq!(joined(&[(1, 1, 3), (1, 3, 3), (2, 1, 1)]), [told, "[2.1]"]);
        assert_eq!(joined(&[(1, 1, 3), (2, 2, 2), (2, 1, 1)]), [told, "[2.1]"]);
        let first = "sub-buffer 1 is incomplete: its first part is missing";
        assert_eq!(joined(&[(1, 2, 4), (1, 3, 4), (1, 4, 4), (2, 1, 1)]), [first, "[2.1]"]);
        // Parts that are sent again begin again.
        assert_eq!(joined(&[(1, 1, 2), (1, 1, 2), (1, 2, 2)]), ["[1.1][1.2]"]);
        assert_eq!(joined(&[(1, 1, 3), (1, 2, 3), (1, 1, 1)]), ["[1.1]"]);
    }

    #[test]
    fn bodies_that_exceed_their_geometry_take_no_memory() {
        let mut joiner = Joiner::new(Kind::Cpu(0));
        let payload = vec![0; 50 << 10];
        for part in 1..=1000 {
            let (told, body) = joiner.add(part.into(), &headers(1, part, 1000), &payload);
            assert!(body.is_none());
            assert_eq!(told.len(), usize::from(part == 2), "{told:?}");
            assert!(joiner.begun.as_ref().is_none_or(|begun| begun.body.bytes.len() <= 68 << 10));
        }
    }

    #[test]
    fn foreign_messages_are_refused() {
        let mut joiner = Joiner::new(Kind::Cpu(0));
        let (told, body) = joiner.add(5, &HeaderMap::new(), b"hello");
        assert!(body.is_none());
        assert_eq!(told[0].text, "message 5 is refused: the header Relay-Format is missing");
    }
}
