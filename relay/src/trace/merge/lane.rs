//! The packets of one CPU, as items.

use std::collections::VecDeque;

use crate::trace::event::{Cause, id};
use crate::trace::merge::{Item, Source};
use crate::trace::packet::{HEADER_LEN, PacketHeader, ReadError, lost_of};
use crate::trace::record::{RECORD_OVERHEAD, first};

/// The streams of one CPU.
#[derive(Debug)]
pub(super) struct Lane<S> {
    cpu: u32,
    /// Streams; the first is being read.
    sources: VecDeque<S>,
    /// The packet, with its header.
    packet: Vec<u8>,
    /// Where the next record begins in the packet.
    at: usize,
    /// Where the records end in the packet.
    end: usize,
    /// The stamp with which the packet ends.
    end_stamp: u64,
    /// What there is to say before the next record, with the stamps near which it happened, in order.
    notices: VecDeque<(u64, Item<'static>)>,
    /// Number and losses of the packet before.
    previous: Option<(u64, u64)>,
    /// Whether a merge knows that there may be items.
    is_queued: bool,
}

impl<S: Source> Lane<S> {
    pub(super) fn new(cpu: u32) -> Lane<S> {
        Lane {
            cpu,
            sources: VecDeque::new(),
            packet: Vec::new(),
            at: 0,
            end: 0,
            end_stamp: 0,
            notices: VecDeque::new(),
            previous: None,
            is_queued: false,
        }
    }

    pub(super) fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Adds a stream. Returns whether the lane had no items before.
    pub(super) fn push(&mut self, source: S) -> bool {
        self.sources.push_back(source);
        !std::mem::replace(&mut self.is_queued, true)
    }

    /// Returns the stamp of the next item; reads the next packet if it takes that.
    #[inline]
    pub(super) fn head(&mut self) -> Option<u64> {
        if self.notices.is_empty()
            && let Some(record) = first(&self.packet[self.at..self.end])
        {
            return Some(record.stamp);
        }
        self.slow_head()
    }

    #[cold]
    fn slow_head(&mut self) -> Option<u64> {
        loop {
            if let Some((stamp, _)) = self.notices.front() {
                return Some(*stamp);
            }
            let rest = &self.packet[self.at..self.end];
            if !rest.is_empty() {
                // A stamp of damaged bytes means nothing.
                return Some(first(rest).map_or(self.end_stamp, |record| record.stamp));
            }
            let Some(source) = self.sources.front_mut() else {
                self.is_queued = false;
                return None;
            };
            let next = source.next_packet(&mut self.packet);
            while let Some(notice) = source.notice() {
                if notice.restarts {
                    self.previous = None;
                }
                self.notices.push_back((self.end_stamp, Item::Notice(notice)));
            }
            match next {
                Ok(Some(header)) => self.begin(&header),
                Ok(None) => self.end_of_stream(None),
                Err(error) => self.end_of_stream(Some(error)),
            }
        }
    }

    fn end_of_stream(&mut self, error: Option<ReadError>) {
        self.sources.pop_front();
        (self.at, self.end) = (0, 0);
        // What is wrong with a stream is wrong behind its last packet.
        self.notices.extend(error.map(|error| (self.end_stamp, Item::Failed(error))));
    }

    /// Begins with a packet: what was lost before it, and then its records.
    ///
    /// A buffer is full from the end of one packet to the begin of the next, and sub-buffers that were overwritten lay
    /// between the two. So these losses began behind the packet before. When else a message was lost is not known: at
    /// some time up to the end of this packet.
    fn begin(&mut self, header: &PacketHeader) {
        let records = usize::try_from(header.records_len).unwrap_or(usize::MAX);
        self.at = HEADER_LEN.min(self.packet.len());
        self.end = HEADER_LEN.saturating_add(records).min(self.packet.len());
        let begin = header.begin;
        let behind_last = if self.previous.is_some() { self.end_stamp.min(begin) } else { begin };
        self.end_stamp = header.end;
        let (number, discarded) = (header.number, header.discarded);
        let (before, discarded_before) =
            self.previous.replace((number, discarded)).unwrap_or((number, discarded));
        if number > before && number - before > 1 {
            self.notices.push_back((behind_last, Item::Gap { first: before + 1, last: number - 1 }));
        }
        // Records of losses at a packet's start say why, those that the maker of the packet knew.
        let mut unknown = discarded.saturating_sub(discarded_before);
        while let Some(record) = first(&self.packet[self.at..self.end])
            && let Some((messages, cause)) = lost_of(&record)
        {
            self.at += record.encoded_len();
            // What another program has read in part is no loss of the buffer, and has no cause.
            unknown = unknown.saturating_sub(if cause.is_some() { messages } else { 0 });
            let stamp = if cause == Some(Cause::Full) { behind_last } else { begin };
            self.notices.push_back((stamp, Item::Lost { messages, cause }));
        }
        if unknown > 0 {
            self.notices.push_back((begin, Item::Lost { messages: unknown, cause: None }));
        }
        self.notices.make_contiguous().sort_by_key(|(stamp, _)| *stamp);
    }

    /// Takes the next item, and its stamp. [`Lane::head`] has shown that there is one.
    #[inline]
    pub(super) fn take(&mut self) -> Option<(u64, Item<'_>)> {
        if !self.notices.is_empty() {
            return self.notices.pop_front();
        }
        let rest = &self.packet[self.at..self.end];
        if let Some(record) = first(rest) {
            self.at += RECORD_OVERHEAD + record.payload.len();
            if record.id == id::LOST
                && let Some((messages, cause)) = lost_of(&record)
            {
                return Some((record.stamp, Item::Lost { messages, cause }));
            }
            return Some((record.stamp, Item::Record(record)));
        }
        self.at = self.end;
        Some((self.end_stamp, Item::Damaged { bytes: rest.len() }))
    }
}
