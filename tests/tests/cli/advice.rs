//! Messages about losses and mistakes: each loss once, its cause, and the remedy.

use std::path::Path;

use nix::sys::signal::Signal;
use relayfs_tests::audience::{Follower, Recorder, audience};
use relayfs_tests::{Mount, eventually, exit_code, run, text};

const DROPPED: &str = "dropped: the buffer was full; read more often, or raise --n-subbufs";
const TOO_BIG: &str =
    "too big: longer than a sub-buffer or than 1 MiB; write shorter messages, or raise --subbuf-size";

/// Runs `audience`, expects success, and returns its output and its messages.
#[track_caller]
fn listen(point: &Path, args: &[&str]) -> (String, String) {
    let output = run(&mut audience(point, args));
    assert_eq!(exit_code(output.status), 0, "{args:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// A mount whose buffers have one sub-buffer of 4096 bytes, with an overwriting channel `over`.
fn small() -> Mount {
    Mount::new(&["--subbuf-size=4096", "--n-subbufs=1", "--channel=over:overwrite"])
}

const MESSAGE: &[u8] = &[b'x'; 1000];

#[test]
fn losses_are_reported_once_by_cpu_and_cause() {
    let mount = small();
    mount.send(1, &[MESSAGE; 16]);
    mount.send(0, &[&[b'x'; 5000][..]]);
    let (read, said) = listen(mount.point(), &[]);
    assert_eq!(read.len(), 4000);
    assert_eq!(said, format!("audience: cpu0: 1 message {TOO_BIG}\naudience: cpu1: 12 messages {DROPPED}\n"));
    assert_eq!(listen(mount.point(), &[]), (String::new(), String::new()), "nothing is new");
    mount.send(1, &[MESSAGE; 5]);
    let (_, said) = listen(mount.point(), &["--cpu=1"]);
    assert_eq!(said, format!("audience: cpu1: 1 message {DROPPED}\n"));
}

#[test]
fn overwritten_bytes_are_reported_once_without_advice() {
    let mount = small();
    mount.send_to("over", 0, &[MESSAGE; 5]);
    let (read, said) = listen(mount.point(), &["-c", "over"]);
    assert_eq!(read.len(), 1000);
    assert_eq!(said, "audience: cpu0: 4000 bytes overwritten before they were read\n");
    assert_eq!(listen(mount.point(), &["-c", "over"]), (String::new(), String::new()));
}

/// `cat` reads data after the loss. A snapshot leaves the report to a reader.
#[test]
fn loss_is_old_once_any_program_has_read() {
    let mount = small();
    mount.send(0, &[MESSAGE; 7]);
    assert_eq!(listen(mount.point(), &["--snapshot"]).0.len(), 4000);
    let (_, said) = listen(mount.point(), &[]);
    assert_eq!(said, format!("audience: cpu0: 3 messages {DROPPED}\n"), "a snapshot does not count");
    mount.send(0, &[MESSAGE; 7]);
    mount.read("cpu0");
    assert_eq!(listen(mount.point(), &[]), (String::new(), String::new()));
}

#[test]
fn follow_reports_losses_since_last_read() {
    let mount = small();
    mount.send(0, &[MESSAGE; 7]);
    listen(mount.point(), &[]);
    let before = mount.send(0, &[MESSAGE; 5]).dropped;
    let follower = Follower::start(mount.point(), &["--interval=0.01"]);
    eventually("what there is", || follower.read().len() == 4000);
    let lost = before + mount.send(0, &[MESSAGE; 15]).dropped;
    assert!(before == 1 && lost > before);
    assert_eq!(follower.end(), format!("audience: cpu0: {lost} messages {DROPPED}\n"));
    assert_eq!(listen(mount.point(), &["--cpu=0"]), (String::new(), String::new()));
}

#[test]
fn recording_reports_losses_since_last_read() {
    let mount = small();
    mount.send(0, &[MESSAGE; 7]);
    listen(mount.point(), &[]);
    mount.send(0, &[MESSAGE; 6]);
    let mut recorder = Recorder::start(mount.point(), &["--cpu=0"]);
    recorder.is_ready();
    eventually("what there is", || recorder.recorded(0).len() == 4000);
    assert_eq!(recorder.end(Signal::SIGINT), 0);
    assert!(
        recorder.said().contains("cpu0: 4000 bytes recorded, 2 messages dropped\n"),
        "{}",
        recorder.said()
    );
    assert_eq!(listen(mount.point(), &["--cpu=0"]), (String::new(), String::new()), "recorded is read");
}

/// Reported losses are part of the buffer: the next daemon and `--state` know them.
#[test]
fn reported_losses_are_not_reported_again_after_crash() {
    let mut mount = small();
    mount.send(0, &[MESSAGE; 7]);
    listen(mount.point(), &[]);
    mount.send(0, &[MESSAGE; 6]);
    mount.end(Signal::SIGKILL);
    mount.detach();
    let dir = relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw());
    let left = run(std::process::Command::new(relayfs_tests::program("audience")).arg("--state").arg(dir));
    assert_eq!(text(&left.stderr), format!("audience: cpu0: 2 messages {DROPPED}\n"));
    mount.restart(&["--subbuf-size=4096", "--n-subbufs=1"]);
    assert_eq!(listen(mount.point(), &[]).1, format!("audience: cpu0: 2 messages {DROPPED}\n"));
    assert_eq!(listen(mount.point(), &[]), (String::new(), String::new()));
}

#[test]
fn reader_without_data_names_channels_with_data() {
    let names: Vec<String> = (0..7).map(|n| format!("--channel=more/c{n}x")).collect();
    let mut args = vec!["--channel=app/log", "--channel=empty:header=16"];
    args.extend(names.iter().map(String::as_str));
    let mount = Mount::new(&args);
    assert_eq!(listen(mount.point(), &[]), (String::new(), String::new()), "nothing anywhere");
    mount.send_to("app/log", 0, &[&[b'x'; 12 << 10][..]]);
    let hint = "audience: channel 'cpu' has nothing unread; other channels have: app/log (12.0 KiB); -c NAME reads one\n";
    for args in [&[][..], &["--snapshot"]] {
        assert_eq!(listen(mount.point(), args), (String::new(), hint.to_owned()), "{args:?}");
    }
    assert_eq!(listen(mount.point(), &["--cpu=0"]).1, "", "it has what it asked for");
    assert_eq!(listen(mount.point(), &["-c", "empty"]).1.len(), 0, "the same");
    (0..7).for_each(|n| assert_eq!(mount.send_to(&format!("more/c{n}x"), 0, &[b"."]).written, 1));
    let (_, said) = listen(mount.point(), &[]);
    assert!(said.ends_with("more/c3x (1 B) and 3 more; -c NAME reads one\n"), "{said}");
    mount.send(0, &[b"here"]);
    assert_eq!(listen(mount.point(), &[]), ("here".to_owned(), String::new()));
}
