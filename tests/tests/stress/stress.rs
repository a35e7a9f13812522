//! Producers that write shared buffers, under everything that could tear, lose or reorder a message. Processes of
//! four threads each; a signal to each thread every 100 us, whose handler writes too in every other process; threads
//! that move from CPU to CPU all the time; processes that are killed and replaced; fast and slow readers; flushes and
//! resets. The test knows every byte of every message, and which were written.
//!
//! Takes about ten seconds. For longer, set the seconds that each of the tests writes:
//!
//! ```text
//! RELAYFS_STRESS_SECONDS=300 cargo test --release -p relayfs-tests --test stress stress:: -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relayfs_tests::known::{NUMBERED_MIN, Pattern};
use relayfs_tests::numbered::Random;
use relayfs_tests::progress::{Stream, get};
use relayfs_tests::streams::{Numbers, Received};
use relayfs_tests::stress::{Done, StressWriter};
use relayfs_tests::{DEADLINE, Mount};

use crate::turn;

/// Processes that write at any time.
const PROCESSES: usize = 4;
/// How long each test writes by default.
const SECONDS_DEFAULT: u64 = 2;
/// Size and number of the sub-buffers.
const RINGS: [(usize, usize); 4] = [(4 << 10, 8), (16 << 10, 1), (64 << 10, 2), (128 << 10, 3)];
/// Longest message of a direct write.
const DIRECT_MAX: usize = 64 << 10;
/// Most bytes that one read asks for: one request of the kernel.
const READ_MAX: usize = 128 << 10;
/// Longest time between two kills of a process.
const KILL_INTERVAL_MAX_MS: usize = 150;
/// Longest time between two flushes or resets.
const POKE_INTERVAL_MAX_MS: usize = 10;
/// How long a slow reader pauses.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Reads whenever there is data.
    KeepsUp,
    /// Reads small pieces, and seldom.
    Lags,
}

/// Conditions of a round.
#[derive(Clone, Copy, Debug)]
struct Round {
    overwrite: bool,
    subbuf_size: usize,
    n_subbufs: usize,
    pace: Pace,
    resets: bool,
}

/// Counts of a round.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    attempts: u64,
    written: u64,
    read: u64,
    dropped: u64,
    kills: u64,
    signals: u64,
    moves: u64,
    migrations: u64,
    flushes: u64,
    resets: u64,
    cuts: u64,
    bytes: u64,
    overwritten: u64,
    discarded: u64,
}

/// Flushes and resets of the poking thread.
#[derive(Default)]
struct Pokes {
    flushes: u64,
    resets: u64,
}

/// Ends readers and the poking thread when dropped.
struct End<'a> {
    is_over: &'a AtomicBool,
    _running: Sender<()>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
    }
}

#[test]
fn no_overwrite_mode_reads_each_message_once_and_in_order() {
    let _turn = turn();
    pass("no-overwrite", rounds(false, false, Pace::KeepsUp));
}

#[test]
fn overwrite_mode_leaves_whole_messages_and_counts_lost_bytes() {
    let _turn = turn();
    pass("overwrite", rounds(true, false, Pace::Lags));
}

#[test]
fn resets_discard_only_what_they_count() {
    let _turn = turn();
    pass("resets", [rounds(false, true, Pace::Lags), rounds(true, true, Pace::KeepsUp)].concat());
}

/// A round for each of several rings, with readers of both kinds in turn.
fn rounds(overwrite: bool, resets: bool, first: Pace) -> Vec<Round> {
    let other = if first == Pace::KeepsUp { Pace::Lags } else { Pace::KeepsUp };
    let round = |((subbuf_size, n_subbufs), pace)| Round { overwrite, subbuf_size, n_subbufs, pace, resets };
    RINGS.into_iter().zip([first, other].into_iter().cycle()).map(round).collect()
}

/// Runs the rounds, in the given time.
fn pass(name: &str, rounds: Vec<Round>) {
    let seconds = std::env::var("RELAYFS_STRESS_SECONDS")
        .map_or(SECONDS_DEFAULT, |text| text.parse().expect("RELAYFS_STRESS_SECONDS is a number of seconds"));
    let duration = Duration::from_secs(seconds) / rounds.len() as u32;
    let pattern = Pattern::default();
    let mut totals = Totals::default();
    for round in &rounds {
        let of_round = stress(round, duration, &pattern);
        println!("{round:?}: {of_round}");
        totals.add(&of_round);
    }
    println!("{name}, {seconds} s: {totals}");
    assert!(totals.signals > 0 && totals.moves > 0, "nothing happened: {totals}");
}

/// Writes and reads for a while, and checks the result.
fn stress(round: &Round, duration: Duration, pattern: &Pattern) -> Totals {
    let (size, count) = (round.subbuf_size.to_string(), round.n_subbufs.to_string());
    let mut args = vec!["--subbuf-size", &size, "--n-subbufs", &count];
    args.extend(round.overwrite.then_some("--overwrite"));
    let mount = Mount::with_sequences(&args);
    let n_cpus = (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists()).count();
    let is_over = AtomicBool::new(false);
    let (done, kills, pokes, received) = thread::scope(|scope| {
        let readers: Vec<_> = (0..n_cpus)
            .map(|cpu| {
                let (mount, is_over) = (&mount, &is_over);
                scope.spawn(move || read(mount, round, cpu, is_over, pattern))
            })
            .collect();
        let (running, stopped) = channel();
        let poker = scope.spawn(|| poke(&mount, round, stopped));
        // Dropped even if a check fails.
        let end = End { is_over: &is_over, _running: running };
        let (done, kills) = supervise(&mount, round, duration);
        drop(end);
        let pokes = poker.join();
        // Wakes readers that wait for data, so that they check for the end.
        while !readers.iter().all(|reader| reader.is_finished()) {
            let _ = fs::write(mount.control("cpu", "flush"), "1");
            thread::park_timeout(PAUSE);
        }
        let pokes = pokes.expect("poking");
        let received: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("reading")).collect();
        (done, kills, pokes, received)
    });
    let mut totals = check(round, &mount, &done, &received, pokes.resets);
    (totals.kills, totals.flushes, totals.resets) = (kills, pokes.flushes, pokes.resets);
    totals
}

/// Keeps processes writing, kills one now and then and replaces it, and lets all of them end. Returns their results,
/// and the number of killed ones.
fn supervise(mount: &Mount, round: &Round, duration: Duration) -> (Vec<Done>, u64) {
    let mut random = Random::new(round.subbuf_size as u64);
    let mut numbers = 0..;
    let mut start = || {
        let number: u32 = numbers.next().expect("no end of numbers");
        let lengths = 1..=round.subbuf_size.min(DIRECT_MAX);
        StressWriter::start(mount, number, lengths, !number.is_multiple_of(2))
    };
    let mut running: Vec<StressWriter> = (0..PROCESSES).map(|_| start()).collect();
    let (mut done, mut kills) = (Vec::new(), 0);
    let begin = Instant::now();
    // A busy machine takes longer until each event has happened.
    while begin.elapsed() < duration || kills == 0 {
        thread::park_timeout(Duration::from_millis(1 + random.below(KILL_INTERVAL_MAX_MS) as u64));
        let writer = &mut running[random.below(PROCESSES)];
        writer.assert_running();
        // A process that has not written yet is not killed.
        if writer.attempts() > 0 {
            done.push(std::mem::replace(writer, start()).kill());
            kills += 1;
        }
        assert!(begin.elapsed() < duration + DEADLINE, "no process writes");
    }
    running.iter().for_each(StressWriter::stop);
    done.extend(running.into_iter().map(StressWriter::finish));
    (done, kills)
}

/// Reads a CPU's file until no process writes and nothing is left.
fn read<'a>(
    mount: &Mount,
    round: &Round,
    cpu: usize,
    is_over: &AtomicBool,
    pattern: &'a Pattern,
) -> Received<'a> {
    let mut received = Received::new(pattern, round.resets);
    let mut file = File::open(mount.path(&format!("cpu{cpu}"))).expect("opening a buffer");
    let mut random = Random::new(cpu as u64);
    let mut bytes = vec![0; READ_MAX];
    loop {
        // Before the read: data written before the flag was set is read.
        let is_last = is_over.load(Ordering::Acquire);
        // At least a head's length, so that a reset cuts a head only where its first read ends.
        let least = NUMBERED_MIN + random.below(4096);
        let len = if round.pace == Pace::KeepsUp || is_last { READ_MAX } else { least };
        let got = file.read(&mut bytes[..len]).expect("reading a buffer");
        received.take(&bytes[..got]);
        if got == 0 && is_last {
            received.finish();
            return received;
        }
        match round.pace {
            Pace::Lags => thread::park_timeout(PAUSE),
            Pace::KeepsUp if got == 0 => {
                let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                let limit = PollTimeout::try_from(DEADLINE).expect("a limit that poll can take");
                assert_eq!(poll(&mut polled, limit), Ok(1), "no switch woke the reader of cpu{cpu}");
            }
            Pace::KeepsUp => {}
        }
    }
}

/// Flushes and resets until the sender of `stopped` is gone.
fn poke(mount: &Mount, round: &Round, stopped: Receiver<()>) -> Pokes {
    let mut random = Random::new(round.n_subbufs as u64);
    let mut pokes = Pokes::default();
    loop {
        let pause = Duration::from_millis(random.below(POKE_INTERVAL_MAX_MS) as u64);
        if stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return pokes;
        }
        if round.resets && random.below(2) == 0 {
            mount.poke("cpu", "reset");
            pokes.resets += 1;
        } else {
            mount.poke("cpu", "flush");
            pokes.flushes += 1;
        }
    }
}

/// Compares written with read messages, and both with the daemon's counts.
fn check(round: &Round, mount: &Mount, done: &[Done], received: &[Received], n_resets: u64) -> Totals {
    let stats = mount.stats("cpu");
    let stat = |cpu: &str, name: &str| stats[&format!("{cpu}.{name}")];
    for (cpu, received) in received.iter().enumerate() {
        let stat = |name| stat(&format!("cpu{cpu}"), name);
        let found = format!("cpu{cpu}: {stats:?}");
        assert_eq!(received.bytes(), stat("read_bytes"), "{found}");
        let lost = stat("overwritten_bytes") + stat("discarded_bytes");
        assert_eq!(stat("bytes"), stat("read_bytes") + lost, "every byte is accounted for: {found}");
        assert!(round.overwrite || stat("overwritten_bytes") == 0, "{found}");
        assert!(round.resets || stat("discarded_bytes") == 0, "{found}");
        assert!(received.cuts <= n_resets, "{} messages cut by {n_resets} resets", received.cuts);
        assert_eq!((stat("too_big"), stat("contended")), (0, 0), "{found}");
        assert_eq!(stat("corrected"), 0, "no writer breaks a rule, not even by dying: {found}");
    }

    let mut totals = Totals {
        read: received.iter().map(|received| received.messages).sum(),
        cuts: received.iter().map(|received| received.cuts).sum(),
        bytes: stat("total", "bytes"),
        dropped: stat("total", "dropped") + stat("total", "contended"),
        overwritten: stat("total", "overwritten_bytes"),
        discarded: stat("total", "discarded_bytes"),
        ..Totals::default()
    };
    let is_lossy = round.overwrite || round.resets;
    let mut numbers: BTreeMap<u32, Numbers> = BTreeMap::new();
    for (writer, of_cpu) in received.iter().flat_map(|received| &received.writers) {
        numbers.entry(*writer).or_default().merge(of_cpu);
    }
    // Messages of killed processes: written or not, counted as dropped or not.
    let (mut open_messages, mut open_bytes) = (0, 0);
    let mut short = [(0, 0); NUMBERED_MIN];
    let mut bytes = 0;
    for done in done {
        totals.moves += done.moves();
        for (writer, stream) in done.streams() {
            let read = numbers.remove(&writer).unwrap_or_default();
            check_stream(writer, stream, &read, is_lossy);
            totals.attempts += get(&stream.attempts);
            totals.written += stream.written();
            totals.signals += if writer.is_multiple_of(2) { get(&stream.signals) } else { 0 };
            totals.migrations += get(&stream.migrations);
            bytes += get(&stream.bytes);
            let in_flight = get(&stream.in_flight);
            open_messages += u64::from(in_flight > 0);
            open_bytes += in_flight;
            for (sum, written) in short.iter_mut().zip(&stream.short) {
                sum.0 += get(written);
            }
            if let Some(sum) = short.get_mut(in_flight as usize) {
                sum.1 += 1;
            }
        }
    }
    assert!(numbers.is_empty(), "messages of no writer: {:?}", numbers.keys());
    for (len, (written, open)) in short.into_iter().enumerate().skip(1) {
        let read: u64 = received.iter().map(|received| received.short[len]).sum();
        assert!(read <= written + open, "messages of {len} bytes: {read} read, {written} written");
        assert!(is_lossy || read >= written, "messages of {len} bytes: {read} read, {written} written");
    }
    let accounted = bytes..=bytes + open_bytes;
    assert!(
        accounted.contains(&totals.bytes),
        "{accounted:?} bytes written, the daemon says {}",
        totals.bytes
    );
    let refused = totals.attempts - totals.written;
    assert!(
        (refused.saturating_sub(open_messages)..=refused).contains(&totals.dropped),
        "{refused} refused, {open_messages} of them perhaps not, the daemon says {}",
        totals.dropped
    );
    totals
}

/// Compares the numbers that were read of one writer with its results.
fn check_stream(writer: u32, stream: &Stream, read: &Numbers, is_lossy: bool) {
    let written = get(&stream.numbered);
    let open = u64::from(get(&stream.in_flight) >= NUMBERED_MIN as u64);
    assert!(read.end() <= written + open, "writer {writer}: {} read, {written} written", read.end());
    if !is_lossy {
        assert!(read.end() >= written, "writer {writer}: up to {} read, {written} written", read.end());
        assert_eq!(read.count(), read.end(), "writer {writer}: not all were read");
    }
}

impl Totals {
    fn add(&mut self, other: &Totals) {
        self.attempts += other.attempts;
        self.written += other.written;
        self.read += other.read;
        self.dropped += other.dropped;
        self.kills += other.kills;
        self.signals += other.signals;
        self.moves += other.moves;
        self.migrations += other.migrations;
        self.flushes += other.flushes;
        self.resets += other.resets;
        self.cuts += other.cuts;
        self.bytes += other.bytes;
        self.overwritten += other.overwritten;
        self.discarded += other.discarded;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { attempts, written, read, dropped, kills, signals, moves, .. } = self;
        let Totals { migrations, flushes, resets, cuts, bytes, overwritten, discarded, .. } = self;
        write!(f, "{attempts} messages tried, {written} written, {dropped} dropped, {read} read; ")?;
        write!(f, "{bytes} bytes written, {overwritten} overwritten, {discarded} discarded; ")?;
        write!(f, "{signals} signals, {moves} moves, {migrations} migrations, {kills} kills, ")?;
        write!(f, "{flushes} flushes, {resets} resets, {cuts} messages cut by them")
    }
}
