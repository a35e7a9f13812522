//! `--flush-interval`: while a process polls, unread data waits no longer than that, so that readers of channels with
//! few messages wake too. If no process polls, or nothing is unread, no sub-buffer is finished and no timer runs.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, gettid};
use relayfs_tests::background::Place;
use relayfs_tests::buffer::{READABLE, poll_now};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::{DEADLINE, Mount, complaint, eventually, run};

/// Sleeps in poll(2) until the file is readable, and reads it.
#[track_caller]
fn wait_and_read(mount: &Mount, name: &str) -> Vec<u8> {
    let file = File::open(mount.path(name)).unwrap();
    // No timeout: at a timeout, poll(2) would look once more, and hide a missed wake-up.
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::all())];
    poll(&mut fds, PollTimeout::NONE).unwrap();
    assert_eq!(fds[0].revents(), Some(READABLE));
    mount.read(name)
}

/// Single short messages wake their reader, whichever process writes them. An empty buffer stays empty.
#[test]
fn single_short_message_wakes_reader() {
    for mode in ["no-overwrite", "overwrite", "no-overwrite:header=16"] {
        let mount = Mount::new(&[
            "--flush-interval=1ms",
            "--channel",
            &format!("cpu:{mode}"),
            "--channel",
            &format!("idle:{mode}"),
        ]);
        let (direct, by_socket) = (mount.direct_channel("cpu"), mount.channel("cpu"));
        let last = by_socket.n_bufs() - 1;
        for i in 0..20 {
            let message = format!("message {i}");
            if i % 2 == 0 {
                on_cpu(last, || direct.write(message.as_bytes()).unwrap());
            } else {
                mount.send(last, &[message.as_bytes()]);
            }
            let got = wait_and_read(&mount, &format!("cpu{last}"));
            let is_there = got.windows(message.len()).any(|part| part == message.as_bytes());
            assert!(is_there, "{mode}: {got:?}");
            assert_eq!(poll_now(&File::open(mount.path("idle0")).unwrap()), PollFlags::empty(), "{mode}");
        }
        let stats = mount.stats("cpu");
        assert_eq!(
            stats[&format!("cpu{last}.produced")],
            20,
            "{mode}: a flush for each message, and no other"
        );
        assert_eq!(stats["total.dropped"], 0, "{mode}");
        if last > 0 {
            assert_eq!(stats["cpu0.produced"], 0, "{mode}: a CPU without messages");
        }
        assert_eq!(mount.stats("idle")["total.produced"], 0, "{mode}");
    }
}

/// A full buffer stays as it is: flushing makes no room.
#[test]
fn full_buffer_is_not_flushed() {
    let mount =
        Mount::new(&["--flush-interval=1ms", "--channel=cpu:subbuf-size=100:n-subbufs=2", "--channel=other"]);
    assert_eq!(mount.send(0, &[&[b'a'; 100], &[b'b'; 100], b"c"]).dropped, 1);
    let before = mount.stats("cpu");
    for _ in 0..20 {
        mount.send_to("other", 0, &[b"message"]);
        assert_eq!(wait_and_read(&mount, "other0"), b"message");
    }
    assert_eq!(mount.stats("cpu"), before);
    assert_eq!(mount.read("cpu0"), [[b'a'; 100], [b'b'; 100]].concat());
}

/// Does work that takes several intervals of one millisecond.
#[track_caller]
fn let_time_pass() {
    let clock = Mount::new(&["--flush-interval", "0.001"]);
    for _ in 0..20 {
        clock.send(0, &[b"message"]);
        assert_eq!(wait_and_read(&clock, "cpu0"), b"message");
    }
}

/// With `never`, data waits until its sub-buffer is full, or for a flush.
#[test]
fn interval_never_finishes_no_sub_buffer() {
    for option in ["--flush-interval=never", "-oflush_interval=never"] {
        let mount = Mount::new(&[option]);
        mount.send(0, &[b"waiting"]);
        let sleeper = Sleeper::on(File::open(mount.path("cpu0")).unwrap());
        let_time_pass();
        assert!(sleeper.sleeps());
        assert_eq!(mount.stats("cpu")["total.produced"], 0);
        mount.poke("cpu", "flush");
        sleeper.woken();
        assert_eq!(mount.read("cpu0"), b"waiting");
    }
}

#[test]
fn default_interval_wakes_poller_of_few_bytes() {
    let mount = Mount::new(&[]);
    mount.send(0, &[b"before"]);
    assert_eq!(wait_and_read(&mount, "cpu0"), b"before");
    let sleeper = Sleeper::on(File::open(mount.path("cpu0")).unwrap());
    mount.send(0, &[b"after"]);
    sleeper.woken();
    assert_eq!(mount.read("cpu0"), b"after");
}

/// A thread that sleeps in poll(2) until its file is ready.
struct Sleeper {
    thread: JoinHandle<()>,
    id: Pid,
}

impl Sleeper {
    fn on(file: File) -> Sleeper {
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            sender.send(gettid()).unwrap();
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::all())];
            poll(&mut fds, PollTimeout::NONE).unwrap();
        });
        let sleeper = Sleeper { thread, id: receiver.recv().unwrap() };
        eventually("a thread asleep in poll", || sleeper.sleeps());
        sleeper
    }

    fn sleeps(&self) -> bool {
        let at = fs::read_to_string(format!("/proc/self/task/{}/wchan", self.id));
        !self.thread.is_finished() && at.is_ok_and(|at| at.contains("poll"))
    }

    #[track_caller]
    fn woken(self) {
        eventually("a sleeper that is woken", || self.thread.is_finished());
        self.thread.join().unwrap();
    }
}

/// Read data is no reason to finish a sub-buffer: it would wake a poller for nothing, and padding takes room.
#[test]
fn poller_without_unread_data_causes_no_switches() {
    for mode in ["no-overwrite", "overwrite", "no-overwrite:header=16"] {
        let mount = Mount::new(&["--flush-interval=1ms", "--channel", &format!("cpu:{mode}")]);
        let empty = Sleeper::on(File::open(mount.path("cpu0")).unwrap());
        let_time_pass();
        assert!(empty.sleeps(), "{mode}");
        mount.send(0, &[b"first"]);
        empty.woken();
        mount.read("cpu0");
        mount.send(0, &[b"second"]);
        mount.read("cpu0"); // of the unfinished sub-buffer, or of the finished one
        let produced = mount.stats("cpu")["cpu0.produced"];
        let read = Sleeper::on(File::open(mount.path("cpu0")).unwrap());
        let_time_pass();
        assert!(read.sleeps(), "{mode}");
        assert_eq!(mount.stats("cpu")["cpu0.produced"], produced, "{mode}");
        mount.send(0, &[b"third"]);
        read.woken();
        let got = mount.read("cpu0");
        assert!(got.windows(5).any(|part| part == b"third"), "{mode}: {got:?}");
        assert_eq!(mount.stats("cpu")["cpu0.produced"], produced + 1, "{mode}");
    }
}

/// Returns how often the daemon's first thread, which has the flush timer, has slept.
fn sleeps_of_first_thread(mount: &mut Mount) -> u64 {
    let pid = mount.daemon().pid();
    let status = fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

/// Waits until that thread sleeps on for several intervals, and returns how often it has slept.
#[track_caller]
fn sleeps_at_rest(mount: &mut Mount) -> u64 {
    let mut last = 0;
    eventually("a thread at rest", || {
        let_time_pass();
        std::mem::replace(&mut last, sleeps_of_first_thread(mount)) == last
    });
    last
}

#[test]
fn timer_runs_only_while_a_process_polls() {
    let mut mount = Mount::new(&["--flush-interval=1ms"]);
    mount.send(0, &[b"a few bytes"]);
    // The start of a daemon may end a moment after the mount.
    let before = sleeps_at_rest(&mut mount);
    assert_eq!(mount.stats("cpu")["total.produced"], 0);
    // While a process polls, the timer runs. It stops when no process polls.
    assert_eq!(wait_and_read(&mount, "cpu0"), b"a few bytes");
    let sleeper = Sleeper::on(File::open(mount.path("cpu0")).unwrap());
    eventually("looks", || {
        let_time_pass();
        sleeps_of_first_thread(&mut mount) > before + 5
    });
    mount.send(0, &[b"more"]);
    sleeper.woken();
    sleeps_at_rest(&mut mount);
}

/// A waiting reader of mappings wakes too.
#[test]
fn reader_of_mappings_wakes_for_few_bytes() {
    let mount = Mount::new(&["--flush-interval=1ms"]);
    let mut reader = audience::Reader::open_cpu(mount.point(), "cpu", 0).unwrap();
    for message in [&b"one"[..], b"two", b"three"] {
        mount.send(0, &[message]);
        reader.wait(Some(Instant::now() + DEADLINE)).unwrap();
        let mut copy = Vec::new();
        reader.next_finished(0).expect("a finished sub-buffer").copy_to(&mut copy);
        assert_eq!(copy, message);
        reader.release(0).unwrap();
    }
}

/// Invalid and very short durations are refused. Very long ones are accepted.
#[test]
fn invalid_intervals_are_refused() {
    for bad in ["", "0", "0ms", "0.5ms", "-1", "soon", "1w", "1 s", "ms", "1e3", "inf", "nan"] {
        let place = Place::new();
        let option = format!("--flush-interval={bad}");
        let output = run(&mut place.command(&["-f", &option]));
        let told = complaint("relayfsd", &output);
        assert!(told.contains("--flush-interval"), "{bad:?}: {told}");
        place.assert_clean();
    }
    for long in ["100000000m", "18446744073709000000"] {
        let mount = Mount::new(&["--flush-interval", long]);
        mount.send(0, &[b"message"]);
        assert_eq!(poll_now(&File::open(mount.path("cpu0")).unwrap()), PollFlags::empty(), "{long}");
    }
    let mount = Mount::new(&["-o", "flush-interval=1ms"]);
    mount.send(0, &[b"message"]);
    assert_eq!(wait_and_read(&mount, "cpu0"), b"message");
}
