//! One buffer under test, in the notation of the tables of the kernel's behaviour.
//!
//! A *shape* is `8192x2/over`, bytes are runs of letters, `a*100 b*50`, and a message is one letter repeated.
//!
//! The rules do not depend on the writer, so a shape names it. By default the daemon writes what comes by the socket.
//! With `/direct` the test itself writes, on the buffer's CPU.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;
use relay::layout::paths;
use relay_producer::{BatchOptions, Channel};

use crate::Mount;
use crate::direct::{is_without_sequences, on_cpu};

/// Bytes asked for in one read(2) of "everything".
pub const MIB: usize = 1 << 20;
/// The flags of poll(2) when a finished sub-buffer waits.
pub const READABLE: PollFlags = PollFlags::POLLIN.union(PollFlags::POLLRDNORM);

/// The shape of a channel.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size of a sub-buffer.
    pub s: usize,
    /// Number of sub-buffers.
    pub n: usize,
    /// Whether it overwrites.
    pub over: bool,
    /// Reserved bytes at the start of each sub-buffer.
    pub header: usize,
    /// Whether messages are written directly.
    pub direct: bool,
}

impl Shape {
    /// No-overwrite mode, no header, by the socket.
    pub const fn new(s: usize, n: usize) -> Shape {
        Shape { s, n, over: false, header: 0, direct: false }
    }

    /// The same in overwrite mode.
    pub const fn over(self) -> Shape {
        Shape { over: true, ..self }
    }

    /// The same with a header.
    pub const fn header(self, header: usize) -> Shape {
        Shape { header, ..self }
    }

    /// The same written directly.
    pub const fn direct(self) -> Shape {
        Shape { direct: true, ..self }
    }

    /// The shapes for which the tables hold, as recorded or with other numbers.
    ///
    /// They are the two recorded shapes and an odd one, each with both ways of writing.
    pub fn of_tables() -> [Shape; 6] {
        let [a, b, c] = [Shape::new(8192, 2), Shape::new(4096, 4), Shape::new(1000, 3)];
        [a, a.direct(), b, b.direct(), c, c.direct()]
    }

    /// The shapes of the tables in both modes.
    pub fn of_tables_in_both_modes() -> impl Iterator<Item = Shape> {
        Shape::of_tables().into_iter().flat_map(|shape| [shape, shape.over()])
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}/{}", self.s, self.n, if self.over { "over" } else { "noover" })?;
        if self.header > 0 {
            write!(f, "/hdr{}", self.header)?;
        }
        if self.direct { f.write_str("/direct") } else { Ok(()) }
    }
}

/// Formats bytes as runs: `a*100 b*50`; no bytes are the empty string.
pub fn runs(bytes: &[u8]) -> String {
    let mut text = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        let gap = if text.is_empty() { "" } else { " " };
        write!(text, "{gap}{}*{}", run[0].escape_ascii(), run.len()).expect("writing to a string");
    }
    text
}

/// The runs of messages of one length: `each("ab", 10)` is `a*10 b*10`.
pub fn each(letters: &str, len: usize) -> String {
    letters.chars().map(|letter| format!("{letter}*{len}")).collect::<Vec<_>>().join(" ")
}

/// The flags that poll(2) returns for a file, asked for all flags; does not wait.
#[track_caller]
pub fn poll_now(file: &File) -> PollFlags {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::all())];
    poll(&mut fds, PollTimeout::ZERO).expect("poll");
    fds[0].revents().expect("flags that are known")
}

/// Reads once, up to `count` bytes.
#[track_caller]
pub fn read_once(mut file: &File, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let len = file.read(&mut bytes).expect("read");
    bytes.truncate(len);
    bytes
}

/// Buffer 0 of channel `cpu` in a separate mount, with one file open for reading.
#[derive(Debug)]
pub struct Buffer {
    /// Its shape.
    pub shape: Shape,
    file: File,
    channel: Channel,
    mount: Mount,
    accepted: Cell<u64>,
    dropped: Cell<u64>,
    too_big: Cell<u64>,
    delivered: Cell<u64>,
}

impl Buffer {
    /// Mounts a relayfs with an empty buffer.
    #[track_caller]
    pub fn new(shape: Shape) -> Buffer {
        let Shape { s, n, over, header, direct } = shape;
        let mode = if over { "overwrite" } else { "no-overwrite" };
        let mount = Mount::new(&[
            "--flush-interval=never",
            "--channel",
            &format!("cpu:subbuf-size={s}:n-subbufs={n}:header={header}:{mode}"),
        ]);
        let file = File::open(mount.path("cpu0")).expect("opening a buffer");
        let channel = if direct { mount.direct_channel("cpu") } else { mount.channel("cpu") };
        let zero = || Cell::new(0);
        Buffer {
            shape,
            file,
            channel,
            mount,
            accepted: zero(),
            dropped: zero(),
            too_big: zero(),
            delivered: zero(),
        }
    }

    /// Its mount.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// The file that [`read`](Self::read) reads.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another open file.
    #[track_caller]
    pub fn open(&self) -> File {
        File::open(self.mount.path("cpu0")).expect("opening a buffer")
    }

    /// Writes a message of `len` bytes for each letter; returns the letters of accepted messages.
    #[track_caller]
    pub fn write(&self, letters: &str, len: usize) -> String {
        let is_accepted = |letter: &char| self.write_bytes(&vec![*letter as u8; len]);
        letters.chars().filter(is_accepted).collect()
    }

    /// Writes one message, and returns whether it was accepted.
    #[track_caller]
    pub fn write_bytes(&self, message: &[u8]) -> bool {
        let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
        let write = || self.channel.write_batch([message], options).expect("writing a message");
        let counts = if self.shape.direct {
            self.settle();
            on_cpu(0, write)
        } else {
            write()
        };
        assert_eq!(counts.written + counts.dropped + counts.too_big, 1, "{counts:?}");
        self.accepted.set(self.accepted.get() + counts.written);
        self.dropped.set(self.dropped.get() + counts.dropped);
        self.too_big.set(self.too_big.get() + counts.too_big);
        counts.written == 1
    }

    /// Waits until the writer can see the last read: read(2) returns a moment earlier.
    ///
    /// The daemon answers a read of `stats` only after that.
    fn settle(&self) {
        self.stat("consumed");
    }

    /// The daemon's expected count of `n` written messages: it counts only those by the socket.
    pub fn counted_as_written(&self, n: u64) -> u64 {
        if self.shape.direct && !is_without_sequences() { 0 } else { n }
    }

    /// Reads once, up to `count` bytes, as runs.
    #[track_caller]
    pub fn read(&self, count: usize) -> String {
        self.read_from(&self.file, count)
    }

    /// Reads once through another open file.
    #[track_caller]
    pub fn read_from(&self, file: &File, count: usize) -> String {
        runs(&self.read_bytes(file, count))
    }

    /// Reads once, up to `count` bytes, as bytes.
    #[track_caller]
    pub fn read_bytes(&self, file: &File, count: usize) -> Vec<u8> {
        let bytes = read_once(file, count);
        self.delivered.set(self.delivered.get() + bytes.len() as u64);
        bytes
    }

    /// Notes bytes that were read by other means.
    pub fn note_delivered(&self, len: usize) {
        self.delivered.set(self.delivered.get() + len as u64);
    }

    /// The flags that poll(2) returns, asked for all flags.
    #[track_caller]
    pub fn poll(&self) -> PollFlags {
        poll_now(&self.file)
    }

    /// Finishes the current sub-buffer of every CPU.
    #[track_caller]
    pub fn flush(&self) {
        self.mount.poke("cpu", "flush");
    }

    /// Discards everything unread, of every CPU.
    #[track_caller]
    pub fn reset(&self) {
        self.mount.poke("cpu", "reset");
    }

    /// The file's size.
    #[track_caller]
    pub fn size(&self) -> usize {
        self.file.metadata().expect("fstat").len() as usize
    }

    /// One of the buffer's numbers in `stats`.
    #[track_caller]
    pub fn stat(&self, name: &str) -> usize {
        self.mount.stats("cpu")[&format!("cpu0.{name}")] as usize
    }

    /// `produced` and `consumed`.
    #[track_caller]
    pub fn produced_consumed(&self) -> (usize, usize) {
        let stats = self.mount.stats("cpu");
        (stats["cpu0.produced"] as usize, stats["cpu0.consumed"] as usize)
    }

    /// The writer's offset in its sub-buffer; `S + 1` is *blocked*. From the control file.
    #[track_caller]
    pub fn offset(&self) -> usize {
        (self.control().state & ((1 << self.control().offset_bits) - 1)) as usize
    }

    /// The slot that the writer is in, or waits for. From the control file.
    #[track_caller]
    pub fn slot(&self) -> usize {
        let control = self.control();
        (control.state >> control.offset_bits & ((1 << control.slot_bits) - 1)) as usize
    }

    /// Padding of the sub-buffers finished last, oldest first, as many as there are slots at most. From the control
    /// file.
    #[track_caller]
    pub fn paddings(&self) -> Vec<usize> {
        let produced = self.produced_consumed().0;
        let records = self.control().records;
        let numbers = produced.saturating_sub(self.shape.n)..produced;
        let padding = |number| {
            let record = records.iter().find(|record| record.0 == number as u64);
            record.expect("a record of each sub-buffer of the last lap").1 as usize
        };
        numbers.map(padding).collect()
    }

    /// The bytes of the ring in memory. From the data file.
    #[track_caller]
    pub fn ring(&self) -> Vec<u8> {
        fs::read(self.state_file("data0")).expect("the data file")
    }

    /// Reads the rest, and checks that every message and every byte is accounted for, by its cause.
    #[track_caller]
    pub fn audit(&self) {
        let shape = self.shape;
        while !self.read(MIB).is_empty() {}
        let stats = self.mount.stats("cpu");
        let stat = |name: &str| stats[&format!("cpu0.{name}")];
        assert_eq!(stat("written"), self.counted_as_written(self.accepted.get()), "{shape}: written");
        assert_eq!(stat("dropped"), self.dropped.get(), "{shape}: dropped");
        assert_eq!(stat("too_big"), self.too_big.get(), "{shape}: too_big");
        assert_eq!(stat("read_bytes"), self.delivered.get(), "{shape}: read_bytes");
        assert_eq!(stat("bytes"), self.size() as u64, "{shape}: bytes is the size");
        let accounted = stat("read_bytes") + stat("overwritten_bytes") + stat("discarded_bytes");
        assert_eq!(stat("bytes"), accounted, "{shape}: bytes, with nothing unread");
        let accounted = stat("read_subbufs") + stat("overwritten_subbufs") + stat("discarded_subbufs");
        assert_eq!(stat("consumed"), accounted, "{shape}: sub-buffers given back");
        assert_eq!(stat("produced"), stat("consumed"), "{shape}: nothing finished is left");
        assert_eq!(stat("corrected"), 0, "{shape}: no process here breaks a rule");
        let full = stat("high_water") <= shape.n as u64;
        assert!(full, "{shape}: high_water {} of {}", stat("high_water"), shape.n);
        if !shape.over {
            assert_eq!(stat("overwritten_bytes") + stat("overwritten_subbufs"), 0, "{shape}");
        }
    }

    fn state_file(&self, suffix: &str) -> PathBuf {
        // The daemon has one channel, its first.
        paths::state_dir(self.mount.point(), geteuid().as_raw()).join(format!("1.{suffix}"))
    }

    /// The control file as the design document describes it.
    #[track_caller]
    fn control(&self) -> Control {
        let file = File::open(self.state_file("control")).expect("the control file");
        let word = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).expect("a control file of full length");
            u64::from_le_bytes(bytes)
        };
        let bits = word(48).to_le_bytes();
        let block = word(56);
        let record = |i| block + word(72) + i * word(80);
        Control {
            offset_bits: bits[4].into(),
            slot_bits: bits[5].into(),
            state: word(block),
            records: (0..2 * self.shape.n as u64).map(|i| (word(record(i)), word(record(i) + 16))).collect(),
        }
    }
}

/// Prints the shape of a failed test.
impl Drop for Buffer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the buffer was {}", self.shape);
        }
    }
}

struct Control {
    offset_bits: u32,
    slot_bits: u32,
    state: u64,
    /// Of each record, the sub-buffer's number since creation, and its padding.
    records: Vec<(u64, u64)>,
}
