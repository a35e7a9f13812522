//! `audience record` with a real daemon: the content of its files, its messages, and what it leaves in the buffers.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, TransportChoice, Wait};
use relayfs_tests::audience::{Recorder, names, record};
use relayfs_tests::disk::Disk;
use relayfs_tests::numbered::{Tag, message as message_of, tags};
use relayfs_tests::terminal::ON_TERMINAL;
use relayfs_tests::{Mount, Process, eventually, exit_code, program, run, text, tool};

/// How producers write.
const WAYS: [&str; 2] = ["direct", "socket"];

/// Several waiting producers, on each CPU, directly and over the socket. Each message is in the file of a CPU, whole,
/// once, and in its thread's order. The files have exactly the bytes that the channel counts.
#[test]
fn all_messages_of_waiting_producers_are_recorded() {
    let mount = Mount::new(&["--subbuf-size", "16K", "--n-subbufs", "4", "--channel", "app/log"]);
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log"]);
    recorder.is_ready();
    let mut producers: Vec<Process> = (1..=3)
        .map(|n| {
            let mut command = Command::new(program("test-producers"));
            command.arg(mount.point()).args([
                "app/log",
                &n.to_string(),
                "2",
                "100",
                "wait",
                "16384",
                WAYS[n % 2],
            ]);
            Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
        })
        .collect();
    // And one for which the daemon writes.
    let by_socket = Channel::builder(mount.point(), "app/log").transport(TransportChoice::Socket).open();
    let by_socket = by_socket.expect("a channel");
    for seq in 0..2000 {
        let message = message_of(Tag { producer: 9, thread: 0, seq }, 100);
        let options = BatchOptions { cpu: Some(seq as usize % 2), wait: Wait::Forever };
        assert_eq!(by_socket.write_batch([&message[..]], options).expect("writing").written, 1);
    }
    let mut expected: BTreeMap<(u32, u32), u32> = BTreeMap::from([((9, 0), 2000)]);
    for producer in &mut producers {
        assert_eq!(exit_code(producer.wait()), 0);
        for line in text(&producer.stdout()).lines() {
            let words: Vec<u32> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
            assert_eq!(words[3], words[4], "who waits loses nothing: {line}");
            *expected.entry((words[0], words[1])).or_default() += words[3];
        }
    }
    assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
    let stats = mount.stats("app/log");
    let mut seen: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    let mut total = 0;
    for cpu in 0..2 {
        let recorded = recorder.recorded(cpu);
        assert_eq!(recorded.len() as u64, stats[&format!("cpu{cpu}.bytes")], "cpu{cpu}");
        assert_eq!(recorded.len() as u64, stats[&format!("cpu{cpu}.read_bytes")], "cpu{cpu}");
        assert!(
            recorder.said().contains(&format!("cpu{cpu}: {} bytes recorded, nothing lost", recorded.len()))
        );
        total += recorded.len();
        let mut last = BTreeMap::new();
        for tag in tags(&recorded) {
            let before = last.insert((tag.producer, tag.thread), tag.seq);
            assert!(before < Some(tag.seq), "cpu{cpu}: {tag:?} after {before:?}");
            seen.entry((tag.producer, tag.thread)).or_default().push(tag.seq);
        }
    }
    let said = recorder.said();
    assert!(said.contains(&format!("total: {total} bytes recorded in ")), "{said}");
    for (thread, count) in expected {
        let mut seqs = seen.remove(&thread).unwrap_or_default();
        seqs.sort_unstable();
        assert_eq!(seqs, (0..count).collect::<Vec<_>>(), "messages of {thread:?}");
    }
    assert!(seen.is_empty(), "messages that no writer wrote: {:?}", seen.keys());
}

/// At SIGINT and SIGTERM the unfinished sub-buffers are finished and recorded, and the exit status is 0.
#[test]
fn signals_flush_and_record_the_rest() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mount = Mount::new(&[]);
        let mut recorder = Recorder::start(mount.point(), &[]);
        recorder.is_ready();
        mount.send(0, &[b"zero\n"]);
        mount.send(1, &[b"one\n", b"and another\n"]);
        assert_eq!(recorder.end(signal), 0, "{}", recorder.said());
        assert_eq!(text(&recorder.recorded(0)), "zero\n");
        assert_eq!(text(&recorder.recorded(1)), "one\nand another\n");
        let stats = mount.stats("cpu");
        assert!(stats["cpu0.produced"] >= 1 && stats["cpu1.produced"] >= 1, "{stats:?}");
        let dir = recorder.dir.display();
        let said = format!(
            "audience: cpu0: 5 bytes recorded, nothing lost\naudience: cpu1: 16 bytes recorded, nothing lost\n\
             audience: total: 21 bytes recorded in {dir}, nothing lost\n"
        );
        assert_eq!(recorder.said(), said);
    }
}

/// The end of `--duration` ends it like a signal, even while a writer never pauses.
#[test]
fn duration_ends_it_while_writers_continue() {
    let mount = Mount::new(&["--subbuf-size", "16K", "--n-subbufs", "4"]);
    let mut command = Command::new(program("test-producers"));
    command.arg(mount.point()).args(["cpu", "1", "2", "0", "drop", "1000", "direct"]);
    let _writer = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
    eventually("messages", || mount.stats("cpu")["cpu0.bytes"] > 0);
    let mut recorder = Recorder::start(mount.point(), &["--duration", "300ms"]);
    assert_eq!(exit_code(recorder.process.wait()), 0, "{}", recorder.said());
    let stream = recorder.recorded(0);
    assert!(!tags(&stream).is_empty(), "whole messages and nothing else");
    assert_eq!(names(&recorder.dir), ["cpu0", "cpu1"]);
}

/// Without writers, and of one CPU alone.
#[test]
fn option_cpu_records_one_cpu() {
    let mount = Mount::new(&[]);
    mount.send(0, &[b"zero"]);
    mount.send(1, &[b"one"]);
    let mut recorder = Recorder::start(mount.point(), &["--cpu", "1", "--duration=1ms"]);
    assert_eq!(exit_code(recorder.process.wait()), 0, "{}", recorder.said());
    assert_eq!(names(&recorder.dir), ["cpu1"]);
    assert_eq!(text(&recorder.recorded(1)), "one");
    assert_eq!(text(&mount.read("cpu0")), "zero", "the other is not touched");
}

/// Files of a given size, each with whole messages only. With a count, the newest files stay.
#[test]
fn files_are_rotated() {
    let mount = Mount::new(&["--channel", "one:global:subbuf-size=1000:n-subbufs=8"]);
    for (keep, args) in [(None, &[][..]), (Some(3), &["--rotate-count=3"])] {
        let dir = mount.beside(&format!("kept-{keep:?}"));
        let args = [&["-c", "one", "--rotate-size", "2000"], args].concat();
        let mut recorder = Recorder::start_into(mount.point(), &dir, &args);
        recorder.is_ready();
        let mut sent = Vec::new();
        for seq in 0..200 {
            let message = message_of(Tag { producer: 1, thread: 1, seq }, 300);
            let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
            let counts = mount.channel("one").write_batch([&message[..]], options).expect("writing");
            assert_eq!(counts.written, 1);
            sent.extend(message);
        }
        assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
        let names = names(&dir);
        let numbers: Vec<usize> =
            names.iter().map(|name| name.strip_prefix("cpu0.").expect("its name").parse().unwrap()).collect();
        let last = *numbers.last().expect("a file");
        assert!(last >= 5, "{names:?}");
        let first = keep.map_or(0, |keep| last + 1 - keep);
        assert_eq!(numbers, (first..=last).collect::<Vec<_>>());
        let recorded = recorder.recorded(0);
        assert!(sent.ends_with(&recorded), "the newest messages");
        assert_eq!(recorded.len() == sent.len(), keep.is_none(), "all of them, if all files are kept");
        for name in &names {
            let file = fs::read(dir.join(name)).expect("a recording");
            assert!(name == names.last().unwrap() || file.len() >= 2000, "{name}: {} bytes", file.len());
            assert!(file.len() <= 2000 + 8000, "{name}: {} bytes", file.len());
            tags(&file); // whole messages only
        }
        let said = recorder.said();
        assert!(said.contains(&format!("total: {} bytes recorded", sent.len())), "{said}");
    }
}

/// A full disk is an error. The file keeps its data, and other data is still in the buffer.
#[test]
fn full_disk_loses_nothing() {
    let mount = Mount::new(&["--channel", "one:global:subbuf-size=256K:n-subbufs=8"]);
    let disk = Disk::new(mount.beside("disk"), "3M");
    let dir = disk.path().join("recorded");
    let mut recorder = Recorder::start_into(mount.point(), &dir, &["-c", "one"]);
    recorder.is_ready();
    // Until it is full during the work: with waiting writers, and then with writers that find no room.
    let channel = mount.channel("one");
    let mut sent = 0;
    let mut write = || {
        let message = message_of(Tag { producer: 1, thread: 1, seq: sent }, 50_000);
        let counts = channel.write_batch([&message[..]], BatchOptions::default()).expect("writing");
        sent += counts.written as u32;
        counts.written == 1
    };
    eventually("the disk to be full", || {
        write();
        !recorder.process.is_running()
    });
    while write() {}
    assert_eq!(exit_code(recorder.process.wait()), 1);
    let said = recorder.said();
    let error = format!(
        "cannot write {}: No space left on device (os error 28); what is not recorded is still in the buffers",
        dir.join("cpu0").display()
    );
    assert!(said.contains(&error), "{said}");
    let recorded = recorder.recorded(0);
    assert!(recorded.len() > 1 << 20, "{} bytes", recorded.len());
    assert!(said.contains(&format!("cpu0: {} bytes recorded", recorded.len())), "{said}");
    let stream = [recorded, mount.read("one0")].concat();
    let seqs: Vec<u32> = tags(&stream).iter().map(|tag| tag.seq).collect();
    assert_eq!(seqs, (0..sent).collect::<Vec<_>>(), "every message, in the file or still in the buffer");
    assert_eq!(mount.stats("one")["cpu0.read_bytes"], stream.len() as u64);
}

/// A limit of file size is an error like a full disk, and no signal.
#[test]
fn limit_of_file_size_loses_nothing() {
    let mount = Mount::new(&["--channel", "one:global:subbuf-size=256K:n-subbufs=8"]);
    assert!(getrlimit(Resource::RLIMIT_FSIZE).expect("limits").1 > 1 << 20, "a limit that can be lowered");
    assert_eq!(mount.send_to("one", 0, &[b"kept"]).written, 1);
    let dir = mount.beside("recorded");
    let mut limited = tool("prlimit", "util-linux");
    let command = record(mount.point(), &dir, &["-c", "one"]);
    limited.arg("--fsize=100000").arg(command.get_program()).args(command.get_args());
    let mut process = Process::start(limited.stdin(Stdio::null()).stderr(Stdio::piped()));
    let status = process.wait();
    let said = process.stderr();
    assert_eq!(exit_code(status), 1, "{said}");
    assert!(said.contains("File too large") && said.contains("still in the buffers"), "{said}");
    assert_eq!(text(&mount.read("one0")), "kept");
}

/// An existing recording is not changed. Other directories are accepted.
#[test]
fn recording_is_never_overwritten() {
    let mount = Mount::new(&[]);
    let dir = mount.beside("recorded");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("notes"), "mine").unwrap();
    let once = || run(&mut record(mount.point(), &dir, &["--duration", "1ms"]));
    mount.send(0, &[b"first"]);
    assert_eq!(exit_code(once().status), 0);
    mount.send(0, &[b"second"]);
    let output = once();
    let said = format!(
        "audience: {} holds a recording already; name another directory, or remove it\n",
        dir.display()
    );
    assert_eq!((exit_code(output.status), text(&output.stderr)), (1, said));
    assert_eq!(fs::read(dir.join("cpu0")).unwrap(), b"first");
    assert_eq!(text(&mount.read("cpu0")), "second", "and nothing was consumed");
    for (dir, part) in
        [(dir.join("notes"), "Not a directory"), (mount.beside("a/b"), "No such file or directory")]
    {
        let output = run(&mut record(mount.point(), &dir, &["--duration", "1ms"]));
        let said = text(&output.stderr);
        assert!(exit_code(output.status) == 1 && said.contains(part) && said.lines().count() == 1, "{said}");
    }
}

/// Progress lines without a terminal, and the counts of losses.
#[test]
fn progress_and_losses_are_printed() {
    let mount = Mount::new(&["--channel", "one:global:subbuf-size=64:n-subbufs=2"]);
    mount.send_to("one", 0, &[&[b'x'; 65]]);
    mount.read("one0"); // so this loss is old
    let mut recorder = Recorder::start(mount.point(), &["-c", "one", "--progress", "10ms"]);
    eventually("progress", || recorder.said().contains("audience: total: 0 B, 0 B/s, nothing lost, "));
    mount.send_to("one", 0, &[b"12345", &[b'x'; 65], &[b'y'; 65]]);
    let line = "audience: cpu0: 5 B, ";
    eventually("counts", || {
        let said = recorder.said();
        said.lines().any(|l| l.starts_with(line) && l.ends_with(", 2 messages too big"))
    });
    assert_eq!(recorder.end(Signal::SIGINT), 0);
    let said = recorder.said();
    assert!(said.contains("audience: cpu0: 5 bytes recorded, 2 messages too big\n"), "{said}");
    let dir = recorder.dir.display();
    let last = format!("audience: total: 5 bytes recorded in {dir}, 2 messages too big\n");
    assert!(said.ends_with(&last), "{said}");
}

/// Runs a command on a new terminal, and presses Ctrl-C when the cursor has moved up.
const UNTIL_CTRL_C: &str = r"
pid, fd = on_terminal(sys.argv[1:])
shown = b''
pressed = False
while True:
    try:
        more = os.read(fd, 65536)
    except OSError:
        break
    shown += more
    if shown.count(b'\x1b[2A') > 1 and not pressed:
        os.write(fd, b'\x03')
        pressed = True
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

/// On a terminal, each progress block overwrites the last one. The final lines stay.
#[test]
fn progress_overwrites_its_lines_on_a_terminal() {
    let mount = Mount::new(&["--channel", "one:global"]);
    let dir = mount.beside("recorded");
    let command = record(mount.point(), &dir, &["-c", "one", "--progress", "10ms"]);
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let mut python = tool("python3", "python3");
    python.args(["-c", &format!("{ON_TERMINAL}{UNTIL_CTRL_C}")]);
    let output = run(python.args(words).env_remove("RELAYFS"));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let report = "\x1b[?7lcpu0: 0 B, 0 B/s, nothing lost\r\ntotal: 0 B, 0 B/s, nothing lost, ";
    assert!(shown.starts_with(report), "{shown:?}");
    assert!(shown.contains(&format!(" s\r\n\x1b[?7h\r\x1b[2A\x1b[J{report}")), "{shown:?}");
    let end = format!(
        "\r\x1b[2A\x1b[Jaudience: cpu0: 0 bytes recorded, nothing lost\r\n\
         audience: total: 0 bytes recorded in {}, nothing lost\r\n",
        dir.display()
    );
    assert!(shown.ends_with(&end), "{shown:?}");
}

/// It waits for a missing channel, however the daemon ended. The next daemon's messages go to the same files.
#[test]
fn recording_outlives_the_daemon() {
    let mut mount = Mount::new(&[]);
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log"]);
    let mut expected = String::new();
    for (round, signal) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        eventually("it waits", || recorder.said().matches("waiting for it\n").count() == round + 1);
        if round == 0 {
            mount.end(signal);
        }
        mount.restart(&["--channel", "app/log"]);
        let message = format!("round {round}\n");
        mount.send_to("app/log", 0, &[message.as_bytes()]);
        expected += &message;
        eventually("the message", || text(&recorder.recorded(0)) == expected);
        mount.end(signal);
    }
    eventually("it waits", || recorder.said().matches("waiting for it\n").count() == 3);
    assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
    assert_eq!(text(&recorder.recorded(0)), expected);
}

/// Wrong usage has exit status 2 and one line.
#[test]
fn wrong_usage_has_status_2() {
    let mount = Mount::new(&[]);
    for args in [
        &["--rotate-count", "3"][..],
        &["--rotate-size", "0"],
        &["--rotate-size", "1X"],
        &["--duration", "soon"],
        &["-f"],
        &["--snapshot"],
        &["operand"],
    ] {
        let output = run(&mut record(mount.point(), &mount.beside("recorded"), args));
        let said = text(&output.stderr);
        assert_eq!((exit_code(output.status), said.lines().count()), (2, 1), "{args:?}: {said}");
    }
    assert!(!mount.beside("recorded").exists());
}
