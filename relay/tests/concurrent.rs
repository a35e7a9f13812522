//! A writer and a reader at full speed on one buffer: whole messages only, in order, and every byte accounted for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use relay::clock::Clock;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::rseq::{RseqExecutor, Sequences};
use relay::ring::writer::{AnyExecutor, Executor, SoleWriter, WriteResult, Writer};
use relay::{GeometrySpec, Mode};

/// Messages that the writer tries in each test.
const MESSAGES: u64 = 300_000;
/// Records that the writer tries in each test: the rules are the same, and stamps are checked besides.
const RECORDS: u64 = 40_000;
const LEN_MIN: usize = 16;
/// Head of every record, without the length: id and thread.
const HEAD: u64 = 0x0003_0002_0100;

/// A message: its number, its length, then bytes derived from the number.
fn message(number: u64, len: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
    out.extend((LEN_MIN..len).map(|i| (number as usize * 31 + i) as u8));
}

/// Checks that `stream` is whole messages with increasing numbers, and returns how many.
/// Removes them from `stream`; an incomplete message at the end stays.
/// With `last_stamp` the messages are payloads of records, whose stamps do not decrease.
fn check(stream: &mut Vec<u8>, next: &mut u64, last_stamp: &mut Option<u64>) -> u64 {
    if let Some(last_stamp) = last_stamp {
        let (mut at, mut payloads) = (0, Vec::new());
        while let Some(record) = stream[at..].first_chunk::<16>() {
            let stamp = u64::from_le_bytes(record[..8].try_into().unwrap());
            assert!(stamp >= *last_stamp, "stamp {stamp} after {last_stamp}");
            let len = usize::from(u16::from_le_bytes(record[14..].try_into().unwrap()));
            assert_eq!(record[8..14], HEAD.to_le_bytes()[..6], "damaged");
            let Some(payload) = stream[at + 16..].get(..len) else { break };
            payloads.extend_from_slice(payload);
            (*last_stamp, at) = (stamp, at + 16 + len);
        }
        let n = check(&mut payloads, next, &mut None);
        assert!(payloads.is_empty(), "a payload that is no message");
        stream.drain(..at);
        return n;
    }
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
    run_with(&[None, Some(Clock::Monotonic)], mode, subbuf_size, n_subbufs, read_len, len);
}

/// Runs with bare messages, and with records that these clocks stamp.
fn run_with(
    clocks: &[Option<Clock>],
    mode: Mode,
    subbuf_size: u64,
    n_subbufs: u64,
    read_len: usize,
    len: impl Fn(u64) -> usize + Send + Sync + Copy,
) {
    for clock in clocks {
        // A record has 16 bytes more than its message, and the longest messages must fit.
        let subbuf_size = if clock.is_some() { subbuf_size + 16 } else { subbuf_size };
        run_as(|| SoleWriter, *clock, mode, subbuf_size, n_subbufs, read_len, len);
        if can_share() {
            run_as(on_this_cpu, *clock, mode, subbuf_size, n_subbufs, read_len, len);
        }
    }
}

/// Whether there are restartable sequences. Only `tests/run.sh` prevents them.
fn can_share() -> bool {
    let off = std::env::var("RELAYFS_TESTS_RSEQ").is_ok_and(|areas| areas == "refused");
    assert_eq!(AnyExecutor::can_share(), !off, "a kernel that registers restartable sequences");
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
    clock: Option<Clock>,
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
        timed: Some(clock.is_some()),
        ..GeometrySpec::default()
    };
    let clock_or_any = clock.unwrap_or(Clock::Monotonic);
    let buffer = Buffer::anonymous_with_clock(spec.build().unwrap(), 0, clock_or_any).unwrap();
    let (messages, mut last_stamp) = clock.map_or((MESSAGES, None), |_| (RECORDS, Some(0)));
    let ended = AtomicBool::new(false);
    let mut reader = Reader::new(buffer.clone());
    let (mut stream, mut next, mut received, mut delivered) = (Vec::new(), 0, 0, 0);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let writer = Writer::new(&buffer, run());
            let (mut bytes, mut written) = (Vec::new(), 0);
            for number in 0..messages {
                message(number, len(number), &mut bytes);
                let outcome =
                    if clock.is_some() { writer.write_record(HEAD, &bytes) } else { writer.write(&bytes) };
                match outcome.unwrap().placed {
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
            received += check(&mut stream, &mut next, &mut last_stamp);
            if last && n == 0 {
                break;
            }
        }
        writer.join().unwrap()
    });
    assert!(stream.is_empty(), "part of a message at the end");
    let block = buffer.block();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(written + count(&block.dropped), messages);
    assert_eq!(delivered + count(&block.overwritten_bytes), reader.size());
    assert_eq!(reader.unread(), 0);
    match mode {
        Mode::NoOverwrite => assert_eq!(received, written),
        Mode::Overwrite => assert_eq!(written, messages),
    }
}

#[test]
fn records_stamped_by_the_tsc_are_whole() {
    if Clock::Tsc.is_readable() {
        for mode in [Mode::NoOverwrite, Mode::Overwrite] {
            run_with(&[Some(Clock::Tsc)], mode, 4096, 4, 4096, mixed);
            run_with(&[Some(Clock::Tsc)], mode, 250, 3, 1000, mixed);
        }
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
