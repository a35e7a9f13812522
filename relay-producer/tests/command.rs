//! The command `relay-producer`: messages sent, texts printed, exit status.

mod common;

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use common::files::{Files, pin_anywhere};
use common::{Daemon, Manners, geometry};
use relay::wire::frame::WAIT_FOREVER;
use tempfile::{TempDir, tempdir};

fn start(manners: Manners) -> (TempDir, Daemon) {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, manners);
    (dir, daemon)
}

fn command(daemon: &Daemon, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay-producer"));
    command.env("RELAYFS", &daemon.socket).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command with `input` on its standard input.
fn run(daemon: &Daemon, args: &[&str], input: &[u8]) -> Output {
    let mut child = command(daemon, args).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // The command may end without reading everything.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

/// Runs the command, expects success without a text, and returns the messages that arrived.
fn messages(daemon: &Daemon, args: &[&str], input: &[u8]) -> Vec<String> {
    daemon.store().messages.clear();
    let output = run(daemon, args, input);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{args:?}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    daemon.store().messages.iter().map(|(_, message)| text(message).to_owned()).collect()
}

/// Runs the command, expects an exit status, and returns the text on standard error.
fn complaint(daemon: &Daemon, args: &[&str], input: &[u8], code: i32) -> String {
    let output = run(daemon, args, input);
    let said = text(&output.stderr).to_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn arguments_are_messages() {
    let (_dir, daemon) = start(Manners::default());
    assert_eq!(messages(&daemon, &["hello", "two words", ""], b"unread"), ["hello\n", "two words\n", "\n"]);
    assert_eq!(messages(&daemon, &["-n", "hello", "world"], b""), ["hello", "world"]);
    assert_eq!(messages(&daemon, &["--cpu", "5", "--", "--to-cpu-5"], b""), ["--to-cpu-5\n"]);
    assert_eq!(daemon.store().messages[0].0, 5);
}

#[test]
fn lines_of_standard_input_are_messages() {
    let (_dir, daemon) = start(Manners::default());
    assert_eq!(messages(&daemon, &[], b"one\n\nthree"), ["one\n", "\n", "three"]);
    assert_eq!(messages(&daemon, &["-0"], b"a\nb\0c\0"), ["a\nb\0", "c\0"]);
    assert_eq!(messages(&daemon, &["--chunk", "4"], b"12\n456789"), ["12\n4", "5678", "9"]);
    assert_eq!(messages(&daemon, &[], b""), [""; 0]);
    let many: Vec<_> = (0..100_000).map(|i| format!("line {i}\n")).collect();
    assert!(messages(&daemon, &[], many.concat().as_bytes()) == many);
}

#[test]
fn line_is_sent_before_the_next_one_comes() {
    let (_dir, daemon) = start(Manners::default());
    let mut child = command(&daemon, &[]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for n in 1..=3 {
        writeln!(stdin, "line").unwrap();
        daemon.wait_for("the line", |store| store.messages.len() == n);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn too_long_line_is_skipped_and_reported() {
    let (_dir, daemon) = start(Manners { geometry: "subbuf-size=1000", ..Manners::default() });
    // Longer than this channel's messages, and longer than the command keeps in memory.
    let input = format!("one\n{}\nthree\n{}\nfive\n", "x".repeat(2000), "y".repeat(5_000_000));
    let said = complaint(&daemon, &[], input.as_bytes(), 3);
    assert_eq!(
        said,
        "relay-producer: line 2 skipped: longer than a message of this channel may be, 1000 bytes\n\
         relay-producer: line 4 skipped: longer than a message of this channel may be, 1000 bytes\n\
         relay-producer: 2 of 5 messages dropped: 2 longer than a message of this channel may be, 1000 bytes\n"
    );
    let arrived: Vec<_> = daemon.store().messages.iter().map(|(_, message)| message.clone()).collect();
    assert_eq!(arrived, [&b"one\n"[..], b"three\n", b"five\n"]);
    daemon.wait_for("the line that was never sent", |store| store.lost == 1);
    let said = complaint(&daemon, &["--chunk=1K"], b"", 1);
    assert_eq!(said, "relay-producer: --chunk=1024: a message of this channel may have 1000 bytes\n");
}

#[test]
fn dropped_messages_are_reported() {
    let (_dir, daemon) = start(Manners { dropped_over: 4, ..Manners::default() });
    let said = complaint(&daemon, &["one", "three"], b"", 3);
    assert!(said.starts_with("relay-producer: 1 of 2 messages dropped: 1 found the buffer full ("), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn wait_is_passed_to_the_daemon() {
    let (_dir, daemon) = start(Manners::default());
    for wait in ["--wait", "--wait=0.5", "--wait=2s"] {
        messages(&daemon, &[wait, "x"], b"");
    }
    assert_eq!(daemon.store().waits, [WAIT_FOREVER, 500, 2000]);
}

#[test]
fn verbose_describes_the_channel_and_flush_flushes() {
    let (_dir, daemon) = start(Manners { geometry: "global", ..Manners::default() });
    let output = run(&daemon, &["-v", "--flush", "x"], b"");
    assert!(output.status.success());
    assert_eq!(
        text(&output.stderr),
        "relay-producer: existing channel cpu: subbuf-size=256K:n-subbufs=4:global, 1 buffer; \
         transport: socket (a global channel is written by the daemon alone)\n"
    );
    assert_eq!(daemon.store().flushes, [1]);
}

#[test]
fn required_shared_transport_is_an_error_without_buffers() {
    let (_dir, daemon) = start(Manners { unshared: (1, "not you"), ..Manners::default() });
    let said = complaint(&daemon, &["--transport=shared", "x"], b"", 1);
    assert!(said.starts_with("relay-producer: cannot write shared buffers: "), "{said}");
    assert_eq!(said.lines().count(), 1);
    let files = Files::new(geometry(""));
    daemon.share(&files);
    let cpu = pin_anywhere().to_string();
    let said = complaint(&daemon, &["-v", "--cpu", &cpu, "one", "two"], b"", 0);
    let shared = relay::ring::writer::AnyExecutor::can_share();
    assert!(said.contains(if shared { "; transport: shared\n" } else { "; transport: socket (" }), "{said}");
    assert_eq!(files.read(cpu.parse().unwrap()), b"one\ntwo\n");
    assert_eq!(daemon.store().waits.is_empty(), shared);
}

#[test]
fn channel_is_created_only_on_request() {
    let (_dir, daemon) = start(Manners::default());
    let said = complaint(&daemon, &["-c", "app/log", "x"], b"", 1);
    assert_eq!(said, "relay-producer: no channel 'app/log' (existing: cpu); use --create to create it\n");
    let args =
        ["-v", "--transport=socket", "-c", "app/log", "--create=subbuf_size=64K:n-subbufs=8:overwrite", "x"];
    let said = complaint(&daemon, &args, b"", 0);
    assert_eq!(
        said,
        format!(
            "relay-producer: created channel app/log: subbuf-size=64K:n-subbufs=8:overwrite, {} buffers; \
             transport: socket (it was asked for)\n",
            common::N_CPUS
        )
    );
}

#[test]
fn wrong_usage_exits_with_2_and_other_errors_with_1() {
    let (_dir, daemon) = start(Manners::default());
    for args in [&["--nonsense"][..], &["--wait=soon"], &["--create=subbuf-size=0", "x"], &["-c", "a b", "x"]]
    {
        assert_ne!(complaint(&daemon, args, b"", 2), "");
    }
    let said = complaint(&daemon, &["--cpu=5000", "x"], b"", 1);
    assert_eq!(said, "relay-producer: no buffer for CPU 5000: this channel has them for CPUs 0 to 1023\n");
    let said = complaint(&daemon, &["--mount=/nonexistent", "x"], b"", 1);
    assert!(said.starts_with("relay-producer: no relayfs is mounted on /nonexistent: "), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn unreadable_input_is_an_error() {
    let (dir, daemon) = start(Manners::default());
    let output = command(&daemon, &[]).stdin(fs::File::open(dir.path()).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.starts_with("relay-producer: cannot read standard input: "), "{said}");
}

#[test]
fn lost_daemon_is_reported_with_the_count_of_written_messages() {
    let (dir, daemon) = start(Manners { frames_max: 5, ..Manners::default() });
    // Not a pipe, which would wait for the next daemon.
    let input = dir.path().join("input");
    fs::write(&input, "a line of some length\n".repeat(100_000)).unwrap();
    let output = command(&daemon, &[]).stdin(fs::File::open(input).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let arrived = daemon.store().messages.len();
    assert_eq!(
        text(&output.stderr),
        format!("relay-producer: the daemon has gone away; {arrived} messages had been written\n")
    );
}

#[test]
fn help_and_errors_survive_a_closed_pipe() {
    let (_dir, daemon) = start(Manners { dropped_over: 0, ..Manners::default() });
    for (args, code) in [(&["--help"][..], 0), (&["-v", "x"], 3), (&["--nonsense"], 2)] {
        let (gone, pipe) = io::pipe().unwrap();
        drop(gone);
        let pipe = || Stdio::from(pipe.try_clone().unwrap());
        let status = command(&daemon, args).stdout(pipe()).stderr(pipe()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}
