//! A channel's files as a peer may leave them behind, and go on changing them.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use relay::layout::abi::{BUFFERS_OFFSET, control_header, data_len};
use relay::memory::mapping::Mapping;
use relay::ring::buffer::Buffer;
use relay::ring::writer::AnyExecutor;
use relay::{Geometry, GeometrySpec};

use crate::arena::guarded;
use crate::input::Input;

/// Small rings, since what matters are their ends: powers of two and others, with and without a header, one slot and many.
const GEOMETRIES: [&str; 12] = [
    "subbuf-size=64:n-subbufs=3",
    "subbuf-size=64:n-subbufs=3:overwrite",
    "subbuf-size=100:n-subbufs=5:header=16",
    "subbuf-size=100:n-subbufs=5:header=16:overwrite",
    "subbuf-size=4096:n-subbufs=1",
    "subbuf-size=4096:n-subbufs=1:overwrite",
    "subbuf-size=4096:n-subbufs=2:header=8",
    "subbuf-size=4096:n-subbufs=2:overwrite",
    "subbuf-size=1:n-subbufs=1",
    "subbuf-size=8:n-subbufs=4:header=7:overwrite",
    "subbuf-size=3000:n-subbufs=5",
    "subbuf-size=3000:n-subbufs=5:header=2999:overwrite",
];
/// Words of a buffer's block, by their offsets: those that lead somewhere, and more often.
const WORDS: [u64; 12] = [0, 0, 0, 64, 64, 128, 128, 192, 256, 312, 384, 448];

/// One channel's control file and one of its data files, mapped once and used by one input after the other.
struct Stage {
    geometry: Geometry,
    n_bufs: usize,
    control: (File, Arc<Mapping>),
    data: (File, Arc<Mapping>),
    /// The control file as the daemon makes it.
    fresh: Vec<u8>,
    zeroes: Vec<u8>,
}

thread_local! {
    static STAGES: RefCell<Vec<Rc<Stage>>> = const { RefCell::new(Vec::new()) };
}

/// What an input has begun with.
pub(crate) struct Scene {
    stage: Rc<Stage>,
    pub(crate) buffer: Buffer,
    /// Where the buffer's block is in the control file, and its records.
    block_at: u64,
    records_at: u64,
    record_stride: u64,
}

impl Stage {
    fn new(geometry: Geometry, n_bufs: usize) -> Stage {
        let header = control_header(&geometry, n_bufs);
        let (control_file, control) = guarded(header.control_len());
        let (data_file, data) = guarded(data_len(&geometry));
        let (control, data) = (Arc::new(control), Arc::new(data));
        control.put_header(header);
        for index in 0..n_bufs {
            let buffer = Buffer::new(control.clone(), data.clone(), geometry, &header, index);
            buffer.expect("files of the right length").init(0);
        }
        let mut fresh = vec![0; header.control_len() as usize];
        control_file.read_exact_at(&mut fresh, 0).expect("it is as long");
        let zeroes = vec![0; data_len(&geometry) as usize];
        Stage { geometry, n_bufs, control: (control_file, control), data: (data_file, data), fresh, zeroes }
    }

    /// The one for this geometry, as good as new.
    fn get(geometry: Geometry, n_bufs: usize) -> Rc<Stage> {
        let stage = STAGES.with_borrow_mut(|stages| {
            let known = stages.iter().find(|stage| stage.geometry == geometry && stage.n_bufs == n_bufs);
            known.cloned().unwrap_or_else(|| {
                let stage = Rc::new(Stage::new(geometry, n_bufs));
                stages.push(stage.clone());
                stage
            })
        });
        stage.control.0.write_all_at(&stage.fresh, 0).expect("it is memory");
        stage.data.0.write_all_at(&stage.zeroes, 0).expect("it is memory");
        stage
    }
}

impl Scene {
    /// A buffer whose files somebody has had already. Its header is as it should be, or written over and not taken then, as
    /// whoever maps it takes it.
    pub(crate) fn new(input: &mut Input<'_>) -> Scene {
        let geometry = input.pick(&GEOMETRIES).parse::<GeometrySpec>().and_then(GeometrySpec::build);
        let geometry = geometry.expect("a geometry");
        let shape = input.u8();
        let n_bufs = usize::from(shape & 1) + 1;
        let index = usize::from(shape >> 1 & 1) % n_bufs;
        let stage = Stage::get(geometry, n_bufs);
        for _ in 0..shape >> 2 & 3 {
            let at = u64::from(input.u8() % 88);
            stage.scribble_control(at, input.bytes(8));
        }
        let len = stage.fresh.len() as u64;
        let map =
            |header| Buffer::new(stage.control.1.clone(), stage.data.1.clone(), geometry, &header, index);
        let mut header = stage.control.1.header().expect("it is longer");
        let mapped = map(header);
        let checked = header.check(&geometry, n_bufs, len).is_ok();
        let buffer = mapped.filter(|_| checked).unwrap_or_else(|| {
            header = control_header(&geometry, n_bufs);
            map(header).expect("files of the right length")
        });
        let block_at = header.buffers_offset + header.buffer_stride * index as u64;
        let records_at = block_at + header.records_offset;
        Scene { stage, buffer, block_at, records_at, record_stride: header.record_stride }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.stage.geometry
    }

    /// The calling thread as a writer, by sequences where there are any, or as the only one.
    pub(crate) fn writer(input: &mut Input<'_>) -> AnyExecutor {
        let cpu = nix::sched::sched_getcpu().ok();
        AnyExecutor::on(cpu.filter(|_| input.u8() & 1 != 0))
    }

    /// A peer stores something somewhere.
    pub(crate) fn scribble(&self, input: &mut Input<'_>) {
        let place = input.u8();
        let at = match place % 16 {
            word @ 0..12 => self.block_at + WORDS[usize::from(word)],
            12..=14 => {
                let number = u64::from(place / 16) % (2 * self.geometry().n_subbufs() as u64);
                self.records_at + number * self.record_stride + 8 * u64::from(place % 16 - 12)
            }
            _ => {
                let bytes = input.bytes(16);
                let at = BUFFERS_OFFSET as u64 + u64::from(input.u16());
                return self.stage.scribble_control(at, bytes);
            }
        };
        let value = self.word(input, at);
        self.stage.scribble_control(at, &value.to_le_bytes());
    }

    /// A word: any, or one near those that are right.
    fn word(&self, input: &mut Input<'_>, at: u64) -> u64 {
        let mut now = [0; 8];
        let known = self.stage.control.0.read_exact_at(&mut now, at).is_ok();
        let now = if known { u64::from_le_bytes(now) } else { 0 };
        let widths = self.buffer.widths();
        let kind = input.u8();
        let small = u64::from(input.u8());
        match kind % 8 {
            0 => input.u64(),
            1 => small,
            2 => u64::MAX - small,
            3 => now.wrapping_add(small),
            4 => now.wrapping_sub(small),
            // Some other slot, in or behind the ring, and lap.
            5 => now.wrapping_add(small << widths.offset_bits()),
            6 => now.wrapping_sub(small << widths.offset_bits()),
            _ => now ^ 1 << (small % 64),
        }
    }
}

impl Stage {
    /// What lies inside the file. Making it longer would change nothing, and shorter ones are another test's.
    fn scribble_control(&self, at: u64, bytes: &[u8]) {
        let room = (self.fresh.len() as u64).saturating_sub(at);
        let len = bytes.len().min(room as usize);
        self.control.0.write_all_at(&bytes[..len], at).expect("it is memory");
    }
}
