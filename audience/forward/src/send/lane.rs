//! A subject: what is stored there, and how the next body is stored behind it, once.
//!
//! ```text
//! last known? --no--> ask for the last message
//!     |
//!     +-- it is this body's last part: done
//!     +-- it is a part of it that this call sent: the next part, or else the first one
//!            |
//!            +-- acknowledged: that is the last message now
//!            +-- refused, no answer, no connection: the last message is not known; pause, again
//! ```

use std::rc::Rc;

use async_nats::HeaderMap;
use bytes::Bytes;
use relay::trace::packet::{HEADER_LEN, PacketHeader};

use super::link::{Link, Pauses, Unstored};
use crate::error::Failure;
use crate::message::{Headers, Kind, Part, Subject, to_token};

/// Least room for a body beside the headers, in bytes.
const ROOM_MIN: usize = 64;
/// Bytes of the headers that are added to a message's, at most: names, separators and three numbers.
const ADDED: usize = 250;

/// A subject of the stream.
pub(crate) struct Lane {
    link: Rc<Link>,
    /// The subject's text.
    pub(crate) subject: String,
    kind: Kind,
    /// The first part of the messages' ids.
    id: String,
    /// The channel's.
    instance: u64,
    /// The last message; `None` if it is not known.
    last: Option<Last>,
    /// Sequence of the last message that this process has stored; 0: none.
    stored: u64,
}

/// The last message of a subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Last {
    /// Its sequence; 0: there is none.
    sequence: u64,
    /// What it says. `None` if it is no forwarder's.
    headers: Option<Headers>,
    /// Stamp with which its packet ends.
    end: Option<u64>,
}

impl Last {
    /// Returns the headers, if they are of this channel.
    pub(crate) fn of(&self, instance: u64) -> Option<&Headers> {
        self.headers.as_ref().filter(|headers| headers.instance == instance)
    }

    /// Returns the stamp with which the packet ends.
    pub(crate) fn end(&self) -> Option<u64> {
        self.end
    }
}

impl Lane {
    pub(crate) fn new(link: &Rc<Link>, subject: &Subject, instance: u64) -> Lane {
        let id =
            format!("{}/{}/{}", to_token(&subject.host), to_token(subject.channel.as_str()), subject.kind);
        let (kind, subject) = (subject.kind, subject.encode(&link.name));
        Lane { link: Rc::clone(link), subject, kind, id, instance, last: None, stored: 0 }
    }

    /// Returns the last message of the subject. Asks until there is an answer.
    pub(crate) async fn last(&mut self) -> Result<Last, Failure> {
        let mut pauses = Pauses::default();
        loop {
            if let Some(last) = &self.last {
                return Ok(last.clone());
            }
            match self.link.last(&self.subject).await {
                Ok(None) => self.last = Some(Last::default()),
                Ok(Some(found)) => {
                    let headers = Headers::decode(self.kind, &found.headers).ok();
                    let end = found.payload.first_chunk::<HEADER_LEN>();
                    let end = end.and_then(|bytes| PacketHeader::decode(bytes, 0).ok());
                    let end = end.map(|header| header.end);
                    self.last = Some(Last { sequence: found.sequence, headers, end });
                }
                Err(why) => self.wait(why, &mut pauses).await,
            }
        }
    }

    /// Stores a body, in as many messages as it takes. Returns the sequence of the first one.
    ///
    /// Fails if another forwarder writes to the subject.
    pub(crate) async fn put(&mut self, headers: &Headers, body: &Bytes) -> Result<u64, Failure> {
        let (number, mut pauses) = (headers.number, Pauses::default());
        // What was there before this call is no part of this body, whatever it says.
        let before = self.last().await?.sequence;
        let (mut first, mut count) = (None, 0);
        loop {
            let last = self.last().await?;
            self.check(&last, number)?;
            let Some(room) = self.room(headers) else {
                let why = format!(
                    "stream '{}' takes messages of {} bytes, too few for the headers: raise max_payload, or the stream's \
                     max_msg_size",
                    self.link.name,
                    self.link.message_max()
                );
                self.wait(Unstored::Trouble(why), &mut pauses).await;
                continue;
            };
            let of_this = last.of(self.instance).filter(|stored| stored.number == number);
            let mut next = 1;
            if let Some(stored) = of_this {
                if stored.part.number() == 1 {
                    first = Some(last.sequence);
                }
                if stored.part.is_last() {
                    self.link.troubles.clear(&self.subject);
                    return Ok(first.unwrap_or(last.sequence));
                }
                if last.sequence > before && stored.part.count() == count {
                    next = stored.part.number() + 1;
                }
            }
            let parts = u32::try_from(body.len().div_ceil(room).max(1)).unwrap_or(u32::MAX);
            if parts != count {
                (count, next) = (parts, 1);
            }
            let Some(part) = Part::new(next, count) else { continue };
            let at = (next as usize - 1) * room;
            let piece = body.slice(at..body.len().min(at + room));
            let headers = Headers { part, ..headers.clone() };
            let map = self.headers(&headers, last.sequence);
            match self.link.store(&self.subject, map, piece, last.sequence).await {
                Ok(sequence) => {
                    self.stored = sequence;
                    self.last = Some(Last { sequence, headers: Some(headers), end: last.end });
                    pauses.reset();
                }
                Err(why) => self.wait(why, &mut pauses).await,
            }
        }
    }

    /// Fails if the last message is another forwarder's.
    fn check(&self, last: &Last, number: u64) -> Result<(), Failure> {
        let is_later = self.stored > 0 && last.sequence > self.stored;
        let is_other = match &last.headers {
            Some(headers) if headers.instance == self.instance => headers.number > number,
            _ => true,
        };
        if is_later && is_other { Err(Failure::Another(self.subject.clone())) } else { Ok(()) }
    }

    /// Returns how many bytes of a body fit beside the headers.
    fn room(&self, headers: &Headers) -> Option<usize> {
        // All parts are as long as if their own numbers were the longest.
        let map = headers.encode();
        let values = map.iter().flat_map(|(name, values)| {
            values.iter().map(move |value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4)
        });
        let len = values.sum::<usize>() + self.id.len() + self.link.name.len() + ADDED;
        self.link.message_max().checked_sub(len).filter(|room| *room >= ROOM_MIN)
    }

    fn headers(&self, headers: &Headers, before: u64) -> HeaderMap {
        let mut map = headers.encode();
        let (instance, number, part) = (headers.instance, headers.number, headers.part.number());
        map.insert("Nats-Msg-Id", format!("{}/{instance:016x}/{number}/{part}@{before}", self.id));
        map.insert("Nats-Expected-Last-Subject-Sequence", before.to_string());
        map.insert("Nats-Expected-Stream", self.link.name.as_str());
        map
    }

    /// Waits before the next try, and forgets what the last message is.
    async fn wait(&mut self, why: Unstored, pauses: &mut Pauses) {
        self.last = None;
        match why {
            Unstored::Away => self.link.troubles.until(true).await,
            Unstored::Doubt => {}
            Unstored::Trouble(why) => self.link.troubles.set(&self.subject, &why),
        }
        pauses.pause().await;
    }
}
