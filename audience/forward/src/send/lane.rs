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

use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;

use super::history::History;
use super::link::{Found, Link, Pauses, Unstored};
use super::written::{End, ID, Plan, Proof, Written, id};
use crate::error::Failure;
use crate::message::{Headers, Kind, Subject, to_token};

/// Least room for a body beside the headers, in bytes.
const ROOM_MIN: usize = 64;
/// Pause after a connection was made again.
const AWAY: Duration = Duration::from_millis(10);
/// Bytes of the headers that are added to a message's, at most: names, separators and four numbers.
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
    /// Sequence of the last message that this process has stored, and the stream's generation then; 0: none.
    stored: (u64, u64),
    /// Whether this process has stored a message. From then on none of a process before can come.
    has_stored: bool,
    /// How often the subject has lost what this process has stored.
    n_lost: u64,
    /// Tokens of the last parts of bodies, by number and by how often the subject has lost messages.
    tokens: RandomState,
    /// What was there at the start; `None` if that is not known.
    history: Option<History>,
}

/// The last message of a subject.
#[derive(Clone, Debug, Default)]
struct Last {
    /// Its sequence; 0: there is none.
    sequence: u64,
    /// What it says. `None` if it is no forwarder's.
    written: Option<Written>,
}

/// Whether the stream has a sub-buffer, and how the last packet there ends.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) is_stored: bool,
    pub(crate) end: Option<End>,
}

/// What became of a body.
#[derive(Debug)]
pub(crate) enum Put {
    /// It is stored. The number is the sequence of its first message.
    Stored(u64),
    /// The server did not take it in the given tries.
    Refused,
    /// The stream has lost the texts that the headers name.
    Outdated,
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
            stored: (0, 0),
            has_stored: false,
            n_lost: 0,
            tokens: RandomState::new(),
            history: None,
        }
    }

    /// Returns whether the stream has a sub-buffer already, from the time before this process. `None`: it does not answer.
    ///
    /// It is asked for the first sub-buffer of the buffer, and for those behind it until one is not there.
    pub(crate) async fn find(&mut self, number: u64, proof: &Proof, tries: u32) -> Option<Answer> {
        let mut pauses = Pauses::new(tries);
        loop {
            match self.try_find(number, proof).await {
                Ok(answer) => {
                    self.link.troubles.clear(&self.subject);
                    return Some(answer);
                }
                Err(why) => {
                    if !self.wait(why, &mut pauses).await {
                        return None;
                    }
                }
            }
        }
    }

    async fn try_find(&mut self, number: u64, proof: &Proof) -> Result<Answer, Unstored> {
        if self.history.is_none() {
            self.history = Some(self.look_back(number).await?);
        }
        let history = self.history.as_ref();
        let before = history.and_then(History::before);
        let Some(sequence) = history.and_then(|history| history.stored(number)) else {
            return Ok(Answer { is_stored: false, end: before });
        };
        let found = self.link.message(sequence).await?;
        let end = found.as_ref().and_then(|found| {
            let written = self.read(found).filter(|_| found.sequence == sequence)?;
            written.ends(self.instance, number, payload(found), proof).then(|| written.end())
        });
        Ok(Answer { is_stored: end.is_some(), end: end.or(before) })
    }

    /// Reads the subject backwards, as far as it matters.
    async fn look_back(&mut self, first: u64) -> Result<History, Unstored> {
        self.last = None;
        self.refresh().await?;
        let (mut history, instance) = (History::default(), self.instance);
        let Some(Last { sequence: mut end, written }) = self.last.clone().filter(|last| last.sequence > 0)
        else {
            return Ok(history);
        };
        let mut is_open = history.add(end, written.as_ref(), instance, first);
        // The server knows no way back. So it is asked for what comes behind an earlier place, twice as far each time.
        let mut step: u64 = 1;
        while is_open && end > 1 {
            let begin = end.saturating_sub(step).max(1);
            let (mut at, mut seen) = (begin, Vec::new());
            while at < end && seen.len() <= History::step_max() {
                match self.link.next(&self.subject, at).await? {
                    Some(found) if (at..end).contains(&found.sequence) => {
                        seen.push((found.sequence, self.read(&found)));
                        at = found.sequence + 1;
                    }
                    _ => break,
                }
            }
            if seen.len() > History::step_max() {
                break;
            }
            for (sequence, written) in seen.iter().rev() {
                is_open = is_open && history.add(*sequence, written.as_ref(), instance, first);
            }
            (end, step) = (begin, step.saturating_mul(2));
        }
        Ok(history)
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

    /// Stores a body, in as many messages as it takes. What the headers say is right in this generation of the stream, if
    /// one is given.
    ///
    /// Fails if another forwarder writes to the subject.
    pub(crate) async fn put(
        &mut self,
        headers: &Headers,
        body: &Bytes,
        proof: &Proof,
        generation: Option<u64>,
        tries: u32,
    ) -> Result<Put, Failure> {
        let (mut pauses, mut plan, mut first) = (Pauses::new(tries), None, 0);
        loop {
            let trouble = match self.refresh().await {
                Ok(fetched) => {
                    let last = self.last.clone().unwrap_or_default();
                    // After a purge a text may get its number again. The server must not take it for a duplicate.
                    let end = self.tokens.hash_one((headers.number, self.n_lost));
                    self.check(&last, headers.number, end)?;
                    if generation.is_some_and(|generation| generation != self.link.generation()) {
                        return Ok(Put::Outdated);
                    }
                    match self.room(headers) {
                        Some(room) => {
                            let plan = {
                                let same = plan.take().filter(|plan: &Plan| plan.fits(room, end));
                                &*plan.insert(same.unwrap_or_else(|| Plan::new(body.len(), room, end)))
                            };
                            let written = last.written.as_ref();
                            let n_stored = plan.stored(written);
                            if n_stored == 1 {
                                first = last.sequence;
                            }
                            let Some(part) = plan.part(n_stored.saturating_add(1)) else {
                                self.link.troubles.clear(&self.subject);
                                return Ok(Put::Stored(first));
                            };
                            // A message of the process before may have come after the question at the start.
                            if let (false, Some(payload), Some(written)) = (self.has_stored, fetched, written)
                                && written.ends(self.instance, headers.number, &payload, proof)
                            {
                                self.link.troubles.clear(&self.subject);
                                return Ok(Put::Stored(last.sequence));
                            }
                            let headers = Headers { part, ..headers.clone() };
                            let token = plan.token(part);
                            let piece = plan.piece(body, part);
                            let sent = self.send(headers, token, piece, last.sequence).await;
                            if sent.is_ok() {
                                pauses.reset();
                            }
                            sent.err()
                        }
                        None => Some(self.too_small()),
                    }
                }
                Err(why) => Some(why),
            };
            if let Some(why) = trouble
                && !self.wait(why, &mut pauses).await
            {
                return Ok(Put::Refused);
            }
        }
    }

    /// Sends a message behind the last one.
    async fn send(
        &mut self,
        headers: Headers,
        token: u64,
        piece: Bytes,
        before: u64,
    ) -> Result<(), Unstored> {
        let map = self.headers(&headers, before, token);
        let sequence = self.link.store(&self.subject, map, piece, before).await?;
        let generation = self.link.generation();
        let meaning = headers.sub_buffer.as_ref().and_then(|sub_buffer| sub_buffer.meaning.as_ref());
        if meaning.is_some_and(|meaning| meaning.dictionary >= sequence) {
            // Only another stream counts from 1 again.
            self.link.has_lost(generation);
        }
        (self.stored, self.has_stored) = ((sequence, self.link.generation()), true);
        self.last = Some(Last { sequence, written: Some(Written::new(headers, token)) });
        Ok(())
    }

    /// Asks for the last message, unless it is known. Returns its bytes if it was asked for.
    async fn refresh(&mut self) -> Result<Option<Bytes>, Unstored> {
        if self.last.is_some() {
            return Ok(None);
        }
        let found = self.link.last(&self.subject).await?;
        let sequence = found.as_ref().map_or(0, |found| found.sequence);
        let (stored, generation) = self.stored;
        if sequence < stored {
            self.link.has_lost(generation);
            self.stored = (0, 0);
            self.n_lost += 1;
        }
        let written = found.as_ref().and_then(|found| self.read(found));
        self.last = Some(Last { sequence, written });
        Ok(Some(found.and_then(|found| found.message).map(|message| message.payload).unwrap_or_default()))
    }

    fn read(&self, found: &Found) -> Option<Written> {
        found.message.as_ref().and_then(|message| Written::read(&self.id, self.kind, message))
    }

    /// Fails if the last message is another forwarder's. Those of other programs do not matter.
    ///
    /// This process is about to store body `number`, whose last part has the token `end`.
    fn check(&self, last: &Last, number: u64, end: u64) -> Result<(), Failure> {
        let (stored, _) = self.stored;
        let is_later = stored > 0 && last.sequence > stored;
        let is_other = last.written.as_ref().is_some_and(|Written { headers, token, .. }| {
            let is_done_by_other = headers.number == number && headers.part.is_last() && *token != end;
            headers.instance != self.instance || headers.number > number || is_done_by_other
        });
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

    fn too_small(&self) -> Unstored {
        let (name, max) = (&self.link.name, self.link.message_max());
        Unstored::Trouble(format!(
            "stream '{name}' takes messages of {max} bytes, too few for the headers: raise max_payload, or the stream's \
             max_msg_size"
        ))
    }

    fn headers(&self, headers: &Headers, before: u64, token: u64) -> HeaderMap {
        let mut map = headers.encode();
        map.insert(ID, id(&self.id, headers, before, token));
        map.insert("Nats-Expected-Last-Subject-Sequence", before.to_string());
        map.insert("Nats-Expected-Stream", self.link.name.as_str());
        map
    }

    /// Waits before the next try, and forgets what the last message is. Returns false if there are no more tries.
    async fn wait(&mut self, why: Unstored, pauses: &mut Pauses) -> bool {
        self.last = None;
        match why {
            Unstored::Away => {
                // All subjects wait for the same. It is nothing that this one alone is refused.
                self.link.troubles.until(true).await;
                tokio::time::sleep(AWAY).await;
                return true;
            }
            Unstored::Doubt => {}
            Unstored::Trouble(why) => self.link.troubles.set(&self.subject, &why),
        }
        pauses.pause().await
    }
}

fn payload(found: &Found) -> &[u8] {
    found.message.as_ref().map(|message| &message.payload[..]).unwrap_or_default()
}
