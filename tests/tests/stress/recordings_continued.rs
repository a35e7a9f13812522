//! `audience record --all --append` while recorders and daemons are killed, or ended, at random moments.
//!
//! A raw channel is written directly by a process under signals and migrations, a timed one by a thread on each CPU.
//! Each message whose write returned Ok is in the recordings, once and in order. babeltrace2 agrees.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use relayfs_tests::audience::{Recorder, names};
use relayfs_tests::ctf::{read, trace};
use relayfs_tests::direct::{pin, with_sequences};
use relayfs_tests::numbered::Random;
use relayfs_tests::stress::{Done, StressWriter, assert_each_once};
use relayfs_tests::{Mount, eventually, exit_code, program, run, text, tool};

use crate::turn;

/// What the daemon is started with.
const DAEMON: &[&str] =
    &["--subbuf-size=64K", "--n-subbufs=8", "--channel=app/log:timed:subbuf-size=16K:n-subbufs=8"];
/// What the recorder is started with.
const RECORDER: &[&str] = &["--all", "--append", "--rotate-size=2M", "--progress=0"];
/// Recorders that are ended in each test, and as many daemons.
const ENDS: usize = 20;
/// Longest life after the first sign of work.
const LIFE_MAX_MS: usize = 30;
/// CPUs of the timed channel's writers.
const CPUS: usize = 2;

#[test]
fn killed_recorders_and_daemons_leave_whole_recordings() {
    let _turn = turn();
    pass(Signal::SIGKILL, 1);
}

#[test]
fn ended_recorders_and_daemons_leave_whole_recordings() {
    let _turn = turn();
    pass(Signal::SIGTERM, 2);
}

/// Bytes of all files of a recording.
fn recorded(dir: &Path) -> u64 {
    // What is not there yet, or is renamed meanwhile, counts later.
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let len = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    let of = |path: &Path| if path.is_dir() { recorded(path) } else { len(path) };
    entries.flatten().map(|entry| of(&entry.path())).sum()
}

/// Writes texts "CPU NUMBER" until `stop` is set. A text that found no room is written again.
fn write_texts(mount: &Path, cpu: usize, stop: &AtomicBool, written: &AtomicU64) {
    pin(cpu);
    let channel = relay_producer::Channel::open(mount, "app/log").expect("opening the channel");
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        match channel.text(&format!("{cpu} {number}")) {
            Ok(()) => {
                number += 1;
                written.store(number, Ordering::Relaxed);
                if number.is_multiple_of(64) {
                    thread::park_timeout(Duration::from_millis(5));
                }
            }
            Err(_) => thread::park_timeout(Duration::from_millis(1)),
        }
    }
}

fn pass(signal: Signal, seed: u64) {
    let mut mount = Mount::with_sequences(DAEMON);
    let dir = mount.beside("recordings");
    let mut recorder = Recorder::start_into(mount.point(), &dir, RECORDER);
    let writers = vec![StressWriter::start(&mount, 0, 1..=1024, true)];
    let (stop, written) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; CPUS]);
    let point = mount.point().to_owned();
    let mut random = Random::new(seed);
    let (raw, timed) = (dir.join("cpu"), dir.join("app/log"));
    thread::scope(|scope| {
        for (cpu, written) in written.iter().enumerate() {
            let (point, stop) = (&point, &stop);
            scope.spawn(move || write_texts(point, cpu, stop, written));
        }
        // What fails must not leave the threads above running.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for n in 0..2 * ENDS {
                let before = [&raw, &timed].map(|dir| recorded(dir));
                eventually("something recorded of both", || {
                    recorded(&raw) > before[0] + (64 << 10) && recorded(&timed) > before[1] + (16 << 10)
                });
                thread::park_timeout(Duration::from_millis(random.below(LIFE_MAX_MS) as u64));
                if n % 2 == 0 {
                    recorder.end(signal);
                    recorder = Recorder::start_into(mount.point(), &dir, RECORDER);
                } else {
                    mount.end(signal);
                    mount.restart_prepared(DAEMON, with_sequences);
                }
            }
            writers.iter().for_each(StressWriter::stop);
        }));
        stop.store(true, Ordering::Relaxed);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let done: Vec<Done> = writers.into_iter().map(StressWriter::finish).collect();
    eventually("all of it", || mount.is_read("cpu") && mount.is_read("app/log"));
    assert_eq!(exit_code_of(&mut recorder), 0, "{}", recorder.said());

    let bytes = |cpu: usize| -> Vec<u8> {
        let of_cpu = |name: &String| name.split('.').next() == Some(&format!("cpu{cpu}"));
        names(&raw)
            .iter()
            .filter(|name| of_cpu(name))
            .flat_map(|name| fs::read(raw.join(name)).unwrap())
            .collect()
    };
    let cpus = (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists());
    let total = assert_each_once(cpus.map(bytes), &done);
    assert_eq!(total, mount.stats("cpu")["total.bytes"]);

    // In the order of each CPU: of two CPUs, babeltrace2 may order equal nanoseconds in another way.
    // Losses go to standard error.
    let output =
        run(tool("env", "coreutils").arg(program("audience")).arg("--trace").arg(&timed).args(["-o", "cat"]));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    assert_numbers("audience", text(&output.stdout).lines().map(str::to_owned), &written);
    let pieces: Vec<String> = names(&timed).into_iter().filter(|name| !name.starts_with('.')).collect();
    let (mut events, mut discarded) = (Vec::new(), 0);
    for piece in &pieces {
        let found = read(&timed.join(piece));
        discarded += found.discarded;
        let message = |fields: &str| fields.split('"').nth(1).map(str::to_owned);
        let of_texts = found.events.iter().filter(|event| event.name == "text");
        events.extend(of_texts.map(|event| message(&event.fields).expect("a text")));
    }
    let count = events.len();
    assert_numbers("babeltrace2", events.into_iter(), &written);
    // Each loss is reported once.
    let lost = |line: &String| line.strip_prefix("-- ")?.split_once(" message")?.0.parse::<u64>().ok();
    let stats = mount.stats("app/log");
    let counted = stats["total.dropped"] + stats["total.too_big"] + stats["total.contended"];
    assert_eq!((trace(&timed, &[]).iter().filter_map(lost).sum(), discarded), (counted, counted));
    println!("{signal}: {total} bytes of a raw channel, {count} records in {} pieces", pieces.len());
}

/// Checks that there are all texts "CPU NUMBER", each once and in order.
#[track_caller]
fn assert_numbers(whose: &str, texts: impl Iterator<Item = String>, written: &[AtomicU64; CPUS]) {
    let mut next = [0; CPUS];
    for text in texts {
        let (cpu, number) = text.split_once(' ').expect("a CPU and a number");
        let next = &mut next[cpu.parse::<usize>().expect("a CPU")];
        assert_eq!(number.parse(), Ok(*next), "{whose}: CPU {cpu}");
        *next += 1;
    }
    assert_eq!(next, written.each_ref().map(|count| count.load(Ordering::Relaxed)), "{whose}");
}

fn exit_code_of(recorder: &mut Recorder) -> i32 {
    recorder.process.signal(Signal::SIGTERM);
    exit_code(recorder.process.wait())
}
