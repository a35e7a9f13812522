//! The command `relay-producer` with a real daemon: messages, options, errors.
//!
//! Tests of the daemon's answers and counts use the socket. `shared.rs` tests direct writes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};

use relayfs_tests::direct::{WHY_NO_SEQUENCES, is_without_sequences};
use relayfs_tests::{Mount, Process, eventually, exit_code, program, run, run_with_input, text, tool};

/// Longest message, in bytes.
pub(super) const MESSAGE_MAX: usize = 1 << 20;

/// Sends all messages to the daemon.
pub(super) const SOCKET: &str = "--transport=socket";
/// The default.
pub(super) const AUTO: &str = "--transport=auto";

/// Returns the command `relay-producer -m MOUNT ARGS`, without the variables of the environment.
pub(super) fn producer(mount: &Mount, args: &[&str]) -> Command {
    let mut command = Command::new(program("relay-producer"));
    command.env_remove("RELAYFS").arg("-m").arg(mount.point()).args(args);
    command
}

/// Starts the command with pipes as standard streams.
#[track_caller]
pub(super) fn start(mount: &Mount, args: &[&str]) -> Process {
    let mut command = producer(mount, args);
    Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Runs the command with an input, and returns its exit status and its standard error.
#[track_caller]
pub(super) fn produce(mount: &Mount, args: &[&str], input: &[u8]) -> (i32, String) {
    let output = run_with_input(&mut producer(mount, args), input);
    assert_eq!(text(&output.stdout), "", "{args:?}: nothing belongs on standard output");
    (exit_code(output.status), text(&output.stderr))
}

/// Runs the command, and expects success and no output.
#[track_caller]
pub(super) fn produce_well(mount: &Mount, args: &[&str], input: &[u8]) {
    assert_eq!(produce(mount, args, input), (0, String::new()), "{args:?}");
}

/// Checks the exit status and that the command printed one line, and returns the line.
#[track_caller]
pub(super) fn one_line((code, said): (i32, String), expected: i32) -> String {
    assert_eq!(code, expected, "{said}");
    assert!(said.starts_with("relay-producer: ") && said.ends_with('\n'), "{said:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().to_owned()
}

/// Returns a channel's counter, summed over all buffers.
pub(super) fn total(mount: &Mount, channel: &str, counter: &str) -> u64 {
    mount.stats(channel)[&format!("total.{counter}")]
}

/// Returns bytes without a pattern that could hide a loss.
pub(super) fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The command takes each argument, line, NUL-terminated part or chunk as one message.
#[test]
fn arguments_lines_nul_parts_and_chunks_are_messages() {
    let mount = Mount::new(&[]);
    /// Arguments, standard input, and the expected messages.
    type Case<'a> = (&'a [&'a str], &'a [u8], &'a [&'a [u8]]);
    let cases: &[Case<'_>] = &[
        (&["hello"], b"unread", &[b"hello\n"]),
        (&["one", "two words", ""], b"", &[b"one\n", b"two words\n", b"\n"]),
        (&["-n", "one", "two"], b"", &[b"one", b"two"]),
        (&["--no-newline", "one"], b"", &[b"one"]),
        (&["--no_newline", "--", "--one", "-n"], b"", &[b"--one", b"-n"]),
        (&[], b"one\n", &[b"one\n"]),
        (&[], b"one\n\ntwo", &[b"one\n", b"\n", b"two"]),
        (&["-n"], b"one\ntwo\n", &[b"one\n", b"two\n"]), // `-n` concerns arguments
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

/// The command writes a message as soon as it has read it, before the next one comes.
#[test]
fn line_is_written_while_input_stays_open() {
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

/// `--chunk` takes binary input in blocks up to the longest message.
#[test]
fn chunks_of_binary_input_are_written_unchanged() {
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

/// The command writes to the buffer of the CPU that it runs on, or to the one that `--cpu` names.
#[test]
fn message_goes_to_own_or_given_cpu() {
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

/// Without `--create`, an unknown channel is an error that lists the existing ones. An existing channel keeps its
/// geometry. `-v` prints channel, geometry and transport.
#[test]
fn create_makes_missing_channels_and_keeps_geometry_of_existing() {
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
        // The channel exists, so its geometry stays.
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

/// A producer's channel lives while a connection, an open file or a poll waiter holds it, or it has unread data. When
/// it goes, the daemon adds its losses to the totals.
#[test]
fn channel_of_producer_lives_while_held_or_unread() {
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

/// Each error has exit status 1, and one line that names its cause.
#[test]
fn error_is_one_line_that_names_its_cause() {
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

/// Wrong usage has exit status 2.
#[test]
fn wrong_usage_names_the_wrong_word() {
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

/// `--mount` and RELAYFS name a mount point or a socket. The option wins.
#[test]
fn mount_is_named_by_option_environment_or_socket() {
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

/// A global channel has one stream, in the order of time.
#[test]
fn global_channel_keeps_order_of_all_cpus() {
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

/// `--flush` finishes the sub-buffers, so that pollers wake.
#[test]
fn flush_finishes_sub_buffers_of_all_cpus() {
    let mount = Mount::new(&[]);
    produce_well(&mount, &["--cpu=0", "--flush", "x"], b"");
    let stats = mount.stats("cpu");
    assert_eq!((stats["cpu0.produced"], stats["cpu1.produced"]), (1, 1));
}
