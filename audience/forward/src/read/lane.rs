//! Reads a subject of sub-buffers: one message after the other, joined and checked.

use std::sync::Arc;

use relay::Mode;
use relay::trace::merge::Notice;
use tokio::sync::{Notify, mpsc};

use super::body::{Body, Joiner};
use super::delivery::{Arrived, Delivery, Timed, kind, notice};
use super::known::Known;
use super::packet;
use super::room::Room;
use super::store::{Found, Store};
use super::texts::{Dictionary, Of, Processes, Texts, Version};
use crate::message::{Kind, Meaning, SubBuffer, Subject};

/// Notices in a row that are shown; others are counted.
const NOTICES_MAX: u64 = 8;
/// How often the stream had been created again at the start. A reader without `--follow` reads only this stream, also by
/// lanes that begin later.
const AT_START: u64 = 0;

/// What a lane reads, and where that goes.
pub(super) struct Lane {
    pub(super) store: Arc<Store>,
    pub(super) known: Arc<Known>,
    pub(super) texts: Arc<Texts>,
    pub(super) room: Arc<Room>,
    pub(super) subject: Subject,
    /// Number of the CPU.
    pub(super) cpu: u32,
    /// Sequence of the first message that is of interest.
    pub(super) from: u64,
    /// Sequence of the last message that was in the stream at the start.
    pub(super) last: u64,
    /// Whether to wait for more.
    pub(super) follow: bool,
    /// Says that there may be more.
    pub(super) wake: Arc<Notify>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    /// Says that something was delivered.
    pub(super) delivered: Arc<Notify>,
}

/// How far a lane has come.
struct Course {
    joiner: Joiner,
    /// Sequence with which it continues.
    from: u64,
    /// How often the stream it reads had been created again.
    creation: u64,
    may_ask_replicas: bool,
    /// The sub-buffer before.
    before: Option<Before>,
    /// Whether sub-buffers may come that came before: the stream, or its server, begins again.
    is_again: bool,
    /// Notices since the last sub-buffer, and how many of these are not said.
    n_notices: u64,
    n_unsaid: u64,
}

/// A sub-buffer that was handed over.
struct Before {
    instance: u64,
    number: u64,
    /// Position in the buffer's stream behind its bytes. Nothing is known of a timed channel's: a packet is mended.
    end: u64,
}

/// The main thread wants no more.
struct Gone;

impl Lane {
    /// Reads until the end, or the main thread's.
    pub(super) async fn run(self) {
        let _ = self.read().await;
    }

    async fn read(&self) -> Result<(), Gone> {
        let subject = self.subject.encode(self.store.name());
        let joiner = Joiner::new(Kind::Cpu(self.cpu), &self.room);
        let mut at = Course {
            joiner: if self.from > 1 { joiner.in_middle() } else { joiner },
            from: self.from,
            creation: AT_START,
            may_ask_replicas: true,
            before: None,
            is_again: false,
            n_notices: 0,
            n_unsaid: 0,
        };
        let mut is_ended = false;
        loop {
            let turn = self.known.turn(&subject);
            if turn.creation != at.creation && !self.follow {
                // What was asked for is gone.
                return self.deliver(Delivery::End).await;
            }
            at.creation = turn.creation;
            if let Some(restart) = turn.restart {
                (at.from, at.is_again) = (at.from.min(restart), true);
            }
            if self.room.is_tight() {
                // Until what came before is taken.
                drop(self.deliveries.reserve().await.map_err(|_| Gone)?);
            }
            let found = self.store.next(&subject, at.from, at.may_ask_replicas).await;
            let place = found.place();
            if !is_ended && place.is_none_or(|place| place.sequence > self.last) {
                is_ended = true;
                self.say_rest(&mut at).await?;
                self.deliver(Delivery::End).await?;
            }
            if is_ended && !self.follow {
                return Ok(());
            }
            let Some(place) = place else {
                self.say_rest(&mut at).await?;
                self.wake.notified().await;
                continue;
            };
            if !self.known.confirms(&self.store, place, at.creation, self.follow).await {
                continue;
            }
            // A server that gives an old message again would be asked for it forever.
            at.from = place.sequence.max(at.from).saturating_add(1);
            let Found::Message(message) = found else {
                // Such headers cost the connection if they come directly, and more of them may follow.
                at.may_ask_replicas = false;
                let text = format!("message {} is refused: its headers cannot be read", place.sequence);
                self.say(&mut at, notice(kind::REFUSED, text)).await?;
                continue;
            };
            let (told, body) = at.joiner.add(place, &message.headers, &message.payload);
            for notice in told {
                self.say(&mut at, notice).await?;
            }
            if let Some(body) = body {
                self.pass(body, &mut at).await?;
            }
        }
    }

    async fn deliver(&self, delivery: Delivery) -> Result<(), Gone> {
        let sent = self.deliveries.send(delivery).await;
        self.delivered.notify_one();
        sent.map_err(|_| Gone)
    }

    /// Says that a message cannot be used. Of many in a row the first are said, and how many more there are.
    async fn say(&self, at: &mut Course, notice: Notice) -> Result<(), Gone> {
        at.n_notices += 1;
        if at.n_notices > NOTICES_MAX {
            at.n_unsaid += 1;
            return Ok(());
        }
        self.deliver(Delivery::Notice { notice, n_refused: 1 }).await
    }

    /// Says how many messages could not be used beside those that were told.
    async fn say_rest(&self, at: &mut Course) -> Result<(), Gone> {
        let n_refused = std::mem::take(&mut at.n_unsaid);
        if n_refused == 0 {
            return Ok(());
        }
        let notice = notice(kind::REFUSED, format!("{n_refused} more messages are refused or incomplete"));
        self.deliver(Delivery::Notice { notice, n_refused }).await
    }

    /// Checks a body, adds its texts, and hands it over.
    async fn pass(&self, body: Body, at: &mut Course) -> Result<(), Gone> {
        let Body { headers, bytes, first, share } = body;
        let Some(of) = headers.sub_buffer else { return Ok(()) };
        let (instance, number) = (headers.instance, headers.number);
        let refused = |why: String| notice(kind::REFUSED, format!("sub-buffer {number} is refused: {why}"));
        let same = at.before.as_ref().filter(|before| before.instance == instance);
        if same.is_some_and(|before| number <= before.number) {
            if at.is_again {
                return Ok(());
            }
            return self.say(at, refused(format!("message {} has it once more", first.sequence))).await;
        }
        let header = match &of.meaning {
            Some(_) => match packet::check(&bytes, self.cpu, number) {
                Ok(header) => Some(header),
                Err(why) => return self.say(at, refused(why)).await,
            },
            None => None,
        };
        // A merge finds gaps between packets itself.
        let missing = same.filter(|_| header.is_none()).and_then(|before| missing(before, number, &of));
        let is_created_again = at.before.is_some() && same.is_none();
        self.say_rest(at).await?;
        if is_created_again {
            let text = "the channel was created again".to_owned();
            let notice = Notice { kind: kind::RECREATED, text, restarts: true };
            self.deliver(Delivery::Notice { notice, n_refused: 0 }).await?;
        }
        if let Some(text) = missing {
            let notice = notice(kind::MISSING, text);
            self.deliver(Delivery::Notice { notice, n_refused: 0 }).await?;
        }
        let end = of.position.saturating_add(bytes.len() as u64);
        let before = Before { instance, number, end };
        (at.before, at.is_again) = (Some(before), false);
        let timed = match header.zip(of.meaning.as_ref()) {
            None => None,
            Some((header, meaning)) => {
                let (dictionary, processes) = self.texts_of(meaning, instance, at.creation, number).await?;
                Some(Timed { header, dictionary, processes })
            }
        };
        at.n_notices = 0;
        let arrived = Arrived { instance, number, stored: first.time, of, bytes, share, timed };
        self.deliver(Delivery::SubBuffer(Box::new(arrived))).await
    }

    /// Returns the texts of a packet; says which are not there.
    async fn texts_of(
        &self,
        meaning: &Meaning,
        instance: u64,
        creation: u64,
        number: u64,
    ) -> Result<(Option<Arc<Dictionary>>, Option<Arc<Processes>>), Gone> {
        let of = Of { subject: &self.subject, instance };
        let version = |sequence| Version { creation, sequence };
        let at = meaning.dictionary;
        let found = self.texts.dictionary(&self.store, of, version(at)).await;
        let dictionary = self.told(found, "dictionary", at, number).await?;
        let Some(at) = meaning.processes else { return Ok((dictionary, None)) };
        let found = self.texts.processes(&self.store, of, version(at)).await;
        Ok((dictionary, self.told(found, "processes", at, number).await?))
    }

    /// Says why a text is not there.
    async fn told<T>(
        &self,
        found: Result<T, String>,
        what: &str,
        at: u64,
        number: u64,
    ) -> Result<Option<T>, Gone> {
        match found {
            Ok(text) => Ok(Some(text)),
            Err(why) => {
                let text = format!("sub-buffer {number} is without its {what}, message {at}: {why}");
                let notice = notice(kind::INCOMPLETE, text);
                self.deliver(Delivery::Notice { notice, n_refused: 1 }).await?;
                Ok(None)
            }
        }
    }
}

/// Says what is missing between two sub-buffers of a raw channel, the second with this number.
///
/// A reset discards an unfinished sub-buffer without using up its number. Only the position shows that.
fn missing(before: &Before, number: u64, of: &SubBuffer) -> Option<String> {
    if of.position == before.end {
        // A sub-buffer in between had no bytes.
        return None;
    }
    let n_bytes = of.position.saturating_sub(before.end);
    let (first, last) = (before.number.saturating_add(1), number.saturating_sub(1));
    let numbers = match last.checked_sub(first) {
        None => None,
        Some(0) => Some(format!("sub-buffer {first} is missing")),
        Some(_) => Some(format!("sub-buffers {first} to {last} are missing")),
    };
    let what = match (numbers, n_bytes) {
        (None, 0) => return None,
        (None, 1) => format!("1 byte before sub-buffer {number} is missing"),
        (None, _) => format!("{n_bytes} bytes before sub-buffer {number} are missing"),
        // Its position need not be true: the message may be another program's.
        (Some(numbers), 0) => numbers,
        (Some(numbers), 1) => format!("{numbers}, 1 byte"),
        (Some(numbers), _) => format!("{numbers}, {n_bytes} bytes"),
    };
    let why = match of.geometry.mode() {
        Mode::Overwrite => "overwritten, discarded by a reset, or read elsewhere",
        Mode::NoOverwrite => "discarded by a reset, or read elsewhere",
    };
    Some(format!("{what}: {why}"))
}
