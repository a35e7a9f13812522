//! Makes CTF packets of a copy of a timed channel's buffer: one of each sub-buffer.

use std::borrow::Cow;
use std::ops::Range;

use relay::Mode;
use relay::ring::reader::Mark;
use relay::trace::event::Cause;
use relay::trace::packet::{HEADER_LEN, Losses, PacketMaker, SubBuffer};

use super::Timed;
use crate::channel::Channel;

/// Most bytes that a packet has besides the records of its sub-buffer: its header, and records about losses.
pub(crate) const PACKET_OVERHEAD: usize = HEADER_LEN + 4 * 32;

/// Where the sub-buffers begin in a copy of a buffer.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    list: Vec<Mark>,
    len: usize,
}

impl Marks {
    /// Adds the marks of the `len` bytes that were copied to `from` of the copy.
    ///
    /// What was copied for that place, or one behind it, is void.
    pub(crate) fn add(&mut self, from: usize, len: usize, marks: impl IntoIterator<Item = Mark>) {
        if from < self.len {
            self.list.retain(|mark| mark.at < from);
        }
        for mark in marks {
            // A copy that starts over has an empty sub-buffer again.
            self.list.retain(|before| before.number < mark.number);
            self.list.push(mark);
        }
        self.len = from + len;
    }

    /// Returns the most bytes that the copy's packets have.
    pub(crate) fn packets_max(&self) -> usize {
        self.len + self.list.len() * PACKET_OVERHEAD
    }

    /// Passes the packets of the copy to `put`, one after another.
    ///
    /// `part` returns bytes of the copy.
    pub(crate) fn packets<'c, E>(
        &self,
        channel: &Channel,
        timed: &Timed,
        cpu: usize,
        mut part: impl FnMut(Range<usize>) -> Result<Cow<'c, [u8]>, E>,
        mut put: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Read behind the copy: no record in it is newer.
        let newest = timed.newest_stamp();
        let definitions = timed.definitions();
        let cause = match channel.geometry().mode() {
            Mode::NoOverwrite => Cause::Full,
            Mode::Overwrite => Cause::Contended,
        };
        let mut maker = PacketMaker::new(cpu as u32, 0, None);
        let mut losses = Losses::default();
        let mut packet = Vec::new();
        for (index, mark) in self.list.iter().enumerate() {
            let end = self.list.get(index + 1).map_or(self.len, |next| next.at);
            let begin = mark.skip.map_or(end, |skip| mark.at.saturating_add(skip)).min(end);
            let records = part(begin..end)?;
            // Other processes can write these counters, and readers take them for running totals.
            losses.lost = losses.lost.max(mark.lost);
            losses.too_big = losses.too_big.max(mark.too_big).min(losses.lost);
            let subbuf = SubBuffer { number: mark.number, losses, newest, cause, records: &records };
            packet.clear();
            if mark.skip != Some(0) {
                maker.note_cut();
            }
            maker.packet(&subbuf, &definitions, &mut packet);
            // The last sub-buffer may not have begun. The others must stay, or readers see a gap in the numbers.
            let is_empty = end == mark.at && index + 1 == self.list.len();
            if packet.len() > HEADER_LEN || !is_empty {
                put(&packet)?;
            }
        }
        Ok(())
    }
}
