//! A CPU's buffer, and the tasks that bring its sub-buffers into the stream.
//!
//! ```text
//!            +--no room--> entering --+
//!            |                        v
//! at rest ---+---------------------> take --is it stored?--> finding --yes--> given back, at rest
//!    ^                                |                         |
//!    |                                +<-----------no-----------+
//!    |                                v
//!    +--all stored, or taken again-- storing <--- further ones
//! ```
//!
//! Each is given back when it is stored, and those before it are.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use relay::trace::packet::{Losses, PacketMaker};
use tokio::sync::Notify;

use super::feed::Feed;
use super::lane::{Answer, Lane, Put};
use super::pauses;
use super::window::Room;
use super::written::End;
use crate::server::pause;

/// Tries of the first attempt to store a sub-buffer, and of those behind it.
const TRIES: [u32; 2] = [pauses::TRIES, 1];

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
    /// Sub-buffers that are on the way, or go there next.
    pub(crate) feed: Rc<Feed>,
    /// Whether a task stores those.
    pub(crate) is_storing: bool,
    /// Number of the last one of them.
    pub(crate) fed: Option<u64>,
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
    /// All that was in the feed is stored, or the server does not take the next of it.
    Put(Put),
}

impl Cpu {
    /// `progress` hears of sub-buffers that are stored.
    pub(crate) fn new(lane: Lane, progress: &Rc<Notify>) -> Cpu {
        Cpu {
            lane: Some(lane),
            room: None,
            taken: None,
            feed: Rc::new(Feed::new(progress)),
            is_storing: false,
            fed: None,
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
        self.feed.clear();
        (self.taken, self.room, self.fed, self.maker) = (None, None, None, None);
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
