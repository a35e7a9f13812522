//! Reads a subject of sub-buffers: one message after the other, joined and checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use relay::trace::merge::Notice;
use tokio::sync::{Notify, mpsc};

use super::body::{Body, Joiner};
use super::delivery::{Arrived, Delivery, Timed, kind, notice};
use super::packet;
use super::store::{Found, Store};
use super::texts::Texts;
use crate::message::{Kind, Subject};

/// What a lane reads, and where that goes.
pub(super) struct Lane {
    pub(super) store: Arc<Store>,
    pub(super) texts: Arc<Texts>,
    pub(super) subject: Subject,
    /// Number of the CPU.
    pub(super) cpu: u32,
    /// Sequence of the last message that was in the stream at the start.
    pub(super) last: u64,
    /// Whether to wait for more.
    pub(super) follow: bool,
    /// Says that there may be more.
    pub(super) wake: Arc<Notify>,
    /// Counts how often the stream was created again.
    pub(super) creations: Arc<AtomicU64>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    /// Says that something was delivered.
    pub(super) delivered: Arc<Notify>,
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
        let mut joiner = Joiner::new(Kind::Cpu(self.cpu));
        // Instance and number of the sub-buffer before.
        let mut before: Option<(u64, u64)> = None;
        let (mut from, mut is_ended) = (1, false);
        // Relaxed, here and below: the wake-up orders them.
        let mut creations = self.creations.load(Ordering::Relaxed);
        loop {
            let found = self.store.next(&subject, from).await;
            let sequence = match &found {
                Found::Message(message) => Some(message.sequence),
                Found::Unreadable(sequence) => Some(*sequence),
                Found::Nothing => None,
            };
            if !is_ended && sequence.is_none_or(|sequence| sequence > self.last) {
                is_ended = true;
                self.deliver(Delivery::End).await?;
            }
            if is_ended && !self.follow {
                return Ok(());
            }
            let Some(sequence) = sequence else {
                self.wake.notified().await;
                let now = self.creations.load(Ordering::Relaxed);
                if std::mem::replace(&mut creations, now) != now {
                    // A stream that was created again counts from 1.
                    from = 1;
                }
                continue;
            };
            // A server that gives an old message again would be asked for it forever.
            from = sequence.max(from) + 1;
            let Found::Message(message) = found else {
                let text = format!("message {sequence} is refused: its headers cannot be read");
                self.deliver(Delivery::Notice(notice(kind::REFUSED, text))).await?;
                continue;
            };
            let (told, body) = joiner.add(sequence, &message.headers, &message.payload);
            for notice in told {
                self.deliver(Delivery::Notice(notice)).await?;
            }
            if let Some(body) = body {
                self.pass(body, &mut before).await?;
            }
        }
    }

    async fn deliver(&self, delivery: Delivery) -> Result<(), Gone> {
        let sent = self.deliveries.send(delivery).await;
        self.delivered.notify_one();
        sent.map_err(|_| Gone)
    }

    /// Checks a body, adds its texts, and hands it over.
    async fn pass(&self, body: Body, before: &mut Option<(u64, u64)>) -> Result<(), Gone> {
        let Body { headers, bytes, sequence } = body;
        let Some(of) = headers.sub_buffer else { return Ok(()) };
        let (instance, number) = (headers.instance, headers.number);
        let refused = |why: String| {
            Delivery::Notice(notice(kind::REFUSED, format!("sub-buffer {number} is refused: {why}")))
        };
        let same = before.filter(|(before, _)| *before == instance).map(|(_, number)| number);
        if same.is_some_and(|before| number <= before) {
            return self.deliver(refused(format!("message {sequence} has it once more"))).await;
        }
        let header = match &of.meaning {
            Some(_) => match packet::check(&bytes, self.cpu, number) {
                Ok(header) => Some(header),
                Err(why) => return self.deliver(refused(why)).await,
            },
            None => None,
        };
        if before.is_some() && same.is_none() {
            let text = "the channel was created again".to_owned();
            self.deliver(Delivery::Notice(Notice { kind: kind::RECREATED, text, restarts: true })).await?;
        }
        // A merge finds gaps between packets itself.
        if header.is_none()
            && let Some(before) = same.filter(|before| number - before > 1)
        {
            let (first, last) = (before + 1, number - 1);
            let text = format!(
                "sub-buffers {first} to {last} are missing: they were overwritten, or read elsewhere"
            );
            self.deliver(Delivery::Notice(notice(kind::MISSING, text))).await?;
        }
        *before = Some((instance, number));
        let timed = match header.zip(of.meaning.as_ref()) {
            None => None,
            Some((header, meaning)) => {
                let found =
                    self.texts.dictionary(&self.store, &self.subject, instance, meaning.dictionary).await;
                let dictionary = self.told(found, "dictionary", meaning.dictionary, number).await?;
                let processes = match meaning.processes {
                    None => None,
                    Some(at) => {
                        let found = self.texts.processes(&self.store, &self.subject, instance, at).await;
                        self.told(found, "processes", at, number).await?.map(|text| (at, text))
                    }
                };
                Some(Timed { header, dictionary, processes })
            }
        };
        self.deliver(Delivery::SubBuffer(Box::new(Arrived { instance, number, of, bytes, timed }))).await
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
                self.deliver(Delivery::Notice(notice(kind::INCOMPLETE, text))).await?;
                Ok(None)
            }
        }
    }
}
