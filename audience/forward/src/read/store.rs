//! The stream of a server, and what to do while that is away.

use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{Context, GetStreamErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::error::Failure;
use crate::output::say;
use crate::server;

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
    /// Whether a failure was told, and no success since.
    is_away: AtomicBool,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Sequence of the last message.
    pub(super) last: u64,
    /// When the stream was created, in nanoseconds since 1970. One that was created again counts from 1.
    pub(super) created: i128,
}

/// What there is at a place of the stream.
pub(super) enum Found {
    /// A message.
    Message(Box<StreamMessage>),
    /// The message of this sequence, whose headers cannot be read.
    Unreadable(u64),
    /// Nothing yet.
    Nothing,
}

impl Store {
    /// Finds the stream.
    pub(super) async fn open(context: Context, server: &str, name: &str) -> Result<Store, Failure> {
        let stream = context.get_stream(name).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Failure::NoStream { server: server.to_owned(), stream: name.to_owned() }
            }
            _ => Failure::Connect { server: server.to_owned(), reason: error.to_string() },
        })?;
        let is_direct = stream.cached_info().config.allow_direct;
        let (server, name) = (server.to_owned(), name.to_owned());
        Ok(Store { context, stream, server, name, is_direct, is_away: AtomicBool::new(false) })
    }

    /// Returns the name of the stream.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the first message of a subject from a sequence on.
    pub(super) async fn next(&self, subject: &str, from: u64) -> Found {
        self.patiently(|| self.try_next(subject, from)).await
    }

    /// Returns the message of this sequence; `None`: it is not there, or cannot be read.
    pub(super) async fn message(&self, sequence: u64) -> Option<StreamMessage> {
        self.patiently(|| self.try_message(sequence)).await
    }

    /// Returns how far the stream has come.
    pub(super) async fn extent(&self) -> Extent {
        self.patiently(|| self.try_extent()).await
    }

    /// Returns the subjects that match a filter, with the numbers of their messages.
    pub(super) async fn subjects(&self, filter: &str) -> Vec<(String, usize)> {
        self.patiently(|| self.try_subjects(filter)).await
    }

    async fn try_message(&self, sequence: u64) -> Result<Option<StreamMessage>, String> {
        match self.stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                // The answer came, and its headers make no sense.
                RawMessageErrorKind::Other if self.raw(&json!({ "seq": sequence })).await.is_ok() => Ok(None),
                _ => Err(error.to_string()),
            },
        }
    }

    async fn try_extent(&self) -> Result<Extent, String> {
        let info = self.stream.get_info().await.map_err(|error| error.to_string())?;
        Ok(Extent { last: info.state.last_sequence, created: info.created.unix_timestamp_nanos() })
    }

    async fn try_subjects(&self, filter: &str) -> Result<Vec<(String, usize)>, String> {
        let mut found = Vec::new();
        let mut info = self.stream.info_with_subjects(filter).await.map_err(|error| error.to_string())?;
        while let Some(subject) = info.next().await {
            found.push(subject.map_err(|error| error.to_string())?);
        }
        found.sort_unstable();
        Ok(found)
    }

    async fn try_next(&self, subject: &str, from: u64) -> Result<Found, String> {
        if self.is_direct {
            let get = self.stream.direct_get_builder().sequence(from).next_by_subject(subject);
            match get.send().await {
                Ok(message) if message.sequence >= from && message.subject.as_str() == subject => {
                    return Ok(Found::Message(Box::new(message)));
                }
                // A message's own headers may look like an answer. So the other way has the last word.
                _ => {}
            }
        }
        let get = self.stream.raw_message_builder().sequence(from).next_by_subject(subject);
        match get.send().await {
            Ok(message) => Ok(Found::Message(Box::new(message))),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(Found::Nothing),
                RawMessageErrorKind::Other => {
                    let found = self.raw(&json!({ "seq": from, "next_by_subj": subject })).await;
                    found.map(Found::Unreadable).map_err(|_| error.to_string())
                }
                _ => Err(error.to_string()),
            },
        }
    }

    /// Returns the sequence of a message alone.
    async fn raw(&self, request: &Value) -> Result<u64, String> {
        let subject = format!("STREAM.MSG.GET.{}", self.name);
        let answer: Value =
            self.context.request(subject, request).await.map_err(|error| error.to_string())?;
        answer["message"]["seq"].as_u64().ok_or_else(|| answer["error"].to_string())
    }

    /// Tries until it succeeds; tells each change once.
    async fn patiently<T, A: Future<Output = Result<T, String>>>(&self, attempt: impl Fn() -> A) -> T {
        let mut attempts = 1;
        loop {
            match attempt().await {
                Ok(value) => {
                    // Relaxed: the flag says nothing about other memory.
                    if self.is_away.swap(false, Ordering::Relaxed) {
                        say(format_args!("{}: reading stream '{}' again", self.server, self.name));
                    }
                    return value;
                }
                Err(why) => {
                    if !self.is_away.swap(true, Ordering::Relaxed) {
                        say(format_args!(
                            "{}: cannot read stream '{}': {why}; trying again",
                            self.server, self.name
                        ));
                    }
                    attempts += 1;
                    tokio::time::sleep(server::pause(attempts)).await;
                }
            }
        }
    }
}
