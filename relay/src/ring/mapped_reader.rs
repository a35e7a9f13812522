//! The reader of a mapped buffer in a process other than the daemon.
//! It finds whole finished sub-buffers in place, and asks the daemon to take them back. It only loads from the mapping.

use crate::layout::position::Position;
use crate::memory::lent::Lent;
use crate::memory::sync::{AtomicU8, Ordering, fence};
use crate::ring::buffer::Buffer;

/// Tries to read records that a writer keeps overwriting.
const TRIES_MAX: u32 = 1000;

/// The reading end of one buffer, for a process that maps the buffer.
#[derive(Debug)]
pub struct MappedReader {
    buffer: Buffer,
    /// Position of the next byte to take.
    cursor: Position,
    /// Number of the first sub-buffer taken and not given back, and the count of them.
    taken: Option<(u64, u64)>,
}

/// A finished sub-buffer, in place.
#[derive(Clone, Copy, Debug)]
pub struct SubBuffer<'a> {
    buffer: &'a Buffer,
    position: Position,
    /// Number of sub-buffers finished before it since the channel was created.
    pub number: u64,
    /// Number of bytes written to the buffer before its own since the channel was created.
    pub begin: u64,
    /// Messages lost in the buffer up to its end, for any cause.
    pub lost: u64,
    /// How many of them were too big; timed channels only.
    pub too_big: u64,
    /// Whether no finished sub-buffer was behind it.
    pub is_last: bool,
    /// Number of bytes in it without padding.
    len: usize,
}

/// What the record of a finished sub-buffer says.
struct Found {
    position: Position,
    number: u64,
    begin: u64,
    len: usize,
    lost: u64,
    too_big: u64,
}

impl MappedReader {
    /// Creates a reader that begins with the unread part.
    /// The mappings behind `buffer` may be read-only.
    pub fn new(buffer: Buffer) -> MappedReader {
        let mut mapped = MappedReader { buffer, cursor: Position(0), taken: None };
        mapped.rewind_to_consumed();
        mapped
    }

    /// Returns the next finished sub-buffer, if there is one.
    /// In overwrite mode some may have been skipped, which shows in their numbers.
    pub fn next_finished(&mut self) -> Option<SubBuffer<'_>> {
        let Found { position, number, begin, len, lost, too_big } = self.find()?;
        self.cursor = self.buffer.widths().next(position);
        let first = self.taken.filter(|(first, count)| first.wrapping_add(*count) == number);
        // The writer has taken skipped sub-buffers, so there is nothing to give back for them.
        self.taken = Some(first.map_or((number, 1), |(first, count)| (first, count + 1)));
        let is_last = !self.has_finished();
        Some(SubBuffer { buffer: &self.buffer, position, number, begin, lost, too_big, is_last, len })
    }

    /// Returns whether there is a finished sub-buffer.
    pub fn has_finished(&self) -> bool {
        self.buffer.widths().before(self.cursor, self.state())
    }

    /// Forgets the taken sub-buffers, and returns their range: number of the first, and their count.
    /// The caller gives the range back to the daemon. If the daemon refuses it, call [`MappedReader::rewind_to_consumed`].
    pub fn give_back_range(&mut self) -> Option<(u64, u64)> {
        self.taken.take()
    }

    /// Forgets the taken sub-buffers up to this number, and returns their range as [`MappedReader::give_back_range`] does.
    pub fn give_back_until(&mut self, number: u64) -> Option<(u64, u64)> {
        let (first, count) = self.taken?;
        let given = number.checked_sub(first)?.saturating_add(1).min(count);
        self.taken = (given < count).then(|| (first.wrapping_add(given), count - given));
        Some((first, given))
    }

    /// Undoes [`MappedReader::give_back_range`] or [`MappedReader::give_back_until`] when the daemon has died.
    /// Whether it took the range is unknown.
    pub fn restore_taken(&mut self, (first, count): (u64, u64)) {
        let later = self.taken.filter(|(next, _)| first.wrapping_add(count) == *next);
        self.taken = Some((first, count.saturating_add(later.map_or(0, |(_, rest)| rest))));
    }

    /// Continues with the next daemon on the same buffer.
    /// Taken sub-buffers are still to give back, unless the last daemon took all of them.
    pub fn attach_next_daemon(&mut self) {
        if !self.buffer.widths().before(self.consumed(), self.cursor) {
            self.taken = None;
        }
    }

    /// Returns the bytes read or lost since the channel was created, as published by the daemon.
    /// The daemon publishes a moment later than it reads. `None` if the writer overwrites the record that is needed.
    pub fn consumed_bytes(&self) -> Option<u64> {
        let widths = self.buffer.widths();
        (0..TRIES_MAX).find_map(|_| {
            let consumed = self.consumed();
            // Relaxed: the daemon loaded this record before it published `consumed`.
            let begin = self.buffer.record(consumed).begin.load(Ordering::Relaxed);
            let later = self.consumed();
            let is_its_record = widths.count(consumed, later) == 0 && !self.buffer.lapped(consumed);
            is_its_record.then(|| begin.wrapping_add(widths.offset(consumed) as u64))
        })
    }

    /// Moves to the first unread byte as the daemon published it.
    /// For use after another reader has read.
    pub fn rewind_to_consumed(&mut self) {
        self.taken = None;
        self.cursor = self.consumed();
    }

    /// Returns whether the channel has ended, so that no more data will come.
    pub fn is_closed(&self) -> bool {
        // Acquire: everything written before the end is visible.
        self.buffer.block().closed.load(Ordering::Acquire) != 0
    }

    /// Finds the next finished sub-buffer.
    fn find(&mut self) -> Option<Found> {
        let (widths, size) = (self.buffer.widths(), self.buffer.geometry().subbuf_size());
        for _ in 0..TRIES_MAX {
            if self.buffer.lapped(self.cursor) {
                self.cursor = self.buffer.oldest_whole();
            }
            if !self.has_finished() {
                return None;
            }
            let record = self.buffer.record(self.cursor);
            // Relaxed: the load of `state` orders them.
            let padding = record.padding.load(Ordering::Relaxed).min(size as u64) as usize;
            let number = record.number.load(Ordering::Relaxed);
            let begin = record.begin.load(Ordering::Relaxed);
            let lost = record.lost.load(Ordering::Relaxed);
            let too_big = record.too_big.load(Ordering::Relaxed).min(lost);
            let consumed = self.consumed();
            if widths.before(self.cursor, consumed) {
                // Another reader has read it, or a reset passed over it. A writer may have begun it again, and its
                // record may describe a later sub-buffer, which this reader has not seen and must not give back.
                if self.taken.is_some() {
                    return None; // the caller first gives back what it took, and is refused
                }
                self.cursor = consumed;
                continue;
            }
            if !widths.before(consumed, self.cursor) && widths.offset(consumed) > widths.offset(self.cursor) {
                // Another reader has read the first part, perhaps before the sub-buffer was finished.
                self.cursor = consumed;
            }
            if !self.buffer.lapped(self.cursor) {
                let offset = widths.offset(self.cursor);
                let len = (size - padding).saturating_sub(offset);
                let (position, begin) = (self.cursor, begin.wrapping_add(offset as u64));
                return Some(Found { position, number, begin, len, lost, too_big });
            }
        }
        None
    }

    /// Returns the position of the daemon's reader.
    /// Records read before are right if it is not past them.
    fn consumed(&self) -> Position {
        fence(Ordering::Acquire);
        // Acquire: everything that the daemon found before is visible here.
        Position(self.buffer.block().consumed.load(Ordering::Acquire))
    }

    fn state(&self) -> Position {
        // B, pairs with A in the writer.
        Position(self.buffer.block().state.load(Ordering::Acquire))
    }
}

impl SubBuffer<'_> {
    /// Returns the number of bytes, without padding.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of bytes at its start that are the rest of a record, which another reader has read in part.
    /// All of them if no record begins there. 0 in a raw channel.
    pub fn cut(&self) -> usize {
        let widths = self.buffer.widths();
        let (offset, begin) = (widths.offset(self.position), widths.at(self.position, 0));
        let mut at = 0;
        while self.buffer.geometry().timed() && at < offset {
            match self.buffer.record_end(begin, at).filter(|next| *next <= offset + self.len) {
                Some(next) => at = next,
                None => return self.len,
            }
        }
        at.saturating_sub(offset)
    }

    /// Returns its bytes in place.
    /// A correct writer does not change them in no-overwrite mode. Other processes share the memory all the same, hence
    /// atomics.
    pub fn bytes(&self) -> &[AtomicU8] {
        self.buffer.data().bytes(self.buffer.ring_offset(self.position), self.len).unwrap_or_default()
    }

    /// Lends its bytes, to copy them or to pass them to the kernel in place.
    pub fn lend(&self) -> Option<Lent<'_>> {
        self.buffer.data().lend(self.buffer.ring_offset(self.position), self.len)
    }

    /// Appends its bytes to `out`.
    pub fn copy_to(&self, out: &mut Vec<u8>) {
        self.buffer.data().copy_out(self.buffer.ring_offset(self.position), self.len, out);
    }

    /// Returns whether no writer has begun to overwrite it, so that an earlier copy is right.
    /// In no-overwrite mode a writer overwrites a sub-buffer that another reader, or a reset, has given back.
    pub fn is_whole(&self) -> bool {
        !self.buffer.is_begun_again(self.position)
    }
}

#[cfg(test)]
mod tests;
