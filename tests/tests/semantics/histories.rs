//! The kernel's rules replayed: thousands of random operations through the mounted files, every one of them compared with
//! a model that does what the rules (W1-W9, R1-R5) say, byte for byte and count for count. Messages go by the socket, or
//! directly into the buffer.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::poll::PollFlags;
use relayfs_tests::buffer::{Buffer, READABLE, Shape, runs};
use relayfs_tests::numbered::Random;

/// A buffer as the rules describe it. Where ours differ from the kernel's on purpose: sub-buffers of nothing but padding
/// are all skipped, what a lapped reader had begun is kept, and a reader may seek forward.
struct Model {
    shape: Shape,
    /// Data of each sub-buffer since creation, headers included; the last is the current one.
    subbufs: Vec<Vec<u8>>,
    /// The last switch was refused: there is no current sub-buffer yet.
    blocked: bool,
    /// Number of the sub-buffer that was in slot 0 first since creation or reset.
    base: usize,
    consumed: usize,
    bytes_consumed: usize,
    /// Stream position of the reader.
    stream: usize,
    /// What a reader that stopped within a sub-buffer gets in any case.
    kept: Vec<u8>,
    counts: Counts,
}

/// What `stats` says, as far as it cannot be derived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    produced: usize,
    consumed: usize,
    bytes: usize,
    written: usize,
    dropped: usize,
    too_big: usize,
    read_bytes: usize,
    read_subbufs: usize,
    overwritten_bytes: usize,
    overwritten_subbufs: usize,
    discarded_bytes: usize,
    discarded_subbufs: usize,
    high_water: usize,
}

impl Model {
    fn new(shape: Shape) -> Model {
        Model {
            shape,
            subbufs: vec![vec![0; shape.header]],
            blocked: false,
            base: 0,
            consumed: 0,
            bytes_consumed: 0,
            stream: 0,
            kept: Vec::new(),
            counts: Counts { bytes: shape.header, ..Counts::default() },
        }
    }

    fn produced(&self) -> usize {
        self.subbufs.len() - 1
    }

    fn current(&mut self) -> &mut Vec<u8> {
        self.subbufs.last_mut().expect("there is always one")
    }

    fn append(&mut self, bytes: &[u8]) {
        self.current().extend_from_slice(bytes);
        self.counts.bytes += bytes.len();
    }

    fn write(&mut self, message: &[u8]) -> bool {
        let Shape { s, header, .. } = self.shape;
        if message.len() > s {
            self.counts.too_big += 1; // W2.a
            return false;
        }
        let fits = !self.blocked && self.current().len() + message.len() <= s;
        if !fits && !self.switch() {
            self.counts.dropped += 1; // W2.c
            return false;
        }
        if !fits && header + message.len() > s {
            self.counts.too_big += 1; // W2.e
            return false;
        }
        self.append(message);
        self.counts.written += 1;
        true
    }

    /// W2.b to W2.d; W7.
    fn switch(&mut self) -> bool {
        if !self.blocked {
            self.subbufs.push(Vec::new());
        }
        self.blocked = !self.shape.over && self.produced() - self.consumed >= self.shape.n;
        if !self.blocked {
            self.append(&vec![0; self.shape.header]);
        }
        !self.blocked
    }

    fn reset(&mut self) {
        self.drop_kept();
        self.catch_up();
        self.counts.discarded_bytes += self.counts.bytes - self.stream;
        self.counts.discarded_subbufs += self.produced() - self.consumed;
        self.stream = self.counts.bytes;
        (self.base, self.consumed, self.bytes_consumed) = (self.produced(), self.produced(), 0);
        self.blocked = false;
        self.current().clear();
        self.append(&vec![0; self.shape.header]);
    }

    fn drop_kept(&mut self) {
        let n = self.kept.len();
        self.counts.discarded_bytes += n;
        self.take_kept(n, true);
    }

    /// Whether the writer has taken the reader's sub-buffer.
    fn lapped(&self) -> bool {
        self.shape.over && self.produced() - self.consumed >= self.shape.n
    }

    /// R2.
    fn catch_up(&mut self) {
        if self.lapped() {
            let oldest = self.produced() + 1 - self.shape.n;
            let lost: usize = self.subbufs[self.consumed..oldest].iter().map(Vec::len).sum();
            self.counts.overwritten_bytes += lost - self.bytes_consumed;
            self.counts.overwritten_subbufs += oldest - self.consumed;
            self.stream += lost - self.bytes_consumed;
            (self.consumed, self.bytes_consumed) = (oldest, 0);
        }
    }

    /// R1, once.
    fn credit(&mut self, skipping: bool) -> bool {
        let credited =
            self.consumed < self.produced() && self.bytes_consumed == self.subbufs[self.consumed].len();
        if credited {
            (self.consumed, self.bytes_consumed) = (self.consumed + 1, 0);
            let counts = &mut self.counts;
            *if skipping { &mut counts.discarded_subbufs } else { &mut counts.read_subbufs } += 1;
        }
        credited
    }

    fn take_kept(&mut self, count: usize, skipping: bool) -> Vec<u8> {
        let n = self.kept.len().min(count);
        let taken: Vec<u8> = self.kept.drain(..n).collect();
        self.bytes_consumed += n;
        self.stream += n;
        if n > 0 && self.kept.is_empty() && !self.lapped() {
            self.credit(skipping);
        }
        taken
    }

    /// R1 and R3.
    fn take(&mut self, count: usize, skipping: bool) -> Vec<u8> {
        let mut taken = Vec::new();
        while count > 0 && self.credit(skipping) {}
        while taken.len() < count {
            let rest = &self.subbufs[self.consumed][self.bytes_consumed..];
            let n = rest.len().min(count - taken.len());
            taken.extend_from_slice(&rest[..n]);
            if self.shape.over {
                self.kept = rest[n..].to_vec();
            }
            self.bytes_consumed += n;
            self.stream += n;
            if !self.credit(skipping) {
                break;
            }
        }
        taken
    }

    fn read(&mut self, at: usize, count: usize) -> Vec<u8> {
        if count == 0 {
            return Vec::new(); // the kernel does not even ask
        }
        if at > self.counts.bytes {
            return Vec::new(); // past the end
        }
        let mut before = None;
        while at > self.stream && before != Some(self.stream) {
            before = Some(self.stream);
            let skipped = if self.kept.is_empty() {
                self.catch_up();
                self.take(at.saturating_sub(self.stream), true)
            } else {
                self.take_kept(at - self.stream, true)
            };
            self.counts.discarded_bytes += skipped.len();
        }
        let mut taken = self.take_kept(count, false);
        if self.kept.is_empty() && taken.len() < count {
            self.catch_up();
            taken.extend(self.take(count - taken.len(), false));
        }
        self.counts.read_bytes += taken.len();
        taken
    }

    /// What `stats` says now.
    fn counts(&mut self) -> Counts {
        let finished = (self.produced() - self.consumed).min(self.shape.n);
        self.counts.produced = self.produced();
        self.counts.consumed = self.produced() - finished;
        self.counts.high_water = self.counts.high_water.max(finished);
        let mut counts = self.counts;
        if self.lapped() {
            // What the writer has taken is lost already, except what the reader keeps of it.
            let oldest = self.produced() + 1 - self.shape.n;
            let lost: usize = self.subbufs[self.consumed..oldest].iter().map(Vec::len).sum();
            counts.overwritten_bytes += lost - self.bytes_consumed - self.kept.len();
            counts.overwritten_subbufs += oldest - self.consumed;
        }
        counts
    }
}

/// What `stats` of a buffer says.
fn counts(b: &Buffer) -> Counts {
    let stats = b.mount().stats("cpu");
    let stat = |name: &str| stats[&format!("cpu0.{name}")] as usize;
    Counts {
        produced: stat("produced"),
        consumed: stat("consumed"),
        bytes: stat("bytes"),
        written: stat("written"),
        dropped: stat("dropped"),
        too_big: stat("too_big"),
        read_bytes: stat("read_bytes"),
        read_subbufs: stat("read_subbufs"),
        overwritten_bytes: stat("overwritten_bytes"),
        overwritten_subbufs: stat("overwritten_subbufs"),
        discarded_bytes: stat("discarded_bytes"),
        discarded_subbufs: stat("discarded_subbufs"),
        high_water: stat("high_water"),
    }
}

/// One history: random operations on a buffer and on its model, which always agree.
fn replay(shape: Shape, n_steps: usize, seed: u64) {
    let (b, mut model) = (Buffer::new(shape), Model::new(shape));
    let mut random = Random::new(seed);
    let files: Vec<File> = (0..2).map(|_| b.open()).collect();
    for step in 0..n_steps {
        let s = shape.s;
        let what = match random.below(100) {
            0..55 => {
                let edges =
                    [0, 1, s / 3, s / 2, s * 7 / 16, s - shape.header, s - shape.header.min(1), s, s + 1];
                let len =
                    if random.below(2) == 0 { edges[random.below(edges.len())] } else { random.below(s + 2) };
                let message = vec![step as u8 % 250 + 1; len];
                assert_eq!(b.write_bytes(&message), model.write(&message), "step {step}: writing {len}");
                format!("write {len}")
            }
            55..63 => {
                b.flush();
                model.switch();
                "flush".to_owned()
            }
            63..65 => {
                b.reset();
                model.reset();
                "reset".to_owned()
            }
            65..69 => {
                // A new file: what files keep for readers that seek back is not the subject here.
                let at = model.stream + random.below(2 * s + 2);
                let mut bytes = vec![0; random.below(s) + 1];
                let len = b.open().read_at(&mut bytes, at as u64).unwrap();
                b.note_delivered(len);
                let wanted = model.read(at, bytes.len());
                assert_eq!(runs(&bytes[..len]), runs(&wanted), "step {step}: {} at {at}", bytes.len());
                format!("pread {} at {at}", bytes.len())
            }
            _ => {
                let sizes = [0, 1, 7, s / 2, s, s + 1, 1 << 20];
                let count =
                    if random.below(2) == 0 { sizes[random.below(sizes.len())] } else { random.below(2 * s) };
                let got = b.read_from(&files[random.below(2)], count);
                assert_eq!(got, runs(&model.read(0, count)), "step {step}: reading {count}");
                format!("read {count}")
            }
        };
        let what = format!("step {step}: {what}");
        let readable = if model.consumed < model.produced() { READABLE } else { PollFlags::empty() };
        assert_eq!(b.poll(), readable, "{what}");
        assert_eq!(b.size(), model.counts.bytes, "{what}");
        let offset = if model.blocked { s + 1 } else { model.current().len() };
        assert_eq!((b.slot(), b.offset()), ((model.produced() - model.base) % shape.n, offset), "{what}");
        let expected = model.counts();
        let written = b.counted_as_written(expected.written as u64) as usize;
        assert_eq!(counts(&b), Counts { written, ..expected }, "{what}");
    }
    b.audit();
}

const SHAPES: [Shape; 8] = [
    Shape::new(8192, 2),
    Shape::new(4096, 4),
    Shape::new(1000, 3),
    Shape::new(1000, 1),
    Shape::new(1, 3),
    Shape::new(7, 5),
    Shape::new(100, 5).header(16),
    Shape::new(8192, 2).header(16),
];

/// Random histories of a buffer that drops.
#[test]
fn no_overwrite_follows_the_rules() {
    for (shape, seed) in SHAPES.into_iter().zip(1..) {
        replay(shape, 150, seed);
    }
}

/// Random histories of a buffer that drops, written directly.
#[test]
fn no_overwrite_follows_the_rules_directly() {
    for (shape, seed) in SHAPES.into_iter().zip(1001..) {
        replay(shape.direct(), 150, seed);
    }
}

/// Random histories of a buffer that overwrites.
#[test]
fn overwrite_follows_the_rules() {
    for (shape, seed) in SHAPES.into_iter().zip(101..) {
        replay(shape.over(), 150, seed);
    }
}

/// Random histories of a buffer that overwrites, written directly.
#[test]
fn overwrite_follows_the_rules_directly() {
    for (shape, seed) in SHAPES.into_iter().zip(1101..) {
        replay(shape.over().direct(), 150, seed);
    }
}

/// Random histories of one sub-buffer with a header, in both modes.
#[test]
fn one_sub_buffer_follows_the_rules() {
    for (shape, seed) in [Shape::new(1000, 1), Shape::new(64, 1)].into_iter().zip(201..) {
        for shape in [shape.header(16), shape.header(16).over()] {
            replay(shape, 150, seed);
            replay(shape.direct(), 150, seed + 1000);
        }
    }
}
