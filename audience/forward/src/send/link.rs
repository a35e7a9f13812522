//! The stream: messages into it.
//!
//! ```text
//! setup.rs    how it is found or created, and what it is
//! lookup.rs   its messages of a subject
//! words.rs    what is said about it
//! ```

mod lookup;
mod setup;
mod words;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::ErrorCode;
use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Mutex, Notify};

pub(crate) use self::lookup::Found;
use self::words::{LEADER, unavailable};
use super::extent::Extent;
use super::line::{Answer, Line, Refusal, Sent, Slot, is_let_through};
use super::troubles::Troubles;
use crate::error::Failure;
use crate::server::requests::{Requests, Unanswered};

/// Longest time for an answer of the server.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Shortest and longest time between two looks at the stream.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// The server's code for a stream that is full, and a few other causes; its text says which.
const STORE_FAILED: ErrorCode = ErrorCode::STREAM_STORE_FAILED;

/// The connection, and the stream behind it.
pub(crate) struct Link {
    requests: Requests,
    /// The messages for the stream.
    pub(crate) line: Line,
    /// Name of the stream.
    pub(crate) name: String,
    /// Copies of a stream that this process creates. `None`: it creates none.
    replicas: Option<usize>,
    /// The stream's limit of a message with headers, in bytes.
    message_max: Cell<usize>,
    /// Why the stream, as it is set up, takes nothing of ours.
    refusal: RefCell<Option<String>>,
    /// What the stream had at the last look.
    extent: Cell<Option<Extent>>,
    /// Says that the stream has grown much since the last look.
    grown: Notify,
    /// Counts how often the stream has lost messages that were in it.
    generation: Cell<u64>,
    /// How many messages had been removed from the stream at the last look.
    removed: Cell<u64>,
    /// Counts the looks at which that had changed.
    removals: Cell<u64>,
    /// When the stream was prepared last, and what came of it.
    prepared: Mutex<Option<(Instant, Result<(), NoStream>)>>,
    /// What is said.
    pub(crate) troubles: Arc<Troubles>,
}

/// Why a message is not known to be stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unstored {
    /// There is no connection.
    Away,
    /// Another message is the last one of the subject. So this one was refused.
    Overtaken,
    /// The last message of the stream is not the one that this one was linked to. So this one was refused.
    Unlinked,
    /// It may be stored, or not.
    Doubt,
    /// Nothing took it, though the stream is there. The text says so.
    Unheard(String),
    /// The server or the stream cannot take it. The text says why.
    Trouble(String),
}

/// Why there is no stream to write to.
#[derive(Clone, Debug)]
pub(crate) enum NoStream {
    /// It cannot be used unless the operator changes something.
    Final(String),
    /// It cannot be used now.
    Trouble(String),
}

impl From<NoStream> for Unstored {
    fn from(why: NoStream) -> Unstored {
        match why {
            NoStream::Final(why) | NoStream::Trouble(why) => Unstored::Trouble(why),
        }
    }
}

impl Link {
    /// Asks nothing of the server yet.
    pub(crate) async fn new(
        client: Client,
        name: &str,
        replicas: Option<usize>,
        window: usize,
        troubles: Arc<Troubles>,
    ) -> Result<Link, Failure> {
        Ok(Link {
            line: Line::new(&client, window).await?,
            requests: Requests::new(client).await?,
            name: name.to_owned(),
            replicas,
            message_max: Cell::new(usize::MAX),
            refusal: RefCell::default(),
            extent: Cell::default(),
            grown: Notify::new(),
            generation: Cell::new(0),
            removed: Cell::new(0),
            removals: Cell::new(0),
            prepared: Mutex::default(),
            troubles,
        })
    }

    /// Returns the longest message that server and stream take, headers counted, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.message_max.get().min(self.requests.max_payload())
    }

    /// Returns how often the stream has lost messages that were in it: it was created again, or purged.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Notes that the stream has lost a message which was stored in this generation. Others may have noted it before.
    pub(crate) fn has_lost(&self, generation: u64) {
        if generation == self.generation.get() {
            self.generation.set(generation + 1);
        }
    }

    /// Counts how often messages had been removed: dropped by the stream, purged, or deleted by their numbers.
    pub(crate) fn removals(&self) -> u64 {
        self.removals.get()
    }

    /// Returns whether a message is among the oldest of the stream, or has gone.
    pub(crate) fn is_old(&self, sequence: u64) -> bool {
        self.extent.get().is_some_and(|extent| extent.is_old(sequence))
    }

    /// Looks at the stream again and again: what it has, and whether it still takes our messages.
    pub(crate) async fn watch(&self) {
        loop {
            tokio::select! {
                () = self.grown.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN[1]) => {}
            }
            if self.troubles.is_connected()
                && let Ok(Ok(info)) = self.info().await
            {
                self.note(&info);
            }
            tokio::time::sleep(LOOK_AGAIN[0]).await;
        }
    }

    /// Returns whether messages can be sent now.
    pub(crate) fn is_open(&self) -> bool {
        self.troubles.is_connected() && self.refusal.borrow().is_none()
    }

    /// Waits for room for a message that may be sent.
    pub(crate) async fn slot(&self) -> Result<Slot, Unstored> {
        let slot = self.line.slot().await;
        if let Some(why) = &*self.refusal.borrow() {
            return Err(Unstored::Trouble(why.clone()));
        }
        slot.filter(|_| self.troubles.is_connected()).ok_or(Unstored::Away)
    }

    /// Waits for the answer to a message that was sent when `n_lost` connections were lost before.
    ///
    /// A call that was cancelled can be made again.
    pub(crate) async fn answer(&self, sent: &mut Sent, n_lost: u64) -> Answer {
        tokio::select! {
            biased;
            answer = sent.answer(ANSWER_MAX) => answer,
            () = self.troubles.until_lost(n_lost) => Err(Refusal::Unanswered(Unanswered::Away)),
        }
    }

    /// Returns the sequence of a message with this answer. It expects the message `before` it in its subject, and is
    /// at most as long as `max`, which was [`Link::message_max`].
    pub(crate) async fn stored(
        &self,
        subject: &str,
        answer: Answer,
        before: u64,
        max: usize,
    ) -> Result<u64, Unstored> {
        if is_let_through(&answer) {
            self.troubles.note_taken(subject);
        }
        let why = match answer {
            Ok(ack) if ack.duplicate => return Err(Unstored::Doubt),
            Ok(ack) if ack.stream == self.name && ack.sequence > before => {
                if self.extent.get().is_none_or(|extent| extent.is_outgrown(ack.sequence)) {
                    self.grown.notify_one();
                }
                return Ok(ack.sequence);
            }
            Err(Refusal::Unanswered(why)) => why,
            Err(Refusal::Error(error)) => {
                return Err(match error.error_code() {
                    ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => match self.prepare().await {
                        // The stream's limit is lower than it was: it is split again.
                        Ok(()) if self.message_max() < max => Unstored::Doubt,
                        Ok(()) => Unstored::Trouble(format!("{}: {error}", self.too_long())),
                        Err(why) => why.into(),
                    },
                    ErrorCode::STREAM_WRONG_LAST_SEQUENCE
                    | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Unstored::Overtaken,
                    ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID => Unstored::Unlinked,
                    ErrorCode::CLUSTER_NOT_AVAILABLE => {
                        Unstored::Trouble(format!("stream '{}': {error}; {LEADER}", self.name))
                    }
                    STORE_FAILED => {
                        Unstored::Trouble(format!("stream '{}' takes nothing: {error}", self.name))
                    }
                    _ => Unstored::Trouble(format!("stream '{}': {error}", self.name)),
                });
            }
            Ok(_) | Err(Refusal::Nonsense) => {
                let name = &self.name;
                return Err(Unstored::Trouble(format!("stream '{name}': the answer is no acknowledgement")));
            }
        };
        Err(match why {
            Unanswered::Away => Unstored::Away,
            Unanswered::NoResponders => match self.prepare().await {
                Ok(()) => Unstored::Unheard(self.unheard()),
                Err(why) => why.into(),
            },
            // What a user may not publish gets no answer.
            Unanswered::Silence => {
                Unstored::Trouble(self.troubles.refusal(subject).unwrap_or_else(|| self.silent()))
            }
            Unanswered::Refused(why) => Unstored::Trouble(why),
            // The server's limit is lower than it was.
            Unanswered::TooLong => Unstored::Doubt,
            Unanswered::Other(why) => Unstored::Trouble(format!("stream '{}': {why}", self.name)),
        })
    }

    /// Asks JetStream about our stream.
    async fn api(&self, what: &str, request: &Value) -> Result<Bytes, Unanswered> {
        let body = if request.is_null() { String::new() } else { request.to_string() };
        let answer = self.ask(format!("$JS.API.{what}.{}", self.name), None, body.into()).await?;
        Ok(answer.payload)
    }

    fn unanswered(&self, why: Unanswered) -> NoStream {
        NoStream::Trouble(match why {
            Unanswered::NoResponders => unavailable(),
            Unanswered::Away | Unanswered::Silence => self.silent(),
            Unanswered::TooLong => self.too_long(),
            Unanswered::Refused(why) => why,
            Unanswered::Other(why) => format!("stream '{}': {why}", self.name),
        })
    }

    /// Asks the server, and waits not longer than for the connection.
    async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Message, Unanswered> {
        if !self.troubles.is_connected() {
            return Err(Unanswered::Away);
        }
        let asked = self.requests.ask(subject.clone(), headers, body, ANSWER_MAX);
        let answer = tokio::select! {
            answer = asked => answer,
            () = self.troubles.until(false) => Err(Unanswered::Away),
        };
        match answer {
            Ok(answer) => {
                self.troubles.note_taken(&subject);
                Ok(answer)
            }
            // What a user may not ask gets no answer.
            Err(Unanswered::Silence) => {
                Err(self.troubles.refusal(&subject).map_or(Unanswered::Silence, Unanswered::Refused))
            }
            Err(why) => Err(why),
        }
    }
}
