//! How the stream is found or created, and what it is.

use std::time::Instant;

use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, Info, RetentionPolicy, StorageType};
use async_nats::jetstream::{Error, ErrorCode};
use serde_json::Value;

use super::{Link, NoStream};
use crate::send::extent::Extent;

impl Link {
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
                (ErrorCode::STREAM_NOT_FOUND, None) => return Err(NoStream::Final(self.missing())),
                (ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::STREAM_OFFLINE, _) => {
                    return Err(NoStream::Trouble(self.leaderless()));
                }
                _ => return Err(of_error(format!("stream '{}': {error}", self.name), error.error_code())),
            },
        };
        self.note(&info);
        let refusal = self.refusal.borrow().clone();
        refusal.map_or(Ok(()), |why| Err(NoStream::Final(why)))
    }

    pub(super) async fn info(&self) -> Result<Result<Info, Error>, NoStream> {
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
                let why = format!("stream '{}' cannot be created: {error}", self.name);
                Err(of_error(why, error.error_code()))
            }
            Err(error) => Err(self.nonsense(&error)),
        }
    }

    /// Takes what the server says about the stream.
    pub(super) fn note(&self, info: &Info) {
        let config = &info.config;
        let subjects = self.subjects();
        let refusal = if !config.subjects.contains(&subjects) {
            let all = with_subjects(&config.subjects, &self.name);
            let edit = format!("nats stream edit {} --subjects '{all}'", self.name);
            Some(format!("does not have the subjects {subjects}: {edit}"))
        } else if config.no_ack {
            Some("acknowledges nothing: create it again without --no-ack".to_owned())
        } else if config.retention != RetentionPolicy::Limits {
            // What nothing is interested in would be acknowledged, and not kept.
            Some("keeps messages only for its consumers: create it again with --retention limits".to_owned())
        } else {
            None
        };
        // Copies of a stream that were behind may disagree about its last message.
        self.line.set_deep(config.num_replicas == 1);
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
        let removed = now.last.saturating_sub(state.messages);
        if self.removed.replace(removed) != removed {
            self.removals.set(self.removals.get().wrapping_add(1));
        }
    }
}

/// Returns a stream's subjects with ours, as a command takes them in quotes: it replaces all that there are.
fn with_subjects(subjects: &[String], name: &str) -> String {
    let ours = format!("{name}.");
    // The server refuses subjects that another one of the stream includes.
    let others = subjects.iter().filter(|subject| !subject.starts_with(&ours));
    let all: Vec<String> =
        others.map(|subject| subject.replace('\'', "'\\''")).chain([ours.clone() + ">"]).collect();
    all.join(",")
}

/// Returns an error of the stream's set-up, with what to do if only the operator can change it.
fn of_error(why: String, code: ErrorCode) -> NoStream {
    match advice(code) {
        Some(advice) => NoStream::Final(format!("{why}; {advice}")),
        None => NoStream::Trouble(why),
    }
}

fn advice(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => {
            Some("say --replicas 1, or make a cluster of the servers")
        }
        ErrorCode::STREAM_SUBJECT_OVERLAP => Some("say another --stream, or change that one's subjects"),
        ErrorCode::MAXIMUM_STREAMS_LIMIT | ErrorCode::STREAM_MAX_BYTES_REQUIRED | ErrorCode::NO_LIMITS => {
            Some("change the account's limits, or create it with some: nats stream add")
        }
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => Some("enable it in the server's configuration"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_of_the_stream_stay_in_the_advice() {
        let with = |subjects: &[&str]| {
            let subjects: Vec<String> = subjects.iter().map(|subject| (*subject).to_owned()).collect();
            with_subjects(&subjects, "relay")
        };
        assert_eq!(with(&[]), "relay.>");
        assert_eq!(with(&["orders.*", "relay.a.>", "relays.>"]), "orders.*,relays.>,relay.>");
        assert_eq!(with(&["it's"]), "it'\\''s,relay.>");
    }
}
