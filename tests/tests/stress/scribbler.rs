//! A process of the same user, which the daemon trusts with a channel's files, writes at random all over them.
//! Meanwhile the daemon, producers and readers access them. The daemon neither ends nor spins, and users of another
//! channel notice nothing. `test-scribbler` says what it writes.
//!
//! For longer, say how many seconds:
//!
//! ```text
//! RELAYFS_SCRIBBLE_SECONDS=60 cargo test --release -p relayfs-tests --test stress scribbler:: -- --nocapture
//! ```

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, TransportChoice};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{Mount, Process, conformance, eventually, exit_code, program, run, text};

use crate::turn;

/// How long it scribbles by default.
const SECONDS_DEFAULT: u64 = 2;
/// Longest time that a reader of the healthy channel waits before it checks whether more can come.
const PATIENCE: Duration = Duration::from_millis(20);
/// Time between two checks whether the channel is broken. A broken channel is recreated.
const RENEW_INTERVAL: Duration = Duration::from_millis(20);
/// How long the daemon's CPU time is watched, to see it stand still.
const REST: Duration = Duration::from_millis(200);

const CPUS: usize = 2;

/// Results of accesses to the damaged channel.
#[derive(Default)]
struct Answers {
    good: AtomicU64,
    bad: AtomicU64,
    renewed: AtomicU64,
}

impl Answers {
    /// Accepts any answer that does not mean that the daemon is gone.
    fn note<T>(&self, what: &str, result: std::io::Result<T>) {
        match result {
            Ok(_) => self.good.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                let gone = [libc::ENOTCONN, libc::ECONNABORTED, libc::EINTR];
                assert!(!error.raw_os_error().is_some_and(|errno| gone.contains(&errno)), "{what}: {error}");
                self.bad.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

#[test]
fn daemon_survives_scribbler_in_no_overwrite_mode() {
    let _turn = turn();
    scribble("no-overwrite");
}

#[test]
fn daemon_survives_scribbler_in_overwrite_mode() {
    let _turn = turn();
    scribble("overwrite");
}

fn scribble(mode: &str) {
    let seconds = std::env::var("RELAYFS_SCRIBBLE_SECONDS")
        .map_or(SECONDS_DEFAULT, |text| text.parse().expect("a number of seconds"));
    let dir = tempfile::tempdir().expect("a directory");
    let (state, log) = (dir.path().join("state"), dir.path().join("log"));
    let evil = format!("evil:subbuf-size=4K:n-subbufs=3:{mode}");
    let args = [
        "--state-dir",
        state.to_str().expect("a path of text"),
        // The conformance cases count on no switch but their own.
        "--flush-interval=never",
        "--channel=good:subbuf-size=16K:n-subbufs=4",
        "--channel",
        &evil,
    ];
    // A full pipe would block the daemon.
    let mut mount = Mount::prepared(&args, |command| {
        relayfs_tests::direct::with_sequences(command)
            .stderr(File::create(&log).expect("a file for the daemon's log"))
    });
    let mut scribbler = Process::start(
        Command::new(program("test-scribbler"))
            .arg(&state)
            .args(["evil", &seconds.to_string()])
            .stdout(Stdio::piped()),
    );
    let (began, over, answers) = (Instant::now(), AtomicBool::new(false), Answers::default());
    let (sent, stored) = thread::scope(|scope| {
        let (mount, over, answers) = (&mount, &over, &answers);
        let healthy: Vec<_> = (0..CPUS).map(|cpu| scope.spawn(move || good(mount, cpu, over))).collect();
        let visits: [fn(&Mount, &Answers); 6] = [read, wait, control, write, seek, recreate_if_broken];
        for visit in visits {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    visit(mount, answers);
                }
            });
        }
        let programs: [&[&str]; 4] = [
            &["audience", "-c", "evil"],
            &["audience", "-c", "evil", "--snapshot"],
            &["audience", "record", "-c", "evil", "--duration", "300ms"],
            &["relay-producer", "-c", "evil", "--wait=10ms"],
        ];
        for line in programs {
            scope.spawn(move || {
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    visit_by_program(mount, line, number);
                }
            });
        }
        let mut stored = String::new();
        let mut output = scribbler.child().stdout.take().expect("a pipe");
        output.read_to_string(&mut stored).expect("the scribbler's numbers, at its end");
        over.store(true, Ordering::Relaxed);
        let sent = healthy.into_iter().map(|one| one.join().expect("the healthy channel")).sum::<u64>();
        (sent, stored.trim().replace(' ', " stores in "))
    });
    assert_eq!(exit_code(scribbler.wait()), 0, "the scribbler");
    let pid = mount.daemon().pid().as_raw();
    eventually("the daemon to rest", || {
        let before = cpu_time(pid);
        pass(REST);
        cpu_time(pid) == before
    });
    // The channel can be recreated, and the other one is unchanged.
    fs::write(mount.control("evil", "reset"), "1").expect("a new channel");
    eventually("a message by the channel", || {
        mount.send_to("evil", 0, &[b"again"]);
        let bytes = read_as_cat(&mount.path("evil0")).unwrap_or_else(|error| {
            // Another look tells a moment from a state.
            let again = read_as_cat(&mount.path("evil0"));
            let log = fs::read_to_string(&log).expect("the daemon's log");
            let tail: Vec<&str> = log.lines().rev().take(8).collect();
            panic!("{error}, then {again:?}; the daemon's last lines, newest first: {tail:#?}")
        });
        bytes == b"again"
    });
    mount.send_to("good", 0, &[b"unharmed"]);
    assert_eq!(mount.read("good0"), b"unharmed");
    conformance::run(&mount, "good");
    assert_eq!(mount.stats("good")["total.corrected"], 0);
    assert!(mount.end(Signal::SIGTERM).success());
    let said = fs::read_to_string(&log).expect("the daemon's log");
    assert!(!said.contains("panicked"), "{said}");
    assert!(said.contains("channel evil: broken"), "{said}");
    let corrections = said.lines().filter(|line| line.contains("corrected")).count() as u64;
    let lasted = began.elapsed().as_secs();
    assert!(
        corrections <= lasted + 2,
        "{corrections} lines in {lasted} s are more than one a second: {said}"
    );
    let renewed = answers.renewed.load(Ordering::Relaxed);
    println!(
        "{mode}: {seconds} s, {stored} channels; {sent} messages of the other channel; {} answers and {} errors of the damaged one, renewed {renewed} times; {corrections} lines of corrections",
        answers.good.load(Ordering::Relaxed),
        answers.bad.load(Ordering::Relaxed),
    );
}

/// Reads a file to its end, as cat does. `fs::read` would first ask for memory of the file's size, and that stays what the
/// scribbler made it if the channel was only reset.
fn read_as_cat(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Lets time pass: to see the daemon's CPU time stand still, or between two visits. It waits for no event.
fn pass(time: Duration) {
    poll(&mut [], PollTimeout::try_from(time).expect("short")).expect("nothing to wait for");
}

/// User and system time of a process, in ticks.
fn cpu_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the daemon");
    let fields = stat.rsplit_once(") ").expect("a name").1;
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum()
}

/// Writes numbered messages to the healthy channel and reads them, until the end, when all are read. Returns their
/// number.
fn good(mount: &Mount, cpu: usize, over: &AtomicBool) -> u64 {
    let (written, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let channel = Channel::open(mount.point(), "good").expect("the healthy channel");
            let options =
                BatchOptions { cpu: Some(cpu), wait: relay_producer::Wait::AtMost(relayfs_tests::DEADLINE) };
            on_cpu(cpu, || {
                while !over.load(Ordering::Relaxed) {
                    let next = written.load(Ordering::Relaxed);
                    let messages: Vec<[u8; 8]> = (next..next + 100).map(u64::to_le_bytes).collect();
                    let counts =
                        channel.write_batch(&messages, options).expect("writing to the healthy channel");
                    assert_eq!((counts.written, counts.dropped), (100, 0));
                    written.store(next + 100, Ordering::Release);
                }
            });
            stopped.store(true, Ordering::Release);
        });
        let mut file = File::open(mount.path(&format!("good{cpu}"))).expect("the healthy channel");
        let (mut expected, mut bytes) = (0u64, Vec::new());
        loop {
            let is_last = stopped.load(Ordering::Acquire);
            let mut part = vec![0; 64 << 10];
            let len = file.read(&mut part).expect("reading the healthy channel");
            bytes.extend_from_slice(&part[..len]);
            let whole = bytes.len() / 8 * 8;
            for number in bytes.drain(..whole).collect::<Vec<u8>>().chunks(8) {
                assert_eq!(u64::from_le_bytes(number.try_into().expect("eight")), expected);
                expected += 1;
            }
            if len == 0 {
                if is_last {
                    break;
                }
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::try_from(PATIENCE).expect("short")).expect("polling");
            }
        }
        assert_eq!(expected, written.load(Ordering::Relaxed), "messages of the healthy channel");
        expected
    })
}

/// Opens a file of the damaged channel, and uses it.
fn with(mount: &Mount, answers: &Answers, path: &str, act: impl FnOnce(&mut File) -> std::io::Result<()>) {
    let opened = File::open(mount.path(path));
    answers.note(path, opened.and_then(|mut file| act(&mut file)));
}

fn read(mount: &Mount, answers: &Answers) {
    for path in ["evil0", "evil1", ".relay/channels/evil/snapshot/cpu0", ".relay/channels/evil/control"] {
        with(mount, answers, path, |file| {
            for _ in 0..20 {
                if file.read(&mut [0; 9000])? == 0 {
                    break;
                }
            }
            Ok(())
        });
    }
}

fn wait(mount: &Mount, answers: &Answers) {
    with(mount, answers, "evil0", |file| {
        for _ in 0..5 {
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(5u8))?;
            let _ = file.read(&mut [0; 100])?;
        }
        Ok(())
    });
}

fn control(mount: &Mount, answers: &Answers) {
    let look = |file: &str| answers.note(file, fs::read(mount.control("evil", file)));
    let say = |file: &str, what: &str| answers.note(file, fs::write(mount.control("evil", file), what));
    look("stats");
    look("consumed/cpu1");
    answers.note("stat", fs::metadata(mount.path("evil0")));
    say("consumed/cpu1", "1");
    say("consumed/cpu1", "7 2");
    say("flush", "1");
    look("dropped");
    say("reset", "1");
}

fn write(mount: &Mount, answers: &Answers) {
    answers.note("msg", fs::write(mount.control("evil", "msg"), [b'm'; 300]));
    for transport in [TransportChoice::Auto, TransportChoice::Socket] {
        let Ok(channel) = Channel::builder(mount.point(), "evil").transport(transport).open() else {
            continue;
        };
        for len in (0..5000).step_by(7) {
            // The channel is full, has ended, or the message is too big; the call returns.
            let _ = channel.write(&vec![b'm'; len]);
        }
        let wait = relay_producer::Wait::AtMost(Duration::from_millis(10));
        let _ = channel.write_batch([[b'm'; 1000]; 20], BatchOptions { cpu: None, wait });
    }
}

fn seek(mount: &Mount, answers: &Answers) {
    with(mount, answers, "evil1", |file| {
        let at = file.metadata()?.len();
        for at in [at, at.saturating_sub(100), 0, at / 2, at + 5000] {
            file.read_at(&mut [0; 500], at).or_else(|error| match error.raw_os_error() {
                Some(libc::ESPIPE | libc::EINVAL) => Ok(0),
                _ => Err(error),
            })?;
        }
        Ok(())
    });
}

/// Recreates the channel if it is broken.
fn recreate_if_broken(mount: &Mount, answers: &Answers) {
    let is_broken = |error: std::io::Error| error.raw_os_error() == Some(Errno::EIO as i32);
    if fs::read(mount.control("evil", "stats")).is_err_and(is_broken) {
        let reset = fs::write(mount.control("evil", "reset"), "1");
        answers.renewed.fetch_add(reset.is_ok().into(), Ordering::Relaxed);
        answers.note("reset", reset);
    }
    pass(RENEW_INTERVAL);
}

/// Runs a program on the damaged channel. It must end by itself.
fn visit_by_program(mount: &Mount, line: &[&str], number: u32) {
    let mut command = relayfs_tests::tool("timeout", "coreutils");
    command.args(["-k", "1", "60"]).arg(program(line[0]));
    command.args(&line[1..]).arg("-m").arg(mount.point());
    let output = mount.beside(&format!("recorded{number}"));
    if line.contains(&"record") {
        command.arg("-o").arg(&output);
    }
    if line[0] == "relay-producer" {
        command.args(["message"; 30]);
    }
    let output_of = run(&mut command);
    let code = exit_code(output_of.status);
    assert!(code < 100, "{line:?}: {code}: {}", text(&output_of.stderr));
    remove(&output);
}

fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}
