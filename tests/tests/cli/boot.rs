//! The start with the machine: units of systemd, READY=1, and programs that wait for the mount.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use relayfs_tests::background::Place;
use relayfs_tests::{Process, complaint, eventually, program, run, stdout_of, text, tool, workspace};
use tempfile::TempDir;

/// Highest exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE_MAX: u32 = 45;

/// The unit of a program as an instance, in a directory, with the program that it starts.
fn unit(template: &str, of: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let source = fs::read_to_string(workspace().join(template)).expect("the unit");
    let installed = format!("/usr/local/bin/{of}");
    assert!(source.contains(&installed), "{source}");
    let source = source.replace(&installed, program(of).to_str().expect("a path of text"));
    let name = template.rsplit('/').next().expect("a name").replace('@', "@mnt-relay");
    let path = dir.path().join(name);
    fs::write(&path, source).expect("a unit");
    (dir, path)
}

#[test]
fn units_are_valid() {
    for (template, of) in [
        ("relayfsd/relayfsd@.service", "relayfsd"),
        ("audience/audience-record@.service", "audience"),
        ("audience/forward/relay-forward@.service", "relay-forward"),
    ] {
        let (_dir, path) = unit(template, of);
        let output = run(tool("systemd-analyze", "systemd").args(["verify", "--man=no"]).arg(path));
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

/// The command of the unit that records, with its own options, is accepted.
#[test]
fn recorder_takes_the_options_of_its_unit() {
    let source = fs::read_to_string(workspace().join("audience/audience-record@.service")).expect("the unit");
    let value = |key: &str| source.lines().find_map(|line| line.strip_prefix(key)).expect(key).to_owned();
    let options = value("Environment=\"OPTIONS=").trim_end_matches('"').to_owned();
    let command = value("ExecStart=/usr/local/bin/audience ");
    let place = Place::new();
    let mut daemon = place.start(&[]);
    let logs = place.beside("logs");
    let command = command
        .replace("%f", place.point().to_str().expect("a path of text"))
        .replace("${LOGS_DIRECTORY}", logs.to_str().expect("a path of text"))
        .replace("$OPTIONS", &options);
    let mut recorder = Command::new(program("audience"));
    recorder.args(command.split(' ')).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut recorder = Process::start(&mut recorder);
    eventually("a recording", || logs.join("cpu/cpu0.000000").exists());
    recorder.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(recorder.wait().success(), "{}", recorder.stderr());
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
}

#[test]
fn unit_is_hardened_as_far_as_a_mount_allows() {
    let (_dir, path) = unit("relayfsd/relayfsd@.service", "relayfsd");
    let mut analyze = tool("systemd-analyze", "systemd");
    analyze
        .args(["security", "--offline=true", "--no-pager", &format!("--threshold={EXPOSURE_MAX}")])
        .arg(path);
    let report = text(&stdout_of(&mut analyze));
    assert!(report.contains("Overall exposure level for relayfsd@mnt-relay.service"), "{report}");
    // These would put the mount into a namespace that others do not see.
    let source = fs::read_to_string(workspace().join("relayfsd/relayfsd@.service")).expect("the unit");
    for option in [
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "ProtectSystem",
        "ProtectHome",
        "ReadOnlyPaths",
        "ProtectKernelTunables",
        "ProtectControlGroups",
        "DynamicUser",
        "RootDirectory",
        "MountFlags",
    ] {
        assert!(!source.lines().any(|line| line.starts_with(&format!("{option}="))), "{option}");
    }
}

/// What the unit's Type=notify waits for.
#[test]
fn service_manager_is_told_when_the_mount_is_usable() {
    let place = Place::new();
    let manager = UnixDatagram::bind(place.beside("notify")).unwrap();
    let mut command = place.command(&["-f"]);
    let mut daemon =
        Process::start(command.env("NOTIFY_SOCKET", place.beside("notify")).stderr(Stdio::null()));
    let mut told = [0; 4096];
    let len = manager.recv(&mut told).unwrap();
    let first = text(&told[..len]);
    assert!(first.lines().any(|line| line == "READY=1"), "{first}");
    assert!(first.contains(&format!("STATUS=mounted on {}", place.point().display())), "{first}");
    // At that moment it is usable.
    assert!(place.path(".relay/version").exists());
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
    let len = manager.recv(&mut told).unwrap();
    assert!(text(&told[..len]).lines().any(|line| line == "STOPPING=1"));
}

fn waiting(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(place.point()).args(args).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn producer_waits_for_the_mount() {
    let place = Place::new();
    let mut producers = [
        Process::start(&mut waiting(&place, &["--wait-mount", "--cpu=0", "-n", "a"])),
        Process::start(&mut waiting(&place, &["--wait-mount=60s", "--cpu=0", "-n", "a"])),
        Process::start(&mut waiting(&place, &["--wait-mount"])),
        Process::start(waiting(&place, &["--wait-mount", "--exec", "echo", "b"]).stdout(Stdio::piped())),
    ];
    assert!(producers.iter_mut().all(Process::is_running));
    let mut daemon = place.start(&[]);
    for producer in &mut producers {
        assert!(producer.wait().success(), "{}", producer.stderr());
    }
    assert_eq!(text(&producers[3].stdout()), "b\n");
    let mut read = fs::read(place.path("cpu0")).unwrap();
    read.retain(|byte| *byte == b'a');
    assert_eq!(read, b"aa");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
}

#[test]
fn wait_for_the_mount_ends_with_an_error() {
    let place = Place::new();
    for limit in ["0", "50ms"] {
        let output = run(&mut waiting(&place, &[&format!("--wait-mount={limit}"), "x"]));
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint("relay-producer", &output).starts_with("no relayfs is mounted on "), "{output:?}");
    }
    let output = run(&mut waiting(&place, &["--wait-mount=soon", "x"]));
    assert_eq!(output.status.code(), Some(2));
}

/// A daemon that has died leaves a mount, which the next one replaces.
#[test]
fn producer_waits_for_the_next_daemon() {
    let place = Place::new();
    let mut dead = place.start(&[]);
    dead.signal(nix::sys::signal::Signal::SIGKILL);
    dead.wait();
    let mut producer = Process::start(&mut waiting(&place, &["--wait-mount", "--cpu=0", "-n", "a"]));
    let mut daemon = place.start(&["--discard"]);
    assert!(producer.wait().success(), "{}", producer.stderr());
    eventually("the message", || fs::read(place.path("cpu0")).is_ok_and(|read| read == b"a"));
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
}
