//! The stream: how it is found or created, one message into it, its messages of a subject.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, Info, RawMessage, RetentionPolicy, StorageType};
use async_nats::jetstream::{Error, ErrorCode};
use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};

use super::extent::Extent;
use super::requests::{Requests, Unanswered};
use super::troubles::Troubles;
use crate::error::Failure;
use crate::server::pause;

/// Longest time for an answer of the server.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Shortest and longest time between two looks at the stream.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// The server's code for a stream that is full, and a few other causes; its text says which.
const STORE_FAILED: ErrorCode = ErrorCode::STREAM_STORE_FAILED;

/// The connection, and the stream behind it.
pub(crate) struct Link {
    requests: Requests,
    /// Name of the stream.
    pub(crate) name: String,
    /// Copies of the stream, if it is to be created.
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
    /// Another message is the last one of the subject, or this one is stored.
    Doubt,
    /// The server or the stream cannot take it. The text says why.
    Trouble(String),
}

/// Why there is no stream to write to.
#[derive(Clone, Debug)]
pub(crate) enum NoStream {
    /// It does not exist, and is not to be created.
    Missing(String),
    /// It cannot be used now.
    Trouble(String),
}

impl From<NoStream> for Unstored {
    fn from(why: NoStream) -> Unstored {
        match why {
            NoStream::Missing(why) | NoStream::Trouble(why) => Unstored::Trouble(why),
        }
    }
}

/// A message of the stream.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its sequence.
    pub(crate) sequence: u64,
    /// The message; `None` if its headers cannot be read.
    pub(crate) message: Option<StreamMessage>,
}

impl Link {
    /// Asks nothing of the server yet.
    pub(crate) async fn new(
        client: Client,
        name: &str,
        replicas: Option<usize>,
        troubles: Arc<Troubles>,
    ) -> Result<Link, Failure> {
        Ok(Link {
            requests: Requests::new(client).await?,
            name: name.to_owned(),
            replicas,
            message_max: Cell::new(usize::MAX),
            refusal: RefCell::default(),
            extent: Cell::default(),
            grown: Notify::new(),
            generation: Cell::new(0),
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

    /// Finds the stream, or creates it, and looks whether it can be used.
    pub(crate) async fn prepare(&self) -> Result<(), NoStream> {
        let asked = Instant::now();
        let mut last = self.prepared.lock().await;
        // All subjects have the same trouble at the same time. One of them asks.
        if let Some((at, result)) = &*last
            && *at >= asked
        {
            return result.clone();
        }
        let result = self.find_or_create().await;
        *last = Some((Instant::now(), result.clone()));
        result
    }

    async fn find_or_create(&self) -> Result<(), NoStream> {
        let info = match self.info().await? {
            Ok(info) => info,
            Err(error) => match (error.error_code(), self.replicas) {
                (ErrorCode::STREAM_NOT_FOUND, Some(replicas)) => self.create(replicas).await?,
                (ErrorCode::STREAM_NOT_FOUND, None) => return Err(NoStream::Missing(self.missing())),
                _ => return Err(NoStream::Trouble(format!("stream '{}': {error}", self.name))),
            },
        };
        self.note(&info);
        let refusal = self.refusal.borrow().clone();
        refusal.map_or(Ok(()), |why| Err(NoStream::Trouble(why)))
    }

    async fn info(&self) -> Result<Result<Info, Error>, NoStream> {
        let answer = self.api("STREAM.INFO", &Value::Null).await.map_err(|why| self.unanswered(why))?;
        match serde_json::from_slice(&answer) {
            Ok(Response::Ok(info)) => Ok(Ok(info)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(error) => Err(self.nonsense(&error)),
        }
    }

    async fn create(&self, replicas: usize) -> Result<Info, NoStream> {
        let config = Config {
            name: self.name.clone(),
            subjects: vec![self.subjects()],
            storage: StorageType::File,
            num_replicas: replicas,
            // Readers ask any copy, and get all headers as they were written.
            allow_direct: true,
            ..Config::default()
        };
        let config = serde_json::to_value(config).map_err(|error| self.nonsense(&error))?;
        let answer = self.api("STREAM.CREATE", &config).await.map_err(|why| self.unanswered(why))?;
        match serde_json::from_slice(&answer) {
            Ok(Response::Ok(info)) => {
                crate::output::say(format_args!("stream '{}' created", self.name));
                Ok(info)
            }
            Ok(Response::Err { error }) => {
                Err(NoStream::Trouble(format!("stream '{}' cannot be created: {error}", self.name)))
            }
            Err(error) => Err(self.nonsense(&error)),
        }
    }

    /// Takes what the server says about the stream.
    fn note(&self, info: &Info) {
        let config = &info.config;
        let subjects = self.subjects();
        let refusal = if !config.subjects.contains(&subjects) {
            let edit = format!("nats stream edit {} --subjects '{subjects}'", self.name);
            Some(format!("does not have the subjects {subjects}: {edit}"))
        } else if config.no_ack {
            Some("acknowledges nothing: create it again without --no-ack".to_owned())
        } else if config.retention != RetentionPolicy::Limits {
            // What nothing is interested in would be acknowledged, and not kept.
            Some("keeps messages only for its consumers: create it again with --retention limits".to_owned())
        } else {
            None
        };
        *self.refusal.borrow_mut() = refusal.map(|why| format!("stream '{}' {why}", self.name));
        self.message_max.set(usize::try_from(config.max_message_size).unwrap_or(usize::MAX));
        let state = &info.state;
        let now = Extent {
            first: state.first_sequence,
            last: state.last_sequence,
            created: info.created.unix_timestamp_nanos(),
        };
        if self.extent.replace(Some(now)).is_some_and(|before| before.is_another(&now)) {
            self.has_lost(self.generation());
        }
    }

    /// Sends a message that expects `before` to be the last one of its subject. Returns its sequence.
    pub(crate) async fn store(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
        before: u64,
    ) -> Result<u64, Unstored> {
        if let Some(why) = &*self.refusal.borrow() {
            return Err(Unstored::Trouble(why.clone()));
        }
        let message = match self.ask(subject.to_owned(), Some(headers), body).await {
            Ok(message) => message,
            Err(why) => {
                return Err(match why {
                    Unanswered::Away => Unstored::Away,
                    Unanswered::NoResponders => match self.prepare().await {
                        Ok(()) => Unstored::Trouble(format!("stream '{}' has no leader", self.name)),
                        Err(why) => why.into(),
                    },
                    Unanswered::Silence => Unstored::Trouble(self.silent()),
                    // The server's limit is lower than it was.
                    Unanswered::TooLong => Unstored::Doubt,
                    Unanswered::Other(why) => Unstored::Trouble(format!("stream '{}': {why}", self.name)),
                });
            }
        };
        match serde_json::from_slice::<Response<PublishAck>>(&message.payload) {
            Ok(Response::Ok(ack)) if ack.duplicate => Err(Unstored::Doubt),
            Ok(Response::Ok(ack)) if ack.stream == self.name && ack.sequence > before => {
                if self.extent.get().is_none_or(|extent| extent.is_outgrown(ack.sequence)) {
                    self.grown.notify_one();
                }
                Ok(ack.sequence)
            }
            Ok(Response::Err { error }) => Err(match error.error_code() {
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
                    Unstored::Doubt
                }
                STORE_FAILED => Unstored::Trouble(format!("stream '{}' takes nothing: {error}", self.name)),
                _ => Unstored::Trouble(format!("stream '{}': {error}", self.name)),
            }),
            Ok(Response::Ok(_)) | Err(_) => {
                Err(Unstored::Trouble(format!("stream '{}': the answer is no acknowledgement", self.name)))
            }
        }
    }

    /// Returns the last message of a subject; `None` if there is none.
    pub(crate) async fn last(&self, subject: &str) -> Result<Option<Found>, Unstored> {
        self.get(json!({ "last_by_subj": subject })).await
    }

    /// Returns the first message of a subject from a sequence on; `None` if there is none.
    pub(crate) async fn next(&self, subject: &str, sequence: u64) -> Result<Option<Found>, Unstored> {
        self.get(json!({ "seq": sequence, "next_by_subj": subject })).await
    }

    /// Returns the message of this sequence; `None` if there is none.
    pub(crate) async fn message(&self, sequence: u64) -> Result<Option<Found>, Unstored> {
        self.get(json!({ "seq": sequence })).await
    }

    async fn get(&self, request: Value) -> Result<Option<Found>, Unstored> {
        let answer = self.api("STREAM.MSG.GET", &request).await.map_err(|why| match why {
            Unanswered::Away => Unstored::Away,
            why => self.unanswered(why).into(),
        })?;
        let error = match serde_json::from_slice::<Response<Value>>(&answer) {
            Ok(Response::Ok(mut answer)) => {
                let message = answer.get_mut("message").map(Value::take).unwrap_or_default();
                let message: RawMessage =
                    serde_json::from_value(message).map_err(|error| self.nonsense(&error))?;
                let sequence = message.sequence;
                // Any program that may publish may have written it, so its headers may make no sense.
                return Ok(Some(Found { sequence, message: message.try_into().ok() }));
            }
            Ok(Response::Err { error }) => error,
            Err(error) => return Err(self.nonsense(&error).into()),
        };
        if error.error_code() == ErrorCode::NO_MESSAGE_FOUND {
            return Ok(None);
        }
        Err(match self.prepare().await {
            Ok(()) => Unstored::Trouble(format!("stream '{}': {error}", self.name)),
            Err(why) => why.into(),
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
            Unanswered::TooLong => format!("stream '{}': max_payload is too small", self.name),
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
        tokio::select! {
            answer = self.requests.ask(subject, headers, body, ANSWER_MAX) => answer,
            () = self.troubles.until(false) => Err(Unanswered::Away),
        }
    }

    fn subjects(&self) -> String {
        format!("{}.>", self.name)
    }

    fn silent(&self) -> String {
        format!("stream '{}' does not answer; trying again", self.name)
    }

    fn nonsense(&self, error: &serde_json::Error) -> NoStream {
        NoStream::Trouble(format!("stream '{}': the server's answer makes no sense: {error}", self.name))
    }

    fn missing(&self) -> String {
        let name = &self.name;
        format!(
            "there is no stream '{name}': relay-forward --create makes it, or: nats stream add {name} --subjects '{name}.>' \
             --storage file --allow-direct --defaults"
        )
    }
}

fn unavailable() -> String {
    "no answer from JetStream; trying again (is it enabled on the server? nats-server -js)".to_owned()
}

/// Pauses between tries, which grow, to a number of tries.
#[derive(Debug)]
pub(crate) struct Pauses {
    tries: u32,
    max: u32,
}

impl Pauses {
    /// Pauses between this many tries.
    pub(crate) fn new(max: u32) -> Pauses {
        Pauses { tries: 0, max }
    }

    /// Waits: the first time not at all, then 100 ms, and twice as much each time, to a bound.
    /// Returns false at once if there are no more tries.
    pub(crate) async fn pause(&mut self) -> bool {
        self.tries = self.tries.saturating_add(1);
        if self.tries >= self.max {
            return false;
        }
        tokio::time::sleep(pause(self.tries)).await;
        true
    }

    /// Begins again with no pause.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}
