//! A subject: what is stored there, and how the next bodies are stored behind it, once.
//!
//! ```text
//! behind.rs  what was stored of earlier tries
//! body.rs    what it stores
//! find.rs    what it had at the start
//! store.rs   messages on the way
//! ```

mod behind;
mod body;
mod find;
mod store;

use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

use async_nats::HeaderMap;

use super::history::History;
use super::link::{Found, Link, Unstored};
use super::pauses::Pauses;
use super::written::{End, ID, Plan, Written};
use crate::error::Failure;
use crate::message::{Headers, Kind, Subject, to_token};

pub(crate) use self::body::{Bodies, Body};
pub(crate) use self::store::Put;

/// Least room for a body beside the headers, in bytes.
const ROOM_MIN: usize = 64;
/// Pause after a connection was made again.
const AWAY: Duration = Duration::from_millis(10);
/// Bytes of an id's numbers, at most.
const NUMBERS_MAX: usize = 110;
/// Bytes of the headers that are added to a message's, at most: names, separators and the numbers of two ids.
const ADDED: usize = 450;

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
    /// Sequence of the last message when it was known last, and all was settled that was there; `None`: it was never
    /// known.
    known: Option<u64>,
    /// Sequence of the last message that this process has stored, and the stream's generation then; 0: none.
    stored: (u64, u64),
    /// Whether this process has stored a message. From then on none of a process before can come.
    has_stored: bool,
    /// How often the subject has lost what this process has stored.
    n_lost: u64,
    /// Tokens of the last parts of bodies, by number and by how often the subject has lost messages.
    tokens: RandomState,
    /// Plans of bodies that may be stored though they were given up, by number.
    past: Vec<(u64, Plan)>,
    /// What was there at the start; `None` if that is not known.
    history: Option<History>,
}

/// The last message of a subject.
#[derive(Clone, Debug, Default)]
struct Last {
    /// Its sequence; 0: there is none.
    sequence: u64,
    /// The sequence that the server takes for it.
    expected: u64,
    /// What it says. `None` if it is no forwarder's.
    written: Option<Written>,
}

/// Whether the stream has a sub-buffer, and how the last packet there ends.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) is_stored: bool,
    pub(crate) end: Option<End>,
}

impl Lane {
    pub(crate) fn new(link: &Rc<Link>, subject: &Subject, instance: u64) -> Lane {
        let id =
            format!("{}/{}/{}", to_token(&subject.host), to_token(subject.channel.as_str()), subject.kind);
        let (kind, subject) = (subject.kind, subject.encode(&link.name));
        Lane {
            link: Rc::clone(link),
            subject,
            kind,
            id,
            instance,
            last: None,
            known: None,
            stored: (0, 0),
            has_stored: false,
            n_lost: 0,
            tokens: RandomState::new(),
            past: Vec::new(),
            history: None,
        }
    }

    /// Returns the number of the next text of the subject. `None`: the server does not answer.
    pub(crate) async fn next_number(&mut self, tries: u32) -> Option<u64> {
        let mut pauses = Pauses::new(tries);
        while let Err(why) = self.refresh().await {
            if !self.wait(why, &mut pauses).await {
                return None;
            }
        }
        let written = self.last.as_ref().and_then(|last| last.written.as_ref());
        let ours = written.filter(|written| written.headers.instance == self.instance);
        Some(ours.map_or(0, |ours| ours.headers.number.wrapping_add(1)))
    }

    /// Returns whether all parts of a text are in the stream whose first message has this sequence.
    pub(crate) async fn has_parts(&self, first: u64) -> Result<bool, Unstored> {
        let mut at = first;
        for number in 1.. {
            let found = self.link.next(&self.subject, at).await?;
            // Each part expects the one before it in its subject. So nothing is between them.
            let found = found.filter(|found| number > 1 || found.sequence == first);
            let Some((found, written)) =
                found.and_then(|found| self.read(&found).map(|written| (found, written)))
            else {
                return Ok(false);
            };
            let part = written.headers.part;
            if part.number() != number {
                return Ok(false);
            }
            if part.is_last() {
                break;
            }
            at = found.sequence.saturating_add(1);
        }
        Ok(true)
    }

    /// Asks for the last message, unless it is known. Returns whether it was asked for.
    async fn refresh(&mut self) -> Result<bool, Unstored> {
        if self.last.is_some() {
            return Ok(false);
        }
        let (found, expected) = self.link.last(&self.subject).await?;
        let sequence = found.as_ref().map_or(0, |found| found.sequence);
        let (stored, generation) = self.stored;
        if sequence < stored {
            self.link.has_lost(generation);
            self.stored = (0, 0);
            self.n_lost += 1;
        }
        let written = found.as_ref().and_then(|found| self.read(found));
        self.last = Some(Last { sequence, expected, written });
        Ok(true)
    }

    fn read(&self, found: &Found) -> Option<Written> {
        found.message.as_ref().and_then(|message| Written::read(&self.id, self.kind, message))
    }

    /// Fails if the last message is another forwarder's. Those of other programs do not matter.
    ///
    /// This process is about to store body `number`, and the last message has nothing of that or of one behind it.
    fn check(&self, number: u64) -> Result<(), Failure> {
        let Some(Last { sequence, written: Some(written), .. }) = &self.last else { return Ok(()) };
        let ((stored, _), headers) = (self.stored, &written.headers);
        let is_later = stored > 0 && *sequence > stored;
        let is_done_by_other = headers.number == number && headers.part.is_last();
        let is_other = headers.instance != self.instance || headers.number > number || is_done_by_other;
        if is_later && is_other { Err(Failure::Another(self.subject.clone())) } else { Ok(()) }
    }

    /// Returns the token of the last part of a body.
    fn end(&self, number: u64) -> u64 {
        self.tokens.hash_one((number, self.n_lost))
    }

    /// Returns how many bytes of a body fit beside the headers.
    fn room(&self, headers: &Headers) -> Option<usize> {
        // All parts are as long as if their own numbers were the longest.
        let map = headers.encode();
        let values = map.iter().flat_map(|(name, values)| {
            values.iter().map(move |value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4)
        });
        let len = values.sum::<usize>() + 2 * self.id.len() + self.link.name.len() + ADDED;
        self.link.message_max().checked_sub(len).filter(|room| *room >= ROOM_MIN)
    }

    /// Even the headers are too long.
    fn too_small(&self) -> Unstored {
        Unstored::Trouble(self.link.too_long())
    }

    /// Returns the headers of a message. `before`: the sequence of the last message of the subject. `behind`: the id
    /// of the last message in the line.
    fn headers(&self, headers: &Headers, id: &str, before: Option<u64>, behind: Option<&str>) -> HeaderMap {
        let mut map = headers.encode();
        map.insert(ID, id);
        map.insert("Nats-Expected-Stream", self.link.name.as_str());
        if let Some(behind) = behind {
            map.insert("Nats-Expected-Last-Msg-Id", behind);
        }
        if let Some(before) = before {
            map.insert("Nats-Expected-Last-Subject-Sequence", before.to_string());
        }
        map
    }

    /// Whether there is room for the id of another message. That of another subject may be longer.
    fn has_room_for(&self, id: &str) -> bool {
        id.len() <= self.id.len() + NUMBERS_MAX
    }

    /// Waits before the next try, and forgets what the last message is. Returns false if there are no more tries.
    async fn wait(&mut self, why: Unstored, pauses: &mut Pauses) -> bool {
        self.last = None;
        match why {
            Unstored::Away => {
                self.link.line.note_lost();
                // All subjects wait for the same. It is nothing that this one alone is refused.
                self.link.troubles.until(true).await;
                tokio::time::sleep(AWAY).await;
                return true;
            }
            Unstored::Overtaken | Unstored::Unlinked | Unstored::Doubt => {}
            // A stream that was just created, or has another leader, takes messages a moment after it answers.
            Unstored::Unheard(_) if pauses.are_first() => {}
            Unstored::Unheard(why) | Unstored::Trouble(why) => self.link.troubles.set(&self.subject, &why),
        }
        pauses.pause().await
    }
}
