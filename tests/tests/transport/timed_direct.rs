//! Direct writers of timed channels, as the daemon sees them: anchors, threads, copies.

use std::fs;

use relay::trace::event::Event;
use relay_producer::{Channel, Level};
use relayfs_tests::direct::{assert_direct, is_without_sequences, on_cpu};
use relayfs_tests::timed::{records, snapshot};
use relayfs_tests::{Mount, eventually};

fn opened(mount: &Mount) -> Channel {
    let channel = Channel::builder(mount.point(), "app").timed(true).open().unwrap();
    // Without sequences the library sends, and the same holds.
    if !is_without_sequences() {
        assert_direct(&channel);
    }
    channel
}

/// The control file shows the anchors without a look that takes one.
fn n_anchors(mount: &Mount) -> u64 {
    let control = fs::read(mount.control("app", "control")).unwrap();
    u64::from_le_bytes(control[4096 + 8..][..8].try_into().unwrap())
}

/// The daemon hears of a direct writer by its bell alone.
#[test]
fn anchors_come_while_a_direct_writer_writes() {
    let mount = Mount::new(&["--channel=app:timed:overwrite:subbuf-size=4K:n-subbufs=2"]);
    let channel = opened(&mount);
    let begin = n_anchors(&mount);
    eventually("an anchor each second", || {
        for _ in 0..1000 {
            let written = channel.log(Level::Info, "app", "a message that the daemon does not see");
            assert!(written.is_ok() || is_without_sequences(), "{written:?}");
        }
        n_anchors(&mount) >= begin + 3
    });
}

#[test]
fn packets_of_a_lapping_writer_are_whole_and_in_order() {
    for mode in ["", ":overwrite"] {
        let mount = Mount::new(&[&format!("--channel=app:timed:subbuf-size=4K:n-subbufs=4{mode}")]);
        let channel = opened(&mount);
        let done = std::sync::atomic::AtomicBool::new(false);
        let (n_taken, mut last) = (std::cell::Cell::new(0), None);
        let n_written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                on_cpu(1, || {
                    let mut n = 0u64;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        n += u64::from(channel.log(Level::Debug, "t", &format!("{n}")).is_ok());
                    }
                    n
                })
            });
            let mut take = || {
                let taken = records(&fs::read(mount.control("app", "take/cpu1")).unwrap());
                let (_, ids): (Vec<u64>, Vec<_>) = taken.iter().map(|(stamp, id, ..)| (*stamp, *id)).unzip();
                assert!(ids.iter().all(|id| [2, 5].contains(id)), "{ids:?}");
                for (.., payload) in taken.iter().filter(|(_, id, ..)| *id == 2) {
                    let Event::Log { text, .. } = Event::decode(2, payload) else { panic!("{payload:?}") };
                    let n: u64 = std::str::from_utf8(text).unwrap().parse().unwrap();
                    assert!(last.is_none_or(|last| n > last), "{n} behind {last:?}: taken twice");
                    last = Some(n);
                    n_taken.set(n_taken.get() + 1);
                }
            };
            let mut rounds = 0..200;
            // The writer may get its CPU late.
            while rounds.next().is_some() || n_taken.get() == 0 {
                take();
                snapshot(&mount, "app", 1);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            let n_written = writer.join().unwrap();
            take();
            n_written
        });
        let n_taken = n_taken.get();
        assert!(n_taken > 0 && n_taken <= n_written);
        if mode.is_empty() && !is_without_sequences() {
            assert_eq!(n_taken, n_written, "each record once");
        }
        let text = fs::read_to_string(mount.control("app", "processes")).unwrap();
        let pid = std::process::id();
        assert!(text.starts_with(&format!("1 {pid} ")), "{text}");
        assert!(text.lines().any(|line| line.starts_with("thread ") && line.ends_with(" 1")), "{text}");
    }
}
