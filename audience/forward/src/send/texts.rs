//! The texts that say what a timed channel's packets mean. They must be in the stream before the packets.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay::ChannelName;
use tokio::sync::Mutex;

use super::lane::Lane;
use super::link::Link;
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
    /// The number and the text of the last try, unless that is known to be stored. It may be stored later.
    tried: Option<(u64, Bytes)>,
    /// Sequence of the first message with the text, and the stream's generation then.
    place: Option<(u64, u64)>,
    /// How often messages had been removed from the stream when it was known to be there.
    removals: u64,
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
            let lane = Lane::new(link, &subject, instance);
            Text { lane, text: Bytes::new(), tried: None, place: None, removals: 0 }
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
                    let may_be_removed = text.removals != self.link.removals();
                    may_be_removed || generation != self.link.generation() || self.link.is_old(sequence)
                })
            })
        })
    }

    /// Returns where the texts are, if all are in the stream.
    pub(crate) fn places(&self) -> Option<Places> {
        let sent = self.sent.try_lock().ok().filter(|sent| sent.at.elapsed() < AGAIN)?;
        let generation = self.link.generation();
        let dictionary = self.place(&sent.metadata, &self.metadata.borrow(), generation)?;
        let processes = self.processes.borrow();
        let processes = match processes.is_empty() {
            true => None,
            false => Some(self.place(&sent.processes, &processes, generation)?),
        };
        Some(Places { dictionary, processes, generation })
    }

    /// Returns the sequence of a text in this generation of the stream, if it is there and stays.
    fn place(&self, sent: &Text, text: &Bytes, generation: u64) -> Option<u64> {
        self.place_before(sent, text, generation).filter(|_| sent.removals == self.link.removals())
    }

    /// Returns the sequence like [`Self::place`], but the text may have been removed from there since.
    fn place_before(&self, sent: &Text, text: &Bytes, generation: u64) -> Option<u64> {
        let place = sent.place.filter(|_| sent.text == *text);
        let place = place.filter(|(sequence, of)| *of == generation && !self.link.is_old(*sequence));
        place.map(|(sequence, _)| sequence)
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
        if let Some(sequence) = self.place(sent, &text, generation) {
            return Ok(Some(sequence));
        }
        let removals = self.link.removals();
        if let Some(sequence) = self.place_before(sent, &text, generation)
            && sent.lane.has_parts(sequence).await.is_ok_and(|has_parts| has_parts)
        {
            sent.removals = removals;
            return Ok(Some(sequence));
        }
        let Some(number) = sent.lane.next_number(tries).await else { return Ok(None) };
        let number = number_of(number, sent.tried.as_ref(), &text);
        sent.tried = Some((number, text.clone()));
        let headers = Headers { instance: self.instance, number, part: Part::WHOLE, sub_buffer: None };
        let stored = sent.lane.put(headers, text.clone(), tries).await?;
        if let Some(sequence) = stored {
            (sent.text, sent.place, sent.removals) = (text, Some((sequence, generation)), removals);
            sent.tried = None;
        }
        Ok(stored)
    }
}

/// Returns the number of a text, of which the stream has those before `next`.
///
/// A try that was given up may be stored later. Its number is proof that its text is there, so no other text has that.
fn number_of(next: u64, tried: Option<&(u64, Bytes)>, text: &Bytes) -> u64 {
    match tried {
        None => next,
        Some((number, of)) if of == text => next.max(*number),
        Some((number, _)) => next.max(number.saturating_add(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_a_try_is_for_its_text_alone() {
        let [one, two] = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        assert_eq!(number_of(3, None, &one), 3);
        let tried = (3, one.clone());
        assert_eq!([3, 2, 9].map(|next| number_of(next, Some(&tried), &one)), [3, 3, 9]);
        assert_eq!([3, 2, 9].map(|next| number_of(next, Some(&tried), &two)), [4, 4, 9]);
    }
}
