//! A daemon at full load for long: its memory, descriptors and threads do not grow, nor those of producers. Four
//! processes write directly, and readers read. Meanwhile connections, channels, snapshots, pollers and mapped readers
//! come and go.
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

/// Duration by default.
const SECONDS_DEFAULT: u64 = 4;
/// The part of it after which all one-time allocations are done.
const WARM_UP_PART: u32 = 5;
/// Memory that the daemon may have more at the end than then: allocators hold some back, which is no growth.
const GROWTH_MAX_KIB: u64 = 6 << 10;

/// Memory, descriptors and threads of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Possessions {
    memory_kib: u64,
    descriptors: usize,
    threads: usize,
}

fn of(process: Pid) -> Possessions {
    let proc = |name: &str| format!("/proc/{process}/{name}");
    let status = fs::read_to_string(proc("status")).unwrap();
    // Private memory, without the buffers' pages, which are all there from the start.
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line of memory");
    Possessions {
        memory_kib: memory.trim().strip_suffix(" kB").unwrap().parse().unwrap(),
        descriptors: fs::read_dir(proc("fd")).unwrap().count(),
        threads: fs::read_dir(proc("task")).unwrap().count(),
    }
}

#[test]
fn memory_descriptors_and_threads_do_not_grow() {
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

/// Returns what the daemon has when it is done with clients that have gone: as much as before, if that is known.
fn at_rest(daemon: Pid, before: Option<Possessions>) -> Possessions {
    let mut last = of(daemon);
    if let Some(before) = before {
        eventually("as few descriptors and threads as before", || {
            last = of(daemon);
            last.descriptors == before.descriptors && last.threads == before.threads
        });
        return last;
    }
    // The value is unknown: it is the one that stays for a while.
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

/// Runs a client of each kind to its end.
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
