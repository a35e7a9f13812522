//! The texts that say what a timed channel's packets mean. They must be in the stream before the packets.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay::ChannelName;
use tokio::sync::Mutex;

use super::lane::{Lane, Put};
use super::link::Link;
use super::written::Proof;
use crate::error::Failure;
use crate::message::{Headers, Kind, Part, Subject};

/// Time after which the texts are sent again, for streams that drop messages by their age.
const AGAIN: Duration = Duration::from_secs(600);

/// The texts of a channel.
pub(crate) struct Texts {
    link: Rc<Link>,
    instance: u64,
    metadata: RefCell<Bytes>,
    processes: RefCell<Bytes>,
    /// One task at a time sends. Others wait for the same texts.
    sent: Mutex<Sent>,
}

/// What is in the stream.
struct Sent {
    metadata: Text,
    processes: Text,
    /// When they were sent.
    at: Instant,
    /// When the server did not take them.
    refused: Option<Instant>,
}

/// A text in the stream.
struct Text {
    lane: Lane,
    text: Bytes,
    /// Sequence of the first message with the text, and the stream's generation then.
    place: Option<(u64, u64)>,
}

/// Where the texts are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// Sequence of the dictionary.
    pub(crate) dictionary: u64,
    /// Sequence of the processes; `None`: there are none.
    pub(crate) processes: Option<u64>,
    /// In this generation of the stream.
    pub(crate) generation: u64,
}

impl Texts {
    pub(crate) fn new(link: &Rc<Link>, (host, channel): (&str, &ChannelName), instance: u64) -> Texts {
        let text = |kind| {
            let subject = Subject { host: host.to_owned(), channel: channel.clone(), kind };
            Text { lane: Lane::new(link, &subject, instance), text: Bytes::new(), place: None }
        };
        let (metadata, processes) = (text(Kind::Metadata), text(Kind::Processes));
        Texts {
            link: Rc::clone(link),
            instance,
            metadata: RefCell::default(),
            processes: RefCell::default(),
            sent: Mutex::new(Sent { metadata, processes, at: Instant::now(), refused: None }),
        }
    }

    /// Takes over the dictionary as it is now.
    pub(crate) fn set_metadata(&self, text: String) {
        self.metadata.replace(text.into());
    }

    /// Takes over the processes as they are now.
    pub(crate) fn set_processes(&self, text: String) {
        self.processes.replace(text.into());
    }

    /// Returns whether the stream drops the texts soon, or has dropped them, and packets that need them may be there.
    pub(crate) fn are_old(&self) -> bool {
        // While they are sent, they are not old.
        self.sent.try_lock().is_ok_and(|sent| {
            [&sent.metadata, &sent.processes].iter().any(|text| {
                text.place.is_some_and(|(sequence, generation)| {
                    generation != self.link.generation() || self.link.is_old(sequence)
                })
            })
        })
    }

    /// Sends the texts, as far as they are not in the stream. `None`: the server does not take them.
    pub(crate) async fn send(&self, tries: u32) -> Result<Option<Places>, Failure> {
        let asked = Instant::now();
        let mut sent = self.sent.lock().await;
        // Each CPU waits for the same texts. One of them tries.
        if sent.refused.is_some_and(|refused| refused >= asked) {
            return Ok(None);
        }
        let places = self.send_locked(&mut sent, tries).await?;
        sent.refused = places.is_none().then(Instant::now);
        Ok(places)
    }

    async fn send_locked(&self, sent: &mut Sent, tries: u32) -> Result<Option<Places>, Failure> {
        if sent.at.elapsed() >= AGAIN {
            (sent.metadata.place, sent.processes.place, sent.at) = (None, None, Instant::now());
        }
        let generation = self.link.generation();
        let metadata = self.metadata.borrow().clone();
        let Some(dictionary) = self.send_one(&mut sent.metadata, metadata, generation, tries).await? else {
            return Ok(None);
        };
        let processes = self.processes.borrow().clone();
        let processes = match processes.is_empty() {
            true => None,
            false => match self.send_one(&mut sent.processes, processes, generation, tries).await? {
                Some(sequence) => Some(sequence),
                None => return Ok(None),
            },
        };
        Ok(Some(Places { dictionary, processes, generation }))
    }

    async fn send_one(
        &self,
        sent: &mut Text,
        text: Bytes,
        generation: u64,
        tries: u32,
    ) -> Result<Option<u64>, Failure> {
        let place = sent.place.filter(|_| sent.text == text);
        if let Some((sequence, _)) =
            place.filter(|(sequence, of)| *of == generation && !self.link.is_old(*sequence))
        {
            return Ok(Some(sequence));
        }
        let Some(number) = sent.lane.next_number(tries).await else { return Ok(None) };
        let headers = Headers { instance: self.instance, number, part: Part::WHOLE, sub_buffer: None };
        match sent.lane.put(&headers, &text, &Proof::Nothing, None, tries).await? {
            Put::Stored(sequence) => {
                (sent.text, sent.place) = (text, Some((sequence, generation)));
                Ok(Some(sequence))
            }
            Put::Refused | Put::Outdated => Ok(None),
        }
    }
}
