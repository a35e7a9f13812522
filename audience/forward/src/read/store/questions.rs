//! Questions to JetStream about the stream, and their answers.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use async_nats::{Message, StatusCode};
use serde_json::{Value, json};

use super::patience::Failed;
use super::{Found, Place, Store};
use crate::server::requests::decode_message;

/// Longest wait for an answer, before the question is asked again.
const ANSWER_MAX: Duration = Duration::from_secs(5);

impl Store {
    /// Asks any replica for the first message of a subject from a sequence on.
    pub(super) async fn ask_replicas(
        &self,
        subject: &str,
        from: u64,
    ) -> Result<Option<StreamMessage>, Failed> {
        let request = json!({ "seq": from, "next_by_subj": subject });
        let answer = self.ask("DIRECT.GET", &request).await?;
        match answer.status {
            None => StreamMessage::try_from(answer).map(Some).map_err(|error| Failed::of(&error)),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(Failed::Because(format!("the answer has status {status}"))),
        }
    }

    /// Asks the stream's leader for a message.
    pub(super) async fn get(&self, request: Value) -> Result<Found, Failed> {
        let answer = self.ask("STREAM.MSG.GET", &request).await?;
        let message = decode_message(&answer.payload).map_err(|error| Failed::nonsense(&error))?;
        let Some(message) = message.map_err(|error| Failed::of_server(&error))? else {
            return Ok(Found::Nothing);
        };
        let RawMessage { sequence, time, .. } = message;
        let place = Place { sequence, time: time.unix_timestamp_nanos() };
        let message = StreamMessage::try_from(message);
        Ok(message.map_or(Found::Unreadable(place), |message| Found::Message(Box::new(message))))
    }

    /// Asks the stream's leader about the stream.
    pub(super) async fn info(&self, request: &Value) -> Result<Value, Failed> {
        let answer = self.ask("STREAM.INFO", request).await?;
        let answer: Response<Value> =
            serde_json::from_slice(&answer.payload).map_err(|error| Failed::nonsense(&error))?;
        match answer {
            Response::Ok(info) => Ok(info),
            Response::Err { error } => Err(Failed::of_server(&error)),
        }
    }

    /// Asks JetStream about the stream. Waits as long as there is the connection.
    async fn ask(&self, what: &str, request: &Value) -> Result<Message, Failed> {
        let body = if request.is_null() { String::new() } else { request.to_string() };
        let subject = format!("$JS.API.{what}.{}", self.name);
        let asked = self.requests.ask(subject, None, body.into(), ANSWER_MAX);
        self.unless_cut(asked).await?.map_err(Failed::from)
    }
}
