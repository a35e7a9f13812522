//! Merges the packets of all CPUs into one order.

mod lane;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Read;

use crate::trace::event::Cause;
use crate::trace::merge::lane::Lane;
use crate::trace::packet::{PacketHeader, PacketReader, ReadError};
use crate::trace::record::Record;

/// Where the packets of a CPU come from: a packet stream.
pub trait Source {
    /// Puts the next packet into `packet`, with its header. Returns `None` at the end.
    fn next_packet(&mut self, packet: &mut Vec<u8>) -> Result<Option<PacketHeader>, ReadError>;

    /// Returns what there is to say in front of what [`Source::next_packet`] has just returned.
    fn notice(&mut self) -> Option<Notice> {
        None
    }
}

/// Something that a source says, apart from its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// A word for programs.
    pub kind: &'static str,
    /// A text for people; it may have been written by another process.
    pub text: String,
    /// Numbers and losses of the packets behind it count from the start.
    pub restarts: bool,
}

impl<R: Read> Source for PacketReader<R> {
    fn next_packet(&mut self, packet: &mut Vec<u8>) -> Result<Option<PacketHeader>, ReadError> {
        self.read(packet)
    }
}

/// What a merge yields.
#[derive(Debug)]
pub enum Item<'a> {
    /// A record.
    Record(Record<'a>),
    /// Messages that were lost before the next record of this CPU.
    Lost {
        /// How many.
        messages: u64,
        /// Why, if it is known.
        cause: Option<Cause>,
    },
    /// Sub-buffers that were given up for newer messages, before the next record of this CPU.
    Gap {
        /// Number of the first.
        first: u64,
        /// Number of the last.
        last: u64,
    },
    /// Bytes that are no records, up to the end of a packet.
    Damaged {
        /// How many.
        bytes: usize,
    },
    /// A stream that cannot be read on.
    Failed(ReadError),
    /// Something that the source says.
    Notice(Notice),
}

/// An item with its place in the order.
#[derive(Debug)]
pub struct Entry<'a> {
    /// CPU of the buffer.
    pub cpu: u32,
    /// Stamp of the record; of something else, a stamp near which it happened.
    pub stamp: u64,
    /// The item is a record that comes behind a younger one.
    pub late: bool,
    /// What there is.
    pub item: Item<'a>,
}

/// Merges packet streams by stamp; of two equal stamps the lower CPU comes first.
///
/// It keeps one packet of each CPU in memory.
#[derive(Debug)]
pub struct Merge<S> {
    lanes: Vec<Lane<S>>,
    /// Lanes by the stamp of their next item, the active lane apart.
    waiting: BinaryHeap<Reverse<(u64, u32, usize)>>,
    /// The lane whose items come next, while they are not behind `limit`.
    active: Option<usize>,
    /// Stamp and CPU of the first lane that waits.
    limit: (u64, u32),
    /// Lanes that have got a stream and are not yet looked at.
    fresh: Vec<usize>,
    horizon: u64,
    newest: u64,
}

impl<S: Source> Default for Merge<S> {
    fn default() -> Merge<S> {
        Merge::new()
    }
}

impl<S: Source> Merge<S> {
    /// Returns a merge without streams.
    pub fn new() -> Merge<S> {
        Merge {
            lanes: Vec::new(),
            waiting: BinaryHeap::new(),
            active: None,
            limit: (u64::MAX, u32::MAX),
            fresh: Vec::new(),
            horizon: u64::MAX,
            newest: 0,
        }
    }

    /// Adds a stream behind the other streams of its CPU.
    pub fn push(&mut self, cpu: u32, source: S) {
        let found = self.lanes.iter().position(|lane| lane.cpu() == cpu);
        let index = found.unwrap_or_else(|| {
            self.lanes.push(Lane::new(cpu));
            self.lanes.len() - 1
        });
        if self.lanes[index].push(source) {
            self.fresh.push(index);
        }
    }

    /// Sets the youngest stamp that may come next. Younger items wait for another horizon.
    ///
    /// A reader of a live channel notes the clock, takes a copy of every buffer, pushes the copies, and sets the horizon
    /// a microsecond before the note: what it has not copied is younger.
    pub fn set_horizon(&mut self, stamp: u64) {
        self.horizon = stamp;
    }

    /// Returns the next item; `None` if there is none, or none up to the horizon.
    #[expect(clippy::should_implement_trait, reason = "an item borrows the packet that it lies in")]
    pub fn next(&mut self) -> Option<Entry<'_>> {
        if !self.fresh.is_empty() {
            self.look_at_fresh();
        }
        let index = self.choose()?;
        let lane = &mut self.lanes[index];
        let (cpu, newest) = (lane.cpu(), self.newest);
        let (stamp, item) = lane.take()?;
        self.newest = newest.max(stamp);
        // A loss may be told long after it happened.
        let late = stamp < newest && matches!(item, Item::Record(_));
        Some(Entry { cpu, stamp, late, item })
    }

    fn look_at_fresh(&mut self) {
        self.fresh.extend(self.active.take());
        while let Some(index) = self.fresh.pop() {
            self.enqueue(index);
        }
    }

    /// Puts a lane where it waits for its turn, if it has another item.
    fn enqueue(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if let Some(stamp) = lane.head() {
            self.waiting.push(Reverse((stamp, lane.cpu(), index)));
        }
    }

    /// Returns the lane whose item comes next.
    #[inline]
    fn choose(&mut self) -> Option<usize> {
        let Some(index) = self.active else { return self.activate() };
        let lane = &mut self.lanes[index];
        let cpu = lane.cpu();
        match lane.head() {
            Some(stamp) if stamp <= self.horizon && (stamp, cpu) <= self.limit => Some(index),
            Some(stamp) => self.change_lane((stamp, cpu, index)),
            None => self.activate(),
        }
    }

    /// Makes the lane that has waited longest the active one.
    fn activate(&mut self) -> Option<usize> {
        self.active = None;
        let &Reverse((stamp, _, index)) = self.waiting.peek()?;
        if stamp > self.horizon {
            return None;
        }
        self.waiting.pop();
        Some(self.begin_lane(index))
    }

    /// Lets the active lane wait, and makes another the active one.
    fn change_lane(&mut self, active: (u64, u32, usize)) -> Option<usize> {
        let horizon = self.horizon;
        // In one step: the heap is mended once.
        let next = self.waiting.peek_mut().filter(|top| top.0.0 <= horizon);
        let next = next.map(|mut top| std::mem::replace(&mut *top, Reverse(active)));
        if let Some(Reverse((.., index))) = next {
            return Some(self.begin_lane(index));
        }
        self.waiting.push(Reverse(active));
        self.activate()
    }

    fn begin_lane(&mut self, index: usize) -> usize {
        self.active = Some(index);
        let first = self.waiting.peek();
        self.limit = first.map_or((u64::MAX, u32::MAX), |&Reverse((stamp, cpu, _))| (stamp, cpu));
        index
    }
}

#[cfg(test)]
mod tests;
