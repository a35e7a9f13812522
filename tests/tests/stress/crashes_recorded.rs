//! `audience record` while daemons are killed, and told to end with `--keep`, again and again, and four processes write
//! directly, under signals and migrations: every message whose write returned Ok is in the recording, once, in its order.
//!
//! `sh tests/long.sh crashes` for more of it.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use relayfs_tests::audience::{Recorder, names};
use relayfs_tests::known::{NUMBERED_MIN, Pattern};
use relayfs_tests::numbered::Random;
use relayfs_tests::progress::get;
use relayfs_tests::streams::{Numbers, Received};
use relayfs_tests::stress::{Done, StressWriter};
use relayfs_tests::{Mount, direct, eventually, exit_code};

use crate::turn;

/// Processes that write.
const PROCESSES: u32 = 4;
/// Daemons that are ended in each test, if nobody says.
const CRASHES_DEFAULT: u64 = 10;
/// At most as long as a daemon lives once it has been seen to work.
const LIFE_MAX_MS: usize = 30;

#[test]
fn daemons_that_are_killed_leave_a_whole_recording() {
    let _turn = turn();
    pass(Signal::SIGKILL, &["--subbuf-size=64K", "--n-subbufs=8"]);
}

#[test]
fn daemons_that_keep_their_buffers_leave_a_whole_recording() {
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
    eventually("everybody's first message", || writers.iter().all(|writer| writer.attempts() > 0));
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

    let pattern = Pattern::default();
    let mut numbers: BTreeMap<u32, Numbers> = BTreeMap::new();
    let mut short = [0; NUMBERED_MIN];
    for cpu in (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists()) {
        let mut received = Received::new(&pattern, false);
        received.take(&recorder.recorded(cpu));
        received.finish();
        received
            .writers
            .iter()
            .for_each(|(writer, of_cpu)| numbers.entry(*writer).or_default().merge(of_cpu));
        short.iter_mut().zip(received.short).for_each(|(sum, count)| *sum += count);
    }
    for (writer, stream) in done.iter().flat_map(Done::streams) {
        let found = numbers.remove(&writer).unwrap_or_default();
        let count = get(&stream.numbered);
        assert_eq!((found.end(), found.count()), (count, count), "writer {writer}");
    }
    assert!(numbers.is_empty(), "messages of nobody: {:?}", numbers.keys());
    for (len, found) in short.iter().enumerate().skip(1) {
        let told: u64 = done.iter().flat_map(Done::streams).map(|(_, stream)| get(&stream.short[len])).sum();
        assert_eq!(*found, told, "messages of {len} bytes");
    }
    println!("{signal} {crashes} times: {bytes} bytes recorded, each message once");
}
