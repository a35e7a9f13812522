//! Threads that write one buffer together, by restartable sequences on one CPU.
//!
//! The reader gets whole messages only, in the order of each writer, and none is lost. Further threads do so on several
//! CPUs, each with its buffer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::rseq::Sequences;
use relay::ring::writer::{AnyExecutor, WriteResult, Writer};
use relay::{GeometrySpec, Mode};

/// Threads that write one buffer.
const WRITERS: u32 = 4;
/// Messages that each of them writes in each run.
const MESSAGES: u32 = 8_000;
const HEAD_LEN: usize = 16;

/// A message: writer, number, length, a checksum of these, then bytes derived from them.
fn message(writer: u32, number: u32, len: usize, out: &mut Vec<u8>) {
    out.clear();
    for word in [writer, number, len as u32, check_of(writer, number, len as u32)] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let first = (writer * 89 + number * 31) as usize;
    out.extend((HEAD_LEN..len).map(|i| (first + i) as u8));
}

/// Returns the checksum of a header: the reader must not use a length that was not written.
fn check_of(writer: u32, number: u32, len: u32) -> u32 {
    [writer, number, len].iter().fold(0x811c_9dc5, |sum, word| (sum ^ word).wrapping_mul(0x0100_0193))
}

/// The messages that a reader has seen of one buffer.
struct Seen {
    reader: Reader,
    stream: Vec<u8>,
    delivered: u64,
    /// For each writer, the next number, and the count of messages.
    writers: Vec<(u32, u32)>,
    expected: Vec<u8>,
}

impl Seen {
    fn new(buffer: &Buffer, n_writers: u32) -> Seen {
        Seen {
            reader: Reader::new(buffer.clone()),
            stream: Vec::new(),
            delivered: 0,
            writers: vec![(0, 0); n_writers as usize],
            expected: Vec::new(),
        }
    }

    /// Reads once, checks every whole message, and returns how many bytes were read.
    fn read(&mut self, read_len: usize, scratch: &mut Vec<u8>) -> usize {
        let before = self.stream.len();
        self.reader.read(read_len, scratch, |bytes| assert!(bytes.copy_to(&mut self.stream)));
        let n = self.stream.len() - before;
        self.delivered += n as u64;
        let mut at = 0;
        while let Some(head) = self.stream[at..].first_chunk::<HEAD_LEN>() {
            let word = |i: usize| u32::from_le_bytes(head[i..i + 4].try_into().unwrap());
            let (writer, number, len) = (word(0), word(4), word(8));
            assert_eq!(word(12), check_of(writer, number, len), "no message begins with {head:?}");
            let Some(got) = self.stream.get(at..at + len as usize) else { break };
            message(writer, number, len as usize, &mut self.expected);
            assert!(got == self.expected, "message {number} of writer {writer} is damaged");
            let (next, n) = &mut self.writers[writer as usize];
            assert!(number >= *next, "message {number} of writer {writer} after {next}");
            (*next, *n) = (number + 1, *n + 1);
            at += got.len();
        }
        self.stream.drain(..at);
        n
    }

    /// Checks the totals after everything was written and read.
    fn finish(&self, buffer: &Buffer, len: impl Fn(u32) -> usize) {
        assert!(self.stream.is_empty(), "part of a message at the end");
        let n_writers = self.writers.len() as u64;
        let written = n_writers * (0..MESSAGES).map(|number| len(number) as u64).sum::<u64>();
        let overwritten = buffer.block().overwritten_bytes.load(Ordering::Relaxed);
        assert_eq!(self.reader.size(), written, "bytes in the stream");
        assert_eq!(self.delivered + overwritten, written, "bytes that were delivered or overwritten");
        assert_eq!(self.reader.unread(), 0);
        if buffer.geometry().mode() == Mode::NoOverwrite {
            assert_eq!(overwritten, 0);
            assert_eq!(self.writers, vec![(MESSAGES, MESSAGES); self.writers.len()]);
        }
    }
}

/// Counts a running writer while this value lives.
/// No thread then waits for one that has panicked.
struct AtWork<'a>(&'a AtomicUsize);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// Returns the CPUs that this thread may run on.
fn allowed_cpus() -> Vec<usize> {
    let cpus = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap()).collect()
}

/// Whether there are restartable sequences. Only `tests/run.sh` prevents them.
fn can_share() -> bool {
    let off = std::env::var("RELAYFS_TESTS_RSEQ").is_ok_and(|areas| areas == "refused");
    assert_eq!(AnyExecutor::can_share(), !off, "a kernel that registers restartable sequences");
    !off
}

/// Writes all messages of a writer, and repeats those refused for lack of room.
fn write_all(buffer: &Buffer, cpu: usize, writer: u32, reading: &AtomicUsize, len: impl Fn(u32) -> usize) {
    pin(cpu);
    let (to, mut bytes) = (Writer::new(buffer, Sequences::find().unwrap().on(cpu)), Vec::new());
    for number in 0..MESSAGES {
        message(writer, number, len(number), &mut bytes);
        loop {
            match to.write(&bytes).unwrap().placed {
                WriteResult::Written => break,
                WriteResult::Full => assert_ne!(reading.load(Ordering::Acquire), 0, "the reader has stopped"),
                WriteResult::TooBig | WriteResult::Closed => panic!("every message fits"),
            }
            thread::yield_now();
        }
        if number % 64 == writer {
            thread::yield_now(); // else each thread would use up its time slice, and they would hardly ever meet
        }
    }
}

/// Runs `n_writers` writing threads on each of `cpus`.
/// A reading thread runs on the last of all CPUs.
fn run(
    cpus: &[usize],
    n_writers: u32,
    (mode, subbuf_size, n_subbufs): (Mode, u64, u64),
    read_len: usize,
    len: impl Fn(u32) -> usize + Sync,
) {
    let spec = GeometrySpec {
        subbuf_size: Some(subbuf_size),
        n_subbufs: Some(n_subbufs),
        mode: Some(mode),
        ..GeometrySpec::default()
    };
    let new = || Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
    let buffers: Vec<(usize, Buffer)> = cpus.iter().map(|cpu| (*cpu, new())).collect();
    // Two threads of a process share a window; other processes have a clone.
    let clones: Vec<Buffer> = buffers.iter().map(|(_, buffer)| buffer.clone()).collect();
    let mut seen: Vec<Seen> = buffers.iter().map(|(_, buffer)| Seen::new(buffer, n_writers)).collect();
    let reader_cpu = *allowed_cpus().last().unwrap();
    let (reading, writing) = (AtomicUsize::new(1), AtomicUsize::new(cpus.len() * n_writers as usize));
    let (reading, writing, len) = (&reading, &writing, &len);
    thread::scope(|scope| {
        for ((cpu, buffer), clone) in buffers.iter().zip(&clones) {
            for writer in 0..n_writers {
                let buffer = if writer % 2 == 0 { buffer } else { clone };
                scope.spawn(move || {
                    let _at_work = AtWork(writing);
                    write_all(buffer, *cpu, writer, reading, len);
                });
            }
            // A thread that wakes up while others are writing.
            scope.spawn(move || {
                pin(*cpu);
                while writing.load(Ordering::Relaxed) > 0 {
                    thread::sleep(Duration::from_micros(20));
                }
            });
        }
        let seen = &mut seen;
        scope.spawn(move || {
            let _at_work = AtWork(reading);
            pin(reader_cpu);
            let mut scratch = Vec::new();
            loop {
                let last = writing.load(Ordering::Acquire) == 0;
                let n: usize = seen.iter_mut().map(|seen| seen.read(read_len, &mut scratch)).sum();
                if last && n == 0 {
                    break;
                }
                if n == 0 {
                    thread::yield_now();
                }
            }
        });
    });
    for (seen, (_, buffer)) in seen.iter().zip(&buffers) {
        seen.finish(buffer, len);
    }
}

/// Returns mostly small lengths, and some for each way to copy.
fn mixed(number: u32) -> usize {
    let number = number as usize;
    HEAD_LEN + if number.is_multiple_of(29) { 1500 + number % 2000 } else { number * 37 % 150 }
}

/// Returns lengths for sub-buffers of 250 bytes: some fill a whole one.
fn small(number: u32) -> usize {
    if number.is_multiple_of(7) { 250 } else { HEAD_LEN + number as usize * 37 % 100 }
}

#[test]
fn threads_on_one_cpu_lose_no_message_in_no_overwrite_mode() {
    if can_share() {
        let cpu = allowed_cpus()[0];
        run(&[cpu], WRITERS, (Mode::NoOverwrite, 4096, 4), 100_000, mixed);
        run(&[cpu], WRITERS, (Mode::NoOverwrite, 65_536, 4), 3000, mixed);
        run(&[cpu], WRITERS, (Mode::NoOverwrite, 250, 3), 1000, small);
        run(&[cpu], WRITERS, (Mode::NoOverwrite, 4096, 1), 4096, mixed);
    }
}

#[test]
fn threads_on_one_cpu_leave_whole_messages_in_overwrite_mode() {
    if can_share() {
        let cpu = allowed_cpus()[0];
        run(&[cpu], WRITERS, (Mode::Overwrite, 4096, 4), 100_000, mixed);
        run(&[cpu], WRITERS, (Mode::Overwrite, 65_536, 4), 3000, mixed);
        run(&[cpu], WRITERS, (Mode::Overwrite, 250, 3), 1000, small);
        run(&[cpu], WRITERS, (Mode::Overwrite, 4096, 1), 4096, mixed);
    }
}

#[test]
fn threads_on_several_cpus_write_their_own_buffers() {
    if can_share() {
        let mut cpus = allowed_cpus();
        cpus.truncate(4);
        for mode in [Mode::NoOverwrite, Mode::Overwrite] {
            run(&cpus, 1, (mode, 4096, 4), 100_000, mixed);
            run(&cpus, WRITERS, (mode, 250, 3), 1000, small);
        }
    }
}
