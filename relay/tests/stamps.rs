//! Stamps never decrease within a buffer, and records are whole.
//!
//! Threads write while they move between CPUs, and timers interrupt them. The handler of their signal writes records,
//! too, between any two instructions of the thread that it interrupts. Threads that write on behalf of others stamp
//! behind a fence, in the same buffers.
#![cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux"))]
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::{Pid, gettid};
use relay::clock::Clock;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::rseq::Sequences;
use relay::ring::writer::{AnyExecutor, Attempt, SoleWriter, WriteResult, Writer};
use relay::{GeometrySpec, Mode};

/// Threads that write; each can run on every CPU.
const THREADS: usize = 6;
/// Records of each of them.
const RECORDS: u64 = 60_000;
/// Time between two signals of a thread.
const TICK: Duration = Duration::from_micros(150);
const OVERHEAD: usize = 16;

/// The buffers that the handler writes to, for the test that runs.
static BUFFERS: OnceLock<Vec<Buffer>> = OnceLock::new();
/// Records that handlers have written.
static BY_HANDLERS: AtomicU64 = AtomicU64::new(0);
/// Whether the reader still makes room; no writer waits for one that has panicked.
static READING: AtomicBool = AtomicBool::new(false);

struct AtWork;

impl Drop for AtWork {
    fn drop(&mut self) {
        READING.store(false, Ordering::Release);
    }
}

thread_local! {
    /// The thread's number among the writers; none if it is no writer.
    static WRITER: Cell<Option<u32>> = const { Cell::new(None) };
    static NEXT_OF_HANDLER: Cell<u64> = const { Cell::new(0) };
}

/// A payload: a number, and bytes derived from it. Its length is between 8 and 400.
fn payload(number: u64, bytes: &mut [u8; 400]) -> &[u8] {
    let len = 8 + (number as usize * 37) % if number.is_multiple_of(50) { 393 } else { 90 };
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    for (i, byte) in bytes[8..len].iter_mut().enumerate() {
        *byte = (number as usize + i) as u8;
    }
    &bytes[..len]
}

/// Returns the head of a record by this writer; the ring adds the length.
fn head(writer: u32, id: u16) -> u64 {
    u64::from(id) | u64::from(writer) << 16
}

/// Tries once to write a record to the buffer of the CPU that the thread is on.
fn try_here(buffers: &[Buffer], sequences: Sequences, head: u64, payload: &[u8], daemon: bool) -> Attempt {
    let cpu = sequences.cpu();
    if daemon {
        Writer::new(&buffers[cpu], AnyExecutor::on(Some(cpu))).try_write_record(head, payload)
    } else {
        Writer::new(&buffers[cpu], sequences.on(cpu)).try_write_record(head, payload)
    }
}

fn write_here(buffers: &[Buffer], sequences: Sequences, head: u64, payload: &[u8], daemon: bool) {
    loop {
        match try_here(buffers, sequences, head, payload, daemon) {
            Attempt::Done(outcome) if outcome.placed == WriteResult::Written => return,
            Attempt::Done(outcome) => {
                assert_eq!(outcome.placed, WriteResult::Full);
                assert!(READING.load(Ordering::Acquire), "the reader has stopped");
                thread::yield_now();
            }
            Attempt::Interrupted | Attempt::Located => {}
        }
    }
}

/// Writes a record with id 7. Takes no lock, allocates nothing, and keeps `errno`.
extern "C" fn on_tick(_: libc::c_int) {
    let errno = Errno::last_raw();
    if let (Some(buffers), Some(writer), Some(sequences)) = (BUFFERS.get(), WRITER.get(), Sequences::find()) {
        let (number, mut bytes) = (NEXT_OF_HANDLER.get(), [0; 400]);
        let payload = payload(number, &mut bytes);
        for _ in 0..50 {
            let attempt = try_here(buffers, sequences, head(writer, 7), payload, false);
            if attempt.done().is_some_and(|outcome| outcome.placed == WriteResult::Written) {
                NEXT_OF_HANDLER.set(number + 1);
                BY_HANDLERS.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
    }
    Errno::set_raw(errno);
}

fn allowed_cpus() -> Vec<usize> {
    let cpus = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap()).collect()
}

fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// Returns a timer that sends the calling thread a signal each tick.
fn ticks() -> Timer {
    let notify =
        SigevNotify::SigevThreadId { signal: Signal::SIGUSR2, thread_id: gettid().as_raw(), si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).unwrap();
    timer.set(Expiration::Interval(TimeSpec::from_duration(TICK)), TimerSetTimeFlags::empty()).unwrap();
    timer
}

/// What a reader has found in one buffer.
#[derive(Default)]
struct Seen {
    stream: Vec<u8>,
    last_stamp: u64,
    records: u64,
    /// For each writer and id, the number of the last record and how many there were.
    last: std::collections::HashMap<(u32, u16), (u64, u64)>,
}

impl Seen {
    /// Checks all whole records, and removes them.
    fn check(&mut self, case: &str) {
        let mut at = 0;
        while let Some(record) = self.stream[at..].first_chunk::<OVERHEAD>() {
            let stamp = u64::from_le_bytes(record[..8].try_into().unwrap());
            let id = u16::from_le_bytes(record[8..10].try_into().unwrap());
            let writer = u32::from_le_bytes(record[10..14].try_into().unwrap());
            let len = usize::from(u16::from_le_bytes(record[14..].try_into().unwrap()));
            let Some(got) = self.stream[at + OVERHEAD..].get(..len) else { break };
            assert!(
                stamp >= self.last_stamp,
                "{case}: {stamp} after {} of record {}",
                self.last_stamp,
                self.records
            );
            let number = u64::from_le_bytes(got.first_chunk().copied().expect("a number"));
            let mut bytes = [0; 400];
            assert_eq!(got, payload(number, &mut bytes), "{case}: record {number} of {writer} is damaged");
            assert!([6, 7, 8].contains(&id) && writer < 2 * THREADS as u32, "{case}: {id} {writer}");
            let (last, count) = self.last.entry((writer, id)).or_insert((number, 0));
            assert!(*count == 0 || number > *last, "{case}: record {number} of {writer} after {last}");
            (*last, *count) = (number, *count + 1);
            (self.last_stamp, self.records) = (stamp, self.records + 1);
            at += OVERHEAD + len;
        }
        self.stream.drain(..at);
    }
}

/// Whether there are restartable sequences. Only `tests/run.sh` prevents them.
fn can_share() -> bool {
    let off = std::env::var("RELAYFS_TESTS_RSEQ").is_ok_and(|areas| areas == "refused");
    assert_eq!(AnyExecutor::can_share(), !off, "restartable sequences: the kernel has them");
    !off
}

fn storm(clock: Clock, mode: Mode) {
    let case = format!("{clock:?}, {mode}");
    let (sequences, cpus) = (Sequences::find().expect("looked for before"), allowed_cpus());
    let spec = GeometrySpec {
        subbuf_size: Some(16 << 10),
        n_subbufs: Some(16),
        mode: Some(mode),
        timed: Some(true),
        ..GeometrySpec::default()
    };
    let geometry = spec.build().unwrap();
    let new = || Buffer::anonymous_with_clock(geometry, 0, clock).unwrap();
    let buffers: Vec<Buffer> = (0..=*cpus.last().unwrap()).map(|_| new()).collect();
    let buffers = BUFFERS.get_or_init(|| buffers);
    let action = SigAction::new(SigHandler::Handler(on_tick), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does only what a signal handler may do, see there.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    let writing = AtomicUsize::new(THREADS);
    let mut seen: Vec<Seen> = buffers.iter().map(|_| Seen::default()).collect();
    READING.store(true, Ordering::Release);
    thread::scope(|scope| {
        let _at_work = AtWork;
        for writer in 0..THREADS as u32 {
            let (writing, cpus) = (&writing, &cpus);
            scope.spawn(move || {
                let timer = ticks();
                WRITER.set(Some(THREADS as u32 + writer));
                let daemon = writer == 0;
                for number in 0..RECORDS {
                    if number.is_multiple_of(97) {
                        pin(cpus[(number / 97) as usize % cpus.len()]);
                    }
                    let mut bytes = [0; 400];
                    let id = if daemon { 8 } else { 6 };
                    write_here(buffers, sequences, head(writer, id), payload(number, &mut bytes), daemon);
                }
                drop(timer);
                WRITER.set(None);
                writing.fetch_sub(1, Ordering::Release);
            });
        }
        let mut readers: Vec<Reader> = buffers.iter().map(|buffer| Reader::new(buffer.clone())).collect();
        let mut scratch = Vec::new();
        loop {
            let last = writing.load(Ordering::Acquire) == 0;
            let mut n = 0;
            for (reader, seen) in readers.iter_mut().zip(&mut seen) {
                let before = seen.stream.len();
                reader.read(1 << 20, &mut scratch, |bytes| assert!(bytes.copy_to(&mut seen.stream)));
                n += seen.stream.len() - before;
                seen.check(&case);
            }
            if last && n == 0 {
                break;
            }
            thread::yield_now();
        }
    });
    let records: u64 = seen.iter().map(|seen| seen.records).sum();
    assert!(seen.iter().all(|seen| seen.stream.is_empty()), "{case}: part of a record at the end");
    assert!(BY_HANDLERS.load(Ordering::Relaxed) > 0, "{case}: no signal came");
    if mode == Mode::NoOverwrite {
        let written = THREADS as u64 * RECORDS + BY_HANDLERS.load(Ordering::Relaxed);
        assert_eq!(records, written, "{case}: records that were read");
    }
}

/// Runs one storm in a process of its own, since buffers and handler are the process's.
fn storm_of(name: &str, clock: Clock, mode: Mode) {
    const RUN: &str = "RELAY_STAMPS_RUN";
    if !can_share() || !clock.is_readable() {
        assert!(clock == Clock::Tsc || !can_share());
        return; // only the daemon writes, or no channel of this process has this clock
    }
    if std::env::var_os(RUN).is_some() {
        return storm(clock, mode);
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let status = command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(RUN, "1").status();
    assert!(status.unwrap().success(), "{name}");
}

#[test]
fn tsc_stamps_never_decrease_and_no_record_is_lost() {
    storm_of("tsc_stamps_never_decrease_and_no_record_is_lost", Clock::Tsc, Mode::NoOverwrite);
}

#[test]
fn tsc_stamps_never_decrease_where_records_are_overwritten() {
    storm_of("tsc_stamps_never_decrease_where_records_are_overwritten", Clock::Tsc, Mode::Overwrite);
}

#[test]
fn monotonic_stamps_never_decrease_and_no_record_is_lost() {
    storm_of("monotonic_stamps_never_decrease_and_no_record_is_lost", Clock::Monotonic, Mode::NoOverwrite);
}

#[test]
fn monotonic_stamps_never_decrease_where_records_are_overwritten() {
    storm_of(
        "monotonic_stamps_never_decrease_where_records_are_overwritten",
        Clock::Monotonic,
        Mode::Overwrite,
    );
}

/// The stamp lies between two looks at the clock, and records that switch have one, too.
#[test]
fn stamp_is_the_time_of_the_write() {
    for clock in [Clock::Monotonic, Clock::Tsc].into_iter().filter(|clock| clock.is_readable()) {
        let spec: GeometrySpec = "subbuf-size=64:n-subbufs=3:timed".parse().unwrap();
        let buffer = Buffer::anonymous_with_clock(spec.build().unwrap(), 0, clock).unwrap();
        let cpu = allowed_cpus()[0];
        pin(cpu);
        let mut reader = Reader::new(buffer.clone());
        for (number, executor) in
            [AnyExecutor::SoleWriter, AnyExecutor::on(Some(cpu))].iter().cycle().take(40).enumerate()
        {
            let before = clock.now();
            let writer = Writer::new(&buffer, *executor);
            let outcome = if number % 3 == 0 {
                writer.place(&[&head(9, 300).to_le_bytes()[..], b"0123456789"].concat()).unwrap()
            } else {
                writer.place_record(head(9, 300), b"0123456789").unwrap()
            };
            let after = clock.now();
            assert_eq!(outcome.placed, WriteResult::Written);
            let mut bytes = Vec::new();
            reader.read(1 << 20, &mut Vec::new(), |got| assert!(got.copy_to(&mut bytes)));
            let stamp = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert!((before..=after).contains(&stamp), "{clock:?}: {stamp} of {before} to {after}");
            assert_eq!(bytes[8..], *b"\x2c\x01\x09\0\0\0\x0a\x000123456789");
        }
    }
}

/// Bare messages do not get into a timed buffer, nor records into a raw one. What asks for room gets an answer.
#[test]
fn buffers_take_messages_of_their_kind_alone() {
    let cpu = allowed_cpus()[0];
    pin(cpu);
    for run in [AnyExecutor::SoleWriter, AnyExecutor::on(Some(cpu))] {
        let build = |spec: &str| {
            let geometry = spec.parse::<GeometrySpec>().unwrap().build().unwrap();
            Buffer::anonymous(geometry, 0).unwrap()
        };
        let (raw, timed) = (build("subbuf-size=64:n-subbufs=1"), build("subbuf-size=64:n-subbufs=1:timed"));
        assert_eq!(Writer::new(&raw, run).write_record(0, b"record").map_or(0, |_| 1), 0, "no clock for it");
        assert_eq!(raw.block().state.load(Ordering::Relaxed), 0);
        let writer = Writer::new(&timed, run);
        assert_eq!(writer.append(b"bare"), relay::ring::writer::Appended::Elsewhere);
        assert_eq!(writer.write(b"").unwrap().placed, WriteResult::Written);
        assert_eq!(timed.block().state.load(Ordering::Relaxed), 0, "no byte, no record");
        assert_eq!(writer.write_record(0, &[0; 48]).unwrap().placed, WriteResult::Written);
        assert_eq!(writer.write_record(0, b"").unwrap().placed, WriteResult::Full);
        assert_eq!(writer.write(b"").unwrap().placed, WriteResult::Full);
        assert!(writer.drop_record_if_blocked(48) && !writer.drop_record_if_blocked(49));
        Reader::new(timed.clone()).read(1 << 20, &mut Vec::new(), |_| {});
        assert_eq!(writer.write(b"").unwrap().placed, WriteResult::Written, "there is room again");
        assert_eq!(writer.place_record(0, &[0; 49]).unwrap().placed, WriteResult::TooBig);
        assert_eq!(timed.block().too_big.load(Ordering::Relaxed), 1);
    }
}

/// A switch notes how many of the lost messages were too big.
#[test]
fn record_of_a_sub_buffer_has_the_messages_too_big() {
    let spec: GeometrySpec = "subbuf-size=64:n-subbufs=4:timed".parse().unwrap();
    let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
    let writer = Writer::new(&buffer, SoleWriter);
    let record = |slot| buffer.record(buffer.widths().pack(0, slot, 0));
    let losses = |slot| [&record(slot).lost, &record(slot).too_big].map(|word| word.load(Ordering::Relaxed));
    for _ in 0..3 {
        assert_eq!(writer.place_record(0, &[0; 60]).unwrap().placed, WriteResult::TooBig);
    }
    buffer.count_dropped_elsewhere(2);
    writer.write_record(0, b"first").unwrap();
    writer.flush().unwrap();
    assert_eq!(losses(0), [5, 3]);
    writer.place_record(0, &[0; 60]).unwrap();
    writer.write_record(0, b"second").unwrap();
    writer.flush().unwrap();
    assert_eq!((losses(0), losses(1)), ([5, 3], [6, 4]));
}

/// A flush of a sub-buffer without records uses up nothing: not a sub-buffer, nor the oldest records.
#[test]
fn flush_leaves_an_empty_sub_buffer() {
    for mode in ["", ":overwrite"] {
        let spec: GeometrySpec = format!("subbuf-size=64:n-subbufs=2:timed{mode}").parse().unwrap();
        let buffer = Buffer::anonymous(spec.build().unwrap(), 0).unwrap();
        let writer = Writer::new(&buffer, SoleWriter);
        assert_eq!(writer.write_record(0, b"first").unwrap().placed, WriteResult::Written);
        assert!(writer.flush().unwrap().switched);
        let state = buffer.block().state.load(Ordering::Relaxed);
        for _ in 0..10 {
            let outcome = writer.flush().unwrap();
            assert_eq!((outcome.placed, outcome.switched), (WriteResult::Written, false));
        }
        assert_eq!(buffer.block().state.load(Ordering::Relaxed), state);
        assert_eq!(writer.write_record(0, b"second").unwrap().placed, WriteResult::Written);
        let mut bytes = Vec::new();
        let mut reader = Reader::new(buffer.clone());
        reader.read(1 << 20, &mut Vec::new(), |got| assert!(got.copy_to(&mut bytes)));
        assert_eq!(bytes.len(), 16 + 5 + 16 + 6, "{mode}");
    }
}
