//! Writing a buffer whose control file is anything, by restartable sequences and without.

use relay::layout::geometry::MESSAGE_MAX;
use relay::ring::reader::Reader;
use relay::ring::writer::{Appended, Outcome, WriteResult, Writer};

use crate::input::Input;
use crate::scene::Scene;

/// Most operations of an input.
const OPS_MAX: usize = 200;

/// A buffer, then operations on it, among them those of a peer that keeps to no rule. Every call ends, and nothing is written but to
/// the mappings: beside them is nothing.
pub fn writer(data: &[u8]) {
    let mut input = Input(data);
    let scene = Scene::new(&mut input);
    let run = Scene::writer(&mut input);
    let (buffer, size) = (&scene.buffer, scene.geometry().subbuf_size());
    // Another thread's, which has looked at another place.
    let other = buffer.clone();
    for _ in 0..OPS_MAX {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let writer = Writer::new(if op & 0x80 == 0 { buffer } else { &other }, run);
        match op % 16 {
            0..=5 => scene.scribble(&mut input),
            6..=10 => {
                let message = message(&mut input, size);
                let outcome = if op % 16 < 10 { writer.write(&message) } else { writer.place(&message) };
                fits(outcome.ok(), message.len(), size);
            }
            11 => {
                let message = message(&mut input, size);
                if message.len() <= MESSAGE_MAX && writer.append(&message) == Appended::Done {
                    assert!(message.len() <= size);
                }
            }
            12 => drop(writer.flush()),
            13 => {
                let _ = writer.drop_if_blocked(usize::from(input.u16()));
                let _ = writer.count(input.u64(), |block| &block.dropped);
            }
            14 => drop(Reader::new(buffer.clone()).reset(run)),
            _ if op & 0x40 != 0 => drop(writer.close()),
            _ => buffer.stop_appending(),
        }
    }
}

/// A message, of a length at one of the ends.
fn message(input: &mut Input<'_>, size: usize) -> Vec<u8> {
    let near = usize::from(input.u8());
    let len = match near % 8 {
        0..=3 => near / 4,
        4 => size - size.min(near / 8),
        5 => size + near / 8,
        6 => usize::from(input.u16()),
        _ => size / (near / 8 + 1),
    };
    // The largest is longer than any sub-buffer, and than any message may be.
    vec![b'm'; if near == usize::from(u8::MAX) { MESSAGE_MAX + 1 } else { len }]
}

/// What does not fit a sub-buffer is never written.
fn fits(outcome: Option<Outcome>, len: usize, size: usize) {
    let placed = outcome.map(|outcome| outcome.placed);
    if len > size.min(MESSAGE_MAX) {
        assert!(matches!(placed, None | Some(WriteResult::TooBig)), "{len} bytes: {placed:?}");
    }
}
