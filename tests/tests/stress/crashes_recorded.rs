//! `audience record` while daemons are killed, or ended with `--keep`, again and again, and four processes write
//! directly, under signals and migrations. Each message whose write returned Ok is in the recording, once and in
//! order.
//!
//! `sh tests/long.sh crashes` for more of it.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use relayfs_tests::audience::{Recorder, names};
use relayfs_tests::numbered::Random;
use relayfs_tests::stress::{Done, StressWriter, assert_each_once};
use relayfs_tests::{Mount, direct, eventually, exit_code};

use crate::turn;

/// Number of writing processes.
const PROCESSES: u32 = 4;
/// Daemons that are ended in each test, by default.
const CRASHES_DEFAULT: u64 = 6;
/// Longest life of a daemon after its first sign of work.
const LIFE_MAX_MS: usize = 30;

#[test]
fn killed_daemons_leave_a_whole_recording() {
    let _turn = turn();
    pass(Signal::SIGKILL, &["--subbuf-size=64K", "--n-subbufs=8"]);
}

#[test]
fn daemons_with_keep_leave_a_whole_recording() {
    let _turn = turn();
    pass(Signal::SIGTERM, &["--subbuf-size=16K", "--n-subbufs=8", "--keep"]);
}

fn pass(signal: Signal, args: &[&str]) {
    let crashes = std::env::var("RELAYFS_CRASHES")
        .map_or(CRASHES_DEFAULT, |text| text.parse().expect("RELAYFS_CRASHES is a number"));
    let mut mount = Mount::with_sequences(args);
    let mut recorder = Recorder::start(mount.point(), &[]);
    recorder.is_ready();
    let writers: Vec<_> =
        (0..PROCESSES).map(|number| StressWriter::start(&mount, number, 1..=4096, number % 2 == 0)).collect();
    eventually("the first message of each writer", || writers.iter().all(|writer| writer.attempts() > 0));
    let recorded = || {
        let lens = names(&recorder.dir).into_iter().map(|name| fs::metadata(recorder.dir.join(name)));
        lens.map(|found| found.expect("a recording").len()).sum::<u64>()
    };
    let mut random = Random::new(crashes);
    for _ in 0..crashes {
        let before = recorded();
        eventually("something recorded of this daemon", || recorded() > before + (64 << 10));
        thread::park_timeout(Duration::from_millis(random.below(LIFE_MAX_MS) as u64));
        let expected = if signal == Signal::SIGKILL { 128 + signal as i32 } else { 0 };
        assert_eq!(exit_code(mount.end(signal)), expected);
        mount.restart_prepared(args, direct::with_sequences);
    }
    writers.iter().for_each(StressWriter::stop);
    let done: Vec<Done> = writers.into_iter().map(StressWriter::finish).collect();
    let bytes = mount.stats("cpu")["total.bytes"];
    eventually("all of it", || recorded() >= bytes);
    assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
    assert!(
        recorder.said().contains(&format!("total: {bytes} bytes recorded in ")),
        "{bytes}: {}",
        recorder.said()
    );

    let cpus = (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists());
    assert_each_once(cpus.map(|cpu| recorder.recorded(cpu)), &done);
    println!("{signal} {crashes} times: {bytes} bytes recorded, each message once");
}
