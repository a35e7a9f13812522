//! The numbers that README and CHANGELOG may speak of, beside what one would use instead, measured in the same run.
//!
//! Run it with `sh tests/bench.sh`. Measurements that are compared alternate, so that a machine that is busy for a
//! while hits all of them; what is printed are medians, with the lowest and the highest in brackets.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use relay_producer::{BatchOptions, WriteError};
use relayfs_tests::{Mount, Process, eventually, program, run, tool};

/// Rounds of measurements that are compared.
const ROUNDS: usize = 7;
/// Length of a message, in bytes.
const MESSAGE_LEN: usize = 64;
/// Messages in one measurement of the socket and of the pipes.
const MESSAGES: usize = 4_000_000;
/// Messages where each is a system call of its own and a wake-up of the daemon.
const MESSAGES_SINGLY: usize = 500_000;
/// What is ready for `cat`, in bytes.
const READY_LEN: usize = 64 << 20;
/// How long the daemon is watched doing nothing.
const IDLE: Duration = Duration::from_secs(10);
/// What it gets before to come to rest.
const SETTLE: Duration = Duration::from_secs(1);
/// Starts that are measured.
const STARTS: usize = 20;
/// Argument that makes this program the other end of a pipe.
const DRAIN: &str = "drain-standard-input";

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == DRAIN) {
        return drain();
    }
    println!(
        "relayfs {}, {} CPUs ({}), Linux {}; medians [lowest to highest]",
        env!("CARGO_PKG_VERSION"),
        std::thread::available_parallelism().map_or(1, usize::from),
        cpu_model(),
        fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    );
    transport();
    reading();
    idle();
    start();
    ExitCode::SUCCESS
}

/// One producer's messages into an overwrite channel, and the same bytes through a pipe to another process.
fn transport() {
    title(&format!("{MESSAGE_LEN}-byte messages, one producer"), "million/s");
    let mount = Mount::new(&["--overwrite", "--subbuf-size", "1M"]);
    let channel = mount.channel("cpu");
    let message = [b'm'; MESSAGE_LEN];
    let rate = |messages: usize, begun: Instant| messages as f64 / begun.elapsed().as_secs_f64() / 1e6;
    let batches = || {
        let begun = Instant::now();
        let mut batch = channel.batch(BatchOptions::default()).expect("a batch");
        for _ in 0..MESSAGES {
            batch.push(&message).expect("pushing a message");
        }
        // Its answer says that all of them are in the buffer.
        let counts = batch.finish().expect("the end of a batch");
        assert_eq!(counts.written, MESSAGES as u64);
        rate(MESSAGES, begun)
    };
    let singly = || {
        let begun = Instant::now();
        for _ in 0..MESSAGES_SINGLY {
            while let Err(error) = channel.write(&message) {
                assert_eq!(error, WriteError::Full);
                std::thread::yield_now();
            }
        }
        channel.flush().expect("the answer, which comes after all messages");
        rate(MESSAGES_SINGLY, begun)
    };
    let by_pipe = |messages_a_write: usize| {
        let bytes = message.repeat(messages_a_write);
        move || MESSAGES as f64 / pipe(&bytes, MESSAGES / messages_a_write).as_secs_f64() / 1e6
    };
    let names = [
        "relayfs, socket, batches",
        "relayfs, socket, one message a write",
        "pipe, 64-byte writes",
        "pipe, 64 KiB writes",
    ];
    let rates = alternately([&batches, &singly, &by_pipe(1), &by_pipe((64 << 10) / MESSAGE_LEN)]);
    names.into_iter().zip(rates).for_each(|(name, rates)| row(name, rates));
}

/// Writes to a pipe that another process reads to its end.
fn pipe(bytes: &[u8], writes: usize) -> Duration {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.arg(DRAIN).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut reader = Process::start(&mut command);
    let mut pipe = reader.child().stdin.take().expect("a pipe");
    // It is at work when it says so.
    let mut ready = [0];
    reader.child().stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("the reader");
    let begun = Instant::now();
    for _ in 0..writes {
        pipe.write_all(bytes).expect("writing to a pipe");
    }
    drop(pipe);
    // The end of its output, which comes when it has read everything.
    reader.stdout();
    let taken = begun.elapsed();
    assert!(reader.wait().success());
    taken
}

fn drain() -> ExitCode {
    let mut bytes = vec![0; 64 << 10];
    io::stdout().write_all(b"r").and_then(|()| io::stdout().flush()).expect("telling that we are ready");
    while io::stdin().lock().read(&mut bytes).expect("reading a pipe") > 0 {}
    ExitCode::SUCCESS
}

/// `cat` of a CPU's full buffer, and of a file on tmpfs. Whole processes, from their start to their end.
fn reading() {
    title(&format!("cat of {} MiB", READY_LEN >> 20), "GB/s");
    let mount = Mount::new(&["--subbuf-size", "1M", "--n-subbufs", "64"]);
    let block = vec![b'm'; 64 << 10];
    let tmpfs = tempfile::Builder::new().tempfile_in("/dev/shm").expect("a file on tmpfs");
    for _ in 0..READY_LEN / block.len() {
        tmpfs.as_file().write_all(&block).expect("filling a file on tmpfs");
    }
    let channel = mount.channel("cpu");
    let relay = || {
        let messages = std::iter::repeat_n(&block[..1024], READY_LEN / 1024);
        let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
        let counts = channel.write_batch(messages, options).expect("filling the buffer");
        assert_eq!(counts.written, READY_LEN as u64 / 1024, "all of them fit");
        // Finished, every one of them: what is read before that is not given back until later.
        channel.flush().expect("finishing the last sub-buffer");
        let rate = cat(&mount.path("cpu0"));
        assert!(mount.read("cpu0").is_empty(), "cat has read everything");
        rate
    };
    let rates = alternately([&relay, &|| cat(tmpfs.path())]);
    ["relayfs", "tmpfs"].into_iter().zip(rates).for_each(|(name, rates)| row(name, rates));
}

/// GB/s of a whole `cat`.
fn cat(path: &Path) -> f64 {
    let mut command = tool("cat", "coreutils");
    command.arg(path).stdin(Stdio::null()).stdout(Stdio::null());
    let begun = Instant::now();
    let status = command.status().expect("cat");
    let taken = begun.elapsed();
    assert!(status.success());
    READY_LEN as f64 / taken.as_secs_f64() / 1e9
}

/// What the daemon does and has when nobody wants anything, though a producer is connected and a reader waits.
fn idle() {
    title(&format!("idle for {} s, a producer connected, a reader waiting", IDLE.as_secs()), "");
    let mut mount = Mount::new(&[]);
    let _channel = mount.channel("cpu");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    let file = File::open(mount.path("cpu0")).expect("opening a buffer");
    epoll.add(&file, EpollEvent::new(EpollFlags::EPOLLIN, 0)).expect("waiting for a buffer");
    let proc = Path::new("/proc").join(mount.daemon().pid().to_string());
    std::thread::sleep(SETTLE);
    let before = switches(&proc);
    std::thread::sleep(IDLE);
    let after = switches(&proc);
    plain(
        "wake-ups: context switches of all threads",
        after.values().sum::<u64>() - before.values().sum::<u64>(),
    );
    for (thread, n) in after.iter().filter(|(thread, n)| before.get(*thread) != Some(*n)) {
        plain(&format!("  of thread {thread}"), n - before.get(thread).unwrap_or(&0));
    }
    plain("threads", after.len());
    let status = status(&proc);
    let kib = |name: &str| status.get(name).copied().unwrap_or_default();
    plain("resident beyond the buffers, MiB: RssAnon + RssFile", mib(kib("RssAnon") + kib("RssFile")));
    plain("the buffers, MiB: RssShmem", mib(kib("RssShmem")));
}

/// Context switches of each thread of a process so far, by its own wish or not. Thread "mounts" wakes up whenever
/// something is mounted or unmounted, by whomever.
fn switches(proc: &Path) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(proc.join("task")).expect("the daemon's threads");
    let of_task = |task: io::Result<fs::DirEntry>| {
        let task = task.expect("a thread");
        let name = fs::read_to_string(task.path().join("comm")).expect("a thread's name");
        let status = status(&task.path());
        let n = status["voluntary_ctxt_switches"] + status["nonvoluntary_ctxt_switches"];
        (format!("{} {}", name.trim(), task.file_name().display()), n)
    };
    tasks.map(of_task).collect()
}

/// The numbers in a `status` file of /proc; sizes are in KiB.
fn status(proc: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(proc.join("status")).expect("a status file of /proc");
    let number = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.split_whitespace().next()?.parse().ok()?))
    };
    text.lines().filter_map(number).collect()
}

fn mib(kib: u64) -> String {
    format!("{:.2}", kib as f64 / 1024.0)
}

/// From the start of `relayfsd MOUNTPOINT` to its return, when the mount is usable.
fn start() {
    title(&format!("start to usable mount, {STARTS} times"), "ms");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let times = (0..STARTS).map(|i| {
        let (point, state) = (dir.path().join(format!("mount{i}")), dir.path().join(format!("state{i}")));
        fs::create_dir(&point).expect("a directory to mount on");
        let mut command = Command::new(program("relayfsd"));
        command.arg("--state-dir").arg(&state).arg("--socket").arg(dir.path().join(format!("socket{i}")));
        command.arg(&point).stdin(Stdio::null());
        let begun = Instant::now();
        let status = command.status().expect("relayfsd");
        let taken = begun.elapsed();
        assert!(status.success() && point.join(".relay/version").exists(), "the mount is usable");
        assert!(run(tool("umount", "mount").arg(&point)).status.success());
        eventually("the end of the daemon", || !state.exists());
        taken.as_secs_f64() * 1e3
    });
    row("relayfsd, default channel", times.collect());
}

/// Takes each measurement once a round, in turn.
fn alternately<const N: usize>(measurements: [&dyn Fn() -> f64; N]) -> [Vec<f64>; N] {
    let mut values = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for (measure, values) in measurements.iter().zip(&mut values) {
            values.push(measure());
        }
    }
    values
}

fn title(what: &str, unit: &str) {
    println!("\n{what:<58}{unit}");
}

fn row(name: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    if let (Some(first), Some(last)) = (values.first(), values.last()) {
        plain(name, format_args!("{:.2}  [{first:.2} to {last:.2}]", values[values.len() / 2]));
    }
}

fn plain(name: &str, value: impl Display) {
    println!("  {name:<56}{value}");
}

fn cpu_model() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("of unknown make".to_owned(), |(_, name)| name.trim().to_owned())
}
