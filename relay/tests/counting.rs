//! What buffers count for reports: messages of timed channels, the oldest unread record, room that was missing.

use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::writer::{SoleWriter, WriteResult, Writer};
use relay::{Geometry, GeometrySpec};

fn geometry(text: &str) -> Geometry {
    text.parse::<GeometrySpec>().unwrap().build().unwrap()
}

fn stamp(record: &[u8]) -> u64 {
    u64::from_le_bytes(record[..8].try_into().unwrap())
}

#[test]
fn every_record_counts_wherever_it_is_by_now() {
    for text in ["timed:subbuf-size=128:n-subbufs=4:overwrite", "timed:subbuf-size=128:n-subbufs=64"] {
        let buffer = Buffer::anonymous(geometry(text), 0).unwrap();
        let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
        assert_eq!(reader.messages(), Some(0));
        for n in 1..=100 {
            let payload = vec![b'x'; n % 40];
            assert_eq!(writer.place_record(0, &payload).unwrap().placed, WriteResult::Written);
            if n % 7 == 0 {
                writer.flush().unwrap();
            }
            // Some looks find many new records, others one or none.
            if n % 3 == 0 {
                assert_eq!(reader.messages(), Some(n as u64), "{text}");
            }
        }
        assert_eq!((reader.messages(), reader.messages()), (Some(100), Some(100)));
        let mut later = Reader::resume(buffer.clone()).unwrap();
        assert_eq!(later.messages(), Some(100), "by another daemon");
        reader.reset(SoleWriter).unwrap();
        assert_eq!(reader.messages(), Some(100));
        writer.place_record(0, b"one more").unwrap();
        assert_eq!(reader.messages(), Some(101));
    }
}

#[test]
fn lost_records_do_not_count_and_raw_buffers_count_none() {
    let buffer = Buffer::anonymous(geometry("timed:subbuf-size=64:n-subbufs=2"), 0).unwrap();
    let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
    let placed: Vec<WriteResult> = (0..5).map(|_| writer.place_record(0, &[7; 40]).unwrap().placed).collect();
    assert_eq!(placed.iter().filter(|placed| **placed == WriteResult::Written).count(), 2);
    assert_eq!(reader.messages(), Some(2));
    let raw = Buffer::anonymous(geometry("subbuf-size=64"), 0).unwrap();
    Writer::new(&raw, SoleWriter).write(b"message").unwrap();
    let mut reader = Reader::new(raw);
    assert_eq!((reader.messages(), reader.oldest_unread()), (None, None));
}

#[test]
fn oldest_unread_record_is_the_next_whole_one() {
    let buffer = Buffer::anonymous(geometry("timed:subbuf-size=128:n-subbufs=4"), 0).unwrap();
    let (writer, mut reader) = (Writer::new(&buffer, SoleWriter), Reader::new(buffer.clone()));
    assert_eq!(reader.oldest_unread(), None);
    for _ in 0..6 {
        writer.place_record(0, &[7; 30]).unwrap();
    }
    let mut bytes = Vec::new();
    let mut take = reader.take();
    while reader.take_part(&mut take, &mut bytes) {}
    // Records of 46 bytes, two in each sub-buffer, and no padding in between.
    let stamps: Vec<u64> = bytes.chunks(46).map(stamp).collect();
    assert_eq!(stamps.len(), 6);
    let mut scratch = Vec::new();
    for (read, expected) in [(0, 0), (1, 1), (45, 1), (46, 2), (1, 3), (91, 4), (46, 5)] {
        reader.read(read, &mut scratch, |_| ());
        assert_eq!(reader.oldest_unread(), Some(stamps[expected]), "{read}");
    }
    reader.read(1, &mut scratch, |_| ());
    assert_eq!(reader.oldest_unread(), None, "only a part of it is left");
}

#[test]
fn missing_room_is_noted() {
    let buffer = Buffer::anonymous(geometry("subbuf-size=64:n-subbufs=2"), 0).unwrap();
    let writer = Writer::new(&buffer, SoleWriter);
    let get = |word: &std::sync::atomic::AtomicU64| word.load(std::sync::atomic::Ordering::Relaxed);
    let block = buffer.block();
    for _ in 0..2 {
        writer.write(&[1; 60]).unwrap();
    }
    assert_eq!((get(&block.full), get(&block.last_dropped)), (0, 0));
    assert_eq!(writer.write(&[1; 60]).unwrap().placed, WriteResult::Full);
    assert_eq!((get(&block.full), get(&block.last_dropped)), (1, 0), "the caller may try again");
    assert!(writer.drop_if_blocked(60) && writer.drop_if_blocked(20));
    let noted =
        (get(&block.dropped), get(&block.dropped_bytes), get(&block.longest_dropped), get(&block.full));
    assert_eq!(noted, (2, 80, 60, 1));
    assert!(get(&block.last_dropped) > 0 && get(&block.last_too_big) == 0);
    writer.place(&[1; 65]).unwrap();
    assert!(get(&block.longest_too_big) == 65 && get(&block.last_too_big) > 0);
}
