//! The texts that belong to packets: dictionaries and processes, each once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::trace::definition::Definitions;
use relay::trace::metadata::Metadata;
use tokio::sync::Mutex;

use super::body::{Body, Joiner};
use super::room::{Room, Share};
use super::store::{Found, Store};
use crate::message::{Kind, Subject};

/// The most texts that are kept, and their bytes; those that were asked for last stay.
const TEXTS_MAX: usize = 64;
const BYTES_MAX: usize = 128 << 20;
/// How long it is believed that a text is missing: a later one may have come.
const MISSING_MAX: Duration = Duration::from_secs(2);
/// Most foreign messages that are passed over on the way to a text.
const FOREIGN_MAX: usize = 256;

/// Where a text is. Texts of a channel are newer if they are later in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    /// How often the stream was created again.
    pub(super) creation: u64,
    /// Sequence of the text's first part in it.
    pub(super) sequence: u64,
}

/// A dictionary.
#[derive(Debug)]
pub(super) struct Dictionary {
    pub(super) version: Version,
    /// What it says about the channel.
    pub(super) metadata: Metadata,
    /// The events of programs.
    pub(super) definitions: Definitions,
    /// The text of the events.
    pub(super) events: String,
    _share: Share,
}

/// Processes.
#[derive(Debug)]
pub(super) struct Processes {
    pub(super) version: Version,
    pub(super) text: String,
    _share: Share,
}

/// Which channel texts belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of<'s> {
    /// A subject of the channel.
    pub(super) subject: &'s Subject,
    /// Which channel of this name.
    pub(super) instance: u64,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    host: String,
    channel: String,
    instance: u64,
    version: Version,
}

impl Key {
    fn new(of: Of<'_>, version: Version) -> Key {
        let Subject { host, channel, .. } = of.subject;
        Key { host: host.clone(), channel: channel.to_string(), instance: of.instance, version }
    }
}

/// Texts by the sequences that packets name.
#[derive(Debug, Default)]
pub(super) struct Texts {
    dictionaries: Mutex<Recent<Dictionary>>,
    processes: Mutex<Recent<Processes>>,
    room: Arc<Room>,
}

/// The texts that were asked for last.
#[derive(Debug)]
struct Recent<T> {
    texts: VecDeque<Entry<T>>,
    n_bytes: usize,
}

/// A text. An error says why there is none.
#[derive(Debug)]
struct Entry<T> {
    key: Key,
    found: Result<Arc<T>, String>,
    len: usize,
    since: Instant,
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { texts: VecDeque::new(), n_bytes: 0 }
    }
}

impl<T> Recent<T> {
    /// Returns what is kept of this, and makes it the newest.
    fn get(&mut self, key: &Key) -> Option<Result<Arc<T>, String>> {
        let at = self.texts.iter().position(|entry| entry.key == *key)?;
        let entry = self.texts.remove(at)?;
        if entry.found.is_err() && entry.since.elapsed() >= MISSING_MAX {
            self.n_bytes -= entry.len;
            return None;
        }
        let found = entry.found.clone();
        self.texts.push_back(entry);
        Some(found)
    }

    fn put(&mut self, key: Key, found: Result<Arc<T>, String>, len: usize) {
        self.texts.push_back(Entry { key, found, len, since: Instant::now() });
        self.n_bytes += len;
        while self.texts.len() > TEXTS_MAX || self.n_bytes > BYTES_MAX && self.texts.len() > 1 {
            let Some(oldest) = self.texts.pop_front() else { break };
            self.n_bytes -= oldest.len;
        }
    }
}

impl Texts {
    /// Texts that take their memory from here.
    pub(super) fn new(room: &Arc<Room>) -> Texts {
        Texts { room: Arc::clone(room), ..Texts::default() }
    }

    /// Returns the dictionary that begins with a message, or else the next one of the channel.
    pub(super) async fn dictionary(
        &self,
        store: &Store,
        of: Of<'_>,
        version: Version,
    ) -> Result<Arc<Dictionary>, String> {
        let key = Key::new(of, version);
        // Other lanes of the channel wait, and have it then.
        let mut recent = self.dictionaries.lock().await;
        if let Some(found) = recent.get(&key) {
            return found;
        }
        let body = text(store, &self.room, of, Kind::Metadata, version.sequence).await;
        let mut len = 0;
        let found = body.and_then(|Body { bytes, first, share, .. }| {
            len = bytes.len();
            let text = String::from_utf8_lossy(&bytes);
            let (metadata, events) = Metadata::parse(&text).map_err(|error| error.to_string())?;
            // What it says itself and the names of its subject are the same, or it is not this channel's.
            if metadata.channel != of.subject.channel.as_str() {
                return Err(format!("it is of channel '{}'", metadata.channel));
            }
            let text = text.get(metadata.write("").len()..).unwrap_or_default().to_owned();
            let version = Version { sequence: first.sequence, ..version };
            let definitions = events.definitions;
            Ok(Arc::new(Dictionary { version, metadata, definitions, events: text, _share: share }))
        });
        recent.put(key, found.clone(), len);
        found
    }

    /// Returns the processes that begin with a message, or else the next ones of the channel.
    pub(super) async fn processes(
        &self,
        store: &Store,
        of: Of<'_>,
        version: Version,
    ) -> Result<Arc<Processes>, String> {
        let key = Key::new(of, version);
        let mut recent = self.processes.lock().await;
        if let Some(found) = recent.get(&key) {
            return found;
        }
        let body = text(store, &self.room, of, Kind::Processes, version.sequence).await;
        let found = body.map(|Body { bytes, first, share, .. }| {
            let version = Version { sequence: first.sequence, ..version };
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Arc::new(Processes { version, text, _share: share })
        });
        let len = found.as_ref().map_or(0, |found| found.text.len());
        recent.put(key, found.clone(), len);
        found
    }
}

/// Fetches the first text of a channel from a sequence on. Texts only grow, so a later one has what the named one had.
async fn text(
    store: &Store,
    room: &Arc<Room>,
    of: Of<'_>,
    kind: Kind,
    sequence: u64,
) -> Result<Body, String> {
    let subject = Subject { kind, ..of.subject.clone() }.encode(store.name());
    let mut joiner = Joiner::new(kind, room).in_middle();
    let (mut from, mut n_foreign) = (sequence, 0);
    while n_foreign < FOREIGN_MAX {
        let found = store.next(&subject, from, true).await;
        let Some(place) = found.place() else { break };
        from = place.sequence.max(from).saturating_add(1);
        let Found::Message(message) = found else {
            n_foreign += 1;
            continue;
        };
        let (told, body) = joiner.add(place, &message.headers, &message.payload);
        match body {
            Some(body) if body.headers.instance == of.instance => return Ok(body),
            Some(_) => n_foreign += 1,
            None => n_foreign += usize::from(!told.is_empty()),
        }
    }
    Err("it is not in the stream, and no later one".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(creation: u64, host: &str, instance: u64, sequence: u64) -> Key {
        let subject = Subject { host: host.to_owned(), channel: "a".parse().unwrap(), kind: Kind::Cpu(0) };
        Key::new(Of { subject: &subject, instance }, Version { creation, sequence })
    }

    #[test]
    fn texts_of_other_channels_and_streams_are_others() {
        let mut recent = Recent::default();
        recent.put(key(0, "h", 7, 5), Ok(Arc::new("text")), 4);
        assert!(recent.get(&key(0, "h", 7, 5)).is_some_and(|found| *found.unwrap() == "text"));
        for other in [key(1, "h", 7, 5), key(0, "i", 7, 5), key(0, "h", 8, 5), key(0, "h", 7, 6)] {
            assert!(recent.get(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn few_texts_are_kept() {
        let mut recent = Recent::default();
        for n in 0..100 {
            recent.put(key(0, "h", 7, n), Ok(Arc::new(n)), 1 << 20);
            assert!(recent.get(&key(0, "h", 7, 0)).is_some(), "it is asked for");
        }
        assert_eq!((recent.texts.len(), recent.n_bytes), (TEXTS_MAX, TEXTS_MAX << 20));
        recent.put(key(0, "h", 7, 100), Ok(Arc::new(100)), 127 << 20);
        assert_eq!(recent.texts.len(), 2);
    }
}
