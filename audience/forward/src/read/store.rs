//! The stream of a server.
//!
//! ```text
//! direct.rs      whether any replica is asked, or the leader alone
//! patience.rs    what to do while it is away
//! questions.rs   questions, and their answers
//! ```

mod direct;
mod patience;
mod questions;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Info;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

pub(super) use self::direct::DirectAnswers;
use self::patience::Failed;
pub(super) use self::patience::Told;
use super::error::Failure;
use super::stops::GiveUp;
use crate::output::say;
use crate::server::requests::Requests;

/// Questions for a message of a subject at a time. With thousands of questions at a time, answers come after their time
/// limit, and all are asked again.
const AT_ONCE: usize = 64;

/// The stream, for lanes that read it at the same time.
pub(super) struct Store {
    requests: Arc<Requests>,
    /// Addresses of the servers, for messages.
    server: String,
    /// Name of the stream.
    name: String,
    /// Whether every replica answers, and without base64.
    allows_direct: bool,
    /// Whether such questions are of use.
    direct: Arc<DirectAnswers>,
    /// Turns of questions for a message of a subject.
    turns: Semaphore,
    /// Time before which no message of the stream was stored, in nanoseconds since 1970, as far as is known.
    since: AtomicU64,
    /// Counts lost connections.
    cuts: watch::Receiver<u64>,
    /// Failures that were told, with no success since.
    told: Mutex<Told>,
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
    pub(super) all: Vec<(String, u64)>,
    /// Whether there are more than were asked for.
    pub(super) is_cut: bool,
}

impl Store {
    /// Finds the stream. `cuts` counts lost connections, `direct` says whether direct questions are of use.
    /// `give_up` ends reading when the stream does not come back; `None`: it is waited for.
    pub(super) async fn open(
        requests: &Arc<Requests>,
        cuts: watch::Receiver<u64>,
        direct: &Arc<DirectAnswers>,
        give_up: Option<GiveUp>,
        server: &str,
        name: &str,
    ) -> Result<Store, Failure> {
        let (server, name) = (server.to_owned(), name.to_owned());
        let mut store = Store {
            requests: Arc::clone(requests),
            server,
            name,
            allows_direct: false,
            direct: Arc::clone(direct),
            turns: Semaphore::new(AT_ONCE),
            since: AtomicU64::new(0),
            cuts,
            told: Mutex::default(),
            answered: Mutex::new(Instant::now()),
            give_up,
            is_ending: AtomicBool::new(false),
        };
        let info = match store.info(&Value::Null).await {
            Ok(info) => info,
            Err(Failed::NoStream(_)) => {
                return Err(Failure::NoStream { server: store.server, stream: store.name });
            }
            Err(why) => return Err(Failure::Connect { server: store.server, reason: why.to_string() }),
        };
        store.allows_direct = info.pointer("/config/allow_direct").and_then(Value::as_bool).unwrap_or(false);
        Ok(store)
    }

    /// Takes over when the stream was created, in nanoseconds since 1970. A replica may still have an old one of this
    /// name for a while, and answer with its messages: they would hide what the new one has before them.
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
    /// `may_ask_replicas`: any replica may answer, if the stream allows it. Headers that cannot be read end the
    /// connection then.
    pub(super) async fn next(&self, subject: &str, from: u64, may_ask_replicas: bool) -> Found {
        // Not again once the connection was lost meanwhile: these headers may have been the reason.
        let may_ask_replicas = AtomicBool::new(self.allows_direct && may_ask_replicas);
        self.patiently(async || {
            // Nothing closes it.
            let _turn = self.turns.acquire().await;
            self.try_next(subject, from, &may_ask_replicas).await
        })
        .await
    }

    /// Returns the last message of a subject.
    pub(super) async fn last(&self, subject: &str) -> Found {
        self.patiently(async || {
            let _turn = self.turns.acquire().await;
            self.get(json!({ "last_by_subj": subject })).await
        })
        .await
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
        let info = self.info(&Value::Null).await?;
        let info: Info = serde_json::from_value(info).map_err(|error| Failed::nonsense(&error))?;
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
        let mut n_seen = 0;
        loop {
            let page = self.info(&json!({ "subjects_filter": filter, "offset": n_seen })).await?;
            let subjects = page.pointer("/state/subjects").and_then(Value::as_object);
            let Some(subjects) = subjects.filter(|subjects| !subjects.is_empty()) else { break };
            n_seen += subjects.len() as u64;
            for (subject, count) in subjects {
                if !pick(subject) {
                    continue;
                }
                if found.all.len() == most {
                    found.is_cut = true;
                    break;
                }
                found.all.push((subject.clone(), count.as_u64().unwrap_or(0)));
            }
            let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
            if found.is_cut || n_seen >= total {
                break;
            }
        }
        found.all.sort_unstable();
        Ok(found)
    }

    async fn try_next(
        &self,
        subject: &str,
        from: u64,
        may_ask_replicas: &AtomicBool,
    ) -> Result<Found, Failed> {
        let asked = Instant::now();
        // Relaxed, all: one task has the flag, and a lane that reads a new stream has synchronized with the look that
        // found it.
        let since = self.since.load(Ordering::Relaxed);
        let is_old = |place: Place| place.time < i128::from(since);
        let mut is_silent = false;
        if may_ask_replicas.load(Ordering::Relaxed) && self.direct.is_asked(asked) {
            let answer = tokio::select! {
                answer = self.ask_replicas(subject, from) => answer,
                // What was refused gets no answer.
                () = self.direct.until_useless() => Err(Failed::Cut),
            };
            may_ask_replicas.store(!matches!(answer, Err(Failed::Cut)), Ordering::Relaxed);
            is_silent = matches!(answer, Err(Failed::Silence));
            if answer.is_ok() && self.direct.note_answer() {
                say(format_args!("{}: direct answers of stream '{}' come again", self.server, self.name));
            }
            // A message's own headers may look like an answer, or end the connection. So the other way has the last
            // word. It also has where clocks of servers differ, and a message seems older than the stream.
            if let Ok(Some(message)) = answer
                && message.sequence >= from
                && message.subject.as_str() == subject
                && !is_old(Place::of(&message))
            {
                return Ok(Found::Message(Box::new(message)));
            }
        }
        let found = self.get(json!({ "seq": from, "next_by_subj": subject })).await?;
        if let Some(place) = found.place().filter(|place| is_old(*place)) {
            // A mirror has messages that are older than itself. It is not asked twice for those behind this one.
            let time = u64::try_from(place.time).unwrap_or(0);
            // Another time is another stream's.
            let _ = self.since.compare_exchange(since, time, Ordering::Relaxed, Ordering::Relaxed);
        }
        // The leader has answered. Each further message would wait for as long.
        if is_silent && self.direct.note_silence(asked, Instant::now()) {
            say(format_args!(
                "{}: stream '{}' gives no direct answers; asking without them, which is slower",
                self.server, self.name
            ));
        }
        Ok(found)
    }
}
