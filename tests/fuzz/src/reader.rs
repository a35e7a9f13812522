//! Reading a buffer whose control file is anything: what the daemon does, and who reads in a mapping.

use relay::memory::lent::Lent;
use relay::ring::mapped_reader::MappedReader;
use relay::ring::reader::Reader;
use relay::ring::writer::Writer;

use crate::input::Input;
use crate::scene::Scene;

/// Most operations of an input, so that each takes the more time the longer it is, but no more than so much.
const OPS_MAX: usize = 200;

/// A buffer, then operations on it, among them those of a peer that keeps to no rule. Every call ends, gives no more than it may,
/// and stays in its mappings.
pub fn reader(data: &[u8]) {
    let mut input = Input(data);
    let scene = Scene::new(&mut input);
    let begin = input.u8();
    if begin & 1 != 0 {
        (0..4).for_each(|_| scene.scribble(&mut input));
    }
    let mut reader = match begin >> 1 & 3 {
        0 => Reader::new(scene.buffer.clone()),
        // Who looks on, and who goes on after another one has died; that takes only what it finds sound.
        1 => Reader::look(scene.buffer.clone()).0,
        _ => Reader::resume(scene.buffer.clone()).unwrap_or_else(|_| Reader::new(scene.buffer.clone())),
    };
    let mut view = MappedReader::new(scene.buffer.clone());
    for _ in 0..OPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 12 {
            0..=3 => scene.scribble(&mut input),
            4 => read(&mut reader, &scene, &mut input),
            5 => skip(&mut reader, &scene, &mut input),
            6 => {
                let from = Some(input.u64()).filter(|&from| from % 4 != 0).or(Some(reader.next_number()));
                let count = u64::from(input.u8());
                let _ = reader.consume(from.filter(|_| count % 2 == 0), count);
            }
            7 => copy(&mut reader, &scene, &mut input),
            8 => drop(reader.reset(Scene::writer(&mut input))),
            9 => {
                // Somebody who keeps to the rules, in between.
                let writer = Writer::new(&scene.buffer, Scene::writer(&mut input));
                let len = usize::from(input.u8()) * 4;
                let _ = (writer.write(&vec![b'm'; len]), input.u8() & 1 == 0 || writer.flush().is_ok());
            }
            10 => look(&mut view, &scene, &mut input),
            _ => ask(&reader, &scene),
        }
    }
    ask(&reader, &scene);
}

fn read(reader: &mut Reader, scene: &Scene, input: &mut Input<'_>) {
    let count = usize::from(input.u16()) % 20_000;
    let mut called = 0;
    reader.read(count, &mut Vec::new(), |bytes| {
        assert!(bytes.len() <= count);
        called += 1;
        if input.u8() & 1 != 0 {
            scene.scribble(input);
        }
    });
    assert_eq!(called, 1);
}

fn skip(reader: &mut Reader, scene: &Scene, input: &mut Input<'_>) {
    let by = input.pick(&[0, 1, 50, 100, 5000, 1 << 20, 1 << 40, u64::MAX / 2]);
    let target = reader.position().wrapping_add(by);
    reader.skip_to(target, &mut Vec::new(), |_, bytes| {
        assert!(bytes.len() <= 1 << 20);
        if input.u8() & 1 != 0 {
            scene.scribble(input);
        }
    });
}

/// A snapshot, or a take that is then consumed.
fn copy(reader: &mut Reader, scene: &Scene, input: &mut Input<'_>) {
    if input.u8() & 1 != 0 { take(reader, scene, input) } else { snapshot(reader, scene, input) }
}

fn take(reader: &mut Reader, scene: &Scene, input: &mut Input<'_>) {
    let (mut taken, mut more) = (reader.take(), true);
    while more {
        let mut part = Vec::new();
        more = reader.take_part(&mut taken, &mut part);
        assert!(part.len() <= taken.len() && taken.len() <= taken.max());
        if input.u8() & 1 != 0 {
            scene.scribble(input);
        }
    }
    reader.consume_taken(&taken);
    assert!(reader.take_len() <= scene.geometry().buffer_size() + scene.geometry().subbuf_size() as u64);
}

fn snapshot(reader: &Reader, scene: &Scene, input: &mut Input<'_>) {
    let extent = reader.snapshot_extent();
    if input.u8() & 1 != 0 {
        scene.scribble(input);
    }
    let mut copy = Vec::new();
    reader.snapshot(extent, &mut copy);
    assert!(copy.len() <= extent.max() && extent.max() as u64 <= scene.geometry().buffer_size());
}

fn look(view: &mut MappedReader, scene: &Scene, input: &mut Input<'_>) {
    let what = input.u8();
    for _ in 0..what % 16 {
        let Some(sub_buffer) = view.next_finished() else { break };
        let mut copy = Vec::new();
        sub_buffer.copy_to(&mut copy);
        assert!(copy.len() <= scene.geometry().subbuf_size());
        assert!(copy.len() == sub_buffer.len() && sub_buffer.bytes().len() == copy.len());
        let lent = sub_buffer.lend().map(Lent::len);
        assert_eq!((lent, sub_buffer.is_empty()), (Some(copy.len()), copy.is_empty()));
        let _ = sub_buffer.is_whole();
        if what & 0x80 != 0 {
            scene.scribble(input);
        }
    }
    let _ = (view.has_finished(), view.is_closed());
    if what & 0x40 != 0 {
        let taken = view.give_back_range();
        assert!(taken.is_none_or(|(_, count)| count > 0));
    }
    if what & 0x20 != 0 {
        view.rewind_to_consumed();
    }
}

/// What stat, poll and the counters ask.
fn ask(reader: &Reader, scene: &Scene) {
    let (geometry, n_subbufs) = (scene.geometry(), scene.geometry().n_subbufs() as u64);
    assert!(reader.n_finished() <= n_subbufs && reader.snapshot_len() <= geometry.buffer_size());
    assert!(reader.unread_data() <= reader.unread());
    let _ = (reader.size(), reader.produced(), reader.next_number(), reader.buffer().lost());
    let _ = (reader.has_finished(), reader.has_unfinished(), reader.is_half_reset());
    let _ = (reader.corrected(), reader.check_words().is_ok(), reader.deny_closed(|| false));
    scene.buffer.arm();
    if let Some(wanted) = scene.buffer.wake_wanted() {
        wanted.rung();
    }
}
