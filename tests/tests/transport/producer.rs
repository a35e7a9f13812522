//! What `relay-producer` and its library promise, against a real daemon. Where it matters what the daemon answers, or counts,
//! messages go by the socket; what is different without it is in `shared.rs`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use relay_producer::{
    BatchOptions, Channel, Counts, Mode, OpenError, RequestError, TransportChoice, Wait, WriteError,
};
use relayfs_tests::direct::{WHY_NO_SEQUENCES, is_without_sequences};
use relayfs_tests::{Mount, Process, eventually, exit_code, program, run, run_with_input, text, tool};

/// Longest message there is, in bytes.
const MESSAGE_MAX: usize = 1 << 20;

/// Sends everything to the daemon.
const SOCKET: &str = "--transport=socket";
/// What users say, which is nothing.
const AUTO: &str = "--transport=auto";

/// `relay-producer -m MOUNT ARGS`, without the environment of whoever runs the tests.
fn producer(mount: &Mount, args: &[&str]) -> Command {
    let mut command = Command::new(program("relay-producer"));
    command.env_remove("RELAYFS").arg("-m").arg(mount.point()).args(args);
    command
}

/// The same, with pipes for everything, still running.
#[track_caller]
fn start(mount: &Mount, args: &[&str]) -> Process {
    let mut command = producer(mount, args);
    Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Runs it with this input, and returns its exit status and what it said.
#[track_caller]
fn produce(mount: &Mount, args: &[&str], input: &[u8]) -> (i32, String) {
    let output = run_with_input(&mut producer(mount, args), input);
    assert_eq!(text(&output.stdout), "", "{args:?}: nothing belongs on standard output");
    (exit_code(output.status), text(&output.stderr))
}

/// Runs it, and expects success and silence.
#[track_caller]
fn produce_well(mount: &Mount, args: &[&str], input: &[u8]) {
    assert_eq!(produce(mount, args, input), (0, String::new()), "{args:?}");
}

/// Expects an exit status and one line of its own, and returns the line.
#[track_caller]
fn one_line((code, said): (i32, String), expected: i32) -> String {
    assert_eq!(code, expected, "{said}");
    assert!(said.starts_with("relay-producer: ") && said.ends_with('\n'), "{said:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_owned()
}

fn total(mount: &Mount, channel: &str, counter: &str) -> u64 {
    mount.stats(channel)[&format!("total.{counter}")]
}

/// Bytes without a pattern that could hide a loss.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// "MESSAGE ...; -n (no newline after MESSAGE), stdin when no MESSAGE is given: every line, newline included, is a
/// message, a last line without one as it is; -0 NUL-separated; --chunk SIZE for binary"
#[test]
fn what_is_a_message() {
    let mount = Mount::new(&[]);
    /// Arguments, standard input, and what are the messages.
    type Case<'a> = (&'a [&'a str], &'a [u8], &'a [&'a [u8]]);
    let cases: &[Case<'_>] = &[
        (&["hello"], b"unread", &[b"hello\n"]),
        (&["one", "two words", ""], b"", &[b"one\n", b"two words\n", b"\n"]),
        (&["-n", "one", "two"], b"", &[b"one", b"two"]),
        (&["--no-newline", "one"], b"", &[b"one"]),
        (&["--no_newline", "--", "--one", "-n"], b"", &[b"--one", b"-n"]),
        (&[], b"one\n", &[b"one\n"]),
        (&[], b"one\n\ntwo", &[b"one\n", b"\n", b"two"]),
        (&["-n"], b"one\ntwo\n", &[b"one\n", b"two\n"]), // it is about arguments
        (&[], b"not \xff UTF-8\0\n\r\n", &[b"not \xff UTF-8\0\n", b"\r\n"]),
        (&[], b"", &[]),
        (&["-0"], b"one\0\0t\nwo", &[b"one\0", b"\0", b"t\nwo"]),
        (&["--null"], b"one\0", &[b"one\0"]),
        (&["--chunk", "3"], b"12\n4\x00678", &[b"12\n", b"4\x006", b"78"]),
        (&["--chunk=1K"], &[b'x'; 2048], &[&[b'x'; 1024], &[b'x'; 1024]]),
    ];
    for (args, input, messages) in cases {
        for transport in [SOCKET, AUTO] {
            let args = [&["--cpu=0", transport], *args].concat();
            let written = total(&mount, "cpu", "written");
            produce_well(&mount, &args, input);
            assert_eq!(text(&mount.read("cpu0")), text(&messages.concat()), "{args:?}");
            let n_messages = total(&mount, "cpu", "written") - written;
            if transport == SOCKET {
                assert_eq!(n_messages, messages.len() as u64, "{args:?}: number of messages");
            }
        }
    }
    let output = run(producer(&mount, &["--cpu=0"]).arg(OsStr::from_bytes(b"not \xff UTF-8")));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    assert_eq!(mount.read("cpu0"), b"not \xff UTF-8\n");
}

/// A message is written when it is there, not when the next one comes.
#[test]
fn a_line_appears_while_the_input_stays_open() {
    let mount = Mount::new(&[]);
    for transport in [SOCKET, AUTO] {
        let mut producer = start(&mount, &["--cpu=1", transport]);
        let mut stdin = producer.child().stdin.take().expect("piped");
        for line in ["first\n", "second\n", "third\n"] {
            stdin.write_all(line.as_bytes()).expect("the producer reads");
            let mut got = Vec::new();
            eventually("the line", || {
                got.extend(mount.read("cpu1"));
                got == line.as_bytes()
            });
        }
        drop(stdin);
        assert_eq!(exit_code(producer.wait()), 0);
    }
}

/// "--chunk SIZE for binary", in blocks up to the longest message.
#[test]
fn binary_comes_out_as_it_went_in() {
    let mount = Mount::new(&["--subbuf-size", "1M"]);
    let input = bytes(3_000_001);
    for (chunk, transport) in
        ["64K", "1000", "1M"].into_iter().flat_map(|chunk| [(chunk, SOCKET), (chunk, AUTO)])
    {
        produce_well(&mount, &["--cpu=0", "--chunk", chunk, transport], &input);
        assert!(mount.read("cpu0") == input, "chunks of {chunk}, {transport}");
    }
    assert_eq!(total(&mount, "cpu", "dropped"), 0);
}

/// "writes into the buffer of the CPU it runs on"; "--cpu 1 ... or a given one"
#[test]
fn the_cpu_is_the_one_it_runs_on_or_a_given_one() {
    let mount = Mount::new(&[]);
    for cpu in ["0", "1"] {
        let mut pinned = tool("taskset", "util-linux");
        pinned.args(["-c", cpu]).arg(program("relay-producer")).arg("-m").arg(mount.point());
        let output = run(pinned.arg(format!("from {cpu}")));
        assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
        let output = run(tool("taskset", "util-linux")
            .args(["-c", "0"])
            .arg(program("relay-producer"))
            .arg("-m")
            .arg(mount.point())
            .args(["--cpu", cpu])
            .arg(format!("to {cpu}")));
        assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    }
    assert_eq!(text(&mount.read("cpu0")), "from 0\nto 0\n");
    assert_eq!(text(&mount.read("cpu1")), "from 1\nto 1\n");
}

/// "--create[=GEOMETRY] (without it an unknown channel is an error that lists the known ones)"; "attach: an existing
/// channel keeps its geometry and the reply tells it"; "-v says which channel, geometry and transport"
#[test]
fn channels_are_created_on_demand_and_keep_their_geometry() {
    let mount = Mount::new(&["--channel", "app/log", "--subbuf-size", "32K", "--n-subbufs", "2"]);
    let said = one_line(produce(&mount, &["-c", "app/new", "x"], b""), 1);
    assert!(
        said.contains("'app/new'") && said.contains("app/log, cpu") && said.contains("--create"),
        "{said}"
    );

    let cases = [
        ("a", "--create", "created channel a: subbuf-size=32K:n-subbufs=2, 2 buffers"),
        (
            "app/b",
            "--create=subbuf_size=8192:n-subbufs=3:overwrite:header=16",
            "created channel app/b: subbuf-size=8K:n-subbufs=3:overwrite:header=16, 2 buffers",
        ),
        (
            "c",
            "--create=global:n-subbufs=1",
            "created channel c: subbuf-size=32K:n-subbufs=1:global, 1 buffer",
        ),
        // Attached to: what is asked for counts for nothing.
        (
            "app/log",
            "--create=subbuf-size=4K:overwrite:global",
            "existing channel app/log: subbuf-size=32K:n-subbufs=2, 2 buffers",
        ),
        ("cpu", "--", "existing channel cpu: subbuf-size=32K:n-subbufs=2, 2 buffers"),
    ];
    for (channel, option, expected) in cases {
        let said = one_line(produce(&mount, &["-v", "-c", channel, "--cpu=0", "-n", option, "x"], b""), 0);
        let transport = match channel {
            "c" => "socket (a global channel is written by the daemon alone)".to_owned(),
            _ if is_without_sequences() => format!("socket ({WHY_NO_SEQUENCES})"),
            _ => "shared".to_owned(),
        };
        assert_eq!(said, format!("relay-producer: {expected}; transport: {transport}"));
        assert!(mount.control(channel, "stats").exists(), "{channel} has unread data, so it stays");
    }
    let geometry = |file| fs::read_to_string(mount.control("app/b", file)).expect("a control file");
    assert_eq!((geometry("subbuf_size").trim(), geometry("n_subbufs").trim()), ("8192", "3"));
    assert_eq!(geometry("mode").trim(), "overwrite");
    assert_eq!(mount.read("app/b0"), [&[0; 16][..], b"x"].concat());
    assert!(!mount.path("c1").exists(), "a global channel has one file");
}

/// "A channel opened by a producer lives as long as somebody holds it (producers' connections, open cpuN files, poll
/// waiters) or it has unread data; when it goes, its losses are added to the daemon's totals."
#[test]
fn a_producers_channel_lives_while_it_is_held_or_unread() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "1"]);
    let gone = || !mount.path("app").exists() && !mount.control("app/log", "stats").exists();

    produce_well(&mount, &["-c", "app/log", "--create"], b"");
    eventually("an empty channel to go with its producer", gone);

    let args = ["-c", "app/log", "--create", "--cpu=0", SOCKET];
    let (code, _) = produce(&mount, &args, &b"12345678\n".repeat(500));
    assert_eq!(code, 3);
    assert!(!gone(), "unread");
    let mut file = File::open(mount.path("app/log0")).expect("the channel's file");
    let mut read = Vec::new();
    file.read_to_end(&mut read).expect("reading it");
    assert_eq!(read.len(), 4095);
    assert!(!gone(), "open");
    drop(file);
    eventually("it to go with its last reader", gone);

    let totals = fs::read_to_string(mount.path(".relay/stats")).expect("the daemon's counters");
    assert!(totals.lines().any(|line| line == "gone.written 455"), "{totals}");
    assert!(totals.lines().any(|line| line == "gone.dropped 45"), "{totals}");
}

/// "--wait[=DURATION] waits for room instead of dropping": the reader here reads only when the buffer is full, so
/// everything that could be lost would be.
#[test]
fn with_wait_nothing_is_lost_to_a_slow_reader() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "2"]);
    let input: String = (0..3000).map(|n| format!("line {n} {}\n", "x".repeat(n % 90))).collect();
    let mut n_sent = 0;
    for (wait, transport) in
        [("--wait", SOCKET), ("--wait=10m", SOCKET), ("--wait", AUTO), ("--wait=10m", AUTO)]
    {
        let mut producer = start(&mount, &["--cpu=0", wait, transport]);
        let mut stdin = producer.child().stdin.take().expect("piped");
        let lines = input.clone();
        let feeder = thread::spawn(move || stdin.write_all(lines.as_bytes()));
        let mut file = File::open(mount.path("cpu0")).expect("the buffer");
        let mut got = Vec::new();
        let mut block = [0; 4096];
        while producer.is_running() {
            eventually("a full buffer, or the end", || {
                let stats = mount.stats("cpu");
                stats["cpu0.produced"] - stats["cpu0.consumed"] == 2 || !producer.is_running()
            });
            let len = file.read(&mut block).expect("reading the buffer");
            got.extend_from_slice(&block[..len]);
        }
        file.read_to_end(&mut got).expect("reading the rest");
        feeder.join().expect("the feeder").expect("the producer reads everything");
        assert_eq!((exit_code(producer.wait()), producer.stderr()), (0, String::new()));
        assert!(got == input.as_bytes(), "{wait}: {} of {} bytes", got.len(), input.len());
        assert_eq!(total(&mount, "cpu", "dropped"), 0, "{wait}");
        if transport == SOCKET {
            n_sent += 3000;
            assert_eq!(total(&mount, "cpu", "written"), n_sent, "{wait}");
        }
    }
}

/// "(dropped counts only if it gives up)"; "3 some messages dropped (a line on stderr says how many and why)". Without
/// a reader 2 x 4 messages of 1000 bytes fit.
#[test]
fn what_finds_no_room_is_dropped_at_once_or_when_the_wait_is_over() {
    let input = bytes(20_000);
    let waits = [&[][..], &["--wait=0"], &["--wait=30ms"], &["--wait=0.03"]].into_iter();
    for (wait, transport) in waits.flat_map(|wait| [(wait, SOCKET), (wait, AUTO)]) {
        let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "2"]);
        let args = [&["--cpu=0", "--chunk=1000", transport], wait].concat();
        let said = one_line(produce(&mount, &args, &input), 3);
        let (cause, use_wait) = match wait {
            [] => ("found the buffer full", "--wait"),
            ["--wait=0"] => ("found the buffer full", "a longer --wait"),
            _ => ("found no room in time", "a longer --wait"),
        };
        assert_eq!(
            said,
            format!(
                "relay-producer: 12 of 20 messages dropped: 12 {cause} (read it more often, give it more sub-buffers, or \
                 use {use_wait})"
            )
        );
        let counted = |counter| total(&mount, "cpu", counter);
        assert_eq!((counted("dropped"), counted("too_big")), (12, 0), "{args:?}");
        assert_eq!(counted("bytes"), 8000, "{args:?}");
        if transport == SOCKET {
            assert_eq!(counted("written"), 8, "{args:?}");
        }
        assert!(mount.read("cpu0") == input[..8000], "{wait:?}: the first eight, in order");
    }
}

/// While it waits, nothing counts as dropped, nobody else is kept waiting, and who is killed takes its claim with it.
#[test]
fn a_waiting_producer_is_in_nobodys_way() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "1"]);
    let mut waiting = start(&mount, &["--cpu=0", "--chunk=1000", "--wait", SOCKET]);
    let mut stdin = waiting.child().stdin.take().expect("piped");
    stdin.write_all(&[b'a'; 10_000]).expect("a pipe holds that");
    eventually("a full buffer", || mount.stats("cpu")["cpu0.written"] == 4);
    assert_eq!(total(&mount, "cpu", "dropped"), 0, "waiting is not dropping");

    produce_well(&mount, &["--cpu=1", "elsewhere"], b"");
    one_line(produce(&mount, &["--cpu=0", "no room"], b""), 3);
    assert_eq!(text(&mount.read("cpu1")), "elsewhere\n");

    waiting.signal(Signal::SIGKILL);
    waiting.wait();
    eventually("the claim to be dropped", || total(&mount, "cpu", "dropped") == 1 + 6);
    assert_eq!(mount.read("cpu0"), [b'a'; 4000]);
    produce_well(&mount, &["--cpu=0", "room"], b"");
    assert_eq!(text(&mount.read("cpu0")), "room\n");
}

/// "A line longer than a message may be is skipped in bounded memory and reported with its number; the rest goes on."
#[test]
fn lines_that_are_too_long_are_skipped_by_number() {
    let mount = Mount::new(&["--subbuf-size", "4096"]);
    let (fits, over, huge) = ("f".repeat(4095), "o".repeat(4096), "h".repeat(5 << 20));
    let input = format!("one\n{fits}\n{over}\n\n{huge}\nsix\n{huge}");
    let (code, said) = produce(&mount, &["--cpu=0", SOCKET], input.as_bytes());
    let skipped = |number| {
        format!(
            "relay-producer: line {number} skipped: longer than a message of this channel may be, 4096 bytes\n"
        )
    };
    let summary = "relay-producer: 3 of 7 messages dropped: 3 longer than a message of this channel may be, 4096 bytes\n"
        .to_owned();
    assert_eq!((code, said), (3, [skipped(3), skipped(5), skipped(7), summary].concat()));
    assert!(mount.read("cpu0") == format!("one\n{fits}\n\nsix\n").as_bytes());
    // What never was sent, for being longer than any message, is counted among the dropped.
    let counted = |counter| total(&mount, "cpu", counter);
    eventually("the counts", || (counted("too_big"), counted("dropped")) == (1, 2));

    let long = "l".repeat(4097);
    let (code, said) = produce(&mount, &["-n", "--cpu=0", "short", &long, "short"], b"");
    assert_eq!(code, 3);
    assert!(said.contains("1 of 3 messages dropped: 1 longer"), "{said}");
    assert_eq!(text(&mount.read("cpu0")), "shortshort");
}

/// "skipped in bounded memory"
#[test]
fn a_line_without_end_takes_no_memory() {
    let mount = Mount::new(&["--subbuf-size", "2M"]);
    // Shared buffers would count as memory of the producer's.
    let mut producer = start(&mount, &["--cpu=0", SOCKET]);
    let mut stdin = producer.child().stdin.take().expect("piped");
    for _ in 0..64 {
        stdin.write_all(&vec![b'x'; MESSAGE_MAX]).expect("the producer reads");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", producer.pid())).expect("our own child");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 16 << 10, "{peak} KiB for a line of 64 MiB");
    let last = vec![b'y'; MESSAGE_MAX - 1];
    stdin.write_all(&[b"\n", &last[..], b"\n"].concat()).expect("the producer reads");
    drop(stdin);
    assert_eq!(exit_code(producer.wait()), 3);
    assert!(producer.stderr().starts_with("relay-producer: line 1 skipped"));
    assert!(mount.read("cpu0") == [&last[..], b"\n"].concat(), "the longest line that is a message");
}

/// "Exit 0 all written, 1 error, 2 usage, 3 some messages dropped": the errors, each with one line that names the culprit.
#[test]
fn errors_say_what_is_wrong() {
    let mount = Mount::new(&["--max-memory", "1M", "--subbuf-size", "4096", "--channel", "log:header=16"]);
    let file = mount.beside("file");
    fs::write(&file, "").expect("a file");
    let beside = |name: &str| mount.beside(name).to_str().expect("ASCII").to_owned();
    let (file, missing, dir) = (beside("file"), beside("missing"), beside(""));
    let point = mount.point().to_str().expect("ASCII");
    for (args, part) in [
        (
            &["-m", point, "-c", "nope", "x"][..],
            "no channel 'nope' (existing: cpu, log); use --create to create it",
        ),
        (&["-m", point, "--cpu", "4000", "x"], "no buffer for CPU 4000: this channel has them for CPUs 0 to"),
        (&["-m", point, "--chunk", "8K"], "--chunk=8192: a message of this channel may have 4096 bytes"),
        (&["-m", point, "-c", "log", "--chunk", "4K"], "may have 4080 bytes"),
        (&["-m", point, "-c", "log/sub", "--create", "x"], "log is the channel log"),
        (&["-m", point, "-c", "log7", "--create", "x"], "log7 is the file of CPU 7 of channel log"),
        (&["-m", point, "-c", "big", "--create=subbuf-size=256K", "x"], "raise --max-memory"),
        (&["-m", point, "-c", "odd", "--create=header=8K", "x"], "channel 'odd': "),
        (&["-m", &missing, "x"], "no such path"),
        (&["-m", &dir, "x"], "ordinary directory"),
        (&["-m", &file, "x"], "neither a directory nor a socket"),
    ] {
        let output = run(Command::new(program("relay-producer")).env_remove("RELAYFS").args(args));
        let said = one_line((exit_code(output.status), text(&output.stderr)), 1);
        assert!(said.contains(part), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let dir = File::open(mount.beside("")).expect("a directory");
    let output = producer(&mount, &[]).stdin(dir).output().expect("running it");
    let said = one_line((exit_code(output.status), text(&output.stderr)), 1);
    assert!(said.contains("cannot read standard input"), "{said}");
}

/// "2 usage"
#[test]
fn wrong_usage_says_which_word() {
    for (args, part) in [
        (&["--nonsense"][..], "--nonsense"),
        (&["--cpu=first", "x"], "--cpu"),
        (&["--wait=soon", "x"], "--wait"),
        (&["--chunk=0"], "--chunk"),
        (&["--chunk=1T"], "--chunk"),
        (&["--chunk=1K", "x"], "--chunk"),
        (&["-0", "--chunk=1K"], "--chunk"),
        (&["-0", "x"], "--null"),
        (&["-c", "../x", "x"], "../x"),
        (&["-c", "", "x"], "--channel"),
        (&["--create=colour=blue", "x"], "colour"),
        (&["--create=subbuf-size=0", "x"], "subbuf-size"),
        (&["--create=subbuf-size=16:header=16", "x"], "header"),
    ] {
        let output = run(Command::new(program("relay-producer")).args(args));
        let said = one_line((exit_code(output.status), text(&output.stderr)), 2);
        assert!(said.contains(part), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

/// "-m/--mount (a mount point or a socket; environment RELAYFS; default /mnt/relay)"
#[test]
fn the_mount_is_named_by_option_environment_or_socket() {
    let (mount, other) = (Mount::new(&[]), Mount::new(&[]));
    let link = mount.path(".relay/socket");
    let socket = fs::read_link(&link).expect("the socket's name");
    assert!(fs::metadata(&socket).expect("the socket").file_type().is_socket());
    let say = |option: Option<&Path>, environment: Option<&Path>, message: &str| {
        let mut command = Command::new(program("relay-producer"));
        command.args(option.map(|path| format!("--mount={}", path.display()))).args(["--cpu=0", message]);
        command.env("RELAYFS", environment.unwrap_or(Path::new("")));
        let output = run(&mut command);
        assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()), "{message}");
    };
    say(Some(&socket), None, "socket");
    say(Some(&link), None, "link");
    say(None, Some(mount.point()), "environment");
    say(None, Some(&socket), "environment socket");
    say(Some(mount.point()), Some(other.point()), "option");
    assert_eq!(text(&mount.read("cpu0")), "socket\nlink\nenvironment\nenvironment socket\noption\n");
    assert!(other.read("cpu0").is_empty(), "the option counts for more than the environment");
}

/// "global channels (one buffer for all CPUs)": one stream, in the order of time.
#[test]
fn a_global_channel_keeps_the_order_of_all_cpus() {
    let mount = Mount::new(&["--channel", "log:global"]);
    let mut expected = String::new();
    for n in 0..20 {
        let cpu = (n % 2).to_string();
        let output = run(tool("taskset", "util-linux")
            .args(["-c", &cpu])
            .arg(program("relay-producer"))
            .arg("-m")
            .arg(mount.point())
            .args(["-c", "log"])
            .arg(format!("{n} from {cpu}")));
        assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
        expected += &format!("{n} from {cpu}\n");
    }
    produce_well(&mount, &["-c", "log", "--cpu=4000", "any CPU will do"], b"");
    assert_eq!(text(&mount.read("log0")), expected + "any CPU will do\n");
}

/// `--flush` finishes the sub-buffers, so that whoever polls hears of it.
#[test]
fn flush_finishes_every_cpus_sub_buffer() {
    let mount = Mount::new(&[]);
    produce_well(&mount, &["--cpu=0", "--flush", "x"], b"");
    let stats = mount.stats("cpu");
    assert_eq!((stats["cpu0.produced"], stats["cpu1.produced"]), (1, 1));
}

/// A producer whose daemon is killed ends with an error, in one line, that says how far it came; never with SIGPIPE.
#[test]
fn a_daemon_killed_in_the_middle_is_an_error() {
    const GEOMETRY: &[&str] = &["--subbuf-size", "4096", "--n-subbufs", "1"];
    let mut mount = Mount::new(GEOMETRY);
    let mut waiting = start(&mount, &["--cpu=0", "--wait", SOCKET]);
    let mut stdin = waiting.child().stdin.take().expect("piped");
    stdin.write_all(&b"0123456789abcde\n".repeat(300)).expect("a pipe holds that");
    drop(stdin);
    // A file: who writes to a pipe has the producer wait for the next daemon, see `pipeline.rs`.
    let lines = mount.beside("lines");
    fs::write(&lines, b"0123456789abcde\n".repeat(300)).expect("a file");
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["--cpu=1", "--wait", SOCKET]);
    command.stdin(File::open(&lines).expect("a file")).stderr(Stdio::piped());
    let mut of_file = Process::start(&mut command);
    eventually("two full buffers", || {
        let stats = mount.stats("cpu");
        (stats["cpu0.written"], stats["cpu1.written"]) == (256, 256)
    });

    mount.end(Signal::SIGKILL);
    let said = one_line((exit_code(waiting.wait()), waiting.stderr()), 1);
    assert!(said.contains("daemon has gone away") && said.ends_with("messages had been written"), "{said}");
    let said = one_line((exit_code(of_file.wait()), of_file.stderr()), 1);
    assert!(said.contains("daemon has gone away") && said.ends_with("messages had been written"), "{said}");

    let said = one_line(produce(&mount, &["x"], b""), 1);
    assert!(said.contains("has died"), "{said}");
    mount.restart(GEOMETRY);
    assert_eq!(mount.read("cpu0").len(), 4096, "what was in the buffer goes on");
    produce_well(&mount, &["--cpu=0", "again"], b"");
    assert_eq!(text(&mount.read("cpu0")), "again\n");
}

/// What went by the socket is there after `sync`, for every CPU; of what was written directly it was at once.
#[test]
fn after_sync_everything_is_in_the_buffers() {
    let mut mount = Mount::new(&[]);
    for transport in [TransportChoice::Socket, TransportChoice::Auto] {
        let channel = Channel::builder(mount.point(), "cpu").transport(transport).open().expect("a channel");
        for round in 0..100 {
            let messages = round % 10 + 1;
            for _ in 0..messages {
                channel.write_to(0, b"message").expect("room");
                channel.write_to(1, b"message").expect("room");
            }
            channel.sync().expect("a daemon");
            for file in ["cpu0", "cpu1"] {
                assert_eq!(mount.read(file), b"message".repeat(messages), "{transport:?}");
            }
        }
    }
    let channel = mount.channel("cpu");
    channel.sync().expect("there was nothing to wait for");
    mount.end(Signal::SIGTERM);
    channel.sync().expect("there was nothing that could be lost");
}

/// The same when the daemon is told to end: nobody is left waiting.
#[test]
fn a_daemon_that_ends_lets_nobody_wait() {
    for transport in [SOCKET, AUTO] {
        let mut mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "1"]);
        let mut waiting = start(&mount, &["--cpu=0", "--wait", "--chunk=1000", transport]);
        let mut stdin = waiting.child().stdin.take().expect("piped");
        stdin.write_all(&[b'x'; 5000]).expect("a pipe holds that");
        eventually("a full buffer", || mount.stats("cpu")["cpu0.bytes"] == 4000);
        assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
        drop(stdin);
        if transport == AUTO && !is_without_sequences() {
            mount.restart(&["--subbuf-size", "4096", "--n-subbufs", "1"]);
            assert_eq!(mount.read("cpu0").len(), 4000);
            let code = exit_code(waiting.wait());
            let (rest, said) = (mount.read("cpu0").len(), waiting.stderr());
            // A message that the producer still has is taken by the next daemon, when there is room. One that waits inside
            // the ending daemon is dropped, and reported.
            let is_dropped = said.contains("1 of 5 messages dropped");
            assert_eq!((code, rest), if is_dropped { (3, 0) } else { (0, 1000) }, "{said}");
            continue;
        }
        let code = exit_code(waiting.wait());
        let said = waiting.stderr();
        assert!(code == 1 || code == 3, "{transport}: {code}: {said}");
        assert_eq!(said.lines().count(), 1, "{transport}: {said}");
    }
}

/// "survives the daemon going away (an error, not a SIGPIPE, not a panic) and finds a new one at a later call"
#[test]
fn the_library_finds_a_new_daemon_at_a_later_call() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut mount = Mount::new(&[]);
        let cpu = mount.channel("cpu");
        let log = Channel::builder(mount.point(), "app/log")
            .create(true)
            .mode(Mode::Overwrite)
            .transport(TransportChoice::Socket)
            .open()
            .expect("a channel");
        let temporary = Channel::builder(mount.point(), "temporary").create(true).open().expect("a channel");
        let attached = mount.channel("temporary");
        cpu.write_to(0, b"x").expect("a daemon");

        mount.end(signal);
        for _ in 0..3 {
            assert_eq!(cpu.write(b"x"), Err(WriteError::Disconnected));
            assert_eq!(log.write_to(0, b"x"), Err(WriteError::Disconnected));
        }
        for _ in 0..3 {
            let error = cpu.write_batch([b"x"], BatchOptions::default()).expect_err("no daemon");
            assert!(matches!(error.cause, RequestError::Disconnected | RequestError::Reopen(_)), "{error}");
            let error = log.flush().expect_err("no daemon");
            assert!(matches!(error, RequestError::Disconnected | RequestError::Reopen(_)), "{error}");
        }
        drop(temporary);

        mount.restart(&[]);
        eventually("a write that finds the new daemon", || cpu.write_to(1, b"found").is_ok());
        eventually("a flush that finds it", || log.flush().is_ok());
        cpu.flush().expect("the new daemon");
        assert_eq!(mount.read("cpu1"), b"found");
        log.write_to(0, b"created again").expect("the new daemon");
        log.flush().expect("the new daemon");
        assert_eq!(mount.read("app/log0"), b"created again");
        assert_eq!(
            fs::read_to_string(mount.control("app/log", "mode")).expect("its mode").trim(),
            "overwrite"
        );
        // Who only attached does not create, and says why it cannot go on.
        eventually(
            "the reason",
            || matches!(attached.flush(), Err(RequestError::Reopen(OpenError::Refused(why))) if why.text.contains("'temporary'")),
        );
    }
}

/// "not a SIGPIPE": a blocked signal that is raised stays pending, even where it would be ignored.
#[test]
fn the_library_raises_no_sigpipe() {
    let pending = || {
        let status = fs::read_to_string("/proc/thread-self/status").expect("this thread");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).expect("Linux says so");
        u64::from_str_radix(mask.trim(), 16).expect("a mask") & (1 << (Signal::SIGPIPE as u32 - 1)) != 0
    };
    let only = SigSet::from(Signal::SIGPIPE);
    only.thread_block().expect("blocking a signal");

    let mut mount = Mount::new(&[]);
    let channel = mount.channel("cpu");
    mount.end(Signal::SIGKILL);
    assert_eq!(channel.write(b"x"), Err(WriteError::Disconnected));
    channel.write_batch([b"x"], BatchOptions::default()).expect_err("no daemon");
    channel.flush().expect_err("no daemon");
    drop(channel);
    assert!(!pending(), "SIGPIPE was raised");
    mount.restart(&[]);

    // That this test would notice one.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.write_all(b"x").expect_err("nobody reads");
    assert!(pending());
}

/// "never blocks unless asked to", even if the daemon does nothing at all; and every loss is counted.
#[test]
fn a_write_does_not_wait_for_a_daemon_that_hangs() {
    let mut mount = Mount::new(&["--overwrite"]);
    let channel = mount.channel("cpu");
    mount.daemon().signal(Signal::SIGSTOP);
    let (mut sent, mut lost) = (0, 0);
    while lost < 1000 {
        match channel.write_to(0, b"0123456789abcdef") {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error, WriteError::Full);
                lost += 1;
            }
        }
    }
    assert!(sent > 0, "a socket holds some");
    mount.daemon().signal(Signal::SIGCONT);
    channel.flush().expect("the daemon goes on");
    let counted = |counter| total(&mount, "cpu", counter);
    assert_eq!((counted("written"), counted("dropped")), (sent, lost));
    assert_eq!(mount.read("cpu0").len() as u64, 16 * sent);
}

/// What `write` and `write_batch` say of messages that are too big, or long, and what the counters say.
#[test]
fn the_library_tells_too_big_from_dropped() {
    let mount =
        Mount::new(&["--subbuf-size", "2M", "--n-subbufs", "1", "--channel", "small:subbuf-size=100"]);
    let small = mount.channel("small");
    let too_big = |len| Err(WriteError::TooBig { len, max: 100 });
    assert_eq!(small.write_to(0, &[b'x'; 101]), too_big(101));
    assert_eq!(small.write_to(0, &[b'x'; MESSAGE_MAX + 1]), too_big(MESSAGE_MAX + 1));
    assert_eq!(small.write_to(0, &[b'x'; 100]), Ok(()));
    let one_cpu = |wait| BatchOptions { cpu: Some(0), wait };
    let messages = [vec![b'x'; 100], vec![b'x'; 101], vec![], vec![b'x'; MESSAGE_MAX + 1]];
    for wait in [Wait::No, Wait::AtMost(Duration::from_millis(1))] {
        // The first finds no room. An empty one needs none, and is refused all the same while the buffer is blocked.
        let counts = small.write_batch(&messages, one_cpu(wait)).expect("a daemon");
        assert_eq!(counts, Counts { written: 0, dropped: 2, too_big: 2 }, "{wait:?}");
    }
    let counted = |counter| total(&mount, "small", counter);
    small.flush().expect("a daemon");
    // Longer than any message, so never sent: counted with the dropped.
    assert_eq!((counted("written"), counted("dropped"), counted("too_big")), (1, 4 + 3, 3));

    let cpu = mount.channel("cpu");
    let long = bytes(MESSAGE_MAX);
    assert_eq!(cpu.write_to(1, &long), Ok(()));
    let counts = cpu.write_batch([&long, &long], BatchOptions { cpu: Some(1), ..Default::default() });
    assert_eq!(counts.expect("a daemon"), Counts { written: 1, dropped: 1, too_big: 0 });
    let got = mount.read("cpu1");
    assert!(got == [&long[..], &long].concat(), "long messages are whole");
    assert_eq!(
        cpu.write_to(1, &[0; MESSAGE_MAX + 1]),
        Err(WriteError::TooBig { len: MESSAGE_MAX + 1, max: MESSAGE_MAX })
    );
}
