//! `audience watch`: saves the last seconds of a timed channel, as traces that other programs read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relay_producer::{Definition, Level};
use relayfs_tests::audience::names;
use relayfs_tests::ends::without_ends;
use relayfs_tests::{Mount, Process, ctf, eventually, exit_code, program, run, text, tool};

const CHANNEL: &str = "--channel=app/log:timed:overwrite:subbuf-size=4K:n-subbufs=4";

/// A running `audience watch`.
struct Watcher {
    process: Process,
    dir: PathBuf,
    out: PathBuf,
    err: PathBuf,
}

impl Watcher {
    /// Starts a watch of `app/log`, and waits until it has begun.
    #[track_caller]
    fn start(mount: &Mount, name: &str, args: &[&str]) -> Watcher {
        let mut watcher = Watcher::without_channel(mount, name, args);
        watcher.has_begun(1);
        watcher
    }

    /// Starts a watch of `app/log`, which need not exist.
    #[track_caller]
    fn without_channel(mount: &Mount, name: &str, args: &[&str]) -> Watcher {
        let [dir, out, err] = ["", "-out", "-err"].map(|end| mount.beside(&format!("{name}{end}")));
        let file = |path: &Path| File::create(path).expect("a file");
        // The tests' starter may ignore SIGINT.
        let mut command = tool("env", "coreutils");
        command.arg("--default-signal=INT").arg(program("audience")).args(["watch", "-c", "app/log", "-m"]);
        command.arg(mount.point()).arg("-o").arg(&dir).args(args);
        command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        Watcher { process: Process::start(&mut command), dir, out, err }
    }

    /// Waits until it has begun to watch this many times.
    #[track_caller]
    fn has_begun(&mut self, times: usize) {
        eventually("the watch to begin", || {
            assert!(self.process.is_running(), "{}", self.said());
            self.said().matches("watching channel 'app/log' in ").count() == times
        });
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.err).expect("what it said")
    }

    /// The paths that it has printed.
    fn printed(&self) -> Vec<PathBuf> {
        let out = fs::read_to_string(&self.out).expect("its output");
        out.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n').map(PathBuf::from)).collect()
    }

    /// Waits until it has saved this many traces, and returns the last.
    #[track_caller]
    fn saved(&self, n: usize) -> PathBuf {
        eventually("a trace", || self.printed().len() >= n);
        let printed = self.printed();
        assert_eq!(printed.len(), n, "{printed:?}: {}", self.said());
        assert_eq!(printed[n - 1].parent(), Some(&*self.dir));
        printed[n - 1].clone()
    }

    /// Ends it as Ctrl-C does, and returns what it said.
    #[track_caller]
    fn end(mut self) -> String {
        self.process.signal(Signal::SIGINT);
        assert_eq!(exit_code(self.process.wait()), 0, "{}", self.said());
        self.said()
    }
}

/// The command `relay-producer -m POINT -c app/log ARGS`.
fn producer(mount: &Mount, args: &[&str]) -> Command {
    let mut command = tool("env", "coreutils");
    command.arg("-u").arg("RELAYFS").arg(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["-c", "app/log"]).args(args).stdin(Stdio::null());
    command
}

/// Runs a producer of one message to its end.
#[track_caller]
fn say(mount: &Mount, level: &str, message: &str) {
    let output = run(&mut producer(mount, &["--level", level, message]));
    assert!(output.status.success(), "{output:?}");
}

/// What `audience --trace` prints of a trace.
#[track_caller]
fn lines(trace: &Path) -> String {
    let output = run(tool("env", "coreutils").arg(program("audience")).arg("--trace").arg(trace));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    text(&output.stdout)
}

/// What `babeltrace2` finds in a trace, checked against [`lines`]: the messages, and the number of threads.
#[track_caller]
fn read(trace: &Path) -> (String, usize) {
    let found = ctf::read(trace);
    let ours = lines(trace);
    assert_eq!(found.events.len(), ours.lines().count(), "{ours}\n{found:?}");
    let mut threads: Vec<u32> =
        found.events.iter().filter(|event| event.name != "process").map(|event| event.tid).collect();
    threads.sort_unstable();
    threads.dedup();
    (ours, threads.len())
}

#[test]
fn error_of_one_process_saves_what_all_have_said() {
    let mount = Mount::new(&[CHANNEL]);
    let watcher =
        Watcher::start(&mount, "saved", &["--on", "level>=ERROR", "--last", "60m", "--every", "60m"]);
    let brief = Watcher::start(&mount, "brief", &["--on", "match=^it f", "--last", "0s", "--every", "60m"]);
    say(&mount, "info", "one is here");
    say(&mount, "warn", "two is here");
    say(&mount, "error", "it failed");
    let trace = watcher.saved(1);
    let (said, threads) = read(&trace);
    assert_eq!(threads, 3, "{said}");
    for message in ["INFO: one is here", "WARN: two is here", "ERROR: it failed"] {
        let is_known = |line: &str| line.contains(" relay-producer[") && line.ends_with(message);
        assert!(said.lines().any(is_known), "{message}: {said}");
    }
    let name = trace.file_name().unwrap().to_str().unwrap();
    let shape: String = name.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00-00-00.000Z-error");
    // The record itself is the first of the last 0 seconds.
    let (said, threads) = read(&brief.saved(1));
    assert!(said.contains("it failed") && !said.contains("is here") && threads == 1, "{said}");
    // Nothing is consumed.
    assert_eq!(mount.stats("app/log")["total.read_bytes"], 0);
    watcher.end();
    brief.end();
}

#[test]
fn process_that_fails_saves_its_last_words() {
    let mount = Mount::new(&[CHANNEL]);
    let watcher = Watcher::start(&mount, "saved", &["--on", "exit", "--every", "60m"]);
    // This one ends as it should.
    say(&mount, "error", "the first one");
    let mut command = producer(&mount, &["--wait"]);
    let mut process = Process::start(command.stdin(Stdio::piped()));
    let mut stdin = process.child().stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"last words\n").unwrap();
    eventually("its words", || {
        let snapshot = fs::read_to_string(mount.control("app/log", "trace")).unwrap_or_default();
        snapshot.contains("last words")
    });
    eventually("its end", || {
        // The first one may reach a handler, which looks for a stack that has overflowed.
        let is_running = process.is_running();
        if is_running {
            process.signal(Signal::SIGSEGV);
        }
        !is_running
    });
    let trace = watcher.saved(1);
    assert!(trace.to_str().unwrap().ends_with("Z-exit"), "{trace:?}");
    let (said, _) = read(&trace);
    for message in ["the first one", "last words", "killed by signal 11"] {
        assert!(said.contains(message), "{message}: {said}");
    }
    watcher.end();
}

/// Where the kernel does not tell how processes ended, their ends save nothing: each may be regular. The program of
/// `--exec` saves its last words all the same.
#[test]
fn unknown_end_saves_nothing_and_that_of_a_program_its_last_words() {
    let mount = Mount::prepared(&[CHANNEL], without_ends);
    let watcher = Watcher::start(&mount, "saved", &["--on", "exit", "--every", "0s"]);
    for n in 0..5 {
        say(&mount, "error", &format!("message {n}"));
    }
    assert!(run(&mut producer(&mount, &["--exec", "true"])).status.success());
    let script = "echo last words; kill -SEGV $$";
    run(&mut producer(&mount, &["--exec", "sh", "-c", script]));
    let trace = watcher.saved(1);
    assert!(trace.to_str().unwrap().ends_with("Z-exit"), "{trace:?}");
    let (said, _) = read(&trace);
    for message in ["message 0", "message 4", "last words", "killed by signal 11"] {
        assert!(said.contains(message), "{message}: {said}");
    }
    assert_eq!(said.lines().filter(|line| line.ends_with(" --")).count(), 1, "{said}");
    let dir = watcher.dir.clone();
    watcher.end();
    assert_eq!(names(&dir).len(), 1, "{:?}", names(&dir));
}

#[test]
fn storm_of_errors_saves_one_trace_in_the_time() {
    let mount = Mount::new(&[CHANNEL]);
    let watcher =
        Watcher::start(&mount, "saved", &["--on", "level>=warn", "--every", "60m", "--interval", "1ms"]);
    let storm = || {
        let channel = mount.channel("app/log");
        (0..500).for_each(|n| channel.log(Level::Error, "app", &format!("error {n}")).unwrap());
        channel.sync().unwrap();
    };
    std::thread::scope(|scope| {
        (0..3).for_each(|_| drop(scope.spawn(storm)));
    });
    let trace = watcher.saved(1);
    // The last look, at the signal, finds this one.
    say(&mount, "error", "and another");
    let dir = watcher.dir.clone();
    let said = watcher.end();
    assert!(said.contains("times more since the last trace, within --every"), "{said}");
    assert_eq!(names(&dir), [trace.file_name().unwrap().to_str().unwrap()]);
    assert!(read(&trace).0.contains("ERROR app: error "));
}

#[test]
fn newest_traces_are_kept() {
    let mount = Mount::new(&[CHANNEL]);
    let watcher = Watcher::start(&mount, "saved", &["--on", "level>=error", "--every", "0s", "--keep", "2"]);
    let foreign = watcher.dir.join("2000-01-01T00-00-00.000Z-error");
    fs::create_dir(&foreign).unwrap();
    let mut saved = Vec::new();
    for n in 1..=4 {
        say(&mount, "error", &format!("error {n}"));
        saved.push(watcher.saved(n));
    }
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let expected = [name(&foreign), name(&saved[2]), name(&saved[3])];
    eventually("the others to go", || names(&watcher.dir) == expected);
    assert!(read(&saved[3]).0.contains("error 4"));
    watcher.end();
}

#[test]
fn watch_outlives_daemons_and_waits_for_channels() {
    let mut mount = Mount::new(&["--keep"]);
    let mut watcher = Watcher::without_channel(&mount, "saved", &["--on", "level>=error", "--every", "0s"]);
    eventually("it to wait", || watcher.said().contains("no channel 'app/log' in "));
    let create = &["--create=timed", "--level", "error", "in a new channel"];
    assert!(run(&mut producer(&mount, create)).status.success());
    // A channel that comes has only news.
    assert!(read(&watcher.saved(1)).0.contains("in a new channel"));
    watcher.has_begun(1);
    mount.daemon().signal(Signal::SIGKILL);
    mount.daemon().wait();
    eventually("it to wait", || watcher.said().matches("waiting for it").count() == 2);
    mount.restart(&["--keep"]);
    watcher.has_begun(2);
    say(&mount, "error", "by the next daemon");
    let (said, _) = read(&watcher.saved(2));
    // What was saved once is no news, but still in the buffers.
    assert!(said.contains("in a new channel") && said.contains("by the next daemon"), "{said}");
    watcher.end();
}

#[test]
fn channel_that_does_not_overwrite_is_told() {
    let mount = Mount::new(&["--channel=app/log:timed"]);
    let watcher = Watcher::start(&mount, "saved", &["--on", "exit"]);
    let said = watcher.end();
    assert!(said.contains("channel 'app/log' does not overwrite: "), "{said}");
    let mount = Mount::new(&[CHANNEL]);
    let said = Watcher::start(&mount, "saved", &["--on", "exit"]).end();
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// How often a process has called read(2) and the like.
fn reads(process: &Process) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", process.pid())).expect("its counters");
    io.lines().find_map(|line| line.strip_prefix("syscr: ")?.parse().ok()).expect("a number")
}

#[test]
fn copy_that_another_program_holds_only_delays_the_watch() {
    let mount = Mount::new(&[CHANNEL]);
    let mut watcher = Watcher::start(&mount, "saved", &["--on", "level>=error", "--interval", "10ms"]);
    let cpus = names(&mount.control("app/log", "snapshot"));
    let held: Vec<File> = cpus
        .iter()
        .map(|cpu| File::open(mount.control("app/log", "snapshot").join(cpu)).expect("a copy"))
        .collect();
    say(&mount, "error", "it failed");
    let before = reads(&watcher.process);
    // All open files share a copy: what the watch now looks at does not have the error.
    eventually("looks", || reads(&watcher.process) > before + 50);
    assert!(watcher.process.is_running() && watcher.printed().is_empty());
    drop(held);
    assert!(read(&watcher.saved(1)).0.contains("it failed"));
    watcher.end();
}

#[test]
fn events_of_programs_and_raw_channels_are_told_apart() {
    let mount = Mount::new(&[CHANNEL, "--channel=raw"]);
    let watcher = Watcher::start(&mount, "saved", &["--on", "level>=error", "--every", "0s"]);
    // Defined behind the begin of the watch.
    let channel = mount.direct_channel("app/log");
    let event = |name: &str, level| {
        let definition = Definition { name: name.to_owned(), level: Some(level), ..Definition::default() };
        channel.define(definition).unwrap().write(&[]).unwrap();
    };
    event("worked", Level::Info);
    event("failed", Level::Error);
    let (said, _) = read(&watcher.saved(1));
    assert!(said.contains("worked") && said.contains("failed"), "{said}");
    watcher.end();
    let dir = mount.beside("raw");
    let mut command = tool("env", "coreutils");
    command.arg(program("audience")).args(["watch", "--on", "exit", "-c", "raw", "-m"]).arg(mount.point());
    let output = run(command.arg("-o").arg(&dir));
    let said = text(&output.stderr);
    assert_eq!(exit_code(output.status), 1, "{said}");
    assert!(said.contains("channel 'raw' is raw: audience watch needs a timed channel"), "{said}");
}
