//! Resuming a buffer that an earlier reader left.
//!
//! A sound one continues; an unsound one is refused by name and not changed.
//! (`reference.rs` shows that a sound one continues *exactly* where it stopped.)

use std::sync::atomic::{AtomicU64, Ordering};

use relay::layout::position::Position;
use relay::ring::buffer::Buffer;
use relay::ring::reader::{Reader, Unsound};
use relay::ring::writer::{SoleWriter, Writer};
use relay::{Geometry, GeometrySpec, Mode};

fn geometry(mode: Mode) -> Geometry {
    let spec =
        GeometrySpec { subbuf_size: Some(64), n_subbufs: Some(5), mode: Some(mode), ..Default::default() };
    spec.build().unwrap()
}

/// Two sub-buffers finished, twenty bytes in the third.
/// The first is read to its end, and five bytes of the second.
fn used(mode: Mode) -> Buffer {
    let buffer = Buffer::anonymous(geometry(mode), 7).unwrap();
    let writer = Writer::new(&buffer, SoleWriter);
    let mut reader = Reader::new(buffer.clone());
    for len in [40, 50, 20] {
        writer.write(&vec![b'x'; len]).unwrap();
    }
    reader.read(45, &mut Vec::new(), |bytes| assert_eq!(bytes.len(), 45));
    buffer
}

fn at(buffer: &Buffer, word: &AtomicU64, subbufs: u64) -> u64 {
    let mut position = Position(word.load(Ordering::Relaxed));
    (0..subbufs).for_each(|_| position = buffer.widths().next(position));
    position.0
}

#[test]
fn unsound_buffer_is_refused_by_name() {
    type Damage = (&'static str, fn(&Buffer), fn(&Unsound) -> bool);
    let damages: &[Damage] = &[
        (
            "a slot that there is not",
            |buffer| buffer.block().state.store(7 << 7 | 3, Ordering::Relaxed),
            |unsound| matches!(unsound, Unsound::Word { word: "state", .. }),
        ),
        (
            "an offset behind the mark for blocked",
            |buffer| {
                buffer.block().state.fetch_or(0x7f, Ordering::Relaxed);
            },
            |unsound| matches!(unsound, Unsound::Word { word: "state", .. }),
        ),
        (
            "a blocked reader",
            |buffer| {
                let widths = *buffer.widths();
                let consumed = &buffer.block().consumed;
                consumed.store(
                    widths.at_blocked(Position(consumed.load(Ordering::Relaxed))).0,
                    Ordering::Relaxed,
                );
            },
            |unsound| matches!(unsound, Unsound::Word { word: "consumed", .. }),
        ),
        (
            "a reader that is ahead",
            |buffer| {
                let ahead = at(buffer, &buffer.block().state, 1);
                buffer.block().consumed.store(ahead, Ordering::Relaxed);
            },
            |unsound| matches!(unsound, Unsound::Apart(-1)),
        ),
        (
            "a writer far ahead",
            |buffer| {
                let ahead = at(buffer, &buffer.block().state, 40);
                buffer.block().state.store(ahead, Ordering::Relaxed);
            },
            |unsound| matches!(unsound, Unsound::Apart(41)),
        ),
        (
            "a sub-buffer begun far ahead",
            |buffer| {
                let ahead = at(buffer, &buffer.block().begun, 40);
                buffer.block().begun.store(ahead, Ordering::Relaxed);
            },
            |unsound| matches!(unsound, Unsound::Begun(40)),
        ),
        (
            "more read than there is",
            |buffer| {
                buffer.block().consumed.fetch_add(46, Ordering::Relaxed);
            },
            |unsound| matches!(unsound, Unsound::ReadBeyond { offset: 51, len: 50 }),
        ),
        (
            "a number that is out of order",
            |buffer| {
                let state = Position(buffer.block().state.load(Ordering::Relaxed));
                buffer.record(state).number.store(9, Ordering::Relaxed);
            },
            |unsound| matches!(unsound, Unsound::Record(1)),
        ),
        (
            "more padding than a sub-buffer has",
            |buffer| {
                let consumed = Position(buffer.block().consumed.load(Ordering::Relaxed));
                buffer.record(consumed).padding.store(65, Ordering::Relaxed);
            },
            |unsound| matches!(unsound, Unsound::Record(1)),
        ),
        (
            "more lost than was written",
            |buffer| buffer.block().discarded_bytes.store(111, Ordering::Relaxed),
            |unsound| matches!(unsound, Unsound::Counters { .. }),
        ),
    ];
    for (what, damage, is_it) in damages {
        let buffer = used(Mode::NoOverwrite);
        damage(&buffer);
        let read_bytes = buffer.block().read_bytes.load(Ordering::Relaxed);
        let unsound = Reader::resume(buffer.clone()).err().unwrap_or_else(|| panic!("{what}: accepted"));
        assert!(is_it(&unsound), "{what}: {unsound}");
        assert_eq!(buffer.block().read_bytes.load(Ordering::Relaxed), read_bytes, "{what}");
    }
}

/// A daemon killed during a reset has moved the reader ahead, but not the writer.
/// It may have stored other words as well.
#[test]
fn half_reset_is_finished() {
    for mode in [Mode::NoOverwrite, Mode::Overwrite] {
        for begun_too in [false, true] {
            let buffer = used(mode);
            let (widths, block) = (*buffer.widths(), buffer.block());
            let start = widths.next_lap(Position(block.state.load(Ordering::Relaxed)));
            block.consumed.store(start.0, Ordering::Relaxed);
            if begun_too {
                block.begun.store(start.0, Ordering::Relaxed);
            }
            let mut reader = Reader::resume(buffer.clone()).unwrap();
            assert!(reader.is_half_reset());
            reader.read(100, &mut Vec::new(), |bytes| assert!(bytes.is_empty()));
            reader.reset(SoleWriter).unwrap();
            assert!(!reader.is_half_reset());
            assert_eq!(block.discarded_bytes.load(Ordering::Relaxed), 65, "{mode}");
            Writer::new(&buffer, SoleWriter).write(b"new").unwrap();
            reader.read(100, &mut Vec::new(), |bytes| assert_eq!(bytes, b"new"));
        }
    }
}

/// Earlier releases ended a blocked buffer one sub-buffer further than a writer would have moved.
#[test]
fn ended_buffer_is_resumed() {
    for by_earlier_release in [false, true] {
        let buffer = Buffer::anonymous(geometry(Mode::NoOverwrite), 3).unwrap();
        let writer = Writer::new(&buffer, SoleWriter);
        for _ in 0..6 {
            writer.write(&[b'x'; 64]).unwrap();
        }
        writer.close().unwrap();
        if by_earlier_release {
            let (widths, block) = (buffer.widths(), buffer.block());
            let from = Position(block.state.load(Ordering::Relaxed));
            let (record, next) = (buffer.record(from), buffer.record(widths.next(from)));
            record.padding.store(64, Ordering::Relaxed);
            next.number.store(record.number.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            next.begin.store(record.begin.load(Ordering::Relaxed), Ordering::Relaxed);
            block.state.store(widths.at_blocked(widths.next(from)).0, Ordering::Relaxed);
        }
        let mut reader = Reader::resume(buffer.clone()).unwrap();
        buffer.reopen();
        let mut got = Vec::new();
        reader.read(1000, &mut Vec::new(), |bytes| assert!(bytes.copy_to(&mut got)));
        assert_eq!(got, [b'x'; 320]);
        writer.write(b"new").unwrap();
        reader.read(1000, &mut Vec::new(), |bytes| assert_eq!(bytes, b"new"));
    }
}
