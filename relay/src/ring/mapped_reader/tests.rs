use super::*;
use crate::GeometrySpec;
use crate::ring::reader::{ConsumeError, Reader};
use crate::ring::writer::{SoleWriter, WriteResult, Writer};

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

/// A reader of the file gets what is written so far. The rest is for the reader that was there before.
#[test]
fn part_that_another_reader_has_read_does_not_come_again() {
    for spec in ["", ":overwrite"] {
        let buffer = buffer(&format!("subbuf-size=8:n-subbufs=3{spec}"));
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let mut mapped = MappedReader::new(buffer.clone());
        for number in 0..5 {
            writer.write(b"abc").unwrap();
            reader.read(100, &mut Vec::new(), |bytes| assert_eq!(bytes, b"abc"));
            writer.write(b"defg").unwrap();
            writer.flush().unwrap();
            let next = mapped.next_finished().unwrap();
            assert_eq!((next.number, next.begin, text(next)), (number, 7 * number + 3, "defg".to_owned()));
            assert_eq!(mapped.give_back_range(), Some((number, 1)));
            assert_eq!(reader.consume(Some(number), 1), Ok(true));
        }
        // A writer laps the reader of the mapping, and the other one has read a part where it continues.
        if spec == ":overwrite" {
            for message in [b"aaaaa", b"bbbbb", b"ccccc", b"ddddd"] {
                writer.write(message).unwrap();
            }
            reader.read(7, &mut Vec::new(), |bytes| assert_eq!(bytes, b"bbbbbcc"));
            assert_eq!(text(mapped.next_finished().unwrap()), "ccc");
        }
    }
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
fn taken_sub_buffers_are_given_back_up_to_a_number() {
    let buffer = buffer("subbuf-size=8:n-subbufs=8");
    let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
    let mut mapped = MappedReader::new(buffer.clone());
    assert_eq!(mapped.give_back_until(9), None, "nothing is taken");
    for n in 0..6 {
        writer.write(n.to_string().repeat(5).as_bytes()).unwrap();
    }
    for n in 0..4 {
        assert_eq!(mapped.next_finished().unwrap().number, n);
    }
    assert_eq!(mapped.give_back_until(1), Some((0, 2)));
    assert_eq!(reader.consume(Some(0), 2), Ok(true));
    assert_eq!(mapped.give_back_until(1), None, "they are given back");
    assert_eq!(mapped.next_finished().unwrap().number, 4);
    // The daemon has died before it took them.
    let taken = mapped.give_back_until(2).unwrap();
    mapped.restore_taken(taken);
    mapped.attach_next_daemon();
    assert_eq!(mapped.give_back_until(3), Some((2, 2)));
    assert_eq!(reader.consume(Some(2), 2), Ok(true));
    assert_eq!(mapped.give_back_until(u64::MAX), Some((4, 1)));
    assert_eq!(mapped.give_back_range(), None);
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
fn sub_buffer_that_a_writer_has_again_is_not_whole() {
    for mode in ["no-overwrite", "overwrite"] {
        for is_reset in [true, false] {
            let buffer = buffer(&format!("subbuf-size=8:n-subbufs=3:{mode}"));
            let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
            let mut mapped = MappedReader::new(buffer.clone());
            writer.write(b"before").unwrap();
            writer.flush().unwrap();
            let taken = mapped.next_finished().unwrap();
            assert!(taken.is_whole(), "{mode}");
            match is_reset {
                true => reader.reset(SoleWriter).unwrap(),
                false => {
                    reader.read(10, &mut Vec::new(), |bytes| assert_eq!(bytes, b"before"));
                    (0..2).for_each(|_| writer.flush().map(drop).unwrap());
                }
            }
            writer.write(b"behind").unwrap();
            assert_eq!(text(taken), "behind");
            assert!(!taken.is_whole(), "{mode}");
        }
    }
}

/// The daemon has removed the channel while the buffer is still mapped here.
#[test]
fn buffer_that_was_ended_has_what_was_written() {
    for written in ["", "last"] {
        let buffer = buffer("subbuf-size=8:n-subbufs=3");
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        let mut mapped = MappedReader::new(buffer.clone());
        // Once around the ring: the next slot has an old message.
        for _ in 0..3 {
            writer.write(b"before").unwrap();
            writer.flush().unwrap();
            assert_eq!(text(mapped.next_finished().unwrap()), "before");
            reader.read(10, &mut Vec::new(), |_| {});
        }
        assert!(writer.count(1, |block| &block.dropped));
        if !written.is_empty() {
            writer.write(written.as_bytes()).unwrap();
        }
        writer.close().unwrap();
        let mut rest = String::new();
        while let Some(next) = mapped.next_finished() {
            assert_eq!((next.number, next.lost), (3, 1));
            rest += &text(next);
        }
        assert_eq!(rest, written);
        assert!(mapped.is_closed());
    }
}

/// A channel is ended again by the next daemon, if the first one was killed in its end.
#[test]
fn unread_sub_buffers_are_the_same_before_and_after_each_end() {
    for spec in ["", ":overwrite", ":timed", ":timed:overwrite"] {
        for n_subbufs in 1..4 {
            let buffer = buffer(&format!("subbuf-size=64:n-subbufs={n_subbufs}{spec}"));
            let writer = Writer::new(&buffer, SoleWriter);
            // Begun by a writer each, so that numbers and positions are not 0.
            let message = &[0; 40];
            for _ in 0..5 {
                writer.write(message).unwrap();
                writer.flush().unwrap();
                Reader::new(buffer.clone()).read(1000, &mut Vec::new(), |_| {});
            }
            // The first part of a sub-buffer is read, and a callback leaves the buffer blocked behind the last one.
            for _ in 0..n_subbufs - 1 {
                writer.write(message).unwrap();
                writer.flush().unwrap();
            }
            writer.write(message).unwrap();
            Reader::new(buffer.clone()).read(2, &mut Vec::new(), |_| {});
            let refused = writer.write_elsewhere_if(message, Some(&mut |_| None)).done().unwrap();
            assert_eq!((refused.placed, refused.switched), (WriteResult::Full, true));
            let seen = || {
                let (mut reader, unsound) = Reader::look(buffer.clone());
                assert_eq!(unsound, None);
                let mut mapped = MappedReader::new(buffer.clone());
                let mut all = Vec::new();
                while let Some(next) = mapped.next_finished() {
                    let mut bytes = Vec::new();
                    next.copy_to(&mut bytes);
                    all.push((next.number, next.begin, next.lost, bytes));
                }
                let numbers = [reader.next_number(), reader.produced(), reader.size(), reader.position()];
                (all, numbers, reader.messages(), mapped.consumed_bytes())
            };
            let before = seen();
            assert_eq!((before.0.len(), before.0[0].0), (n_subbufs, 5));
            for _ in 0..8 {
                writer.close().unwrap();
                assert_eq!(seen(), before, "{n_subbufs} sub-buffers{spec}");
                assert_eq!(writer.write(message).unwrap().placed, WriteResult::Closed);
                buffer.reopen();
            }
        }
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
