//! The stream of a server.
//!
//! ```text
//! direct.rs     whether any replica is asked, or the leader alone
//! patience.rs   what to do while it is away
//! ```

mod direct;
mod patience;

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{
    Context, GetStreamError, GetStreamErrorKind, RequestError, RequestErrorKind,
};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessage, Stream};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio_stream::StreamExt;

pub(super) use self::direct::Direct;
use self::patience::Failed;
use super::error::Failure;
use super::stops::GiveUp;
use crate::output::say;
use crate::server::NO_JETSTREAM;

/// Lanes that ask for their next message at a time. The server answers thousands of questions later than they wait for,
/// and all would ask again.
const AT_ONCE: usize = 64;

/// The stream, for lanes that read it at the same time.
pub(super) struct Store {
    context: Context,
    stream: Stream,
    /// Addresses of the servers, for messages.
    server: String,
    /// Name of the stream.
    name: String,
    /// Whether every replica answers, and without base64.
    is_direct: bool,
    /// Whether such questions are of use.
    direct: Arc<Direct>,
    /// Turns of lanes that ask for their next message.
    turns: Semaphore,
    /// Time before which no message of the stream was stored, in nanoseconds since 1970; 0: not known.
    since: AtomicU64,
    /// Counts lost connections.
    cuts: watch::Receiver<u64>,
    /// Whether a failure was told, and no success since.
    is_away: AtomicBool,
    /// When a question was answered last.
    answered: Mutex<Instant>,
    /// Ends reading. `None`: all is waited for.
    give_up: Option<GiveUp>,
    /// Whether the program ends: the connection goes then, and that is no failure.
    is_ending: AtomicBool,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Sequence of the first message.
    pub(super) first: u64,
    /// Sequence of the last message.
    pub(super) last: u64,
    /// When the server stored the last message, in nanoseconds since 1970.
    pub(super) last_time: i128,
    /// When the stream was created. One that was created again counts from 1.
    pub(super) created: i128,
}

/// Where a message is in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its sequence.
    pub(super) sequence: u64,
    /// When the server stored it, in nanoseconds since 1970.
    pub(super) time: i128,
}

impl Place {
    pub(super) fn of(message: &StreamMessage) -> Place {
        Place { sequence: message.sequence, time: message.time.unix_timestamp_nanos() }
    }
}

/// What there is at a place of the stream.
pub(super) enum Found {
    /// A message.
    Message(Box<StreamMessage>),
    /// A message whose headers cannot be read.
    Unreadable(Place),
    /// Nothing yet.
    Nothing,
}

impl Found {
    /// Returns where the message is.
    pub(super) fn place(&self) -> Option<Place> {
        match self {
            Found::Message(message) => Some(Place::of(message)),
            Found::Unreadable(place) => Some(*place),
            Found::Nothing => None,
        }
    }
}

/// Subjects with the numbers of their messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Subjects {
    /// In their order.
    pub(super) all: Vec<(String, usize)>,
    /// Whether there are more than were asked for.
    pub(super) is_cut: bool,
}

impl Store {
    /// Finds the stream. `cuts` counts lost connections, `direct` says whether direct questions are of use.
    /// `give_up` ends reading when the stream does not come back; `None`: it is waited for.
    pub(super) async fn open(
        context: Context,
        cuts: watch::Receiver<u64>,
        direct: &Arc<Direct>,
        give_up: Option<GiveUp>,
        server: &str,
        name: &str,
    ) -> Result<Store, Failure> {
        let stream = context.get_stream(name).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Failure::NoStream { server: server.to_owned(), stream: name.to_owned() }
            }
            _ => Failure::Connect { server: server.to_owned(), reason: reason(&error) },
        })?;
        let is_direct = stream.cached_info().config.allow_direct;
        let (server, name) = (server.to_owned(), name.to_owned());
        let (is_away, is_ending) = (AtomicBool::new(false), AtomicBool::new(false));
        let (since, direct) = (AtomicU64::new(0), Arc::clone(direct));
        let (answered, turns) = (Mutex::new(Instant::now()), Semaphore::new(AT_ONCE));
        Ok(Store {
            context,
            stream,
            server,
            name,
            is_direct,
            direct,
            turns,
            since,
            cuts,
            is_away,
            answered,
            give_up,
            is_ending,
        })
    }

    /// Takes over that the stream was created again, at this time in nanoseconds since 1970. A replica may still have
    /// the old one for a while, and answer with its messages: they would hide what the new one has before them.
    pub(super) fn note_creation(&self, created: i128) {
        // Relaxed: a lane that reads the new stream has synchronized with the look that found it.
        self.since.store(u64::try_from(created).unwrap_or(0), Ordering::Relaxed);
    }

    /// Says nothing of failures from now on.
    pub(super) fn end(&self) {
        // Relaxed: a task that finds the connection gone has synchronized with the thread that then let it go.
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// Returns the name of the stream.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the first message of a subject from a sequence on.
    ///
    /// `is_direct`: any replica may answer, if the stream allows it. Headers that cannot be read end the connection
    /// then.
    pub(super) async fn next(&self, subject: &str, from: u64, is_direct: bool) -> Found {
        // Not again once the connection was lost meanwhile: these headers may have been the reason.
        let is_direct = AtomicBool::new(self.is_direct && is_direct);
        self.patiently(async || {
            // Nothing closes it.
            let _turn = self.turns.acquire().await;
            self.try_next(subject, from, &is_direct).await
        })
        .await
    }

    /// Returns the last message of a subject.
    pub(super) async fn last(&self, subject: &str) -> Found {
        self.patiently(|| self.get(json!({ "last_by_subj": subject }))).await
    }

    /// Returns where the first message of all subjects is from a sequence on.
    pub(super) async fn place(&self, from: u64) -> Option<Place> {
        self.patiently(|| self.get(json!({ "seq": from, "next_by_subj": ">" }))).await.place()
    }

    /// Returns how far the stream has come.
    pub(super) async fn extent(&self) -> Extent {
        self.patiently(|| self.try_extent()).await
    }

    /// Returns subjects that match a filter and are picked, `most` at most.
    pub(super) async fn subjects(&self, filter: &str, most: usize, pick: impl Fn(&str) -> bool) -> Subjects {
        self.patiently(|| self.try_subjects(filter, most, &pick)).await
    }

    async fn try_extent(&self) -> Result<Extent, Failed> {
        let info = self.ask(self.stream.get_info()).await?;
        Ok(Extent {
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            last_time: info.state.last_timestamp.unix_timestamp_nanos(),
            created: info.created.unix_timestamp_nanos(),
        })
    }

    async fn try_subjects(
        &self,
        filter: &str,
        most: usize,
        pick: &impl Fn(&str) -> bool,
    ) -> Result<Subjects, Failed> {
        let mut found = Subjects::default();
        let mut info = self.ask(self.stream.info_with_subjects(filter)).await?;
        while let Some(subject) = self.unless_cut(info.next()).await? {
            let subject = subject.map_err(|error| Failed::of(&error))?;
            if !pick(&subject.0) {
                continue;
            }
            if found.all.len() == most {
                found.is_cut = true;
                break;
            }
            found.all.push(subject);
        }
        found.all.sort_unstable();
        Ok(found)
    }

    async fn try_next(&self, subject: &str, from: u64, is_direct: &AtomicBool) -> Result<Found, Failed> {
        let mut is_silent = false;
        // Relaxed, both: one task has it.
        if is_direct.load(Ordering::Relaxed) && self.direct.is_asked(Instant::now()) {
            let get = self.stream.direct_get_builder().sequence(from).next_by_subject(subject);
            let answer = tokio::select! {
                answer = self.unless_cut(get.send()) => answer,
                // What was refused gets no answer.
                () = self.direct.until_useless() => Err(Failed::Cut),
            };
            is_direct.store(answer.is_ok(), Ordering::Relaxed);
            is_silent = matches!(&answer, Ok(Err(error)) if error.kind() == DirectGetErrorKind::TimedOut);
            let is_answer = match &answer {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => error.kind() == DirectGetErrorKind::NotFound,
                Err(_) => false,
            };
            if is_answer && self.direct.note_answer() {
                say(format_args!("{}: direct answers of stream '{}' come again", self.server, self.name));
            }
            // A message's own headers may look like an answer, or end the connection. So the other way has the last
            // word. It also has where clocks of servers differ, and a message seems older than the stream.
            if let Ok(Ok(message)) = answer
                && message.sequence >= from
                && message.subject.as_str() == subject
                && Place::of(&message).time >= i128::from(self.since.load(Ordering::Relaxed))
            {
                return Ok(Found::Message(Box::new(message)));
            }
        }
        let found = self.get(json!({ "seq": from, "next_by_subj": subject })).await?;
        // The leader has answered. Each further message would wait for as long.
        if is_silent && self.direct.note_useless(Instant::now()) {
            say(format_args!(
                "{}: stream '{}' gives no direct answers; asking without them, which is slower",
                self.server, self.name
            ));
        }
        Ok(found)
    }

    /// Asks the stream's leader for a message.
    async fn get(&self, request: Value) -> Result<Found, Failed> {
        let subject = format!("STREAM.MSG.GET.{}", self.name);
        match self.ask(self.context.request(subject, &request)).await? {
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(Found::Nothing)
            }
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Err(Failed::NoStream(error.to_string()))
            }
            Response::Err { error } => Err(Failed::Because(error.to_string())),
            Response::Ok::<Value>(mut answer) => {
                let message: RawMessage = serde_json::from_value(answer["message"].take())
                    .map_err(|error| Failed::Because(error.to_string()))?;
                let place = Place { sequence: message.sequence, time: message.time.unix_timestamp_nanos() };
                let message = StreamMessage::try_from(message);
                Ok(message.map_or(Found::Unreadable(place), |message| Found::Message(Box::new(message))))
            }
        }
    }
}

/// Returns why a stream cannot be opened.
fn reason(error: &GetStreamError) -> String {
    let request = error.source().and_then(|source| source.downcast_ref::<RequestError>());
    match request.map(RequestError::kind) {
        Some(RequestErrorKind::NoResponders) => NO_JETSTREAM.to_owned(),
        Some(RequestErrorKind::TimedOut) => "JetStream does not answer".to_owned(),
        _ => error.to_string(),
    }
}
