//! A daemon that dies at each step of starting, of opening and removing channels, of a read, and of ending: the next start is
//! clean, nothing that was accepted is lost, and nothing is read twice but the one reply that was under way.
//!
//! The daemon is a test build that ends itself by SIGKILL where it is told to, see `relayfsd/src/process/kill_point.rs`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, TransportChoice};
use relayfs_tests::background::Place;
use relayfs_tests::{Process, eventually, exit_code, mortal_daemon, text};

const KILLED: i32 = 128 + 9;
const ARGS: &[&str] = &["--subbuf-size=4096", "--n-subbufs=4"];

/// A daemon that dies at such a place, if one is named; told to be in the foreground.
fn daemon(place: &Place, at: Option<&str>, args: &[&str]) -> Process {
    let mut command = Command::new(mortal_daemon());
    command.arg("-f").args(ARGS).args(args).arg(place.point()).stdin(Stdio::null()).stderr(Stdio::piped());
    Process::start(command.envs(at.map(|at| ("RELAYFSD_KILL_AT", at))))
}

/// One that has started.
fn started(place: &Place, at: Option<&str>, args: &[&str]) -> Process {
    let mut process = daemon(place, at, args);
    eventually("the mount", || {
        assert!(process.is_running(), "relayfsd ended: {}", process.stderr());
        place.path(".relay/version").exists()
    });
    process
}

fn dies(mut process: Process, at: &str) {
    assert_eq!(exit_code(process.wait()), KILLED, "at {at}: {}", process.stderr());
}

fn ends(mut process: Process, at: &str) {
    process.signal(Signal::SIGTERM);
    assert_eq!(exit_code(process.wait()), 0, "after {at}: {}", process.stderr());
}

/// Writes by the daemon, to CPU 0.
fn send(point: &Path, channel: &str, message: &[u8]) {
    let builder = Channel::builder(point, channel).create(true).transport(TransportChoice::Socket);
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    let counts = builder.open().unwrap().write_batch([message], options).unwrap();
    assert_eq!(counts.written, 1);
}

fn read(place: &Place, file: &str) -> String {
    text(&fs::read(place.path(file)).unwrap())
}

/// The files in the state directory, but for the lock.
fn files(place: &Place) -> Vec<PathBuf> {
    let entries = fs::read_dir(place.state_dir()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !path.ends_with("lock")).collect()
}

/// A daemon that had two channels with something unread, and was killed.
fn killed(place: &Place) {
    let process = started(place, None, &[]);
    send(place.point(), "cpu", b"one\n");
    send(place.point(), "app/log", b"two\n");
    process.signal(Signal::SIGKILL);
    dies(process, "any time");
}

/// The daemon after all the deaths: everything is there, once, and nothing else.
fn goes_on(place: &Place, at: &str) {
    let process = started(place, None, &[]);
    assert_eq!(read(place, "cpu0"), "one\n", "{at}");
    assert_eq!(read(place, "app/log0"), "two\n", "{at}");
    send(place.point(), "cpu", b"new\n");
    assert_eq!(read(place, "cpu0"), "new\n", "{at}");
    ends(process, at);
    place.assert_clean();
}

#[test]
fn deaths_while_starting() {
    // Each time the state file is saved, and each channel.
    for at in [
        "adopt-read",
        "adopt-channel",
        "adopt-channel:2",
        "adopt-cleared",
        "save-written",
        "save-written:2",
        "adopt-opened",
        "started",
    ] {
        let place = Place::new();
        killed(&place);
        dies(daemon(&place, Some(at), &[]), at);
        goes_on(&place, at);
    }
}

/// Death after death, each at the next step.
#[test]
fn deaths_one_after_another() {
    let place = Place::new();
    killed(&place);
    for at in ["adopt-read", "adopt-channel", "adopt-cleared", "save-written", "adopt-opened", "started"] {
        dies(daemon(&place, Some(at), &[]), at);
    }
    goes_on(&place, "all");
}

/// The first start ever leaves nothing that the next would take for something.
#[test]
fn deaths_at_the_first_start() {
    for at in [
        "save-written",
        "open-made",
        "save-written:2",
        "open-named",
        "save-written:3",
        "adopt-opened",
        "started",
    ] {
        let place = Place::new();
        dies(daemon(&place, Some(at), &[]), at);
        let process = started(&place, None, &[]);
        assert_eq!(files(&place).len(), 2 + n_cpus(&place), "{at}: {:?}", files(&place));
        assert_eq!(read(&place, "cpu0"), "", "{at}");
        ends(process, at);
        place.assert_clean();
    }
}

fn n_cpus(place: &Place) -> usize {
    (0..).take_while(|cpu| place.path(&format!("cpu{cpu}")).exists()).count()
}

/// What is set aside is all there, however often that takes a new start, and the sound channel goes on.
#[test]
fn deaths_while_something_is_set_aside() {
    for at in ["adopt-aside", "adopt-aside:2", "adopt-aside:3"] {
        let place = Place::new();
        killed(&place);
        let control = place.state_dir().join("2.control");
        let mut bytes = fs::read(&control).unwrap();
        bytes[4096..4104].fill(0xff); // the state of buffer 0
        fs::write(&control, bytes).unwrap();

        dies(daemon(&place, Some(at), &[]), at);
        let mut process = started(&place, None, &[]);
        assert_eq!(read(&place, "cpu0"), "one\n", "{at}");
        assert!(!place.path("app").exists(), "{at}");
        let aside: Vec<_> = files(&place)
            .into_iter()
            .filter(|path| path.is_dir())
            .flat_map(|dir| fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        for name in ["2.control", "2.data0", "2.data1", "state"] {
            assert!(aside.iter().any(|found| found == name), "{at}: {name} among {aside:?}");
        }
        process.signal(Signal::SIGTERM);
        assert_eq!(exit_code(process.wait()), 0);
        let said = process.stderr();
        assert!(said.contains("channel app/log: it cannot go on, and is set aside in "), "{at}: {said}");
        assert!(place.state_dir().exists(), "what is set aside is people's to remove");
        fs::remove_dir_all(place.state_dir()).unwrap();
        place.assert_clean();
    }
}

/// The same where all of it is, for want of a state file.
#[test]
fn deaths_while_everything_is_set_aside() {
    for at in ["adopt-all-aside", "adopt-all-aside:3", "adopt-all-aside:5"] {
        let place = Place::new();
        killed(&place);
        fs::write(place.state_dir().join("state"), "nonsense").unwrap();
        let left: Vec<_> = files(&place);
        dies(daemon(&place, Some(at), &[]), at);
        let process = started(&place, None, &[]);
        assert_eq!(read(&place, "cpu0"), "", "{at}");
        let aside: Vec<_> = files(&place)
            .into_iter()
            .filter(|path| path.is_dir())
            .flat_map(|dir| fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().file_name())
            .collect();
        for path in left {
            assert!(aside.iter().any(|found| path.ends_with(found)), "{at}: {} of {aside:?}", path.display());
        }
        ends(process, at);
        fs::remove_dir_all(place.state_dir()).unwrap();
        place.assert_clean();
    }
}

#[test]
fn deaths_while_a_channel_is_opened() {
    // The first three times the state file is saved are the start's.
    for at in ["open-made:2", "save-written:4", "open-named:2"] {
        let place = Place::new();
        let process = started(&place, Some(at), &[]);
        send(place.point(), "cpu", b"one\n");
        Channel::builder(place.point(), "app/log").create(true).open().expect_err("the daemon died of it");
        dies(process, at);

        let process = started(&place, None, &[]);
        assert_eq!(read(&place, "cpu0"), "one\n", "{at}");
        assert!(!place.path("app").exists(), "{at}: nobody was told that there is one");
        assert_eq!(files(&place).len(), 2 + n_cpus(&place), "{at}: {:?}", files(&place));
        ends(process, at);
        place.assert_clean();
    }
}

#[test]
fn deaths_while_a_channel_goes() {
    for at in ["save-written:5", "remove-unnamed"] {
        let place = Place::new();
        let process = started(&place, Some(at), &[]);
        send(place.point(), "cpu", b"one\n");
        send(place.point(), "app/log", b"two\n");
        assert_eq!(read(&place, "app/log0"), "two\n", "{at}");
        dies(process, at);

        let process = started(&place, None, &[]);
        assert_eq!(read(&place, "cpu0"), "one\n", "{at}");
        assert!(!place.path("app").exists(), "{at}: read and left by all");
        assert_eq!(files(&place).len(), 2 + n_cpus(&place), "{at}: {:?}", files(&place));
        ends(process, at);
        place.assert_clean();
    }
}

/// A read that its daemon dies in, and what the next daemon's first read brings.
#[test]
fn deaths_while_somebody_reads() {
    for (at, got, then) in [
        ("read-found", None, "one two three "),
        ("read-replied", Some("one two "), "one two three "),
        ("read-published", Some("one two "), "three "),
    ] {
        for mode in ["--header=0", "--overwrite"] {
            let place = Place::new();
            let process = started(&place, Some(at), &[mode]);
            for message in ["one ", "two ", "three "] {
                send(place.point(), "cpu", message.as_bytes());
            }
            let mut buffer = [0; 8];
            let result = File::open(place.path("cpu0")).unwrap().read(&mut buffer);
            assert_eq!(result.ok().map(|n| text(&buffer[..n])).as_deref(), got, "{at} {mode}");
            dies(process, at);

            let process = started(&place, None, &[mode]);
            assert_eq!(read(&place, "cpu0"), then, "{at} {mode}");
            let stats = fs::read_to_string(place.path(".relay/channels/cpu/stats")).unwrap();
            for number in ["bytes", "read_bytes"] {
                assert!(stats.contains(&format!("cpu0.{number} 14\n")), "{at} {mode}: {number} in {stats}");
            }
            ends(process, at);
            place.assert_clean();
        }
    }
}

/// With `--discard` no later daemon brings back what was unread; otherwise the next one has it.
#[test]
fn deaths_while_ending() {
    for (at, args, then) in [
        ("end-removed", &["--discard"][..], ""),
        ("end-removed:3", &["--discard"], ""),
        ("end-closed", &["--discard"], ""),
        ("end-closed", &[], "one\n"),
        ("end-frozen", &[], "one\n"),
        ("end-saved", &[], "one\n"),
        ("save-written:6", &[], "one\n"),
        ("end-closed", &["--keep"], "one\n"),
        ("end-saved", &["--keep"], "one\n"),
    ] {
        let place = Place::new();
        let mut process = started(&place, Some(at), args);
        send(place.point(), "cpu", b"one\n");
        send(place.point(), "app/log", b"two\n");
        assert_eq!(read(&place, "app/log0"), "two\n", "{at}");
        // The kernel closes files a moment after their programs have; the daemon's end lets go of no channel.
        eventually("the end of a channel", || !place.path("app").exists());
        process.signal(Signal::SIGTERM);
        assert_eq!(exit_code(process.wait()), KILLED, "{at} {args:?}");

        let process = started(&place, None, &[]);
        assert_eq!(read(&place, "cpu0"), then, "{at} {args:?}");
        assert!(!place.path("app").exists(), "{at} {args:?}: read and left by all");
        ends(process, at);
        place.assert_clean();
    }
}

/// A channel that was read goes, one that was not stays, wherever the daemon dies in between.
#[test]
fn deaths_while_some_channels_go() {
    for at in ["end-closed", "end-frozen", "save-written:6", "end-saved"] {
        let place = Place::new();
        let args = ["--channel=read", "--channel=unread"];
        let process = started(&place, Some(at), &args);
        send(place.point(), "unread", b"one\n");
        process.signal(Signal::SIGTERM);
        dies(process, at);
        let process = started(&place, None, &[]);
        assert_eq!(read(&place, "unread0"), "one\n", "{at}");
        ends(process, at);
        place.assert_clean();
    }
}

/// A daemon that dies while it takes over what was left under a former path of its mount point.
#[test]
fn deaths_while_a_former_path_is_taken_over() {
    for at in ["moved-found", "moved-exchanged", "adopt-read", "adopt-opened"] {
        let mut place = Place::named("old/relay");
        let mut first = started(&place, None, &[]);
        send(place.point(), "cpu", b"one\n");
        first.signal(Signal::SIGTERM);
        assert_eq!(exit_code(first.wait()), 0);
        place.rename("new/relay");
        dies(daemon(&place, Some(at), &[]), at);
        let process = started(&place, None, &[]);
        assert_eq!(read(&place, "cpu0"), "one\n", "{at}");
        ends(process, at);
        place.assert_clean();
    }
}

/// `kill -9` and a start right behind it: who has much memory is not gone yet then, but is not taken for somebody at work.
#[test]
fn a_daemon_that_is_dying_is_waited_for() {
    let place = Place::new();
    let args = ["--subbuf-size=16M", "--n-subbufs=4", "--max-memory=1G"];
    let mut daemon = place.start(&args);
    send(place.point(), "cpu", b"one\n");
    for _ in 0..8 {
        daemon.signal(Signal::SIGKILL);
        let next = place.start(&args);
        assert_eq!(daemon.wait(), KILLED);
        daemon = next;
    }
    assert_eq!(read(&place, "cpu0"), "one\n");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    place.assert_clean();
}
