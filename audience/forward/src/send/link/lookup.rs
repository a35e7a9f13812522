//! Looks messages of the stream up.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::message::StreamMessage;
use serde_json::{Value, json};

use super::{Link, Unstored};
use crate::server::requests::{Unanswered, decode_message};

/// A message of the stream.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its sequence.
    pub(crate) sequence: u64,
    /// The message; `None` if its headers cannot be read.
    pub(crate) message: Option<StreamMessage>,
}

impl Link {
    /// Returns the last message of a subject; `None` if there is none. And the sequence that the next one has to
    /// expect.
    pub(crate) async fn last(&self, subject: &str) -> Result<(Option<Found>, u64), Unstored> {
        let found = self.get(json!({ "last_by_subj": subject })).await?;
        let expected = found.as_ref().map_or(0, |found| found.sequence);
        match found {
            Some(found) => Ok((Some(found), expected)),
            None => Ok((self.forgotten(subject).await?, expected)),
        }
    }

    /// Returns the last message of a subject that has none, if the server is asked for the last one.
    ///
    /// nats-server 2.9 forgets those before the last one when that one is deleted by its number.
    async fn forgotten(&self, subject: &str) -> Result<Option<Found>, Unstored> {
        let Some(mut found) = self.next(subject, 1).await? else { return Ok(None) };
        let Ok(info) = self.info().await? else { return Err(Unstored::Doubt) };
        let mut end = info.state.last_sequence.saturating_add(1);
        while found.sequence.saturating_add(1) < end {
            let middle = found.sequence + 1 + (end - found.sequence - 1) / 2;
            match self.next(subject, middle).await? {
                Some(later) if later.sequence < end => found = later,
                _ => end = middle,
            }
        }
        Ok(Some(found))
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
        let error = match decode_message(&answer).map_err(|error| self.nonsense(&error))? {
            Ok(message) => {
                // Any program that may publish may have written it, so its headers may make no sense.
                return Ok(message
                    .map(|message| Found { sequence: message.sequence, message: message.try_into().ok() }));
            }
            Err(error) => error,
        };
        let why = format!("stream '{}': {error}", self.name);
        Err(match self.prepare().await {
            // It was created now, or a moment ago.
            Ok(()) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Unstored::Unheard(why),
            Ok(()) => Unstored::Trouble(why),
            Err(why) => why.into(),
        })
    }
}
