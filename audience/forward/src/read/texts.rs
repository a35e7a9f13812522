//! The texts that belong to packets: dictionaries and processes, each once.

use std::collections::VecDeque;
use std::sync::Arc;

use relay::trace::definition::Definitions;
use relay::trace::metadata::Metadata;
use tokio::sync::Mutex;

use super::body::Joiner;
use super::store::{Found, Store};
use crate::message::{Kind, Subject};

/// The most texts that are kept; those that were asked for last stay.
const TEXTS_MAX: usize = 64;

/// A dictionary.
#[derive(Debug)]
pub(super) struct Dictionary {
    /// Sequence of its first part in the stream.
    pub(super) sequence: u64,
    /// What it says about the channel.
    pub(super) metadata: Metadata,
    /// The events of programs.
    pub(super) definitions: Definitions,
    /// The text of the events.
    pub(super) events: String,
}

/// Texts by the sequence of their first parts.
#[derive(Debug, Default)]
pub(super) struct Texts {
    dictionaries: Mutex<Recent<Dictionary>>,
    processes: Mutex<Recent<str>>,
}

/// The texts that were asked for last; an error says why there is none.
type Recent<T> = VecDeque<(u64, Result<Arc<T>, String>)>;

/// Returns what is kept of a sequence, and makes it the newest.
fn kept<T: ?Sized>(recent: &mut Recent<T>, sequence: u64) -> Option<Result<Arc<T>, String>> {
    let at = recent.iter().position(|(of, _)| *of == sequence)?;
    let entry = recent.remove(at)?;
    let found = entry.1.clone();
    recent.push_back(entry);
    Some(found)
}

fn keep<T: ?Sized>(recent: &mut Recent<T>, sequence: u64, text: &Result<Arc<T>, String>) {
    recent.push_back((sequence, text.clone()));
    if recent.len() > TEXTS_MAX {
        recent.pop_front();
    }
}

impl Texts {
    /// Returns the dictionary that begins with a message, of the channel that a subject belongs to.
    pub(super) async fn dictionary(
        &self,
        store: &Store,
        of: &Subject,
        instance: u64,
        sequence: u64,
    ) -> Result<Arc<Dictionary>, String> {
        // Other lanes of the channel wait, and have it then.
        let mut recent = self.dictionaries.lock().await;
        if let Some(found) = kept(&mut recent, sequence) {
            return found;
        }
        let text = text(store, of, Kind::Metadata, instance, sequence).await;
        let found = text.and_then(|text| {
            let (metadata, events) = Metadata::parse(&text).map_err(|error| error.to_string())?;
            // What it says itself and the names of its subject are the same, or it is not this channel's.
            if metadata.channel != of.channel.as_str() {
                return Err(format!("it is of channel '{}'", metadata.channel));
            }
            let text = text.get(metadata.write("").len()..).unwrap_or_default().to_owned();
            Ok(Arc::new(Dictionary { sequence, metadata, definitions: events.definitions, events: text }))
        });
        keep(&mut recent, sequence, &found);
        found
    }

    /// Returns the text of processes that begins with a message.
    pub(super) async fn processes(
        &self,
        store: &Store,
        of: &Subject,
        instance: u64,
        sequence: u64,
    ) -> Result<Arc<str>, String> {
        let mut recent = self.processes.lock().await;
        if let Some(found) = kept(&mut recent, sequence) {
            return found;
        }
        let found = text(store, of, Kind::Processes, instance, sequence).await.map(Arc::from);
        keep(&mut recent, sequence, &found);
        found
    }
}

/// Fetches a text, all parts of it.
async fn text(
    store: &Store,
    of: &Subject,
    kind: Kind,
    instance: u64,
    sequence: u64,
) -> Result<String, String> {
    let subject = Subject { kind, ..of.clone() }.encode(store.name());
    let first = store.message(sequence).await.ok_or("it is not in the stream any more")?;
    if first.subject.as_str() != subject {
        return Err(format!("it has the subject {}", first.subject));
    }
    let mut joiner = Joiner::new(kind);
    let mut message = first;
    loop {
        let (told, body) = joiner.add(message.sequence, &message.headers, &message.payload);
        if let Some(notice) = told.into_iter().next() {
            return Err(notice.text);
        }
        if let Some(body) = body {
            if body.headers.instance != instance {
                return Err("it is of another channel of that name".to_owned());
            }
            return Ok(String::from_utf8_lossy(&body.bytes).into_owned());
        }
        message = match store.next(&subject, message.sequence + 1).await {
            Found::Message(message) => *message,
            Found::Unreadable(_) | Found::Nothing => return Err("its next part is missing".to_owned()),
        };
    }
}
