//! Daemons are killed, or ended with `--keep`, again and again. Four processes write directly, under signals and
//! migrations, and readers read. The next daemon continues, no write fails meanwhile, and each message whose write
//! returned Ok is read, in order. At a kill, readers may get the one reply in flight twice; at an end with `--keep`,
//! nothing.
//!
//! `sh tests/long.sh crashes` for more of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use relayfs_tests::known::{NUMBERED_MIN, Pattern};
use relayfs_tests::numbered::Random;
use relayfs_tests::progress::get;
use relayfs_tests::streams::{Numbers, Received};
use relayfs_tests::stress::{Done, StressWriter};
use relayfs_tests::{Mount, direct, eventually, exit_code};

use crate::turn;

/// Number of writing processes.
const PROCESSES: u32 = 4;
/// Daemons that are ended in each test, by default.
const CRASHES_DEFAULT: u64 = 6;
/// Longest life of a daemon after its first sign of work.
const LIFE_MAX_MS: usize = 30;
/// Most bytes that one read asks for.
const READ_MAX: usize = 128 << 10;

/// How daemons end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Killed,
    Kept,
}

/// One reader's account.
struct Reading<'a> {
    received: Received<'a>,
    /// Replies that came twice.
    twice: u64,
}

#[test]
fn killed_daemons_lose_nothing() {
    let _turn = turn();
    pass(End::Killed, &["--subbuf-size=64K", "--n-subbufs=8"]);
}

#[test]
fn daemons_with_keep_lose_and_repeat_nothing() {
    let _turn = turn();
    pass(End::Kept, &["--subbuf-size=16K", "--n-subbufs=8", "--keep"]);
}

fn pass(how: End, args: &[&str]) {
    let crashes = std::env::var("RELAYFS_CRASHES")
        .map_or(CRASHES_DEFAULT, |text| text.parse().expect("RELAYFS_CRASHES is a number"));
    let mut mount = Mount::with_sequences(args);
    let point = mount.point().to_owned();
    let n_cpus = (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists()).count();
    let writers: Vec<_> =
        (0..PROCESSES).map(|number| StressWriter::start(&mount, number, 1..=4096, number % 2 == 0)).collect();
    let (pattern, is_over) = (Pattern::default(), AtomicBool::new(false));
    let totals: Vec<AtomicU64> = (0..n_cpus).map(|_| AtomicU64::new(0)).collect();
    let total = || totals.iter().map(|total| total.load(Ordering::Relaxed)).sum::<u64>();
    let mut random = Random::new(crashes);

    let (done, readings) = thread::scope(|scope| {
        let readers: Vec<_> = totals
            .iter()
            .enumerate()
            .map(|(cpu, total)| {
                let (point, pattern, is_over) = (&point, &pattern, &is_over);
                scope.spawn(move || read(point, cpu, how, pattern, is_over, total))
            })
            .collect();
        let _over = Over(&is_over); // also if something here fails
        // Opening is not what is to outlive a daemon.
        eventually("the first message of each writer", || writers.iter().all(|writer| writer.attempts() > 0));
        for _ in 0..crashes {
            let before = total();
            eventually("something read of this daemon", || total() > before + (64 << 10));
            thread::park_timeout(Duration::from_millis(random.below(LIFE_MAX_MS) as u64));
            match how {
                End::Killed => assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9),
                End::Kept => assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0),
            }
            mount.restart_prepared(args, direct::with_sequences);
        }
        writers.iter().for_each(StressWriter::stop);
        let done: Vec<Done> = writers.into_iter().map(StressWriter::finish).collect();
        is_over.store(true, Ordering::Release);
        let readings: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("reading")).collect();
        (done, readings)
    });

    let mut numbers: BTreeMap<u32, Numbers> = BTreeMap::new();
    for (writer, of_cpu) in readings.iter().flat_map(|reading| &reading.received.writers) {
        numbers.entry(*writer).or_default().merge(of_cpu);
    }
    let (mut attempts, mut written) = (0, 0);
    for (writer, stream) in done.iter().flat_map(Done::streams) {
        let read = numbers.remove(&writer).unwrap_or_default();
        let count = get(&stream.numbered);
        assert_eq!((read.end(), read.count()), (count, count), "writer {writer}");
        attempts += get(&stream.attempts);
        written += stream.written();
    }
    assert!(numbers.is_empty(), "messages of no writer: {:?}", numbers.keys());
    for len in 1..NUMBERED_MIN {
        let told: u64 = done.iter().flat_map(Done::streams).map(|(_, stream)| get(&stream.short[len])).sum();
        let read: u64 = readings.iter().map(|reading| reading.received.short[len]).sum();
        assert_eq!(read, told, "messages of {len} bytes");
    }
    let twice: u64 = readings.iter().map(|reading| reading.twice).sum();
    let read: u64 = readings.iter().map(|reading| reading.received.messages).sum();
    println!(
        "{how:?} {crashes} times: {attempts} messages tried, {written} written, {read} read; {} bytes; {twice} replies twice",
        total()
    );
    assert_eq!(read, written);
    assert!(how == End::Killed || twice == 0, "{twice} replies were read twice");
}

/// Sets a flag when dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Reads a CPU's file across the ends of daemons, to the end of the test.
fn read<'a>(
    point: &Path,
    cpu: usize,
    how: End,
    pattern: &'a Pattern,
    is_over: &AtomicBool,
    total: &AtomicU64,
) -> Reading<'a> {
    let mut reading = Reading { received: Received::new(pattern, false), twice: 0 };
    let mut bytes = vec![0; READ_MAX];
    let mut last = 0;
    loop {
        let Some((mut file, at)) = open(point, cpu) else {
            assert!(!is_over.load(Ordering::Acquire), "no daemon at the end");
            thread::park_timeout(Duration::from_millis(1));
            continue;
        };
        // What it gave back before it died, by its count, to which only this reader adds.
        let had = total.load(Ordering::Relaxed);
        assert!(at == had || at + last == had, "cpu{cpu}: {had} bytes read, the last {last}; next is {at}");
        assert!(how == End::Killed || at == had, "cpu{cpu}: {had} bytes read; next is {at}");
        let mut again = had - at;
        reading.twice += u64::from(again > 0);
        loop {
            let is_last = is_over.load(Ordering::Acquire);
            let Ok(got) = file.read(&mut bytes) else { break };
            if got == 0 && is_last {
                reading.received.finish();
                return reading;
            }
            let new = &bytes[(again.min(got as u64)) as usize..got];
            again -= (got - new.len()) as u64;
            reading.received.take(new);
            total.fetch_add(new.len() as u64, Ordering::Relaxed);
            last = if got > 0 { got as u64 } else { last };
            if got == 0 {
                let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                // The read finds data or an error. An unfinished sub-buffer wakes no reader.
                let _ = poll(&mut polled, PollTimeout::from(10u8));
            }
        }
    }
}

/// Opens a CPU's file, with the number of bytes that have been read of it; `None` while there is no daemon.
fn open(point: &Path, cpu: usize) -> Option<(File, u64)> {
    let file = File::open(point.join(format!("cpu{cpu}"))).ok()?;
    let stats = fs::read_to_string(point.join(".relay/channels/cpu/stats")).ok()?;
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu}.read_bytes ")));
    Some((file, line.expect("a line of stats").parse().expect("a number")))
}
