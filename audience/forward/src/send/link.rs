//! The stream: how it is found or created, one message into it, its last message of a subject.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, HeaderMap, Request};
use bytes::Bytes;
use tokio::time::timeout;

use super::troubles::Troubles;
use crate::error::Failure;
use crate::server::pause;

/// Longest time for an answer of the server.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The server's code for a stream that is full, and a few other causes; its text says which.
const STORE_FAILED: ErrorCode = ErrorCode::STREAM_STORE_FAILED;

/// The connection, and the stream behind it.
pub(crate) struct Link {
    client: Client,
    context: Context,
    stream: Stream<()>,
    /// Name of the stream.
    pub(crate) name: String,
    /// Copies of the stream, if it is to be created.
    replicas: Option<usize>,
    /// The stream's limit of a message with headers, in bytes.
    message_max: Cell<usize>,
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
pub(crate) enum NoStream {
    /// It does not exist, and is not to be created.
    Missing(String),
    /// It cannot be used now.
    Trouble(String),
}

impl Link {
    /// Asks nothing of the server yet.
    pub(crate) async fn new(
        client: Client,
        name: &str,
        replicas: Option<usize>,
        troubles: Arc<Troubles>,
    ) -> Result<Link, Failure> {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ANSWER_MAX);
        let failed = |why| Failure::system("name the stream", std::io::Error::other(why));
        let stream = context.get_stream_no_info(name).await.map_err(failed)?;
        let name = name.to_owned();
        Ok(Link { client, context, stream, name, replicas, message_max: Cell::new(usize::MAX), troubles })
    }

    /// Returns the longest message that server and stream take, headers counted, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.message_max.get().min(self.client.max_payload())
    }

    /// Finds the stream, or creates it, and looks whether it can be used.
    pub(crate) async fn prepare(&self) -> Result<(), NoStream> {
        let subjects = format!("{}.>", self.name);
        let found = match self.answer(self.context.get_stream(&self.name)).await? {
            Ok(found) => found,
            Err(error) => {
                let kind = match error.kind() {
                    GetStreamErrorKind::JetStream(error) => error.error_code(),
                    _ => return Err(NoStream::Trouble(unavailable())),
                };
                let Some(replicas) = self.replicas.filter(|_| kind == ErrorCode::STREAM_NOT_FOUND) else {
                    return Err(match kind {
                        ErrorCode::STREAM_NOT_FOUND => NoStream::Missing(self.missing()),
                        _ => NoStream::Trouble(format!("stream '{}': {error}", self.name)),
                    });
                };
                let config = Config {
                    name: self.name.clone(),
                    subjects: vec![subjects.clone()],
                    storage: StorageType::File,
                    num_replicas: replicas,
                    ..Config::default()
                };
                let created = self.answer(self.context.create_stream(config)).await?;
                let config = created.map_err(|error| {
                    NoStream::Trouble(match error.kind() {
                        CreateStreamErrorKind::JetStreamUnavailable => unavailable(),
                        _ => format!("stream '{}' cannot be created: {error}", self.name),
                    })
                })?;
                crate::output::say(format_args!("stream '{}' created", self.name));
                config
            }
        };
        let config = &found.cached_info().config;
        let trouble = |why: String| Err(NoStream::Trouble(format!("stream '{}' {why}", self.name)));
        if !config.subjects.contains(&subjects) {
            let edit = format!("nats stream edit {} --subjects '{subjects}'", self.name);
            return trouble(format!("does not have the subjects {subjects}: {edit}"));
        }
        if config.no_ack {
            return trouble("acknowledges nothing: create it again without --no-ack".to_owned());
        }
        self.message_max.set(usize::try_from(config.max_message_size).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Sends a message that expects `before` to be the last one of its subject. Returns its sequence.
    pub(crate) async fn store(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
        before: u64,
    ) -> Result<u64, Unstored> {
        if !self.troubles.is_connected() {
            return Err(Unstored::Away);
        }
        let request = Request::new().headers(headers).payload(body).timeout(Some(ANSWER_MAX));
        let answer = tokio::select! {
            answer = self.client.send_request(subject.to_owned(), request) => answer,
            () = self.troubles.until(false) => return Err(Unstored::Away),
        };
        let message = match answer {
            Ok(message) => message,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => match self.prepare().await {
                        Ok(()) => Unstored::Trouble(format!("stream '{}' has no leader", self.name)),
                        Err(NoStream::Missing(why) | NoStream::Trouble(why)) => Unstored::Trouble(why),
                    },
                    RequestErrorKind::TimedOut => Unstored::Trouble(self.silent()),
                    // The server's limit is lower than it was.
                    RequestErrorKind::MaxPayloadExceeded => Unstored::Doubt,
                    _ => Unstored::Trouble(format!("stream '{}': {error}", self.name)),
                });
            }
        };
        match serde_json::from_slice::<Response<PublishAck>>(&message.payload) {
            Ok(Response::Ok(ack)) if ack.duplicate => Err(Unstored::Doubt),
            Ok(Response::Ok(ack)) if ack.stream == self.name && ack.sequence > before => Ok(ack.sequence),
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
    pub(crate) async fn last(&self, subject: &str) -> Result<Option<StreamMessage>, Unstored> {
        if !self.troubles.is_connected() {
            return Err(Unstored::Away);
        }
        let asked = self.stream.get_last_raw_message_by_subject(subject);
        let answer = self.answer(asked).await.map_err(|error| match error {
            NoStream::Missing(why) | NoStream::Trouble(why) => Unstored::Trouble(why),
        })?;
        match answer {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                _ => Err(match self.prepare().await {
                    Ok(()) => Unstored::Trouble(format!("stream '{}': {error}", self.name)),
                    Err(NoStream::Missing(why) | NoStream::Trouble(why)) => Unstored::Trouble(why),
                }),
            },
        }
    }

    /// Waits for an answer, and not longer than for the connection.
    async fn answer<T>(&self, asked: impl Future<Output = T>) -> Result<T, NoStream> {
        let lost = self.troubles.until(false);
        let answer = tokio::select! {
            answer = timeout(ANSWER_MAX, asked) => answer.ok(),
            () = lost => None,
        };
        answer.ok_or_else(|| NoStream::Trouble(self.silent()))
    }

    fn silent(&self) -> String {
        format!("stream '{}' does not answer; trying again", self.name)
    }

    fn missing(&self) -> String {
        let name = &self.name;
        format!(
            "there is no stream '{name}': relay-forward --create makes it, or: nats stream add {name} --subjects '{name}.>' \
             --storage file --defaults"
        )
    }
}

fn unavailable() -> String {
    "no answer from JetStream; trying again (is it enabled on the server? nats-server -js)".to_owned()
}

/// Pauses between tries, which grow.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    tries: u32,
}

impl Pauses {
    /// Waits: the first time not at all, then 100 ms, and twice as much each time, to a bound.
    pub(crate) async fn pause(&mut self) {
        self.tries = self.tries.saturating_add(1);
        tokio::time::sleep(pause(self.tries)).await;
    }

    /// Begins again with no pause.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}
