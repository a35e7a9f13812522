//! The texts that belong to packets: dictionaries and processes, each once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use relay::trace::definition::Definitions;
use relay::trace::metadata::Metadata;

use super::body::{Body, Joiner};
use super::room::{Room, Share};
use super::store::{Found, Store};
use crate::message::{Kind, Subject};

/// The most texts that are kept, and their bytes; those that were asked for last stay.
const TEXTS_MAX: usize = 64;
const BYTES_MAX: usize = 128 << 20;
/// How long it is believed that a text is missing: a later one may have come.
const MISSING_MAX: Duration = Duration::from_secs(2);
/// Most messages that are passed over on the way to a text. The parts of a text whose first parts have expired are not
/// more.
const PASSED_MAX: usize = 1024;

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

/// A text that is there or that a lane fetches.
#[derive(Debug)]
struct Entry<T> {
    key: Key,
    slot: Arc<Slot<T>>,
    len: usize,
}

/// What a lane has found, and when. The lane that fetches it holds the lock, and others of the channel wait.
type Slot<T> = tokio::sync::Mutex<Option<(Text<T>, Instant)>>;

/// A text. An error says why there is none.
type Text<T> = Result<Arc<T>, String>;

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { texts: VecDeque::new(), n_bytes: 0 }
    }
}

impl<T> Recent<T> {
    /// Returns where this is, and makes it the newest.
    fn slot(&mut self, key: Key) -> Arc<Slot<T>> {
        let at = self.texts.iter().position(|entry| entry.key == key);
        let entry = at.and_then(|at| self.texts.remove(at));
        let entry = entry.unwrap_or_else(|| Entry { key, slot: Arc::default(), len: 0 });
        let slot = Arc::clone(&entry.slot);
        self.texts.push_back(entry);
        self.drop_oldest();
        slot
    }

    /// Takes over how long a text is.
    fn weigh(&mut self, slot: &Arc<Slot<T>>, len: usize) {
        // It may have been dropped meanwhile.
        if let Some(entry) = self.texts.iter_mut().find(|entry| Arc::ptr_eq(&entry.slot, slot)) {
            self.n_bytes = self.n_bytes - entry.len + len;
            entry.len = len;
        }
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        while self.texts.len() > TEXTS_MAX || self.n_bytes > BYTES_MAX && self.texts.len() > 1 {
            let Some(oldest) = self.texts.pop_front() else { break };
            self.n_bytes -= oldest.len;
        }
    }
}

/// Returns a text that is kept, or else fetches it; `fetch` also says how long it is.
async fn keep<T>(
    recent: &Mutex<Recent<T>>,
    key: Key,
    fetch: impl Future<Output = (Text<T>, usize)>,
) -> Text<T> {
    let recent = || recent.lock().unwrap_or_else(PoisonError::into_inner);
    let slot = recent().slot(key);
    let mut kept = slot.lock().await;
    if let Some((found, since)) = &*kept
        && (found.is_ok() || since.elapsed() < MISSING_MAX)
    {
        return found.clone();
    }
    let (found, len) = fetch.await;
    *kept = Some((found.clone(), Instant::now()));
    recent().weigh(&slot, len);
    found
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
        let fetch = async {
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
            (found, len)
        };
        keep(&self.dictionaries, Key::new(of, version), fetch).await
    }

    /// Returns the processes that begin with a message, or else the next ones of the channel.
    pub(super) async fn processes(
        &self,
        store: &Store,
        of: Of<'_>,
        version: Version,
    ) -> Result<Arc<Processes>, String> {
        let fetch = async {
            let body = text(store, &self.room, of, Kind::Processes, version.sequence).await;
            let found = body.map(|Body { bytes, first, share, .. }| {
                let version = Version { sequence: first.sequence, ..version };
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Arc::new(Processes { version, text, _share: share })
            });
            let len = found.as_ref().map_or(0, |found| found.text.len());
            (found, len)
        };
        keep(&self.processes, Key::new(of, version), fetch).await
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
    let (mut from, mut n_passed) = (sequence, 0);
    while n_passed < PASSED_MAX {
        let found = store.next(&subject, from, true).await;
        let Some(place) = found.place() else { break };
        from = place.sequence.max(from).saturating_add(1);
        let Found::Message(message) = found else {
            n_passed += 1;
            continue;
        };
        let (told, body) = joiner.add(place, &message.headers, &message.payload);
        if let Some(body) = body.filter(|body| body.headers.instance == of.instance) {
            return Ok(body);
        }
        // Only what makes a text of the channel longer costs nothing: that ends at the longest text.
        let is_longer = told.is_empty() && joiner.is_longer(of.instance) && !message.payload.is_empty();
        n_passed += usize::from(!is_longer);
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

    async fn kept(recent: &Mutex<Recent<u64>>, key: Key, new: u64, len: usize) -> u64 {
        let found = keep(recent, key, async { (Ok(Arc::new(new)), len) }).await;
        *found.expect("a text")
    }

    #[tokio::test]
    async fn texts_of_other_channels_and_streams_are_others() {
        let recent = Mutex::default();
        assert_eq!(kept(&recent, key(0, "h", 7, 5), 1, 4).await, 1);
        assert_eq!(kept(&recent, key(0, "h", 7, 5), 2, 4).await, 1);
        for other in [key(1, "h", 7, 5), key(0, "i", 7, 5), key(0, "h", 8, 5), key(0, "h", 7, 6)] {
            assert_eq!(kept(&recent, other.clone(), 3, 4).await, 3, "{other:?}");
        }
    }

    #[tokio::test]
    async fn few_texts_are_kept() {
        let recent = Mutex::default();
        for n in 0..100 {
            kept(&recent, key(0, "h", 7, n), n, 1 << 20).await;
            assert_eq!(kept(&recent, key(0, "h", 7, 0), 1000, 0).await, 0, "it is asked for");
        }
        let size = || {
            let recent = recent.lock().unwrap();
            (recent.texts.len(), recent.n_bytes)
        };
        assert_eq!(size(), (TEXTS_MAX, TEXTS_MAX << 20));
        kept(&recent, key(0, "h", 7, 100), 100, 127 << 20).await;
        assert_eq!(size().0, 2);
    }

    /// The server takes long to answer for one channel.
    #[tokio::test]
    async fn channels_do_not_wait_for_each_other() {
        let recent = Mutex::default();
        let slow = keep(&recent, key(0, "slow", 7, 5), std::future::pending());
        tokio::pin!(slow);
        tokio::select! {
            biased;
            _ = &mut slow => unreachable!(),
            found = kept(&recent, key(0, "h", 7, 5), 1, 4) => assert_eq!(found, 1),
        }
    }
}
