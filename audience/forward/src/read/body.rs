//! Joins the parts of a body again.
//!
//! Parts of a body are consecutive messages of a subject. A part that does not continue the one before is discarded,
//! and so is what it leaves incomplete.

use std::sync::Arc;

use async_nats::HeaderMap;
use relay::cli::size::format_size;
use relay::trace::merge::Notice;

use super::delivery::{kind, notice};
use super::room::{self, Room, Share};
use super::store::Place;
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
    /// Where its first part is.
    pub(super) first: Place,
    /// The memory of the bytes.
    pub(super) share: Share,
}

/// Joins the parts of a subject's bodies.
#[derive(Debug)]
pub(super) struct Joiner {
    kind: Kind,
    /// The body whose parts are coming.
    begun: Option<Begun>,
    /// The body whose parts are discarded, to say so once.
    discarded: Option<Id>,
    /// Whether parts of a body that began before are no surprise: no first part has come yet.
    is_in_middle: bool,
    room: Arc<Room>,
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
    pub(super) fn new(kind: Kind, room: &Arc<Room>) -> Joiner {
        Joiner { kind, begun: None, discarded: None, is_in_middle: false, room: Arc::clone(room) }
    }

    /// Begins where a body may have begun before.
    pub(super) fn in_middle(self) -> Joiner {
        Joiner { is_in_middle: true, ..self }
    }

    /// Returns whether the last message was a further part of a body of this instance.
    pub(super) fn is_longer(&self, instance: u64) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.part > 1 && begun.body.headers.instance == instance)
    }

    /// Takes the next message of the subject. Returns what there is to say, and then a body, if it is whole now.
    pub(super) fn add(
        &mut self,
        place: Place,
        headers: &HeaderMap,
        payload: &[u8],
    ) -> (Vec<Notice>, Option<Body>) {
        let sequence = place.sequence;
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
        self.is_in_middle &= part.number() > 1;
        if self.is_in_middle {
            return (Vec::new(), None);
        }
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
            let body = Body { headers, bytes: Vec::new(), first: place, share: self.room.share() };
            Begun { body, part: 0, max }
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
        if !body.share.grow(payload.len()) {
            let text = format!(
                "message {sequence} is refused: more than {} wait for their turn; --host and -c choose fewer",
                format_size(room::MAX as u64)
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

    fn at(sequence: u64) -> Place {
        Place { sequence, time: 0 }
    }

    fn headers(number: u64, part: u32, count: u32) -> HeaderMap {
        let geometry = "subbuf-size=4K".parse::<GeometrySpec>().unwrap().build().unwrap();
        let sub_buffer = SubBuffer { geometry, position: 0, lost: 0, too_big: 0, meaning: None };
        Headers { instance: 7, number, part: Part::new(part, count).unwrap(), sub_buffer: Some(sub_buffer) }
            .encode()
    }

    /// Adds parts, each as number of the sub-buffer, part and count; returns what comes of them.
    fn joined(parts: &[(u64, u32, u32)]) -> Vec<String> {
        let mut joiner = Joiner::new(Kind::Cpu(0), &Arc::default());
        let mut all = Vec::new();
        for (sequence, (number, part, count)) in (1..).zip(parts) {
            let payload = format!("[{number}.{part}]");
            let (told, body) = joiner.add(at(sequence), &headers(*number, *part, *count), payload.as_bytes());
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
        let mut joiner = Joiner::new(Kind::Cpu(0), &Arc::default());
        let payload = vec![0; 50 << 10];
        for part in 1..=1000 {
            let (told, body) = joiner.add(at(part.into()), &headers(1, part, 1000), &payload);
            assert!(body.is_none());
            assert_eq!(told.len(), usize::from(part == 2), "{told:?}");
            assert!(joiner.begun.as_ref().is_none_or(|begun| begun.body.bytes.len() <= 68 << 10));
        }
    }

    #[test]
    fn parts_of_before_the_middle_are_no_news() {
        let mut joiner = Joiner::new(Kind::Cpu(0), &Arc::default()).in_middle();
        let mut add = |number, part| {
            let (told, body) = joiner.add(at(1), &headers(number, part, 3), b"x");
            (told.len(), body.is_some())
        };
        assert_eq!([add(1, 2), add(1, 3), add(2, 1), add(2, 2), add(2, 3)].map(|(told, _)| told), [0; 5]);
        // From then on they are.
        assert_eq!(
            [add(3, 2), add(4, 1), add(4, 2), add(4, 3)],
            [(1, false), (0, false), (0, false), (0, true)]
        );
    }

    #[test]
    fn bodies_that_have_no_room_are_refused() {
        let room = Room::of(2);
        let mut joiner = Joiner::new(Kind::Cpu(0), &room);
        let (_, first) = joiner.add(at(1), &headers(1, 1, 1), b"ab");
        let (told, body) = joiner.add(at(2), &headers(2, 1, 1), b"c");
        assert!(body.is_none() && told[0].text.contains("message 2 is refused"), "{told:?}");
        drop(first);
        assert!(joiner.add(at(3), &headers(3, 1, 1), b"c").1.is_some());
    }

    #[test]
    fn foreign_messages_are_refused() {
        let mut joiner = Joiner::new(Kind::Cpu(0), &Arc::default());
        let (told, body) = joiner.add(at(5), &HeaderMap::new(), b"hello");
        assert!(body.is_none());
        assert_eq!(told[0].text, "message 5 is refused: the header Relay-Format is missing");
    }
}
