//! The sub-buffers of a CPU that are on their way into the stream.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use audience::Geometry;
use bytes::Bytes;
use relay::clock::Timeline;
use relay::trace::packet::Losses;
use tokio::sync::Notify;

use super::lane::{Bodies, Body, Lane, Put};
use super::texts::{Places, Texts};
use super::window::Room;
use super::written::{End, Proof};
use crate::error::Failure;
use crate::message::{Headers, Meaning, Part, SubBuffer};

/// A generation that no stream has: the headers are right in none.
const NONE: u64 = u64::MAX;

/// A sub-buffer for the stream.
pub(crate) struct Outgoing {
    pub(crate) instance: u64,
    pub(crate) number: u64,
    pub(crate) geometry: Geometry,
    pub(crate) position: u64,
    pub(crate) losses: Losses,
    pub(crate) body: Bytes,
    pub(crate) packet: Option<OfPacket>,
}

/// What else belongs to a packet.
#[derive(Clone)]
pub(crate) struct OfPacket {
    /// The texts that say what it means.
    pub(crate) texts: Rc<Texts>,
    /// Its clock.
    pub(crate) timeline: Timeline,
    /// How it ends.
    pub(crate) end: End,
}

/// Sub-buffers of a CPU. The channel puts them in, and a task stores them.
pub(crate) struct Feed {
    waiting: RefCell<VecDeque<(Outgoing, Room)>>,
    /// Numbers and ends of those that are stored since the last look.
    stored: RefCell<Vec<(u64, End)>>,
    /// How many are not stored.
    len: Cell<usize>,
    /// Says that there are more.
    fed: Notify,
    /// Says that some are stored.
    progress: Rc<Notify>,
}

/// A task's end of a feed.
struct Sending<'f> {
    feed: &'f Feed,
    /// Those that the task has taken and that are not stored.
    taken: VecDeque<(Outgoing, Room)>,
}

impl Feed {
    /// Makes a feed. `progress` hears of sub-buffers that are stored.
    pub(crate) fn new(progress: &Rc<Notify>) -> Feed {
        Feed {
            waiting: RefCell::default(),
            stored: RefCell::default(),
            len: Cell::new(0),
            fed: Notify::new(),
            progress: Rc::clone(progress),
        }
    }

    /// Puts a sub-buffer in, behind the others.
    pub(crate) fn push(&self, outgoing: Outgoing, room: Room) {
        self.waiting.borrow_mut().push_back((outgoing, room));
        self.len.set(self.len.get() + 1);
        self.fed.notify_one();
    }

    /// Returns how many are in it that are not stored.
    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    /// Returns the numbers and ends of those that are stored since the last call.
    pub(crate) fn take_stored(&self) -> Vec<(u64, End)> {
        self.stored.take()
    }

    /// Forgets those that are not stored. No task has the feed.
    pub(crate) fn clear(&self) {
        self.waiting.borrow_mut().clear();
        self.len.set(0);
    }

    /// Stores all of them, and before each packet the texts that it needs.
    pub(crate) async fn store(&self, lane: &mut Lane, tries: u32) -> Result<Put, Failure> {
        lane.store(&mut Sending { feed: self, taken: VecDeque::new() }, tries).await
    }
}

impl Bodies for Sending<'_> {
    fn next(&mut self) -> Option<Body> {
        let (outgoing, room) = self.feed.waiting.borrow_mut().pop_front()?;
        let proof = match &outgoing.packet {
            Some(_) => Proof::Packet,
            None => Proof::Bytes(outgoing.body.clone()),
        };
        let (headers, generation) = match &outgoing.packet {
            None => (outgoing.headers(None), None),
            Some(packet) => match packet.texts.places() {
                Some(places) => (outgoing.headers(Some(places)), Some(places.generation)),
                None => (outgoing.headers(None), Some(NONE)),
            },
        };
        let body = Body::new(headers, outgoing.body.clone(), proof, generation);
        self.taken.push_back((outgoing, room));
        Some(body)
    }

    async fn more(&self) {
        self.feed.fed.notified().await;
    }

    async fn renew(&mut self, body: &mut Body, tries: u32) -> Result<bool, Failure> {
        let Some((outgoing, _)) = self.taken.front() else { return Ok(true) };
        let Some(packet) = &outgoing.packet else { return Ok(true) };
        let Some(places) = packet.texts.send(tries).await? else { return Ok(false) };
        body.renew(outgoing.headers(Some(places)), places.generation);
        Ok(true)
    }

    fn stored(&mut self, _: u64) {
        if let Some((outgoing, _)) = self.taken.pop_front() {
            let end = outgoing.packet.as_ref().map_or((0, None), |packet| packet.end);
            self.feed.stored.borrow_mut().push((outgoing.number, end));
            self.feed.len.set(self.feed.len.get().saturating_sub(1));
            self.feed.progress.notify_one();
        }
    }
}

impl Outgoing {
    /// Returns the headers. `places`: where the texts of a packet are.
    fn headers(&self, places: Option<Places>) -> Headers {
        let meaning = self.packet.as_ref().zip(places).map(|(packet, places)| Meaning {
            timeline: packet.timeline.clone(),
            dictionary: places.dictionary,
            processes: places.processes,
        });
        let sub_buffer = SubBuffer {
            geometry: self.geometry,
            position: self.position,
            lost: self.losses.lost,
            too_big: self.losses.too_big,
            meaning,
        };
        Headers {
            instance: self.instance,
            number: self.number,
            part: Part::WHOLE,
            sub_buffer: Some(sub_buffer),
        }
    }
}
