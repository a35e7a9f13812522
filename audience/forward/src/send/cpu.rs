//! A CPU's buffer, and the tasks that bring its sub-buffers into the stream.
//!
//! ```text
//!            +--no room--> entering --+
//!            |                        v
//! at rest ---+---------------------> take --is it stored?--> finding --yes--> given back, at rest
//!    ^                                |                         |
//!    |                                +<-----------no-----------+
//!    |                                v
//!    +--given back, or taken again-- storing
//! ```

use std::rc::Rc;
use std::time::Instant;

use audience::Geometry;
use bytes::Bytes;
use relay::clock::Timeline;
use relay::trace::packet::{Losses, PacketMaker};

use super::lane::{Answer, Lane, Put};
use super::texts::Texts;
use super::window::Room;
use super::written::{End, Proof};
use crate::error::Failure;
use crate::message::{Headers, Meaning, Part, SubBuffer};
use crate::server::pause;

/// Tries of the first attempt to store a sub-buffer, and of those behind it.
const TRIES: [u32; 2] = [3, 1];

/// A copied sub-buffer.
pub(crate) struct Taken {
    pub(crate) number: u64,
    pub(crate) position: u64,
    pub(crate) losses: Losses,
    /// Bytes at the start that are the rest of a record.
    pub(crate) cut: usize,
    pub(crate) bytes: Bytes,
}

/// A CPU's buffer.
pub(crate) struct Cpu {
    /// `None` while a task has it.
    pub(crate) lane: Option<Lane>,
    /// Room on the way for the next sub-buffer.
    pub(crate) room: Option<Room>,
    /// A sub-buffer that was taken and is not on the way.
    pub(crate) taken: Option<Taken>,
    /// Whether the first sub-buffer was found that the stream does not have.
    pub(crate) is_known: bool,
    /// Number of the last sub-buffer that is stored.
    pub(crate) stored: Option<u64>,
    pub(crate) maker: Option<PacketMaker>,
    /// How the last packet in the stream ends.
    pub(crate) before: End,
    /// How often the next sub-buffer was refused.
    refused: u32,
    /// When it is tried again.
    again: Option<Instant>,
}

/// What became of a CPU's task.
pub(crate) enum Done {
    /// There is room for one more message.
    Entered(Option<Room>),
    /// The server says whether it has a sub-buffer. `None`: it does not answer.
    Found(Taken, Room, Option<Answer>),
    /// The sub-buffer with this number is stored; how it ends.
    Stored(u64, End),
    /// The server does not take it.
    Refused,
}

impl Cpu {
    pub(crate) fn new(lane: Lane) -> Cpu {
        Cpu {
            lane: Some(lane),
            room: None,
            taken: None,
            is_known: false,
            stored: None,
            maker: None,
            before: (0, None),
            refused: 0,
            again: None,
        }
    }

    /// Whether a sub-buffer was refused, and it is too early for the next try.
    pub(crate) fn rests(&self) -> bool {
        self.again.is_some_and(|again| again > Instant::now())
    }

    /// Whether a sub-buffer was refused, which is still there: by the server, or because its dictionary is missing.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused > 0
    }

    /// Returns how often the server is asked before others get the room.
    pub(crate) fn tries(&self) -> u32 {
        TRIES[usize::from(self.is_refused())]
    }

    /// Notes that a sub-buffer was refused. Packets begin again behind what is stored.
    pub(crate) fn note_refused(&mut self) {
        self.maker = None;
        self.refused = self.refused.saturating_add(1);
        self.again = Some(Instant::now() + pause(self.refused.saturating_add(1)));
    }

    /// Ends the time before the next try.
    pub(crate) fn hurry(&mut self) {
        self.again = None;
    }

    /// Notes that there is nothing to store: another program may have read it.
    pub(crate) fn note_nothing(&mut self) {
        // Others can use it.
        self.room = None;
        (self.refused, self.again) = (0, None);
    }

    /// Notes that a sub-buffer is stored.
    pub(crate) fn note_stored(&mut self, number: u64, end: End) {
        (self.stored, self.before) = (Some(number), end);
        (self.refused, self.again) = (0, None);
    }
}

/// A sub-buffer for the stream.
pub(crate) struct Outgoing {
    pub(crate) instance: u64,
    pub(crate) number: u64,
    pub(crate) geometry: Geometry,
    pub(crate) position: u64,
    pub(crate) losses: Losses,
    pub(crate) body: Bytes,
    /// Of a packet: the texts that say what it means, its clock, and how it ends.
    pub(crate) packet: Option<(Rc<Texts>, Timeline, End)>,
    pub(crate) tries: u32,
}

impl Outgoing {
    /// Stores the sub-buffer, and before it the texts that it needs.
    pub(crate) async fn store(self, lane: &mut Lane) -> Result<Done, Failure> {
        let mut sub_buffer = SubBuffer {
            geometry: self.geometry,
            position: self.position,
            lost: self.losses.lost,
            too_big: self.losses.too_big,
            meaning: None,
        };
        let end = self.packet.as_ref().map_or((0, None), |(_, _, end)| *end);
        let proof = match &self.packet {
            Some(_) => Proof::Packet,
            None => Proof::Bytes(self.body.clone()),
        };
        loop {
            let mut generation = None;
            if let Some((texts, timeline, _)) = &self.packet {
                let Some(places) = texts.send(self.tries).await? else { return Ok(Done::Refused) };
                let (dictionary, processes) = (places.dictionary, places.processes);
                sub_buffer.meaning = Some(Meaning { timeline: timeline.clone(), dictionary, processes });
                generation = Some(places.generation);
            }
            let headers = Headers {
                instance: self.instance,
                number: self.number,
                part: Part::WHOLE,
                sub_buffer: Some(sub_buffer.clone()),
            };
            match lane.put(&headers, &self.body, &proof, generation, self.tries).await? {
                Put::Stored(_) => return Ok(Done::Stored(self.number, end)),
                Put::Refused => return Ok(Done::Refused),
                Put::Outdated => {}
            }
        }
    }
}
