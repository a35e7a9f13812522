//! A writer that is killed at any point of a restartable sequence.
//!
//! It leaves whole messages only. The next writer continues as if the dead one had never begun its last step, or, right
//! after the commit, had ended it. Run with `cargo test -p relay --features kill-points --test kill_points`.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use relay::clock::Clock;
use relay::layout::abi::{self, ControlHeader};
use relay::memory::mapping::Mapping;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::rseq::{RseqExecutor, Sequences, die_at};
use relay::ring::writer::{Executor, SoleWriter, Writer};
use relay::{Geometry, Mode};

const DIR: &str = "RELAY_KILL_POINTS_DIR";
const SPEC: &str = "RELAY_KILL_POINTS_SPEC";
const STEPS: &str = "RELAY_KILL_POINTS_STEPS";
const POINT: &str = "RELAY_KILL_POINTS_POINT";
const CLOCK: &str = "RELAY_KILL_POINTS_CLOCK";

/// Points of a sequence: before it, three inside, right after the commit.
const POINTS: std::ops::RangeInclusive<u32> = 1..=5;
const AFTER_COMMIT: u32 = 5;
/// From this point on the words of a switch are stored, `begun` among them.
const BEGUN: u32 = 3;
/// Length of a message: sub-buffers of 100 bytes have room for two.
const LEN: usize = 40;

fn geometry(spec: &str) -> Geometry {
    spec.parse::<relay::GeometrySpec>().unwrap().build().unwrap()
}

/// Bytes of a record before its payload.
const OVERHEAD: usize = 16;

/// Returns the control header of a buffer with this clock, if it is timed.
fn header(geometry: &Geometry, clock: Clock) -> ControlHeader {
    abi::control_header(geometry, 1).with_clock(clock, 1)
}

fn create(dir: &Path, geometry: &Geometry, clock: Clock) -> Buffer {
    let header = header(geometry, clock);
    for (name, len) in [("control", header.control_len()), ("data", abi::data_len(geometry))] {
        File::create_new(dir.join(name)).unwrap().set_len(len).unwrap();
    }
    let buffer = open(dir, geometry, clock);
    buffer.init(0);
    buffer
}

fn open(dir: &Path, geometry: &Geometry, clock: Clock) -> Buffer {
    let map = |name: &str| {
        let file = File::options().read(true).write(true).open(dir.join(name)).unwrap();
        Arc::new(Mapping::new(&file, file.metadata().unwrap().len()).unwrap())
    };
    Buffer::new(map("control"), map("data"), *geometry, &header(geometry, clock), 0).unwrap()
}

/// Binds this thread to its CPU, and returns its executor; children inherit the CPU.
fn here() -> RseqExecutor {
    let cpu = sched_getcpu().unwrap();
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    Sequences::find().expect("a kernel that registers restartable sequences").on(cpu)
}

/// Takes one step: a letter writes a message of it, `!` flushes, `<` reads everything.
fn step(buffer: &Buffer, run: impl Executor, step: char) {
    let writer = Writer::new(buffer, run);
    match step {
        '!' => drop(writer.flush().unwrap()),
        '<' => drop(read(buffer)),
        letter if buffer.geometry().timed() => {
            let _ = writer.write_record(u64::from(letter), &[letter as u8; LEN - OVERHEAD]).unwrap();
        }
        letter => drop(writer.write(&[letter as u8; LEN]).unwrap()),
    }
}

fn steps(buffer: &Buffer, run: impl Executor, steps: &str) {
    steps.chars().for_each(|one| step(buffer, run, one));
}

/// Returns the letters of the messages that a reader finds, headers skipped.
fn read(buffer: &Buffer) -> String {
    let mut bytes = Vec::new();
    Reader::new(buffer.clone()).read(1 << 20, &mut Vec::new(), |got| assert!(got.copy_to(&mut bytes)));
    let mut letters = String::new();
    let mut rest = &bytes[..];
    if buffer.geometry().timed() {
        let mut last_stamp = 1;
        for record in bytes.chunks(LEN) {
            let word = |at| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
            assert!(word(0) >= last_stamp, "stamp {} after {last_stamp}", word(0));
            let len = LEN - OVERHEAD;
            assert_eq!(word(8), u64::from(record[LEN - 1]) | (len as u64) << 48, "damaged: {record:?}");
            assert!(record[OVERHEAD..].iter().all(|byte| *byte == record[LEN - 1]), "damaged: {record:?}");
            letters.push(char::from(record[LEN - 1]));
            last_stamp = word(0);
        }
        return letters;
    }
    while let Some(first) = rest.first() {
        if *first == 0 {
            let header = buffer.geometry().header();
            assert!(
                rest.len() >= header && rest[..header].iter().all(|byte| *byte == 0),
                "a header: {rest:?}"
            );
            rest = &rest[header..];
        } else {
            assert!(rest.len() >= LEN && rest[..LEN].iter().all(|byte| byte == first), "damaged: {rest:?}");
            letters.push(char::from(*first));
            rest = &rest[LEN..];
        }
    }
    letters
}

/// State of a buffer that is visible without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    state: u64,
    size: u64,
    produced: u64,
    dropped: u64,
}

fn seen(buffer: &Buffer) -> Seen {
    let (block, reader) = (buffer.block(), Reader::new(buffer.clone()));
    Seen {
        state: block.state.load(Ordering::Relaxed),
        size: reader.size(),
        produced: reader.produced(),
        dropped: block.dropped.load(Ordering::Relaxed),
    }
}

/// The process that dies. Does nothing unless a test below starts it.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let var = |name: &str| std::env::var(name).unwrap();
    let clock = Clock::of_number(var(CLOCK).parse().unwrap()).unwrap();
    let buffer = open(Path::new(&dir), &geometry(&var(SPEC)), clock);
    let all = var(STEPS);
    let (before, last) = all.split_at(all.len() - 1);
    let here = here();
    steps(&buffer, here, before);
    die_at(var(POINT).parse().unwrap());
    steps(&buffer, here, last);
}

/// Kills a process in the last of some steps, and compares its buffer with a private one.
/// In the private buffer that step was not taken, or, after the commit, was.
fn dies(spec: &str, clock: Clock, all: &str, point: u32, reads_first: bool) {
    let case = format!("{spec}, {clock:?}, {all}, point {point}, reads first: {reads_first}");
    let (dir, geometry, here) = (tempfile::tempdir().unwrap(), geometry(spec), here());
    let (buffer, twin) = (create(dir.path(), &geometry, clock), Buffer::anonymous(geometry, 0).unwrap());
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .envs([(SPEC, spec), (STEPS, all), (POINT, &point.to_string())])
        .env(CLOCK, (clock as u32).to_string())
        .env(DIR, dir.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(4), "{case}: dies of SIGILL");

    let before = seen_after(&twin, &all[..all.len() - 1]);
    steps(&twin, SoleWriter, if point == AFTER_COMMIT { &all[all.len() - 1..] } else { "" });
    assert_eq!(seen(&buffer), seen(&twin), "{case}");
    // In overwrite mode a reader must not trust a sub-buffer that a begun switch might have overwritten.
    let is_switch = {
        let other = Buffer::anonymous(geometry, 0).unwrap();
        steps(&other, SoleWriter, all);
        seen(&other).produced > before.produced
    };
    let gives_up = geometry.mode() == Mode::Overwrite && is_switch && (BEGUN..AFTER_COMMIT).contains(&point);
    if reads_first {
        let (found, expected) = (read(&buffer), read(&twin));
        if gives_up {
            assert!(expected.ends_with(&found), "{case}: {found} of {expected}");
        } else {
            assert_eq!(found, expected, "{case}");
        }
    }
    // The next writer does not know of the death: one message, then enough to go around the ring.
    steps(&buffer, here, "z");
    steps(&twin, SoleWriter, "z");
    assert_eq!(seen(&buffer), seen(&twin), "{case}: the next writer");
    let (found, expected) = (read(&buffer), read(&twin));
    if gives_up {
        assert!(expected.ends_with(&found), "{case}: {found} of {expected}, the next writer");
    } else {
        assert_eq!(found, expected, "{case}: the next writer");
    }
    for letter in "stuvwxy".chars() {
        step(&buffer, here, letter);
        step(&twin, SoleWriter, letter);
        assert_eq!((read(&buffer), seen(&buffer)), (read(&twin), seen(&twin)), "{case}: later, {letter}");
    }
    accounted_for(&buffer, &case);
}

fn seen_after(buffer: &Buffer, all: &str) -> Seen {
    steps(buffer, SoleWriter, all);
    seen(buffer)
}

/// Checks that every byte was read or is counted as overwritten.
fn accounted_for(buffer: &Buffer, case: &str) {
    let block = buffer.block();
    let counted =
        [&block.read_bytes, &block.overwritten_bytes].map(|counter| counter.load(Ordering::Relaxed));
    let unread = Reader::new(buffer.clone()).unread();
    assert_eq!(counted.iter().sum::<u64>() + unread, seen(buffer).size, "{case}: bytes that no counter has");
}

fn dies_anywhere(spec: &str, all: &[&str]) {
    dies_anywhere_with(spec, Clock::Monotonic, all);
}

fn dies_anywhere_with(spec: &str, clock: Clock, all: &[&str]) {
    for all in all {
        for point in POINTS {
            for reads_first in [false, true] {
                dies(spec, clock, all, point, reads_first);
            }
        }
    }
}

/// Appends a record with its stamp, or begins a sub-buffer with one.
#[test]
fn writer_killed_while_stamping_leaves_whole_records() {
    for clock in [Clock::Monotonic, Clock::Tsc].into_iter().filter(|clock| clock.is_readable()) {
        dies_anywhere_with("subbuf-size=100:n-subbufs=3:timed", clock, USUAL);
        dies_anywhere_with("subbuf-size=100:n-subbufs=2:timed", clock, &["abcde", "abcde<f"]);
        dies_anywhere_with("subbuf-size=100:n-subbufs=3:overwrite:timed", clock, USUAL);
        dies_anywhere_with("subbuf-size=100:n-subbufs=3:overwrite:timed", clock, &["abcdefg", "abcd<efghi"]);
    }
}

/// Appends; begins the second or third sub-buffer; finishes one early.
const USUAL: &[&str] = &["ab", "abc", "abcde", "ab!", "a!"];

#[test]
fn writer_killed_in_no_overwrite_mode_leaves_whole_messages() {
    dies_anywhere("subbuf-size=100:n-subbufs=3", USUAL);
}

#[test]
fn writer_killed_before_or_after_headers_leaves_whole_messages() {
    dies_anywhere("subbuf-size=100:n-subbufs=3:header=16", USUAL);
}

/// A switch without room, by a message or a flush; and the first switch with room again.
#[test]
fn writer_killed_in_full_buffer_leaves_whole_messages() {
    dies_anywhere("subbuf-size=100:n-subbufs=1", &["abc", "ab!", "abc<d", "abc<!"]);
    dies_anywhere("subbuf-size=100:n-subbufs=2:header=16", &["abcde", "abcde<f"]);
}

#[test]
fn writer_killed_in_overwrite_mode_leaves_whole_messages() {
    dies_anywhere("subbuf-size=100:n-subbufs=3:overwrite", USUAL);
    dies_anywhere("subbuf-size=100:n-subbufs=3:overwrite", &["abcdefg", "abcdefgh", "abcdef!", "abcd<efghi"]);
}

#[test]
fn writer_killed_while_overwriting_headers_leaves_whole_messages() {
    dies_anywhere("subbuf-size=100:n-subbufs=3:overwrite:header=16", &["abc", "abcdefg", "abcdef!"]);
}

/// The sub-buffer that is about to be overwritten is the unfinished one.
#[test]
fn writer_killed_in_single_subbuf_leaves_whole_messages() {
    dies_anywhere("subbuf-size=100:n-subbufs=1:overwrite", &["ab", "abc", "a!", "ab!"]);
}

/// The switch for a message that fits no sub-buffer behind its header.
#[test]
fn writer_killed_at_too_big_message_leaves_whole_messages() {
    for mode in ["no-overwrite", "overwrite"] {
        dies_anywhere(&format!("subbuf-size=100:n-subbufs=3:header=70:{mode}"), &["a", "ab"]);
    }
}
