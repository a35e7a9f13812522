//! `--flush-interval`: unread data waits no longer than that while a process polls, so that readers of channels with few messages
//! are woken too. Where no process polls, or nothing is unread, no sub-buffer is finished and no timer runs.

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

/// Sleeps in poll(2) until there is something, and reads it.
#[track_caller]
fn wait_and_read(mount: &Mount, name: &str) -> Vec<u8> {
    let file = File::open(mount.path(name)).unwrap();
    // For ever: when its time is over, poll(2) looks once more, and finds what nobody told it.
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::all())];
    poll(&mut fds, PollTimeout::NONE).unwrap();
    assert_eq!(fds[0].revents(), Some(READABLE));
    mount.read(name)
}

/// One short message after the other wakes its reader, whoever writes it; what is empty stays empty.
#[test]
fn few_messages_wake_their_readers() {
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
            assert_eq!(stats["cpu0.produced"], 0, "{mode}: a CPU that nobody wrote on");
        }
        assert_eq!(mount.stats("idle")["total.produced"], 0, "{mode}");
    }
}

/// A full buffer is left alone: flushing makes no room.
#[test]
fn a_full_buffer_stays_full() {
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

/// What takes as long as some intervals of one millisecond.
#[track_caller]
fn let_time_pass() {
    let clock = Mount::new(&["--flush-interval", "0.001"]);
    for _ in 0..20 {
        clock.send(0, &[b"message"]);
        assert_eq!(wait_and_read(&clock, "cpu0"), b"message");
    }
}

/// With `never`, what is written waits for its sub-buffer to be full, or for a flush.
#[test]
fn with_never_nothing_is_finished() {
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
fn without_the_option_a_poller_hears_of_a_few_bytes() {
    let mount = Mount::new(&[]);
    mount.send(0, &[b"before"]);
    assert_eq!(wait_and_read(&mount, "cpu0"), b"before");
    let sleeper = Sleeper::on(File::open(mount.path("cpu0")).unwrap());
    mount.send(0, &[b"after"]);
    sleeper.woken();
    assert_eq!(mount.read("cpu0"), b"after");
}

/// A thread that sleeps in poll(2) until its file has something to say.
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

/// Data that was read already is no reason to finish a sub-buffer: a poller that has all would be woken for nothing, and padding takes
/// room.
#[test]
fn idle_poller_causes_no_switches() {
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

/// How often the daemon's first thread, which looks at buffers, has slept.
fn sleeps_of_first_thread(mount: &mut Mount) -> u64 {
    let pid = mount.daemon().pid();
    let status = fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn where_no_process_polls_nothing_runs_and_nothing_is_finished() {
    let mut mount = Mount::new(&["--flush-interval=1ms"]);
    mount.send(0, &[b"a few bytes"]);
    let before = sleeps_of_first_thread(&mut mount);
    let_time_pass();
    assert_eq!(sleeps_of_first_thread(&mut mount), before);
    assert_eq!(mount.stats("cpu")["total.produced"], 0);
    // While a process polls it does, and when none does any more it ends.
    assert_eq!(wait_and_read(&mount, "cpu0"), b"a few bytes");
    let sleeper = Sleeper::on(File::open(mount.path("cpu0")).unwrap());
    let_time_pass();
    assert!(sleeps_of_first_thread(&mut mount) > before + 5);
    mount.send(0, &[b"more"]);
    sleeper.woken();
    let mut last = 0;
    eventually("the end of looks", || {
        let_time_pass();
        std::mem::replace(&mut last, sleeps_of_first_thread(&mut mount)) == last
    });
}

/// A reader of mappings that waits.
#[test]
fn reader_of_mappings_hears_of_a_few_bytes() {
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

/// Durations that are none, and such as are shorter than anybody means; the longest are no trouble.
#[test]
fn odd_intervals() {
    for bad in ["", "0", "0ms", "0.5ms", "-1", "soon", "1h", "1 s", "ms", "1e3", "inf", "nan"] {
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
