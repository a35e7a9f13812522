//! Looking at one buffer in a mapping of one's own: what a reader does that is not the daemon. It gets whole finished
//! sub-buffers where they lie, and asks the daemon to have them back; it only ever loads.

use crate::layout::position::Position;
use crate::memory::lent::Lent;
use crate::memory::sync::{AtomicU8, Ordering, fence};
use crate::ring::buffer::Buffer;

/// Tries at looking at something that a writer keeps overwriting.
const TRIES_MAX: u32 = 1000;

/// One buffer, seen from outside.
#[derive(Debug)]
pub struct MappedReader {
    buffer: Buffer,
    /// Where the next sub-buffer begins, or goes on.
    cursor: Position,
    /// Number of the first sub-buffer that was taken and is not given back, and how many were.
    taken: Option<(u64, u64)>,
}

/// A finished sub-buffer, where it lies.
#[derive(Clone, Copy, Debug)]
pub struct SubBuffer<'a> {
    buffer: &'a Buffer,
    position: Position,
    /// How many were finished before it since the channel was created.
    pub number: u64,
    /// Bytes that were written to the buffer before its own since the channel was created.
    pub begin: u64,
    /// Whether there was no further finished one behind it.
    pub is_last: bool,
    /// Bytes in it, padding aside.
    len: usize,
}

impl MappedReader {
    /// A view of what is unread. The mappings behind `buffer` may be read-only.
    pub fn new(buffer: Buffer) -> MappedReader {
        let mut view = MappedReader { buffer, cursor: Position(0), taken: None };
        view.go_back();
        view
    }

    /// The next finished sub-buffer, if there is one. In overwrite mode some may have been passed over, see their numbers.
    pub fn next_finished(&mut self) -> Option<SubBuffer<'_>> {
        let (position, number, begin, len) = self.find()?;
        self.cursor = self.buffer.widths().next(position);
        let first = self.taken.filter(|(first, count)| first.wrapping_add(*count) == number);
        // What was passed over has given itself back.
        self.taken = Some(first.map_or((number, 1), |(first, count)| (first, count + 1)));
        let is_last = !self.has_finished();
        Some(SubBuffer { buffer: &self.buffer, position, number, begin, is_last, len })
    }

    /// Whether there is a finished sub-buffer.
    pub fn has_finished(&self) -> bool {
        self.buffer.widths().before(self.cursor, self.state())
    }

    /// What to give back: the number of the first sub-buffer that was taken, and how many were, if any. To be followed by
    /// [`MappedReader::go_back`] if that is refused.
    pub fn take_back(&mut self) -> Option<(u64, u64)> {
        self.taken.take()
    }

    /// Undoes [`MappedReader::take_back`], of which nobody knows what it came to: its daemon has died.
    pub fn keep_taken(&mut self, (first, count): (u64, u64)) {
        self.taken = Some((first, count));
    }

    /// Another daemon goes on with the same buffer. What was taken still has to be given back, unless the last one has had
    /// it all.
    pub fn settle(&mut self) {
        if !self.buffer.widths().before(self.consumed(), self.cursor) {
            self.taken = None;
        }
    }

    /// Bytes of the buffer that were read or lost since the channel was created, by what the daemon says, who says it a moment
    /// after it has been so. `None` if that cannot be found out: the writer overwrites what tells it.
    pub fn consumed_bytes(&self) -> Option<u64> {
        let widths = self.buffer.widths();
        (0..TRIES_MAX).find_map(|_| {
            let consumed = self.consumed();
            // Relaxed: who has said that it is consumed has found the record before.
            let begin = self.buffer.record(consumed).begin.load(Ordering::Relaxed);
            let later = self.consumed();
            let is_its_record = widths.count(consumed, later) == 0 && !self.buffer.lapped(consumed);
            is_its_record.then(|| begin.wrapping_add(widths.offset(consumed) as u64))
        })
    }

    /// Goes to what is unread by what the daemon says: somebody else has been reading.
    pub fn go_back(&mut self) {
        self.taken = None;
        self.cursor = self.consumed();
    }

    /// Whether the channel is over, so that nothing will come but what is there.
    pub fn is_closed(&self) -> bool {
        // Acquire: what was written before is seen.
        self.buffer.block().closed.load(Ordering::Acquire) != 0
    }

    /// Position, number, stream position and length of the next finished sub-buffer.
    fn find(&mut self) -> Option<(Position, u64, u64, usize)> {
        let (widths, size) = (self.buffer.widths(), self.buffer.geometry().subbuf_size());
        for _ in 0..TRIES_MAX {
            if self.buffer.lapped(self.cursor) {
                self.cursor = self.buffer.oldest_whole();
            }
            if !self.has_finished() {
                return None;
            }
            let record = self.buffer.record(self.cursor);
            // Relaxed: the state that was loaded orders them.
            let padding = record.padding.load(Ordering::Relaxed).min(size as u64) as usize;
            let number = record.number.load(Ordering::Relaxed);
            let begin = record.begin.load(Ordering::Relaxed);
            let consumed = self.consumed();
            if widths.before(self.cursor, consumed) {
                // Somebody else has read it, or a reset passed over it: it may have been written again, and the record be
                // that of another one, which we have not seen and must not give back.
                if self.taken.is_some() {
                    return None; // let whoever took it ask, and be told
                }
                self.cursor = consumed;
                continue;
            }
            if !self.buffer.lapped(self.cursor) {
                let offset = widths.offset(self.cursor);
                let len = (size - padding).saturating_sub(offset);
                return Some((self.cursor, number, begin.wrapping_add(offset as u64), len));
            }
        }
        None
    }

    /// Where the daemon's reader is. What was looked up before was right if that is not behind it yet.
    fn consumed(&self) -> Position {
        fence(Ordering::Acquire);
        // Acquire: what the daemon found before, we do.
        Position(self.buffer.block().consumed.load(Ordering::Acquire))
    }

    fn state(&self) -> Position {
        // B, pairs with A in the writer.
        Position(self.buffer.block().state.load(Ordering::Acquire))
    }
}

impl SubBuffer<'_> {
    /// Number of bytes, padding aside.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes where they lie. A writer that keeps to the rules leaves them alone in no-overwrite mode; others share the
    /// memory all the same, hence atomics.
    pub fn bytes(&self) -> &[AtomicU8] {
        self.buffer.data().bytes(self.buffer.ring_offset(self.position), self.len).unwrap_or_default()
    }

    /// Lends its bytes, to be copied, or to be passed to the kernel where they lie.
    pub fn lend(&self) -> Option<Lent<'_>> {
        self.buffer.data().lend(self.buffer.ring_offset(self.position), self.len)
    }

    /// Appends its bytes to `out`.
    pub fn copy_to(&self, out: &mut Vec<u8>) {
        self.buffer.data().copy_out(self.buffer.ring_offset(self.position), self.len, out);
    }

    /// Whether no writer has begun to overwrite it: what was copied before is right. Always so in no-overwrite mode, until
    /// it is given back.
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
    fn sub_buffers_are_seen_once_and_given_back_by_number() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let mut view = MappedReader::new(buffer.clone());
        assert!(view.next_finished().is_none());
        for message in [b"aaaaa", b"bbbbb", b"ccccc"] {
            writer.write(message).unwrap();
        }
        assert_eq!(text(view.next_finished().unwrap()), "aaaaa");
        let second = view.next_finished().unwrap();
        assert_eq!((second.number, second.len(), second.is_whole()), (1, 5, true));
        assert!(view.next_finished().is_none(), "the third is not finished");
        assert_eq!(view.take_back(), Some((0, 2)));
        assert_eq!(reader.consume(Some(0), 2), Ok(true));
        assert_eq!(reader.consume(Some(0), 1), Err(ConsumeError::Stale { next: 2 }));
        assert_eq!(reader.consume(Some(2), 1), Err(ConsumeError::TooMany { finished: 0 }));
        writer.flush().unwrap();
        assert_eq!(text(view.next_finished().unwrap()), "ccccc");
        assert_eq!(view.take_back(), Some((2, 1)));
        assert_eq!(view.take_back(), None);
    }

    #[test]
    fn what_was_partly_read_is_seen_from_there_on_and_counts_as_one() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        writer.write(b"abcdefg").unwrap();
        writer.flush().unwrap();
        reader.read(3, &mut Vec::new(), |bytes| assert_eq!(bytes, b"abc"));
        let mut view = MappedReader::new(buffer.clone());
        assert_eq!(view.consumed_bytes(), Some(3));
        let next = view.next_finished().unwrap();
        assert_eq!((next.begin, text(next)), (3, "defg".to_owned()));
        assert_eq!(reader.consume(view.take_back().map(|(from, _)| from), 1), Ok(true));
        assert_eq!(reader.unread(), 0);
        assert_eq!(buffer.block().read_bytes.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn what_somebody_else_has_read_is_not_seen_again_nor_given_back_for_another() {
        for mode in ["no-overwrite", "overwrite"] {
            let buffer = buffer(&format!("subbuf-size=8:n-subbufs=3:{mode}"));
            let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
            let mut view = MappedReader::new(buffer.clone());
            let mut pass = |text: &[u8]| {
                writer.write(text).unwrap();
                writer.flush().unwrap();
                reader.read(10, &mut Vec::new(), |bytes| assert_eq!(bytes, text));
            };
            // Twice round the ring: the record where the view is has another number by now.
            (0..6).for_each(|_| pass(b"theirs"));
            writer.write(b"ours").unwrap();
            assert!(view.next_finished().is_none(), "{mode}");
            writer.flush().unwrap();
            let next = view.next_finished().unwrap();
            assert_eq!((next.number, text(next)), (6, "ours".to_owned()), "{mode}");
            // Taken, and read by somebody else: who took it has to ask first.
            reader.read(10, &mut Vec::new(), |bytes| assert_eq!(bytes, b"ours"));
            writer.write(b"more").unwrap();
            writer.flush().unwrap();
            reader.read(10, &mut Vec::new(), |_| {});
            writer.write(b"last").unwrap();
            writer.flush().unwrap();
            assert!(view.next_finished().is_none(), "{mode}");
            assert_eq!(view.take_back(), Some((6, 1)), "{mode}");
            assert_eq!(reader.consume(Some(6), 1), Err(ConsumeError::Stale { next: 8 }));
            view.go_back();
            assert_eq!(text(view.next_finished().unwrap()), "last", "{mode}");
        }
    }

    /// A daemon that dies in the middle of it may have had what was given back, or not.
    #[test]
    fn what_is_given_back_to_a_dying_daemon_is_given_back_once() {
        let buffer = buffer("subbuf-size=8:n-subbufs=4");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let mut view = MappedReader::new(buffer.clone());
        for message in [b"aaaaa", b"bbbbb", b"ccccc"] {
            writer.write(message).unwrap();
        }
        assert_eq!(text(view.next_finished().unwrap()), "aaaaa");
        let taken = view.take_back().unwrap();
        view.keep_taken(taken);
        view.settle();
        assert_eq!(text(view.next_finished().unwrap()), "bbbbb", "it goes on where it was");
        assert_eq!(view.take_back(), Some((0, 2)), "and nobody has had it");
        assert_eq!(reader.consume(Some(0), 2), Ok(true));
        view.keep_taken((0, 2));
        view.settle();
        assert_eq!(view.take_back(), None, "somebody has");
        assert_eq!(view.consumed_bytes(), Some(10));
    }

    #[test]
    fn what_is_consumed_is_told_in_bytes_as_long_as_it_is_known() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let view = MappedReader::new(buffer.clone());
        let mut scratch = Vec::new();
        for n in 1..20 {
            writer.write(b"12345").unwrap();
            reader.read(100, &mut scratch, |_| {});
            assert_eq!(view.consumed_bytes(), Some(5 * n));
        }
        for _ in 0..3 {
            writer.write(b"12345").unwrap();
        }
        assert_eq!(view.consumed_bytes(), None, "the writer was there");
        reader.read(100, &mut scratch, |_| {});
        assert_eq!(view.consumed_bytes(), Some(5 * 22));
    }

    #[test]
    fn what_a_reset_has_passed_over_is_not_seen() {
        for mode in ["no-overwrite", "overwrite"] {
            let buffer = buffer(&format!("subbuf-size=8:n-subbufs=3:{mode}"));
            let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
            let mut view = MappedReader::new(buffer.clone());
            writer.write(b"before").unwrap();
            reader.reset(SoleWriter).unwrap();
            assert!(view.next_finished().is_none(), "{mode}");
            writer.write(b"behind").unwrap();
            writer.flush().unwrap();
            let next = view.next_finished().unwrap();
            assert_eq!((next.number, text(next)), (0, "behind".to_owned()), "{mode}");
        }
    }

    #[test]
    fn overwritten_ones_are_passed_over_and_known_by_their_numbers() {
        let buffer = buffer("subbuf-size=8:n-subbufs=3:overwrite");
        let writer = Writer::new(&buffer, SoleWriter);
        let mut view = MappedReader::new(buffer.clone());
        writer.write(b"00000").unwrap();
        writer.write(b"11111").unwrap();
        let first = view.next_finished().unwrap();
        assert_eq!((first.number, first.is_whole()), (0, true));
        for n in 2..7 {
            writer.write(n.to_string().repeat(5).as_bytes()).unwrap();
        }
        let next = view.next_finished().unwrap();
        assert_eq!(next.number, 4);
        assert_eq!(text(next), "44444");
        assert_eq!(
            view.take_back(),
            Some((4, 1)),
            "the first was the writer's before it was ours to give back"
        );
    }
}
