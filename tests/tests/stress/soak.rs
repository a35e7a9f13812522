//! A daemon at full load for long: memory, descriptors and threads stay what they were, and so do the producers' own. Four
//! processes write directly, readers read, and all the while others come and go: connections, channels, snapshots, pollers,
//! mapped readers.
//!
//! A few seconds; `sh tests/long.sh soak` for long.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use relay_producer::Channel;
use relayfs_tests::stress::StressWriter;
use relayfs_tests::{Mount, eventually};

use crate::turn;

/// How long it takes, if nobody says.
const SECONDS_DEFAULT: u64 = 5;
/// The part of it after which everything has been done that is done once.
const WARM_UP_PART: u32 = 5;
/// How much more memory the daemon may have at the end than then: what allocators hold back, not what grows.
const GROWTH_MAX_KIB: u64 = 6 << 10;

/// What a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Possessions {
    memory_kib: u64,
    descriptors: usize,
    threads: usize,
}

fn of(process: Pid) -> Possessions {
    let proc = |name: &str| format!("/proc/{process}/{name}");
    let status = fs::read_to_string(proc("status")).unwrap();
    // What is its own: not the buffers' pages, of which it has all from the start.
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line of memory");
    Possessions {
        memory_kib: memory.trim().strip_suffix(" kB").unwrap().parse().unwrap(),
        descriptors: fs::read_dir(proc("fd")).unwrap().count(),
        threads: fs::read_dir(proc("task")).unwrap().count(),
    }
}

#[test]
fn nothing_grows() {
    let _turn = turn();
    let seconds = std::env::var("RELAYFS_SOAK_SECONDS")
        .map_or(SECONDS_DEFAULT, |text| text.parse().expect("RELAYFS_SOAK_SECONDS is a number of seconds"));
    let duration = Duration::from_secs(seconds);
    let mut mount = Mount::with_sequences(&["--subbuf-size=64K", "--n-subbufs=8"]);
    let daemon = mount.daemon().pid();
    let n_cpus = (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists()).count();
    let writers: Vec<_> =
        (0..4).map(|number| StressWriter::start(&mount, number, 1..=4096, number % 2 == 0)).collect();
    let (is_over, bytes, rounds) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mount = &mount;
    thread::scope(|scope| {
        for cpu in 0..n_cpus {
            let (is_over, bytes) = (&is_over, &bytes);
            scope.spawn(move || {
                let mut file = File::open(mount.path(&format!("cpu{cpu}"))).unwrap();
                let mut buffer = vec![0; 128 << 10];
                while !is_over.load(Ordering::Relaxed) {
                    let got = file.read(&mut buffer).unwrap();
                    bytes.fetch_add(got as u64, Ordering::Relaxed);
                    if got == 0 {
                        let _ = poll(
                            &mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)],
                            PollTimeout::from(10u8),
                        );
                    }
                }
            });
        }
        let begin = Instant::now();
        let churn = |until: Duration| {
            while begin.elapsed() < until {
                come_and_go(mount, rounds.fetch_add(1, Ordering::Relaxed));
            }
        };
        churn(duration / WARM_UP_PART);
        let (before, of_writers) =
            (at_rest(daemon, None), writers.iter().map(|w| of(w.pid())).collect::<Vec<_>>());
        let mut most = before;
        for part in 1..=10 {
            churn(duration / WARM_UP_PART + (duration - duration / WARM_UP_PART) * part / 10);
            let now = at_rest(daemon, Some(before));
            println!("{:?}: {now:?}, {} bytes read", begin.elapsed(), bytes.load(Ordering::Relaxed));
            most.memory_kib = most.memory_kib.max(now.memory_kib);
        }
        assert!(most.memory_kib <= before.memory_kib + GROWTH_MAX_KIB, "{before:?}, later {most:?}");
        for (writer, before) in writers.iter().zip(of_writers) {
            let now = of(writer.pid());
            assert_eq!((now.descriptors, now.threads), (before.descriptors, before.threads));
            assert!(now.memory_kib <= before.memory_kib + GROWTH_MAX_KIB, "{before:?}, later {now:?}");
        }
        writers.into_iter().for_each(|writer| drop(writer.finish()));
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(bytes.load(Ordering::Relaxed) > 0 && rounds.load(Ordering::Relaxed) > 0);
    println!("{seconds} s: {} bytes read, {} rounds", bytes.into_inner(), rounds.into_inner());
}

/// What the daemon has once it is done with who has gone: as much as before, if that is known.
fn at_rest(daemon: Pid, before: Option<Possessions>) -> Possessions {
    let mut last = of(daemon);
    if let Some(before) = before {
        eventually("as few descriptors and threads as before", || {
            last = of(daemon);
            last.descriptors == before.descriptors && last.threads == before.threads
        });
        return last;
    }
    // Nobody knows what it is to be: what it is for a while.
    let mut same_since = Instant::now();
    eventually("descriptors and threads that stay as many", || {
        let now = of(daemon);
        if (now.descriptors, now.threads) != (last.descriptors, last.threads) {
            same_since = Instant::now();
        }
        last = now;
        same_since.elapsed() > Duration::from_millis(200)
    });
    last
}

/// Somebody of each kind comes, does something, and goes.
fn come_and_go(mount: &Mount, round: u64) {
    let name = format!("app/visitor-{}", round % 7);
    let visitor = Channel::builder(mount.point(), &name).create(true).open().unwrap();
    visitor.write(b"seen\n").unwrap();
    visitor.write_batch(["and\n", "gone\n"], relay_producer::BatchOptions::default()).unwrap();
    visitor.flush().unwrap();
    for file in ["snapshot/cpu0", "consumed/cpu0", "stats", "control"] {
        fs::read(mount.control(&name, file)).unwrap();
    }
    let mut reader = audience::Reader::open(mount.point(), &name).unwrap();
    for cpu in 0..reader.n_bufs() {
        while reader.next_finished(cpu).is_some() {
            reader.release(cpu).unwrap();
        }
    }
    for cpu in 0.. {
        let Ok(mut file) = File::open(mount.path(&format!("{name}{cpu}"))) else { break };
        let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO);
        file.read_to_end(&mut Vec::new()).unwrap();
    }
    fs::read(mount.path(".relay/stats")).unwrap();
}
