//! What a message of a subject says about the sub-buffer in it, and which process of ours wrote it.
//!
//! Any program that may publish writes to our subjects, too. Its messages count as none of ours unless their ids are as
//! ours. An id ends with a token, which is secret until the message is stored. So an id with the token of this process
//! is proof; that of another process is not, and the bytes decide.

use std::hash::{BuildHasher, RandomState};

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use relay::trace::packet::{HEADER_LEN, Losses, PacketHeader};

use crate::message::{Headers, Kind, Part};

/// Name of the header with the id.
pub(crate) const ID: &str = "Nats-Msg-Id";

/// Stamp and losses with which a packet ends.
pub(crate) type End = (u64, Option<Losses>);

/// A message that a forwarder has written.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// What it says.
    pub(crate) headers: Headers,
    /// Tells messages with the same names and numbers apart.
    pub(crate) token: u64,
    /// Stamp with which the packet ends; 0 if no packet begins in the message.
    stamp: u64,
}

/// Returns a message's id. `lane` is what ids of its subject begin with, `before` the sequence that the first of its
/// run expects. `place`, of a linked one, is a number that no other message of the process has.
///
/// Tries of a message that is not linked have the same id: a stream with copies stores one of them, also while
/// another is in process. Tries of a linked one have different ids: what is linked to the first is not stored behind
/// the second.
pub(crate) fn id(lane: &str, headers: &Headers, before: u64, place: Option<u64>, token: u64) -> String {
    let (instance, number, part) = (headers.instance, headers.number, headers.part.number());
    let place = place.map(|place| format!(".{place}")).unwrap_or_default();
    format!("{lane}/{instance:016x}/{number}/{part}@{before}{place}.{token:016x}")
}

impl Written {
    /// Takes over what this process has just written.
    pub(crate) fn new(headers: Headers, token: u64) -> Written {
        Written { headers, token, stamp: 0 }
    }

    /// Reads a message. `None` if no forwarder writes such a message to the subject.
    pub(crate) fn read(lane: &str, kind: Kind, message: &StreamMessage) -> Option<Written> {
        let headers = Headers::decode(kind, &message.headers).ok()?;
        let token = token(lane, &headers, &message.headers)?;
        let stamp = header(&message.payload).map_or(0, |header| header.end);
        Some(Written { headers, token, stamp })
    }

    /// Returns how the packet in it ends, as far as that is known.
    pub(crate) fn end(&self) -> End {
        let losses = self.headers.sub_buffer.as_ref();
        (self.stamp, losses.map(|found| Losses { lost: found.lost, too_big: found.too_big }))
    }

    /// Returns whether the message, which another process has written, ends this sub-buffer. So it is stored.
    pub(crate) fn ends(&self, instance: u64, number: u64, payload: &[u8], proof: &Proof) -> bool {
        let part = self.headers.part;
        let is_of_this = self.headers.instance == instance && self.headers.number == number;
        is_of_this && part.is_last() && proof.is_given(part, payload, number)
    }
}

fn token(lane: &str, headers: &Headers, map: &HeaderMap) -> Option<u64> {
    let text = map.get_last(ID)?.as_str();
    let (numbers, token) = text.rsplit_once('@')?.1.rsplit_once('.')?;
    let (before, place) = match numbers.split_once('.') {
        Some((before, place)) => (before, Some(place.parse().ok()?)),
        None => (numbers, None),
    };
    let (before, token) = (before.parse().ok()?, u64::from_str_radix(token, 16).ok()?);
    (text == id(lane, headers, before, place, token)).then_some(token)
}

fn header(packet: &[u8]) -> Option<PacketHeader> {
    packet.first_chunk::<HEADER_LEN>().and_then(|bytes| PacketHeader::decode(bytes, 0).ok())
}

/// What proves that another process's message has the sub-buffer that this process wants to store.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// Nothing does.
    Nothing,
    /// The packet has the number. Packets of a sub-buffer may differ in other bytes.
    Packet,
    /// These bytes are the whole sub-buffer.
    Bytes(Bytes),
}

impl Proof {
    fn is_given(&self, part: Part, payload: &[u8], number: u64) -> bool {
        match self {
            Proof::Nothing => false,
            // The packet's header is in the first part.
            Proof::Packet if part.number() > 1 => true,
            Proof::Packet => header(payload).is_some_and(|header| header.number == number),
            // Another program may have read the begin of the sub-buffer meanwhile.
            Proof::Bytes(bytes) if payload.ends_with(bytes) => true,
            Proof::Bytes(bytes) => part.number() > 1 && !payload.is_empty() && bytes.ends_with(payload),
        }
    }
}

/// How a body is split into parts, and the tokens of these. Parts of one plan alone belong together.
#[derive(Debug)]
pub(crate) struct Plan {
    room: usize,
    count: u32,
    tokens: RandomState,
    /// Token of the last part. All plans of a body have the same: with the last part of any of them, all is stored.
    last: u64,
}

impl Plan {
    /// Splits a body of this length into parts of at most `room` bytes. `last` is the token of the last one.
    pub(crate) fn new(len: usize, room: usize, last: u64) -> Plan {
        let count = u32::try_from(len.div_ceil(room.max(1)).max(1)).unwrap_or(u32::MAX);
        Plan { room, count, tokens: RandomState::new(), last }
    }

    /// Returns whether parts of this plan may have this many bytes, and the last one has this token.
    pub(crate) fn fits(&self, room: usize, last: u64) -> bool {
        (self.room, self.last) == (room, last)
    }

    /// Returns whether the last part has this token.
    pub(crate) fn ends(&self, last: u64) -> bool {
        self.last == last
    }

    /// Returns how many parts are stored, if this is the last message of the subject.
    pub(crate) fn stored(&self, last: Option<&Written>) -> u32 {
        let Some(Written { headers, token, .. }) = last else { return 0 };
        match headers.part {
            part if part.is_last() && *token == self.last => self.count,
            part if part.count() == self.count && *token == self.token(part) => part.number(),
            _ => 0,
        }
    }

    /// Returns a part by its number, from 1; `None` behind the last.
    pub(crate) fn part(&self, number: u32) -> Option<Part> {
        Part::new(number, self.count)
    }

    /// Returns the token of a part.
    pub(crate) fn token(&self, part: Part) -> u64 {
        if part.is_last() { self.last } else { self.tokens.hash_one(part.number()) }
    }

    /// Returns the bytes of a part.
    pub(crate) fn piece(&self, body: &Bytes, part: Part) -> Bytes {
        let begin = (part.number() as usize - 1).saturating_mul(self.room).min(body.len());
        body.slice(begin..begin.saturating_add(self.room).min(body.len()))
    }
}

#[cfg(test)]
mod tests {
    use relay::GeometrySpec;

    use super::*;
    use crate::message::SubBuffer;

    const LANE: &str = "h/cpu/cpu0";

    fn headers(number: u64, part: Part) -> Headers {
        let geometry = "subbuf-size=4K".parse::<GeometrySpec>().unwrap().build().unwrap();
        let sub_buffer = SubBuffer { geometry, position: 0, lost: 3, too_big: 1, meaning: None };
        Headers { instance: 7, number, part, sub_buffer: Some(sub_buffer) }
    }

    fn read(headers: &Headers, id: &str) -> Option<Written> {
        let mut map = headers.encode();
        map.insert(ID, id);
        token(LANE, headers, &map).map(|token| Written::new(headers.clone(), token))
    }

    #[test]
    fn ids_of_other_programs_are_not_ours() {
        let ours = headers(5, Part::new(2, 3).unwrap());
        for (place, end) in [(None, "@41.0000000000000abc"), (Some(8), "@41.8.0000000000000abc")] {
            let text = id(LANE, &ours, 41, place, 0xabc);
            assert_eq!(text, format!("h/cpu/cpu0/0000000000000007/5/2{end}"));
            assert_eq!(read(&ours, &text).unwrap().token, 0xabc);
        }
        for wrong in [
            "",
            "x",
            "h/cpu/cpu0/0000000000000007/5/2@41",
            "h/cpu/cpu0/0000000000000007/5/2@41.8",
            "h/cpu/cpu0/0000000000000007/5/2@41.abc",
            "h/cpu/cpu0/0000000000000007/5/2@41.8.9.0000000000000abc",
            "h/cpu/cpu0/0000000000000007/5/2@41.8.abc",
            "h/cpu/cpu0/0000000000000007/5/2@041.8.0000000000000abc",
            "h/cpu/cpu0/0000000000000007/5/2@41.8.0000000000000abc.",
            "h/cpu/cpu0/0000000000000007/5/1@41.8.0000000000000abc",
            "h/cpu/cpu0/0000000000000007/6/2@41.8.0000000000000abc",
            "h/cpu/cpu1/0000000000000007/5/2@41.8.0000000000000abc",
        ] {
            assert!(read(&ours, wrong).is_none(), "{wrong}");
        }
    }

    /// Parts of another process, or of another length, are not continued.
    #[test]
    fn parts_continue_those_of_their_plan_alone() {
        let body = Bytes::from_iter((0..250).map(|n| n as u8));
        let plan = Plan::new(body.len(), 100, 77);
        let part = |n| Part::new(n, 3).unwrap();
        let written = |plan: &Plan, n| Written::new(headers(5, part(n)), plan.token(part(n)));
        assert_eq!(plan.stored(None), 0);
        for n in 1..=3 {
            assert_eq!(plan.stored(Some(&written(&plan, n))), n);
        }
        // As many parts, of more bytes each: the server's limit was raised.
        let other = Plan::new(body.len(), 110, 77);
        assert_eq!(other.part(3), Some(part(3)));
        assert_eq!((plan.stored(Some(&written(&other, 1))), other.stored(Some(&written(&plan, 2)))), (0, 0));
        // With the last part of any try, the body is stored.
        let fewer = Plan::new(body.len(), 1000, 77);
        assert_eq!((fewer.stored(Some(&written(&plan, 3))), fewer.stored(Some(&written(&plan, 1)))), (1, 0));
        let forged = Plan::new(body.len(), 100, 78);
        assert_eq!([1, 2, 3].map(|n| plan.stored(Some(&written(&forged, n)))), [0; 3]);
        assert!(plan.fits(100, 77) && !plan.fits(110, 77) && !plan.fits(100, 78));
        let all: Vec<u8> = (1..=3).flat_map(|n| plan.piece(&body, part(n))).collect();
        assert_eq!(all, body);
        assert_eq!((plan.part(4), Plan::new(0, 100, 0).part(1)), (None, Some(Part::WHOLE)));
    }

    #[test]
    fn sub_buffer_is_stored_if_its_bytes_are() {
        let part = |n, count| Part::new(n, count).unwrap();
        let ends = |part, payload: &[u8], proof: &Proof| {
            Written::new(headers(5, part), 0).ends(7, 5, payload, proof)
        };
        let bytes = Proof::Bytes(Bytes::from_static(b"some bytes"));
        for (part, payload, expected) in [
            (Part::WHOLE, &b"some bytes"[..], true),
            // `cat` has read some of it.
            (Part::WHOLE, b"and some bytes", true),
            (Part::WHOLE, b"bytes", false),
            (Part::WHOLE, b"other byte", false),
            (Part::WHOLE, b"", false),
            (part(2, 2), b"bytes", true),
            (part(2, 2), b"byte", false),
            (part(2, 2), b"", false),
            (part(1, 2), b"some bytes", false),
        ] {
            assert_eq!(ends(part, payload, &bytes), expected, "{part} {payload:?}");
            assert!(!ends(part, payload, &Proof::Nothing));
        }
        let written = Written::new(headers(5, Part::WHOLE), 0);
        assert!(!written.ends(8, 5, b"some bytes", &bytes) && !written.ends(7, 4, b"some bytes", &bytes));
        let packet =
            PacketHeader { cpu: 0, begin: 1, end: 2, records_len: 0, padding: 0, number: 5, discarded: 0 };
        assert!(ends(Part::WHOLE, &packet.encode(), &Proof::Packet));
        assert!(ends(part(3, 3), b"more", &Proof::Packet) && !ends(Part::WHOLE, b"more", &Proof::Packet));
        let other = PacketHeader { number: 6, ..packet };
        assert!(!ends(Part::WHOLE, &other.encode(), &Proof::Packet));
    }
}
