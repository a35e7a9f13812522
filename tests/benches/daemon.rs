//! What the daemon does for readers, does while nobody wants anything, and takes to start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use relay_producer::BatchOptions;
use relayfs_tests::measure::{Values, alternately, head, row, title};
use relayfs_tests::{Mount, eventually, program, run, tool};

/// What is ready for `cat`, in bytes.
const READY_LEN: usize = 64 << 20;
/// How long the daemon is watched doing nothing.
const IDLE: Duration = Duration::from_secs(10);
/// What it gets before to come to rest.
const SETTLE: Duration = Duration::from_secs(1);
/// Starts that are measured.
const STARTS: usize = 20;

fn main() -> ExitCode {
    head("the daemon");
    reading();
    idle();
    start();
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
    let rates = alternately(&mut [Box::new(relay), Box::new(|| cat(tmpfs.path()))]);
    ["relayfs", "tmpfs"].into_iter().zip(&rates).for_each(|(name, rates)| row(name, rates));
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
    row(
        "wake-ups: context switches of all threads",
        after.values().sum::<u64>() - before.values().sum::<u64>(),
    );
    for (thread, n) in after.iter().filter(|(thread, n)| before.get(*thread) != Some(*n)) {
        row(&format!("  of thread {thread}"), n - before.get(thread).unwrap_or(&0));
    }
    row("threads", after.len());
    let status = status(&proc);
    let kib = |name: &str| status.get(name).copied().unwrap_or_default();
    row("resident beyond the buffers, MiB: RssAnon + RssFile", mib(kib("RssAnon") + kib("RssFile")));
    row("the buffers, MiB: RssShmem", mib(kib("RssShmem")));
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
    row("relayfsd, default channel", Values::from(times.collect::<Vec<f64>>()));
}
