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

    /// Undoes [`MappedReader::give_back_range`] when the daemon has died.
    /// Whether it took the range is unknown.
    pub fn restore_taken(&mut self, (first, count): (u64, u64)) {
        self.taken = Some((first, count));
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
    /// Always true in no-overwrite mode until the sub-buffer is given back.
    pub fn is_whole(&self) -> bool {
        !self.buffer.lapped(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GeometrySpec;
    use crate::ring::reader::{ConsumeError, Reader};
    use crate::ring::writer::{SoleWriter, Writer};

    fn buffer(spec: &str) -> Buffer {
        let spec: GeometrySpec = spec.parse().unwrap();
        Buffer::anonymous(spec.build().unwrap(), 0).unwrap()
    }

    fn text(sub_buffer: SubBuffer<'_>) -> String {
        let mut bytes = Vec::new();
        sub_buffer.copy_to(&mut bytes);
        let seen: Vec<u8> = sub_buffer.bytes().iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        assert_eq!(seen, bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn finished_sub_buffers_are_seen_once_and_given_back_by_number() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let mut mapped = MappedReader::new(buffer.clone());
        assert!(mapped.next_finished().is_none());
        for message in [b"aaaaa", b"bbbbb", b"ccccc"] {
            writer.write(message).unwrap();
        }
        assert_eq!(text(mapped.next_finished().unwrap()), "aaaaa");
        let second = mapped.next_finished().unwrap();
        assert_eq!((second.number, second.len(), second.is_whole()), (1, 5, true));
        assert!(mapped.next_finished().is_none(), "the third is not finished");
        assert_eq!(mapped.give_back_range(), Some((0, 2)));
        assert_eq!(reader.consume(Some(0), 2), Ok(true));
        assert_eq!(reader.consume(Some(0), 1), Err(ConsumeError::Stale { next: 2 }));
        assert_eq!(reader.consume(Some(2), 1), Err(ConsumeError::TooMany { finished: 0 }));
        writer.flush().unwrap();
        assert_eq!(text(mapped.next_finished().unwrap()), "ccccc");
        assert_eq!(mapped.give_back_range(), Some((2, 1)));
        assert_eq!(mapped.give_back_range(), None);
    }

    #[test]
    fn partly_read_sub_buffer_is_seen_from_there_and_counts_as_one() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        writer.write(b"abcdefg").unwrap();
        writer.flush().unwrap();
        reader.read(3, &mut Vec::new(), |bytes| assert_eq!(bytes, b"abc"));
        let mut mapped = MappedReader::new(buffer.clone());
        assert_eq!(mapped.consumed_bytes(), Some(3));
        let next = mapped.next_finished().unwrap();
        assert_eq!((next.begin, text(next)), (3, "defg".to_owned()));
        assert_eq!(reader.consume(mapped.give_back_range().map(|(from, _)| from), 1), Ok(true));
        assert_eq!(reader.unread(), 0);
        assert_eq!(buffer.block().read_bytes.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn losses_are_those_up_to_the_sub_buffers_end() {
        let buffer = buffer("subbuf-size=64:n-subbufs=2:timed");
        let writer = Writer::new(&buffer, SoleWriter);
        let mut mapped = MappedReader::new(buffer.clone());
        for len in [10, 100] {
            let head = crate::trace::record::Head { id: 0, tid: 1, len };
            writer.place_record(head.to_word(), &vec![b'x'; len.into()]).unwrap();
        }
        writer.flush().unwrap();
        let first = mapped.next_finished().unwrap();
        assert_eq!((first.number, first.lost, first.too_big), (0, 1, 1));
    }

    #[test]
    fn rest_of_a_record_that_was_read_in_part_is_cut() {
        let buffer = buffer("subbuf-size=128:n-subbufs=3:timed");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        for _ in 0..3 {
            let head = crate::trace::record::Head { id: 0, tid: 1, len: 4 };
            writer.place_record(head.to_word(), b"text").unwrap();
        }
        writer.flush().unwrap();
        for (read, cut, len) in [(0, 0, 60), (5, 15, 55), (15, 0, 40), (39, 1, 1)] {
            reader.read(read, &mut Vec::new(), |_| {});
            let mut mapped = MappedReader::new(buffer.clone());
            let next = mapped.next_finished().unwrap();
            assert_eq!((next.cut(), next.len()), (cut, len), "{read} bytes more");
        }
    }

    #[test]
    fn sub_buffer_read_by_another_reader_is_not_seen_or_given_back() {
        for mode in ["no-overwrite", "overwrite"] {
            let buffer = buffer(&format!("subbuf-size=8:n-subbufs=3:{mode}"));
            let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
            let mut mapped = MappedReader::new(buffer.clone());
            let mut pass = |text: &[u8]| {
                writer.write(text).unwrap();
                writer.flush().unwrap();
                reader.read(10, &mut Vec::new(), |bytes| assert_eq!(bytes, text));
            };
            // Twice around the ring: the record at the cursor has another number by now.
            (0..6).for_each(|_| pass(b"theirs"));
            writer.write(b"ours").unwrap();
            assert!(mapped.next_finished().is_none(), "{mode}");
            writer.flush().unwrap();
            let next = mapped.next_finished().unwrap();
            assert_eq!((next.number, text(next)), (6, "ours".to_owned()), "{mode}");
            // Taken here, and read by another reader: this one has to give it back first.
            reader.read(10, &mut Vec::new(), |bytes| assert_eq!(bytes, b"ours"));
            writer.write(b"more").unwrap();
            writer.flush().unwrap();
            reader.read(10, &mut Vec::new(), |_| {});
            writer.write(b"last").unwrap();
            writer.flush().unwrap();
            assert!(mapped.next_finished().is_none(), "{mode}");
            assert_eq!(mapped.give_back_range(), Some((6, 1)), "{mode}");
            assert_eq!(reader.consume(Some(6), 1), Err(ConsumeError::Stale { next: 8 }));
            mapped.rewind_to_consumed();
            assert_eq!(text(mapped.next_finished().unwrap()), "last", "{mode}");
        }
    }

    /// The dying daemon may or may not have taken the range.
    #[test]
    fn range_given_to_dying_daemon_is_given_back_once() {
        let buffer = buffer("subbuf-size=8:n-subbufs=4");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let mut mapped = MappedReader::new(buffer.clone());
        for message in [b"aaaaa", b"bbbbb", b"ccccc"] {
            writer.write(message).unwrap();
        }
        assert_eq!(text(mapped.next_finished().unwrap()), "aaaaa");
        let taken = mapped.give_back_range().unwrap();
        mapped.restore_taken(taken);
        mapped.attach_next_daemon();
        assert_eq!(text(mapped.next_finished().unwrap()), "bbbbb", "it continues where it was");
        assert_eq!(mapped.give_back_range(), Some((0, 2)), "and the daemon has not taken it");
        assert_eq!(reader.consume(Some(0), 2), Ok(true));
        mapped.restore_taken((0, 2));
        mapped.attach_next_daemon();
        assert_eq!(mapped.give_back_range(), None, "the daemon has taken it");
        assert_eq!(mapped.consumed_bytes(), Some(10));
    }

    #[test]
    fn consumed_bytes_are_known_until_their_record_is_overwritten() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let mapped = MappedReader::new(buffer.clone());
        let mut scratch = Vec::new();
        for n in 1..20 {
            writer.write(b"12345").unwrap();
            reader.read(100, &mut scratch, |_| {});
            assert_eq!(mapped.consumed_bytes(), Some(5 * n));
        }
        for _ in 0..3 {
            writer.write(b"12345").unwrap();
        }
        assert_eq!(mapped.consumed_bytes(), None, "the writer was there");
        reader.read(100, &mut scratch, |_| {});
        assert_eq!(mapped.consumed_bytes(), Some(5 * 22));
    }

    #[test]
    fn sub_buffer_before_reset_is_not_seen() {
        for mode in ["no-overwrite", "overwrite"] {
            let buffer = buffer(&format!("subbuf-size=8:n-subbufs=3:{mode}"));
            let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
            let mut mapped = MappedReader::new(buffer.clone());
            writer.write(b"before").unwrap();
            reader.reset(SoleWriter).unwrap();
            assert!(mapped.next_finished().is_none(), "{mode}");
            writer.write(b"behind").unwrap();
            writer.flush().unwrap();
            let next = mapped.next_finished().unwrap();
            assert_eq!((next.number, text(next)), (0, "behind".to_owned()), "{mode}");
        }
    }

    #[test]
    fn overwritten_sub_buffers_are_skipped_and_numbers_show_it() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite");
        let writer = Writer::new(&buffer, SoleWriter);
        let mut mapped = MappedReader::new(buffer.clone());
        writer.write(b"00000").unwrap();
        writer.write(b"11111").unwrap();
        let first = mapped.next_finished().unwrap();
        assert_eq!((first.number, first.is_whole()), (0, true));
        for n in 2..7 {
            writer.write(n.to_string().repeat(5).as_bytes()).unwrap();
        }
        let next = mapped.next_finished().unwrap();
        assert_eq!(next.number, 4);
        assert_eq!(text(next), "44444");
        assert_eq!(
            mapped.give_back_range(),
            Some((4, 1)),
            "the first was the writer's before it was ours to give back"
        );
    }
}
