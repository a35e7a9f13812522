//! The buffer against a model of the kernel's rules made of vectors.
//!
//! Thousands of histories of writes, flushes, reads and resets in both modes begin at positions where the arithmetic
//! could go wrong.

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use proptest::prelude::*;
use relay::clock::Clock;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::rseq::{RseqExecutor, Sequences};
use relay::ring::writer::{AnyExecutor, Executor, Outcome, SoleWriter, WriteResult, Writer};
use relay::{Geometry, GeometrySpec, Mode};

/// A byte of a stamp, which can be any.
const STAMP: u16 = 0x100;
/// Head of every record, without the length.
const HEAD: u64 = 0x0003_0002_0100;

/// Kernel relay (W and R rules) with our two differences.
/// All all-padding sub-buffers are skipped. In overwrite mode the rest of a sub-buffer that a read stopped in is kept.
struct Model {
    geometry: Geometry,
    /// Data of each sub-buffer since creation or reset; the last is the current one.
    /// Headers are included.
    subbufs: Vec<Vec<u16>>,
    /// Whether the last switch was refused, so that the current sub-buffer does not exist yet.
    blocked: bool,
    consumed: usize,
    bytes_consumed: usize,
    kept: Vec<u16>,
    size: u64,
    dropped: u64,
    too_big: u64,
}

impl Model {
    fn new(geometry: Geometry) -> Model {
        Model {
            geometry,
            subbufs: vec![vec![0; geometry.header()]],
            blocked: false,
            consumed: 0,
            bytes_consumed: 0,
            kept: Vec::new(),
            size: geometry.header() as u64,
            dropped: 0,
            too_big: 0,
        }
    }

    fn produced(&self) -> usize {
        self.subbufs.len() - 1
    }

    /// Writes a message, which is a record's payload in a timed buffer.
    fn write(&mut self, message: &[u8]) -> Outcome {
        let size = self.geometry.subbuf_size();
        let mut bytes: Vec<u16> = Vec::new();
        if self.geometry.timed() {
            let head = HEAD | (message.len() as u64) << 48;
            bytes.extend([STAMP; 8]);
            bytes.extend(head.to_le_bytes().map(u16::from));
        }
        bytes.extend(message.iter().copied().map(u16::from));
        let message = &bytes[..];
        if message.len() > size {
            self.too_big += 1;
            return Outcome { placed: WriteResult::TooBig, switched: false };
        }
        if !self.blocked && self.subbufs[self.produced()].len() + message.len() <= size {
            self.append(message);
            return Outcome { placed: WriteResult::Written, switched: false };
        }
        let (open, switched) = self.switch();
        let fits = self.geometry.header() + message.len() <= size;
        let placed = match (open, fits) {
            (false, _) => WriteResult::Full,
            (true, false) => WriteResult::TooBig,
            (true, true) => WriteResult::Written,
        };
        match placed {
            WriteResult::Full | WriteResult::Closed => {}
            WriteResult::TooBig => self.too_big += 1,
            WriteResult::Written => self.append(message),
        }
        Outcome { placed, switched }
    }

    fn switch(&mut self) -> (bool, bool) {
        let switched = !self.blocked;
        if switched {
            self.subbufs.push(Vec::new());
        }
        let full = self.produced() - self.consumed >= self.geometry.n_subbufs();
        self.blocked = self.geometry.mode() == Mode::NoOverwrite && full;
        if !self.blocked {
            self.append(&vec![0; self.geometry.header()]);
        }
        (!self.blocked, switched)
    }

    /// Whether a flush leaves the current sub-buffer: one of a timed channel without records.
    fn flushes_nothing(&self) -> bool {
        self.geometry.timed() && !self.blocked && self.subbufs[self.produced()].is_empty()
    }

    fn append(&mut self, bytes: &[u16]) {
        let current = self.produced();
        self.subbufs[current].extend_from_slice(bytes);
        self.size += bytes.len() as u64;
    }

    fn read(&mut self, count: usize) -> Vec<u16> {
        let mut out = Vec::new();
        self.credit();
        self.take_kept(count, &mut out);
        let lapped = self.produced() - self.consumed >= self.geometry.n_subbufs();
        if self.kept.is_empty() && out.len() < count {
            if self.geometry.mode() == Mode::Overwrite && lapped {
                (self.consumed, self.bytes_consumed) = (self.produced() + 1 - self.geometry.n_subbufs(), 0);
            }
            loop {
                let rest = &self.subbufs[self.consumed][self.bytes_consumed..];
                if rest.len() > count - out.len() {
                    self.kept =
                        if self.geometry.mode() == Mode::Overwrite { rest.to_vec() } else { Vec::new() };
                    let n = count - out.len();
                    out.extend_from_slice(&rest[..n]);
                    self.bytes_consumed += n;
                    self.kept.drain(..n.min(self.kept.len()));
                    break;
                }
                out.extend_from_slice(rest);
                self.bytes_consumed += rest.len();
                if self.consumed == self.produced() {
                    break;
                }
                (self.consumed, self.bytes_consumed) = (self.consumed + 1, 0);
                if out.len() == count {
                    break;
                }
            }
        }
        out
    }

    fn take_kept(&mut self, count: usize, out: &mut Vec<u16>) {
        let n = self.kept.len().min(count);
        out.extend(self.kept.drain(..n));
        self.bytes_consumed += n;
        let lapped = self.produced() - self.consumed >= self.geometry.n_subbufs();
        if n > 0 && self.kept.is_empty() && !lapped && self.finished_and_read() {
            (self.consumed, self.bytes_consumed) = (self.consumed + 1, 0);
        }
    }

    fn finished_and_read(&self) -> bool {
        self.consumed < self.produced() && self.bytes_consumed == self.subbufs[self.consumed].len()
    }

    fn credit(&mut self) {
        while self.kept.is_empty() && self.finished_and_read() {
            (self.consumed, self.bytes_consumed) = (self.consumed + 1, 0);
        }
    }

    /// The kept rest is lost with the reader that kept it.
    fn resume(&mut self) {
        self.kept.clear();
    }

    fn reset(&mut self) {
        let (size, header) = (self.size, self.geometry.header());
        let (dropped, too_big) = (self.dropped, self.too_big);
        *self = Model { size: size + header as u64, dropped, too_big, ..Model::new(self.geometry) };
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize),
    Flush,
    Read(usize),
    Reset,
    /// Another reader continues, perhaps before the last one has counted its last read.
    Resume(bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (0usize..40).prop_map(Op::Write),
        2 => (40usize..60).prop_map(Op::Write),
        4 => (0usize..12).prop_map(Op::Write),
        3 => Just(Op::Flush),
        6 => (1usize..100).prop_map(Op::Read),
        2 => Just(Op::Read(1 << 20)),
        1 => Just(Op::Reset),
        1 => any::<bool>().prop_map(Op::Resume),
    ];
    prop::collection::vec(op, 1..120)
}

fn geometries() -> impl Strategy<Value = Geometry> {
    (
        prop_oneof![Just(1u64), Just(7), Just(32), Just(36)],
        prop_oneof![Just(1u64), Just(2), Just(3), Just(5), Just(8)],
        prop_oneof![3 => Just(0u64), 1 => Just(5)],
        any::<bool>(),
        prop_oneof![2 => Just(false), 1 => Just(true)],
    )
        .prop_map(|(subbuf_size, n_subbufs, header, overwrite, timed)| {
            // Records are 16 bytes longer than messages, and such sub-buffers have at least 64.
            let (subbuf_size, header) = if timed { (64 + subbuf_size % 8, 0) } else { (subbuf_size, header) };
            let spec = GeometrySpec {
                subbuf_size: Some(subbuf_size),
                n_subbufs: Some(n_subbufs),
                header: Some(header.min(subbuf_size - 1)),
                mode: Some(if overwrite { Mode::Overwrite } else { Mode::NoOverwrite }),
                global: None,
                timed: Some(timed),
            };
            spec.build().expect("within limits")
        })
}

fn lap_max(geometry: &Geometry) -> u64 {
    let widths = relay::layout::position::Widths::new(geometry);
    u64::MAX >> (widths.offset_bits() + widths.slot_bits())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn buffer_agrees_with_the_kernel_model(geometry in geometries(), laps_left in prop_oneof![Just(None), (0u64..3).prop_map(Some)], tsc in any::<bool>(), ops in ops()) {
        let clock = if tsc && Clock::Tsc.is_readable() { Clock::Tsc } else { Clock::Monotonic };
        let lap = laps_left.map_or(0, |left| lap_max(&geometry) - left);
        history(geometry, clock, lap, &ops, SoleWriter)?;
        if let Some(on_cpu) = on_this_cpu() {
            history(geometry, clock, lap, &ops, on_cpu)?;
        }
    }
}

/// Binds this thread to its CPU, and returns its executor for the buffer of that CPU.
/// `None` if the kernel registers no threads; then the product must know that, too.
fn on_this_cpu() -> Option<RseqExecutor> {
    let cpu = sched_getcpu().unwrap();
    let thread = Sequences::find();
    assert_eq!(AnyExecutor::can_share(), thread.is_some());
    if std::env::var("RELAYFS_TESTS_RSEQ").is_ok_and(|areas| areas == "refused") {
        assert!(thread.is_none(), "restartable sequences, though they are refused");
        return None;
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let thread = thread.expect("a kernel that registers restartable sequences");
    Some(thread.on(cpu))
}

/// Plays one history on the buffer and on the model.
fn history(
    geometry: Geometry,
    clock: Clock,
    lap: u64,
    ops: &[Op],
    run: impl Executor,
) -> Result<(), TestCaseError> {
    let buffer = Buffer::anonymous_with_clock(geometry, lap, clock).unwrap();
    let (writer, mut reader) = (Writer::new(&buffer, run), Reader::new(buffer.clone()));
    let mut model = Model::new(geometry);
    let mut scratch = Vec::new();
    let mut delivered = 0;
    let mut told = (0, 0);
    let mut counted_before_last_read = None;
    for (step, op) in ops.iter().cloned().enumerate() {
        let uncounted = counted_before_last_read.take();
        match op {
            Op::Write(len) => {
                let message: Vec<u8> = (0..len).map(|i| (step * 7 + i) as u8 | 1).collect();
                let outcome = if geometry.timed() {
                    writer.write_record(HEAD, &message).unwrap()
                } else {
                    writer.write(&message).unwrap()
                };
                prop_assert_eq!(outcome, model.write(&message), "write {} at step {}", len, step);
                match outcome.placed {
                    WriteResult::Written => {}
                    WriteResult::Full => {
                        prop_assert!(writer.count(1, |block| &block.dropped));
                        model.dropped += 1;
                    }
                    WriteResult::TooBig => prop_assert!(writer.count(1, |block| &block.too_big)),
                    WriteResult::Closed => prop_assert!(false, "the buffer is not closed"),
                }
            }
            Op::Flush => {
                let (open, switched) = if model.flushes_nothing() { (true, false) } else { model.switch() };
                let placed = if open { WriteResult::Written } else { WriteResult::Full };
                prop_assert_eq!(
                    writer.flush().unwrap(),
                    Outcome { placed, switched },
                    "flush at step {}",
                    step
                );
            }
            Op::Read(count) => {
                let mut got = Vec::new();
                counted_before_last_read = Some(relay_counters::counts(&buffer).read);
                reader.read(count, &mut scratch, |bytes| assert!(bytes.copy_to(&mut got)));
                delivered += got.len() as u64;
                let expected = model.read(count);
                let is_equal =
                    |(got, expected): (&u8, &u16)| *expected == STAMP || *expected == u16::from(*got);
                prop_assert!(
                    got.len() == expected.len() && got.iter().zip(&expected).all(is_equal),
                    "read {} at step {}: {:?} instead of {:?}",
                    count,
                    step,
                    got,
                    expected
                );
            }
            Op::Reset => {
                reader.reset(run).unwrap();
                model.reset();
            }
            Op::Resume(in_the_middle) => {
                drop(reader);
                // Of overwritten bytes the reader cannot know whether they had been read.
                let in_the_middle = in_the_middle && geometry.mode() == Mode::NoOverwrite;
                if let Some(counted) = uncounted.filter(|_| in_the_middle) {
                    relay_counters::set_read(&buffer, counted);
                }
                reader = Reader::resume(buffer.clone()).expect("a sound buffer");
                prop_assert!(!reader.is_half_reset());
                model.resume();
            }
        }
        prop_assert_eq!(reader.has_finished(), model.consumed < model.produced(), "poll after step {}", step);
        prop_assert_eq!(reader.size(), model.size, "size after step {}", step);
        use relay_counters::*;
        let counts = counts(&buffer);
        prop_assert_eq!((counts.dropped, counts.too_big), (model.dropped, model.too_big));
        // No byte is lost without a count: every byte ever written is somewhere.
        prop_assert_eq!(delivered + counts.overwritten + counts.discarded + reader.unread(), model.size);
        prop_assert_eq!(counts.read, delivered);
        // Losses are seen before a read counts them, and their number does not go down.
        let seen = reader.overwritten_unread();
        prop_assert!(seen.bytes <= reader.unread(), "step {}", step);
        prop_assert!((seen.bytes == 0 && seen.subbufs == 0) || geometry.mode() == Mode::Overwrite);
        let now = (counts.overwritten + seen.bytes, counts.overwritten_subbufs + seen.subbufs);
        prop_assert!(now.0 >= told.0 && now.1 >= told.1, "step {}: {:?} after {:?}", step, now, told);
        told = now;
    }
    Ok(())
}

/// The counters of a buffer, read as a client would.
mod relay_counters {
    use std::sync::atomic::Ordering::Relaxed;

    use relay::ring::buffer::Buffer;

    pub(super) struct Counts {
        pub(super) dropped: u64,
        pub(super) too_big: u64,
        pub(super) read: u64,
        pub(super) overwritten: u64,
        pub(super) overwritten_subbufs: u64,
        pub(super) discarded: u64,
    }

    pub(super) fn set_read(buffer: &Buffer, value: u64) {
        buffer.block().read_bytes.store(value, Relaxed);
    }

    pub(super) fn counts(buffer: &Buffer) -> Counts {
        let block = buffer.block();
        Counts {
            dropped: block.dropped.load(Relaxed),
            too_big: block.too_big.load(Relaxed),
            read: block.read_bytes.load(Relaxed),
            overwritten: block.overwritten_bytes.load(Relaxed),
            overwritten_subbufs: block.overwritten_subbufs.load(Relaxed),
            discarded: block.discarded_bytes.load(Relaxed),
        }
    }
}
