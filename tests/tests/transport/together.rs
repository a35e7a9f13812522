//! Many producers and readers at once: each message answered `written` is read, whole, once and in order. The others
//! are counted. Over the socket, and directly.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, WriteError};
use relayfs_tests::direct::{is_without_sequences, on_cpu};
use relayfs_tests::numbered::{Random, Tag, message, tags};
use relayfs_tests::{Mount, Process, eventually, exit_code, program, run, stdout_of, text, tool};

/// A process that writes numbered messages, and its report of the answers.
struct Producers {
    process: Process,
    report: PathBuf,
}

/// The result of the messages `first .. first + count` of a thread.
struct Report {
    producer: u32,
    thread: u32,
    first: u32,
    count: u64,
    written: u64,
    bytes: u64,
}

/// The task of a writing process.
#[derive(Clone, Copy)]
struct Task {
    channel: &'static str,
    threads: u32,
    /// Number of messages of each thread; 0: as many as time allows.
    batches: u32,
    /// "wait" or "drop".
    wait: &'static str,
    /// Longest message, in bytes.
    len_max: usize,
    way: Way,
}

/// How messages get into the buffers. Direct writers send some over the socket: those for another CPU, long ones, and
/// those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Socket,
}

impl Way {
    const BOTH: [Way; 2] = [Way::Direct, Way::Socket];

    fn open(self, mount: &Mount, channel: &str) -> Channel {
        match self {
            Way::Direct => mount.direct_channel(channel),
            Way::Socket => mount.channel(channel),
        }
    }

    /// Whether the daemon has counted its messages as written.
    #[track_caller]
    fn assert_counted(self, counted: u64, written: u64) {
        let is_right = match self {
            Way::Direct if !is_without_sequences() => counted < written,
            Way::Direct | Way::Socket => counted == written,
        };
        assert!(is_right, "{self:?}: {counted} of {written}");
    }
}

impl Producers {
    #[track_caller]
    fn start(mount: &Mount, producer: u32, task: Task) -> Producers {
        let report = mount.beside(&format!("report{producer}"));
        let mut command = Command::new(program("test-producers"));
        command.arg(mount.point()).arg(task.channel).arg(producer.to_string());
        command.args([task.threads.to_string(), task.batches.to_string()]);
        command.args([task.wait.to_owned(), task.len_max.to_string()]);
        command.arg(if task.way == Way::Direct { "direct" } else { "socket" });
        command.stdin(Stdio::null()).stdout(File::create(&report).expect("a file for the report"));
        Producers { process: Process::start(&mut command), report }
    }

    /// Waits for its successful end, and returns its report.
    #[track_caller]
    fn finish(mut self) -> Vec<Report> {
        assert_eq!(exit_code(self.process.wait()), 0);
        self.report()
    }

    /// Kills it, and returns its report so far.
    fn kill(mut self) -> Vec<Report> {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
        self.report()
    }

    /// Returns all whole lines of the report.
    fn report(&self) -> Vec<Report> {
        let lines = fs::read_to_string(&self.report).expect("a report");
        let parse = |line: &str| {
            let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().expect("a number"));
            let mut next = || numbers.next().expect("six numbers");
            let mut small = || u32::try_from(next()).expect("a small number");
            let (producer, thread, first) = (small(), small(), small());
            Report { producer, thread, first, count: next(), written: next(), bytes: next() }
        };
        lines.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parse).collect()
    }
}

/// Starts processes, numbered from 0.
fn start(mount: &Mount, n: u32, task: Task) -> Vec<Producers> {
    (0..n).map(|producer| Producers::start(mount, producer, task)).collect()
}

fn finish(producers: Vec<Producers>) -> Vec<Report> {
    producers.into_iter().flat_map(Producers::finish).collect()
}

fn sum(reports: &[Report], what: impl Fn(&Report) -> u64) -> u64 {
    reports.iter().map(what).sum()
}

/// Each thread's messages come in the order in which it wrote them, and none twice.
#[track_caller]
fn assert_in_order(stream: &[Tag]) {
    let mut last = BTreeMap::new();
    for tag in stream {
        if let Some(seq) = last.insert((tag.producer, tag.thread), tag.seq) {
            assert!(seq < tag.seq, "{tag:?} after number {seq}");
        }
    }
}

/// Checks that as many messages of each batch were read as were answered `written`, none twice, on any CPU. Messages
/// without a report were in flight when their producer was killed. Returns their number.
#[track_caller]
fn assert_complete(streams: &[Vec<Tag>], reports: &[Report]) -> usize {
    let mut read: Vec<Tag> = streams.concat();
    read.sort_unstable();
    assert!(read.windows(2).all(|pair| pair[0] != pair[1]), "a message was read twice");
    let mut reported = 0;
    for Report { producer, thread, first, count, written, .. } in reports {
        let tag = |seq| Tag { producer: *producer, thread: *thread, seq };
        let end = first + u32::try_from(*count).expect("a small batch");
        let position = |seq| read.partition_point(|other| *other < tag(seq));
        let of_batch = position(end) - position(*first);
        assert_eq!(of_batch as u64, *written, "messages of thread {producer}.{thread} from {first} to {end}");
        reported += of_batch;
    }
    read.len() - reported
}

/// Starts a shell that runs `cat` on a file again and again until a file STOP exists, and then once more.
fn cat(mount: &Mount, file: &str) -> (Process, PathBuf) {
    let out = mount.beside(&format!("{file}.out"));
    let script = "while [ ! -e \"$2\" ]; do cat \"$1\"; done; exec cat \"$1\"";
    let mut command = tool("sh", "dash");
    command.args(["-c", script, "sh"]).arg(mount.path(file)).arg(mount.beside("STOP"));
    command.stdin(Stdio::null()).stdout(File::create(&out).expect("a file for output"));
    (Process::start(&mut command), out)
}

/// Starts `audience -f` for one CPU.
fn follow(mount: &Mount, cpu: usize, channel: &str) -> (Process, PathBuf) {
    let out = mount.beside(&format!("{cpu}.out"));
    let mut command = Command::new(program("audience"));
    command.arg("-f").arg("-m").arg(mount.point()).args(["-c", channel, "--cpu", &cpu.to_string()]);
    command.stdin(Stdio::null()).stdout(File::create(&out).expect("a file for output"));
    (Process::start(command.stderr(Stdio::piped())), out)
}

/// Sends SIGINT to the followers.
fn interrupt(followers: &[(Process, PathBuf)]) {
    followers.iter().for_each(|(process, _)| process.signal(Signal::SIGINT));
}

/// Ends the readers, and returns the data that they have read.
#[track_caller]
fn stop(mount: &Mount, readers: impl IntoIterator<Item = (Process, PathBuf)>) -> Vec<Vec<u8>> {
    fs::write(mount.beside("STOP"), "").expect("a file");
    let readers: Vec<_> = readers.into_iter().collect();
    let end = |(mut process, out): (Process, PathBuf)| {
        assert_eq!(exit_code(process.wait()), 0);
        fs::read(out).expect("what was read")
    };
    readers.into_iter().map(end).collect()
}

/// Checks that the counters account for each byte.
#[track_caller]
fn assert_balanced(mount: &Mount, channel: &str, unread: u64) {
    let stats = mount.stats(channel);
    let get = |name: &str| stats[&format!("total.{name}")];
    let accounted = get("read_bytes") + get("overwritten_bytes") + get("discarded_bytes") + unread;
    assert_eq!(get("bytes"), accounted, "{stats:?}");
}

fn in_order(streams: &[Vec<u8>]) -> Vec<Vec<Tag>> {
    let streams: Vec<_> = streams.iter().map(|stream| tags(stream)).collect();
    streams.iter().for_each(|stream| assert_in_order(stream));
    streams
}

/// Three processes with two threads each, messages of up to 1 MiB, both CPUs, and `cat` again and again.
#[test]
fn written_messages_are_read_by_cat() {
    for way in Way::BOTH {
        let mount = Mount::new(&["--subbuf-size", "1M", "--n-subbufs", "2"]);
        let readers = ["cpu0", "cpu1"].map(|file| cat(&mount, file));
        let task = Task { channel: "cpu", threads: 2, batches: 120, wait: "wait", len_max: 1 << 20, way };
        let reports = finish(start(&mount, 3, task));
        let streams = in_order(&stop(&mount, readers));
        assert_eq!(assert_complete(&streams, &reports), 0);
        assert_eq!(sum(&reports, |report| report.count - report.written), 0, "no producer gave up");
        let stats = mount.stats("cpu");
        assert_eq!(stats["total.bytes"], sum(&reports, |report| report.bytes));
        assert_eq!(stats["total.dropped"], 0);
        way.assert_counted(stats["total.written"], sum(&reports, |report| report.written));
        assert_balanced(&mount, "cpu", 0);
    }
}

/// `audience -f`, tiny buffers, and a channel created for them.
#[test]
fn written_messages_are_read_by_a_follower() {
    for way in Way::BOTH {
        let mount = Mount::new(&["--channel", "app/log:subbuf-size=4K:n-subbufs=3"]);
        let readers = [0, 1].map(|cpu| follow(&mount, cpu, "app/log"));
        let task = Task { channel: "app/log", threads: 2, batches: 200, wait: "wait", len_max: 4096, way };
        let reports = finish(start(&mount, 3, task));
        interrupt(&readers);
        let streams = in_order(&stop(&mount, readers));
        assert_eq!(assert_complete(&streams, &reports), 0);
        assert_balanced(&mount, "app/log", 0);
    }
}

/// A global channel has one stream: each thread's messages in order, whichever CPU it ran on.
#[test]
fn written_messages_are_read_from_a_global_channel() {
    let mount = Mount::new(&["--channel", "log:global:subbuf-size=64K"]);
    let reader = follow(&mount, 0, "log");
    let task =
        Task { channel: "log", threads: 3, batches: 200, wait: "wait", len_max: 64 << 10, way: Way::Socket };
    let reports = finish(start(&mount, 2, task));
    let readers = [reader];
    interrupt(&readers);
    let streams = in_order(&stop(&mount, readers));
    assert_eq!(assert_complete(&streams, &reports), 0);
    assert_balanced(&mount, "log", 0);
}

/// Without waiting, exactly the messages that were answered `written` are read. The others count as dropped.
#[test]
fn dropped_messages_are_counted_and_not_read() {
    for way in Way::BOTH {
        let mount = Mount::new(&["--subbuf-size", "16K", "--n-subbufs", "2"]);
        let task = Task { channel: "cpu", threads: 2, batches: 150, wait: "drop", len_max: 16 << 10, way };
        // No reader reads the messages of the first process.
        let mut reports = Producers::start(&mount, 9, task).finish();
        let readers = ["cpu0", "cpu1"].map(|file| cat(&mount, file));
        reports.extend(finish(start(&mount, 3, task)));
        let streams = in_order(&stop(&mount, readers));
        assert_eq!(assert_complete(&streams, &reports), 0);
        let (written, count) = (sum(&reports, |report| report.written), sum(&reports, |report| report.count));
        assert!(written < count, "or this test shows nothing");
        let stats = mount.stats("cpu");
        assert_eq!(stats["total.dropped"], count - written);
        way.assert_counted(stats["total.written"], written);
        assert_balanced(&mount, "cpu", 0);
    }
}

/// Reads a file in blocks of `len` until `done` is set, and then to its end.
fn read_in_blocks(path: &Path, len: usize, done: &AtomicBool) -> Vec<u8> {
    let mut file = File::open(path).expect("a buffer");
    let (mut stream, mut block) = (Vec::new(), vec![0; len]);
    loop {
        let last = done.load(Ordering::SeqCst);
        let got = file.read(&mut block).expect("reading");
        stream.extend_from_slice(&block[..got]);
        if last && got == 0 {
            return stream;
        }
    }
}

/// In overwrite mode, readers of small pieces get whole messages too, and each missing byte is counted. With few
/// sub-buffers, a writer often overwrites the one that is read.
#[test]
fn overwritten_channel_has_whole_messages_and_counts_losses() {
    for (n_subbufs, way) in ["1", "2", "5"].into_iter().flat_map(|n| Way::BOTH.map(|way| (n, way))) {
        let mount = Mount::new(&["--overwrite", "--subbuf-size", "64K", "--n-subbufs", n_subbufs]);
        let task = Task { channel: "cpu", threads: 2, batches: 250, wait: "drop", len_max: 64 << 10, way };
        // No reader reads the messages of the first process.
        let mut reports = Producers::start(&mount, 9, task).finish();
        let done = AtomicBool::new(false);
        let streams = thread::scope(|scope| {
            let readers = [("cpu0", 777), ("cpu1", 100_000)].map(|(file, len)| {
                let (path, done) = (mount.path(file), &done);
                scope.spawn(move || read_in_blocks(&path, len, done))
            });
            reports.extend(finish(start(&mount, 3, task)));
            done.store(true, Ordering::SeqCst);
            readers.map(|reader| reader.join().expect("a reader"))
        });
        in_order(&streams);
        let stats = mount.stats("cpu");
        let (count, bytes) = (sum(&reports, |report| report.count), sum(&reports, |report| report.bytes));
        assert_eq!(sum(&reports, |report| report.written), count, "there is always room");
        assert_eq!(stats["total.dropped"], 0);
        way.assert_counted(stats["total.written"], count);
        assert_eq!(stats["total.bytes"], bytes);
        for (cpu, stream) in streams.iter().enumerate() {
            assert_eq!(stats[&format!("cpu{cpu}.read_bytes")], stream.len() as u64);
        }
        assert!(stats["total.overwritten_bytes"] > 0, "or this test shows nothing");
        assert_balanced(&mount, "cpu", 0);
    }
}

/// A reader that comes at the end gets the newest messages, and `audience` reports the losses.
#[test]
fn overwritten_channel_has_the_newest_messages() {
    for way in Way::BOTH {
        let mount = Mount::new(&["--overwrite", "--subbuf-size", "128K", "--n-subbufs", "4"]);
        let task = Task { channel: "cpu", threads: 3, batches: 100, wait: "drop", len_max: 128 << 10, way };
        let reports = finish(start(&mount, 2, task));
        let output = run(Command::new(program("audience")).arg("-m").arg(mount.point()));
        let stats = mount.stats("cpu");
        let told = [0, 1].map(|cpu| {
            let bytes = stats[&format!("cpu{cpu}.overwritten_bytes")];
            format!("audience: cpu{cpu}: {bytes} bytes overwritten before they were read\n")
        });
        assert_eq!((exit_code(output.status), text(&output.stderr)), (0, told.concat()));
        tags(&output.stdout);
        assert_eq!(
            sum(&reports, |report| report.bytes),
            output.stdout.len() as u64 + stats["total.overwritten_bytes"]
        );
    }
}

/// Flushes and resets cut between messages. Data that a reset discards is counted.
#[test]
fn resets_and_flushes_cut_between_messages() {
    for (mode, way) in
        ["--header=0", "--overwrite"].into_iter().flat_map(|mode| Way::BOTH.map(|way| (mode, way)))
    {
        let mount = Mount::new(&["--subbuf-size", "32K", "--n-subbufs", "4", mode]);
        let done = AtomicBool::new(false);
        let (reports, streams) = thread::scope(|scope| {
            let readers = ["cpu0", "cpu1"].map(|file| cat(&mount, file));
            scope.spawn(|| {
                let mut random = Random::new(1);
                while !done.load(Ordering::SeqCst) {
                    mount.poke("cpu", if random.below(3) == 0 { "reset" } else { "flush" });
                }
            });
            let task =
                Task { channel: "cpu", threads: 2, batches: 250, wait: "wait", len_max: 32 << 10, way };
            let reports = finish(start(&mount, 2, task));
            done.store(true, Ordering::SeqCst);
            (reports, stop(&mount, readers))
        });
        in_order(&streams);
        let stats = mount.stats("cpu");
        let written = sum(&reports, |report| report.written);
        assert_eq!(sum(&reports, |report| report.count), written, "{mode}: who waits loses nothing");
        assert_eq!(stats["total.dropped"], 0, "{mode}");
        way.assert_counted(stats["total.written"], written);
        assert_eq!(stats["total.bytes"], sum(&reports, |report| report.bytes), "{mode}");
        assert!(stats["total.discarded_bytes"] > 0, "{mode}: or this test shows nothing");
        assert_balanced(&mount, "cpu", 0);
    }
}

/// Killed producers leave whole messages only. All answered messages are there, and their channels go with the
/// producers.
#[test]
fn killed_producers_leave_whole_messages() {
    for way in Way::BOTH {
        let mount = Mount::new(&[]);
        let keeper = Channel::builder(mount.point(), "storm")
            .create(true)
            .geometry("subbuf-size=256K:n-subbufs=3".parse().expect("a geometry"))
            .open()
            .expect("a channel");
        let readers = [0, 1].map(|cpu| follow(&mount, cpu, "storm"));
        let task = Task { channel: "storm", threads: 2, batches: 0, wait: "wait", len_max: 256 << 10, way };
        let mut running = start(&mount, 3, task);
        let is_read = |(_, out): &(Process, PathBuf)| fs::metadata(out).is_ok_and(|file| file.len() > 0);
        eventually("both readers at work", || readers.iter().all(is_read));
        drop(keeper);
        let mut random = Random::new(2);
        let mut reports = Vec::new();
        for next in 3..15 {
            // Each dies at another point, after it has written something.
            let victim = running.swap_remove(random.below(running.len()));
            let enough = random.below(40);
            eventually("some batches", || victim.report().len() > enough);
            reports.extend(victim.kill());
            running.push(Producers::start(&mount, next, task));
        }
        reports.extend(running.into_iter().flat_map(Producers::kill));
        interrupt(&readers);
        let mut streams = stop(&mount, readers);
        // The daemon may still write what the last producer had sent. The channel goes when it has no holder and is
        // read.
        let files = [0, 1].map(|cpu| (cpu, mount.path(&format!("storm{cpu}"))));
        eventually("the channel to go", || {
            for (cpu, path) in &files {
                streams[*cpu].extend(fs::read(path).unwrap_or_default());
            }
            !files[0].1.exists()
        });
        let unreported = assert_complete(&in_order(&streams), &reports);
        assert!(unreported <= 15 * 2 * 64, "{unreported} messages in at most one batch a thread");
        let totals = fs::read_to_string(mount.path(".relay/stats")).expect("the daemon's counters");
        let gone = |name: &str| {
            let line = totals.lines().find_map(|line| line.strip_prefix(&format!("gone.{name} ")));
            line.expect("a counter").parse::<usize>().expect("a number")
        };
        assert_eq!(gone("bytes"), streams.iter().map(Vec::len).sum::<usize>());
        assert_eq!(gone("bytes"), gone("read_bytes"));
    }
}

/// Two readers of one file together get each message once.
#[test]
fn two_readers_of_a_file_read_each_message_once() {
    for way in Way::BOTH {
        let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "4"]);
        let done = AtomicBool::new(false);
        let (streams, counts) = thread::scope(|scope| {
            // Blocks of several messages, so that none is cut.
            let readers = [64 * 7, 64 * 30].map(|len| {
                let (path, done) = (mount.path("cpu0"), &done);
                scope.spawn(move || read_in_blocks(&path, len, done))
            });
            let messages = (0..20_000).map(|seq| message(Tag { producer: 0, thread: 0, seq }, 64));
            let wait = relay_producer::Wait::Forever;
            let counts = way.open(&mount, "cpu").write_batch(messages, BatchOptions { cpu: Some(0), wait });
            done.store(true, Ordering::SeqCst);
            (readers.map(|reader| tags(&reader.join().expect("a reader"))), counts.expect("a daemon"))
        });
        assert_eq!(counts.written, 20_000);
        streams.iter().for_each(|stream| assert_in_order(stream));
        let mut seqs: Vec<u32> = streams.concat().iter().map(|tag| tag.seq).collect();
        seqs.sort_unstable();
        assert!(seqs.into_iter().eq(0..20_000), "each of them once");
    }
}

/// One `Channel` in many threads, with all its calls at once. A message whose `write` returned `Ok` is read or
/// counted.
#[test]
fn one_channel_serves_many_threads() {
    fn assert_send_and_sync<T: Send + Sync>(_: &T) {}
    // A long message takes many frames, more than a socket holds, and no other message may come between. A direct
    // writer sends such a message to the daemon, so a later one may overtake it.
    for (way, long) in [(Way::Socket, 1 << 20), (Way::Direct, 64 << 10)] {
        let mount = Mount::new(&["--subbuf-size", "1M", "--n-subbufs", "4"]);
        let channel = way.open(&mount, "cpu");
        assert_send_and_sync(&channel);
        let done = AtomicBool::new(false);
        let (streams, results) = thread::scope(|scope| {
            let readers = [0, 1].map(|cpu| {
                let (path, done) = (mount.path(&format!("cpu{cpu}")), &done);
                scope.spawn(move || read_in_blocks(&path, 1 << 20, done))
            });
            let channel = &channel;
            let writer = |thread| {
                scope.spawn(move || match thread {
                    // For one CPU from one CPU: otherwise messages could overtake each other.
                    2 | 3 => on_cpu(0, || write_in_all_ways(channel, thread, long)),
                    _ => write_in_all_ways(channel, thread, long),
                })
            };
            let writers: Vec<_> = (0..6).map(writer).collect();
            let results: Vec<u64> =
                writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
            channel.flush().expect("an answer");
            done.store(true, Ordering::SeqCst);
            (readers.map(|reader| reader.join().expect("a reader")), results)
        });
        let streams = in_order(&streams);
        let read: Vec<Tag> = streams.concat();
        let stats = mount.stats("cpu");
        way.assert_counted(stats["total.written"], read.len() as u64);
        let lost = stats["total.dropped"] + stats["total.contended"];
        assert_eq!(read.len() as u64 + lost, u64::from(6 * MESSAGES));
        for thread in [4, 5] {
            let of_thread = read.iter().filter(|tag| tag.thread == thread).count() as u64;
            let written = u64::from(MESSAGES) - results[thread as usize];
            assert_eq!(of_thread, written, "what was answered `written`");
        }
        assert_balanced(&mount, "cpu", 0);
    }
}

/// Number of messages of each thread.
const MESSAGES: u32 = 1000;

/// Writes messages, some of them long, with this thread's call. Returns the number of refused ones.
fn write_in_all_ways(channel: &Channel, thread: u32, long: usize) -> u64 {
    let mut refused = 0;
    for seq in 0..MESSAGES {
        let len = if seq % 100 == thread { long } else { 20 + seq as usize % 100 };
        let message = message(Tag { producer: 0, thread, seq }, len);
        let written = match thread {
            0 | 1 => channel.write(&message),
            2 | 3 => channel.write_to(thread as usize % 2, &message),
            _ => {
                let counts = channel.write_batch([&message], BatchOptions::default()).expect("an answer");
                if counts.dropped == 0 { Ok(()) } else { Err(WriteError::Full) }
            }
        };
        match written {
            Ok(()) => {}
            Err(WriteError::Full) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if seq % 200 == 0 {
            channel.flush().expect("an answer");
        }
    }
    refused
}

/// A forked child gets its own connection, and the parent keeps its connection.
#[test]
fn forked_child_writes_with_its_own_connection() {
    let mount = Mount::new(&[]);
    stdout_of(Command::new(program("test-fork")).arg(mount.point()));
    assert_eq!(text(&mount.read("cpu0")), "before child after");
}

/// A program that a producer runs inherits nothing of its connection: no socket, no file, no bell.
#[test]
fn program_run_by_producer_inherits_no_connection() {
    for way in Way::BOTH {
        let mount = Mount::new(&[]);
        let channel = way.open(&mount, "cpu");
        channel.write(b"x").expect("room");
        let open = text(&stdout_of(tool("ls", "coreutils").args(["-l", "/proc/self/fd"])));
        for part in ["socket:", "anon_inode:", "relayfs"] {
            assert!(!open.contains(part), "{way:?}: {open}");
        }
    }
}

/// The child waits for no answer that is its parent's, and takes none from it.
#[test]
fn batch_in_forked_child_leaves_the_answers_to_its_parent() {
    let mount = Mount::new(&["--shared=never", "--subbuf-size=4K", "--n-subbufs=2"]);
    let mut command = Command::new(program("test-fork"));
    let said = mount.beside("said");
    let stdout = File::create(&said).expect("a file");
    let mut process = Process::start(command.arg(mount.point()).arg("batch").stdout(stdout));
    eventually("the child's end", || {
        fs::read_to_string(&said).expect("what it said") == "Err(Unanswered { messages: 100 })\n"
    });
    let mut len = 0;
    eventually("all messages", || {
        len += mount.read("cpu0").len();
        len == 10_000
    });
    assert!(process.wait().success());
}
