//! A writer and a reader at full speed on one buffer: whole messages only, in order, and every byte accounted for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::rseq::{RseqExecutor, Sequences};
use relay::ring::writer::{AnyExecutor, Executor, SoleWriter, WriteResult, Writer};
use relay::{GeometrySpec, Mode};

/// Messages that the writer tries in each test.
const MESSAGES: u64 = 300_000;
const LEN_MIN: usize = 16;

/// A message: its number, its length, then bytes derived from the number.
fn message(number: u64, len: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
    out.extend((LEN_MIN..len).map(|i| (number as usize * 31 + i) as u8));
}

/// Checks that `stream` is whole messages with increasing numbers, and returns how many.
/// Removes them from `stream`; an incomplete message at the end stays.
fn check(stream: &mut Vec<u8>, next: &mut u64) -> u64 {
    let (mut at, mut n) = (0, 0);
    while stream.len() - at >= LEN_MIN {
        let word = |i: usize| u64::from_le_bytes(stream[at + i..at + i + 8].try_into().unwrap());
        let (number, len) = (word(0), word(8) as usize);
        assert!(number >= *next, "message {number} after {}", *next);
        if stream.len() - at < len {
            break;
        }
        let mut expected = Vec::new();
        message(number, len, &mut expected);
        assert_eq!(stream[at..at + len], expected, "message {number} is damaged");
        (*next, at, n) = (number + 1, at + len, n + 1);
    }
    stream.drain(..at);
    n
}

/// Runs once with a sole writer, once with one that uses restartable sequences.
fn run(
    mode: Mode,
    subbuf_size: u64,
    n_subbufs: u64,
    read_len: usize,
    len: impl Fn(u64) -> usize + Send + Sync + Copy,
) {
    run_as(|| SoleWriter, mode, subbuf_size, n_subbufs, read_len, len);
    if can_share() {
        run_as(on_this_cpu, mode, subbuf_size, n_subbufs, read_len, len);
    }
}

/// Whether there are restartable sequences. Only a setting of the C library can prevent them.
fn can_share() -> bool {
    let off = std::env::var("GLIBC_TUNABLES").is_ok_and(|tunables| tunables.contains("glibc.pthread.rseq=0"));
    assert_eq!(
        AnyExecutor::can_share(),
        !off,
        "a C library that registers restartable sequences (glibc 2.35)"
    );
    !off
}

/// Binds this thread to its CPU, and returns its executor for the buffer of that CPU.
fn on_this_cpu() -> RseqExecutor {
    let cpu = sched_getcpu().unwrap();
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    Sequences::find().expect("looked for before").on(cpu)
}

fn run_as<R: Executor>(
    run: impl FnOnce() -> R + Send,
    mode: Mode,
    subbuf_size: u64,
    n_subbufs: u64,
    read_len: usize,
    len: impl Fn(u64) -> usize + Send + Sync,
) {
    let spec = GeometrySpec {
        subbuf_size: Some(subbuf_size),
        n_subbufs: Some(n_subbufs),
        mode: Some(mode),
        ..GeometrySpec::default()
    };
    let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
    let ended = AtomicBool::new(false);
    let mut reader = Reader::new(buffer.clone());
    let (mut stream, mut next, mut received, mut delivered) = (Vec::new(), 0, 0, 0);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let writer = Writer::new(&buffer, run());
            let (mut bytes, mut written) = (Vec::new(), 0);
            for number in 0..MESSAGES {
                message(number, len(number), &mut bytes);
                match writer.write(&bytes).unwrap().placed {
                    WriteResult::Written => written += 1,
                    WriteResult::Full => assert!(writer.count(1, |block| &block.dropped)),
                    WriteResult::TooBig | WriteResult::Closed => panic!("every message fits"),
                }
            }
            ended.store(true, Ordering::Release);
            written
        });
        let mut scratch = Vec::new();
        loop {
            let last = ended.load(Ordering::Acquire);
            let before = stream.len();
            reader.read(read_len, &mut scratch, |bytes| assert!(bytes.copy_to(&mut stream)));
            let n = stream.len() - before;
            delivered += n as u64;
            received += check(&mut stream, &mut next);
            if last && n == 0 {
                break;
            }
        }
        writer.join().unwrap()
    });
    assert!(stream.is_empty(), "part of a message at the end");
    let block = buffer.block();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(written + count(&block.dropped), MESSAGES);
    assert_eq!(delivered + count(&block.overwritten_bytes), reader.size());
    assert_eq!(reader.unread(), 0);
    match mode {
        Mode::NoOverwrite => assert_eq!(received, written),
        Mode::Overwrite => assert_eq!(written, MESSAGES),
    }
}

fn mixed(number: u64) -> usize {
    LEN_MIN + (number as usize * 37) % 200
}

#[test]
fn no_overwrite_mode_loses_no_written_message() {
    for read_len in [100, 4096, 1 << 20] {
        run(Mode::NoOverwrite, 4096, 4, read_len, mixed);
    }
    run(Mode::NoOverwrite, 250, 3, 1000, mixed);
    run(Mode::NoOverwrite, 4096, 1, 4096, mixed);
}

#[test]
fn overwrite_mode_delivers_whole_messages_only() {
    for read_len in [100, 4096, 1 << 20] {
        run(Mode::Overwrite, 4096, 4, read_len, mixed);
    }
    run(Mode::Overwrite, 250, 3, 1000, mixed);
    run(Mode::Overwrite, 4096, 1, 4096, mixed);
}

/// Small messages between ones that always switch: `begun` must never move back.
#[test]
fn overwrite_mode_delivers_small_messages_between_switching_ones() {
    run(Mode::Overwrite, 512, 2, 700, |number| if number % 7 == 0 { 500 } else { LEN_MIN });
}
