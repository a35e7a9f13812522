//! poll(2), epoll and select(2) on buffers' files. They report finished sub-buffers that are not given back, and
//! nothing else. Sleepers are woken for those, and at the end. Labels are those of the kernel's recorded behaviour:
//! 4.6 its table of states, R5 its rule.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, gettid};
use relayfs_tests::buffer::{Buffer, MIB, READABLE, Shape, each, poll_now};
use relayfs_tests::direct::with_sequences;
use relayfs_tests::limits::allow_open_files;
use relayfs_tests::{DEADLINE, Mount, Process, eventually, exit_code, program, stdout_of, text, tool};

const IDLE: PollFlags = PollFlags::empty();
const SMALL: Shape = Shape::new(1000, 3);

/// A thread that sleeps in poll(2) until one of its files is ready.
struct Sleeper {
    thread: JoinHandle<Vec<PollFlags>>,
    id: Pid,
}

impl Sleeper {
    /// Starts the thread, and waits until it is asleep.
    fn on(files: Vec<File>) -> Sleeper {
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            sender.send(gettid()).unwrap();
            wait_for(&files)
        });
        let id = receiver.recv().unwrap();
        eventually("a thread asleep in poll", || is_polling(id));
        Sleeper { thread, id }
    }

    fn sleeps(&self) -> bool {
        !self.thread.is_finished() && is_polling(self.id)
    }

    /// Returns the events that poll(2) reported.
    #[track_caller]
    fn woken(self) -> Vec<PollFlags> {
        eventually("a sleeper that wakes", || self.thread.is_finished());
        self.thread.join().unwrap()
    }
}

/// Returns whether a thread of this process sleeps in poll(2) or epoll_wait(2), not in a request to the daemon.
fn is_polling(thread: Pid) -> bool {
    let at = fs::read_to_string(format!("/proc/self/task/{thread}/wchan")).expect("where a thread sleeps");
    at.contains("poll")
}

/// Sleeps in poll(2) until one of the files is ready.
#[track_caller]
fn wait_for(files: &[File]) -> Vec<PollFlags> {
    let mut fds: Vec<_> = files.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::all())).collect();
    // No timeout: at a timeout, poll(2) would look once more, and hide a missed wake-up.
    poll(&mut fds, PollTimeout::NONE).expect("poll");
    fds.iter().map(|fd| fd.revents().expect("flags that are known")).collect()
}

/// Returns an epoll instance that watches one file.
fn epoll_on(file: &File, edge: bool) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let edge = if edge { EpollFlags::EPOLLET } else { EpollFlags::empty() };
    epoll.add(file, EpollEvent::new(EpollFlags::EPOLLIN | edge, 7)).unwrap();
    epoll
}

/// Returns the events within the timeout, maybe none.
fn events(epoll: &Epoll, timeout: EpollTimeout) -> Vec<EpollFlags> {
    let mut events = [EpollEvent::empty(); 8];
    let n = epoll.wait(&mut events, timeout).unwrap();
    events[..n].iter().map(EpollEvent::events).collect()
}

/// Returns the shape with messages over the socket, and with direct messages.
fn both_ways(shape: Shape) -> [Shape; 2] {
    [shape, shape.direct()]
}

fn deadline() -> EpollTimeout {
    EpollTimeout::try_from(DEADLINE).unwrap()
}

/// POLLIN and POLLRDNORM exactly when a finished sub-buffer has not been given back; never anything else.
#[test]
fn poll_reports_finished_sub_buffers_only() {
    for shape in Shape::of_tables_in_both_modes() {
        let s = shape.s;
        let b = Buffer::new(shape);
        assert_eq!(b.poll(), IDLE, "empty");
        b.write("a", s - 100);
        assert_eq!(b.poll(), IDLE, "a partial write");
        b.write("b", 100);
        assert_eq!(b.poll(), IDLE, "an exact fill");
        b.write("c", 10);
        assert_eq!(b.poll(), READABLE, "a switch by writing");
        b.read(10);
        assert_eq!(b.poll(), READABLE, "partly read");
        b.read(s - 10);
        assert_eq!(b.poll(), IDLE, "the finished one read, unfinished data waiting");
        assert_eq!(b.read(MIB), "c*10");
        b.flush();
        assert_eq!(b.poll(), READABLE, "a flush after everything was read: R5, 1.5");
        assert_eq!((b.read(MIB), b.poll()), (String::new(), IDLE), "R5, 1.5");
        b.flush();
        assert_eq!(b.poll(), READABLE, "a flush of an empty sub-buffer");
        b.reset();
        assert_eq!(b.poll(), IDLE, "reset");
        b.write(&"d".repeat(2 * shape.n + 1), s);
        assert_eq!(b.poll(), READABLE, "full, or lapped");
        b.audit();
    }
    let one = Shape::new(100, 1);
    for shape in [one, one.over()].into_iter().flat_map(both_ways) {
        let b = Buffer::new(shape);
        b.write("a", 100);
        assert_eq!(b.poll(), IDLE);
        b.write("b", 100);
        assert_eq!(b.poll(), READABLE);
        b.read(MIB);
        assert_eq!(b.poll(), IDLE);
        b.audit();
    }
}

/// A file that was not opened for reading is never ready. A file opened for both is like any other.
#[test]
fn file_not_opened_for_reading_is_never_ready() {
    let mount = Mount::new(&["--flush-interval=never", "--subbuf-size", "1000", "-o", "mode=0600"]);
    let write_only = OpenOptions::new().write(true).open(mount.path("cpu0")).unwrap();
    let both = OpenOptions::new().read(true).write(true).open(mount.path("cpu0")).unwrap();
    mount.send(0, &[b"data"]);
    mount.poke("cpu", "flush");
    assert_eq!(poll_now(&write_only), IDLE, "F12");
    assert_eq!(poll_now(&both), READABLE);
}

/// Control files and texts are always ready, as ordinary files are.
#[test]
fn control_files_are_always_ready() {
    let mount = Mount::new(&[]);
    let ordinary = File::open("/proc/self/exe").unwrap();
    let reads = ["stats", "subbuf_size", "n_subbufs", "mode", "dropped"];
    let mut files: Vec<File> = reads.map(|name| File::open(mount.control("cpu", name)).unwrap()).into();
    files.extend([".relay/version", ".relay/stats"].map(|name| File::open(mount.path(name)).unwrap()));
    let writes = ["msg", "flush", "reset"];
    files.extend(writes.map(|name| OpenOptions::new().write(true).open(mount.control("cpu", name)).unwrap()));
    for file in &files {
        assert_eq!(poll_now(file), poll_now(&ordinary), "{file:?}");
    }
}

/// A sleeper is woken by a switch, whether by a message or by a flush.
#[test]
fn switch_wakes_sleeper() {
    let shapes = [SMALL, SMALL.over(), Shape::new(8192, 2), Shape::new(100, 1), SMALL.header(16)];
    for shape in shapes.into_iter().flat_map(both_ways) {
        let b = Buffer::new(shape);
        b.write("a", shape.s - shape.header);
        let sleeper = Sleeper::on(vec![b.open()]);
        b.write("b", 1);
        assert_eq!(sleeper.woken(), [READABLE], "by a message: {shape}");

        b.read(MIB);
        assert_eq!(b.write("c", 1), "c");
        let sleeper = Sleeper::on(vec![b.open()]);
        b.flush();
        assert_eq!(sleeper.woken(), [READABLE], "by a flush: {shape}");
    }
}

/// A direct producer in another process switches: the daemon hears of it, and wakes the sleeper.
#[test]
fn switch_by_direct_producer_wakes_sleeper() {
    let mount = Mount::prepared(&["--subbuf-size=1000"], with_sequences);
    let mut command = tool("taskset", "util-linux");
    command.args(["-c", "0"]).arg(program("relay-producer")).arg("-m").arg(mount.point());
    command.arg("--transport=shared").stdin(Stdio::piped());
    // The producer keeps running: the daemon would also hear of its end.
    let mut producer = Process::start(with_sequences(&mut command));
    let mut stdin = producer.child().stdin.take().unwrap();
    let line = format!("{}\n", "x".repeat(600));
    for i in 0..20 {
        let sleeper = Sleeper::on(vec![File::open(mount.path("cpu0")).unwrap()]);
        // One of two lines finishes a sub-buffer.
        stdin.write_all(line.repeat(2).as_bytes()).unwrap();
        assert_eq!(sleeper.woken(), [READABLE], "the time number {i}");
        let mut n_read = 0;
        eventually("both lines", || {
            n_read += mount.read("cpu0").len();
            n_read == 2 * line.len()
        });
    }
    drop(stdin);
    assert!(producer.wait().success());
    assert_eq!(mount.stats("cpu")["cpu0.written"], 0, "nothing went by the socket");
}

/// An event that finishes no sub-buffer wakes no sleeper.
#[test]
fn event_without_finished_sub_buffer_wakes_no_sleeper() {
    for shape in [SMALL, SMALL.over(), Shape::new(4096, 4)].into_iter().flat_map(both_ways) {
        let b = Buffer::new(shape);
        let sleeper = Sleeper::on(vec![b.open()]);
        b.write("a", shape.s - 100);
        b.write("b", 100);
        b.write("x", shape.s + 1);
        b.reset();
        b.write("c", 10);
        b.read(MIB);
        for cpu in 1..b.mount().channel("cpu").n_bufs() {
            b.mount().send(cpu, &[&vec![b'o'; shape.s], b"p"]);
        }
        assert_eq!(b.poll(), IDLE);
        assert!(sleeper.sleeps(), "4.6: {shape}");
        b.flush();
        assert_eq!(sleeper.woken(), [READABLE]);
    }
}

/// One switch wakes all sleepers: hundreds, with separate open files, with a shared one, and in epoll.
#[test]
fn switch_wakes_all_sleepers() {
    for shape in both_ways(SMALL) {
        let b = Buffer::new(shape);
        let shared = b.open();
        let mut sleepers: Vec<Sleeper> = (0..250).map(|_| Sleeper::on(vec![b.open()])).collect();
        sleepers.extend((0..10).map(|_| Sleeper::on(vec![shared.try_clone().unwrap()])));
        let epolls: Vec<_> = (0..20).map(|i| epoll_on(&shared, i % 2 == 0)).collect();
        eventually("all sleepers asleep", || sleepers.iter().all(Sleeper::sleeps));
        b.write("ab", 600);
        assert!(sleepers.into_iter().all(|sleeper| sleeper.woken() == [READABLE]));
        for epoll in epolls {
            assert_eq!(events(&epoll, deadline()), [EpollFlags::EPOLLIN]);
        }
        assert_eq!(b.read(MIB), each("ab", 600));
        b.audit();
    }
}

/// A thousand open files of one buffer are watched, in epoll, level- and edge-triggered, and in poll(2). Each switch
/// wakes all.
#[test]
fn switch_wakes_a_thousand_open_files() {
    const EACH: u64 = 334;
    allow_open_files(4096);
    for shape in both_ways(SMALL) {
        let b = Buffer::new(shape);
        let open = |_| b.open();
        let epolled: [Vec<File>; 2] = [(); 2].map(|()| (0..EACH).map(open).collect());
        let epolls = [EpollFlags::empty(), EpollFlags::EPOLLET]
            .map(|edge| (edge, Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()));
        for ((edge, epoll), files) in epolls.iter().zip(&epolled) {
            for (i, file) in files.iter().enumerate() {
                epoll.add(file, EpollEvent::new(EpollFlags::EPOLLIN | *edge, i as u64)).unwrap();
            }
        }
        for round in 0..3 {
            let sleeper = Sleeper::on((0..EACH).map(open).collect());
            b.write("ab", 600);
            assert!(sleeper.woken().contains(&READABLE), "{shape}, round {round}");
            for (edge, epoll) in &epolls {
                let (mut told, mut all) = (BTreeSet::new(), vec![EpollEvent::empty(); EACH as usize]);
                while told.len() < EACH as usize {
                    let n = epoll.wait(&mut all, deadline()).unwrap();
                    assert_ne!(n, 0, "{shape}, round {round}, {edge:?}: only {} were told", told.len());
                    told.extend(all[..n].iter().map(EpollEvent::data));
                }
            }
            b.read(MIB);
            b.flush(); // an empty sub-buffer, or what is left of one
            b.read(MIB);
            assert_eq!(b.poll(), IDLE);
        }
        b.audit();
    }
}

/// Closing a file takes no wake-up from other sleepers. A file that is closed while a thread watches it does no harm.
#[test]
fn closing_another_descriptor_loses_no_wake_up() {
    for shape in both_ways(SMALL) {
        let b = Buffer::new(shape);
        let shared = b.open();
        let sleeper = Sleeper::on(vec![shared.try_clone().unwrap()]);
        let other = Sleeper::on(vec![b.open()]);
        let epoll = epoll_on(&shared, true);
        let watched_elsewhere = b.open();
        let elsewhere = epoll_on(&watched_elsewhere, false);
        for _ in 0..100 {
            assert_eq!(poll_now(&b.open()), IDLE);
        }
        drop((shared.try_clone().unwrap(), watched_elsewhere));
        assert!(sleeper.sleeps() && other.sleeps(), "4.6: {shape}");
        b.write("ab", 600);
        assert_eq!(sleeper.woken(), [READABLE], "{shape}");
        assert_eq!(other.woken(), [READABLE], "{shape}");
        assert_eq!(events(&epoll, deadline()), [EpollFlags::EPOLLIN], "{shape}");
        assert_eq!(events(&elsewhere, EpollTimeout::ZERO), [], "{shape}: it is closed");
        b.read(MIB);
        b.audit();
    }
}

/// A thread that polls all CPUs' files learns which are ready.
#[test]
fn poll_of_many_files_reports_the_ready_ones() {
    let mount = Mount::new(&[
        "--flush-interval=never",
        "--subbuf-size",
        "100",
        "--channel",
        "app/log:subbuf-size=10",
    ]);
    let n_cpus = mount.channel("cpu").n_bufs();
    let files = || {
        let names = (0..n_cpus).flat_map(|cpu| [format!("cpu{cpu}"), format!("app/log{cpu}")]);
        names.map(|name| File::open(mount.path(&name)).unwrap()).collect::<Vec<_>>()
    };
    for cpu in 0..n_cpus {
        for (channel, at, len) in [("cpu", 0, 100), ("app/log", 1, 10)] {
            let sleeper = Sleeper::on(files());
            mount.send_to(channel, cpu, &[&vec![b'a'; len], b"b"]);
            let told = sleeper.woken();
            let ready: Vec<usize> = (0..told.len()).filter(|i| told[*i] == READABLE).collect();
            assert_eq!(ready, [2 * cpu + at], "{told:?}");
            assert!(told.iter().all(|flags| flags.is_empty() || *flags == READABLE));
            assert_eq!(mount.read(&format!("{channel}{cpu}")).len(), len + 1);
        }
    }
}

/// Level-triggered epoll reports data each time, edge-triggered epoll once for each switch.
#[test]
fn epoll_is_level_or_edge_triggered() {
    let large = Shape::new(1000, 20);
    for shape in [large, large.over()].into_iter().flat_map(both_ways) {
        let b = Buffer::new(shape);
        let (level, edge) = (epoll_on(b.file(), false), epoll_on(b.file(), true));
        b.write("a", 1000);
        for epoll in [&level, &edge] {
            assert_eq!(events(epoll, EpollTimeout::ZERO), [], "4.6: nothing is finished");
        }
        for i in 0..10 {
            b.write("b", 1000);
            assert_eq!(events(&edge, deadline()), [EpollFlags::EPOLLIN], "4.6: switch {i}");
            assert_eq!(events(&edge, EpollTimeout::ZERO), [], "4.6: switch {i}, once");
            for _ in 0..2 {
                assert_eq!(events(&level, deadline()), [EpollFlags::EPOLLIN], "4.6: switch {i}");
            }
        }
        b.flush();
        assert_eq!(events(&edge, deadline()), [EpollFlags::EPOLLIN], "4.6: flush");
        b.read(MIB);
        for epoll in [&level, &edge] {
            assert_eq!(events(epoll, EpollTimeout::ZERO), [], "4.6: everything read");
        }
        // An edge-triggered watch reports data that is there when it begins.
        b.flush();
        assert_eq!(events(&epoll_on(b.file(), true), EpollTimeout::ZERO), [EpollFlags::EPOLLIN]);
        b.audit();
    }
}

/// A reader that sleeps whenever there is nothing to read misses no wake-up.
#[test]
fn reader_that_sleeps_misses_no_wake_up() {
    const N: usize = 1000;
    let ways = both_ways(Shape::new(16, 4)).into_iter();
    for (shape, edge) in ways.flat_map(|shape| [(shape, false), (shape, true)]) {
        let b = Buffer::new(shape);
        let mut file = b.open();
        let reader = std::thread::spawn(move || {
            let epoll = epoll_on(&file, edge);
            let (mut n_read, mut bytes) = (0, [0; 4096]);
            while n_read < 16 * N {
                assert_eq!(events(&epoll, deadline()), [EpollFlags::EPOLLIN], "after {n_read} bytes");
                // Edge-triggered: the reader reads to the end, or the next edge may never come.
                loop {
                    match file.read(&mut bytes).unwrap() {
                        0 => break,
                        n => n_read += n,
                    }
                }
            }
        });
        let mut n_written = 0;
        while n_written < N && !reader.is_finished() {
            n_written += b.write("a", 16).len();
            // A flush goes through the daemon, so it would hide a direct writer's missing ring.
            if !shape.direct {
                b.flush();
            }
        }
        b.flush();
        reader.join().unwrap();
    }
}

/// The daemon forgets a killed sleeper, and wakes the others.
#[test]
fn killed_sleeper_leaves_others_woken() {
    let b = Buffer::new(SMALL);
    let script = "
import select, sys
cpu, poll = open(sys.argv[1], 'rb'), select.poll()
poll.register(cpu, select.POLLIN)
poll.poll()
";
    let mut command = tool("python3", "python3");
    let mut victim =
        Process::start(command.args(["-c", script]).arg(b.mount().path("cpu0")).stdin(Stdio::null()));
    let at = format!("/proc/{}/wchan", victim.pid());
    eventually("a process asleep in poll", || fs::read_to_string(&at).is_ok_and(|at| at.contains("poll")));
    let sleeper = Sleeper::on(vec![b.open()]);
    victim.signal(Signal::SIGKILL);
    assert_eq!(exit_code(victim.wait()), 128 + 9);
    assert!(sleeper.sleeps());
    b.write("ab", 600);
    assert_eq!(sleeper.woken(), [READABLE]);
    assert_eq!(b.read(MIB), each("ab", 600));
    b.audit();
}

/// select(2) and Python's selectors report the same.
#[test]
fn select_agrees_with_poll() {
    let mount = Mount::new(&["--flush-interval=never", "--subbuf-size", "1000"]);
    let script = "
import select, selectors, sys
cpu, flush = open(sys.argv[1], 'rb', buffering=0), sys.argv[2]
def ready():
    with selectors.DefaultSelector() as selector:
        selector.register(cpu, selectors.EVENT_READ)
        return [len(x) for x in select.select([cpu], [cpu], [cpu], 0)], len(selector.select(0))
print(ready())
open(flush, 'w').write('1')
print(ready())
print(cpu.read(), ready())
";
    mount.send(0, &[b"hello"]);
    let files = [mount.path("cpu0"), mount.control("cpu", "flush")];
    let said = stdout_of(tool("python3", "python3").args(["-c", script]).args(files));
    assert_eq!(text(&said), "([0, 0, 0], 0)\n([1, 0, 0], 1)\nb'hello' ([0, 0, 0], 0)\n");
}

/// The daemon's end wakes all sleepers with POLLERR, and later polls report POLLERR.
#[test]
fn end_of_daemon_wakes_sleepers() {
    for over in [false, true] {
        let mut mount = Mount::new(if over { &["--overwrite"] } else { &[] });
        let open = || File::open(mount.path("cpu0")).unwrap();
        let kept = open();
        let sleepers: Vec<Sleeper> = (0..30).map(|_| Sleeper::on(vec![open()])).collect();
        mount.daemon().signal(Signal::SIGTERM);
        for sleeper in sleepers {
            assert_eq!(sleeper.woken(), [PollFlags::POLLERR], "0, 4.6");
        }
        assert_eq!(poll_now(&kept), PollFlags::POLLERR, "4.6");
        assert_eq!(exit_code(mount.daemon().wait()), 0);
        assert_eq!(poll_now(&kept), PollFlags::POLLERR, "4.6");
        let error = (&kept).read(&mut [0; 10]).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
        assert_ne!(error.kind(), ErrorKind::WouldBlock);
    }
}

/// Unmounting wakes sleepers too.
#[test]
fn unmounting_wakes_sleepers() {
    let mut mount = Mount::new(&[]);
    let sleepers: Vec<Sleeper> =
        (0..30).map(|_| Sleeper::on(vec![File::open(mount.path("cpu0")).unwrap()])).collect();
    let epolled = File::open(mount.path("cpu0")).unwrap();
    let epoll = epoll_on(&epolled, true);
    mount.detach();
    for sleeper in sleepers {
        assert_eq!(sleeper.woken(), [PollFlags::POLLERR], "0, 4.10");
    }
    assert_eq!(events(&epoll, deadline()), [EpollFlags::EPOLLERR], "0, 4.10");
    drop((epoll, epolled));
    assert_eq!(exit_code(mount.daemon().wait()), 0);
}
