//! A daemon that dies at each step of starting, of opening and removing channels, of a read, and of ending. The next
//! start is clean, no accepted message is lost, and readers get nothing twice except the one reply in flight.
//!
//! The daemon is a test build that ends itself by SIGKILL at a named place, see `relayfsd/src/process/kill_point.rs`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relay::wire::frame::{Body, Define, HelloReply};
use relay_producer::{BatchOptions, Channel, TransportChoice};
use relayfs_tests::background::Place;
use relayfs_tests::peer::{Peer, hello};
use relayfs_tests::timed;
use relayfs_tests::{Process, eventually, exit_code, mortal_daemon, text};

const KILLED: i32 = 128 + 9;
const ARGS: &[&str] = &["--subbuf-size=4096", "--n-subbufs=4"];

/// Starts a daemon in the foreground that dies at such a place, if one is named.
fn daemon(place: &Place, at: Option<&str>, args: &[&str]) -> Process {
    let mut command = Command::new(mortal_daemon());
    command.arg("-f").args(ARGS).args(args).arg(place.point()).stdin(Stdio::null()).stderr(Stdio::piped());
    Process::start(command.envs(at.map(|at| ("RELAYFSD_KILL_AT", at))))
}

/// Starts such a daemon, and waits until it is mounted.
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

/// Writes to CPU 0, over the socket.
fn send(point: &Path, channel: &str, message: &[u8]) {
    let builder = Channel::builder(point, channel).create(true).transport(TransportChoice::Socket);
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    let counts = builder.open().unwrap().write_batch([message], options).unwrap();
    assert_eq!(counts.written, 1);
}

fn read(place: &Place, file: &str) -> String {
    text(&fs::read(place.path(file)).unwrap())
}

/// Returns the files in the state directory, without the lock.
fn files(place: &Place) -> Vec<PathBuf> {
    let entries = fs::read_dir(place.state_dir()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !path.ends_with("lock")).collect()
}

/// Leaves a killed daemon's two channels with unread data.
fn killed(place: &Place) {
    let process = started(place, None, &[]);
    send(place.point(), "cpu", b"one\n");
    send(place.point(), "app/log", b"two\n");
    process.signal(Signal::SIGKILL);
    dies(process, "any time");
}

/// Checks the daemon after all deaths: all data is there once, and nothing else.
fn assert_next_daemon_has_everything(place: &Place, at: &str) {
    let process = started(place, None, &[]);
    assert_eq!(read(place, "cpu0"), "one\n", "{at}");
    assert_eq!(read(place, "app/log0"), "two\n", "{at}");
    send(place.point(), "cpu", b"new\n");
    assert_eq!(read(place, "cpu0"), "new\n", "{at}");
    ends(process, at);
    place.assert_clean();
}

#[test]
fn death_while_starting_loses_nothing() {
    // At each save of the state file, and at each channel.
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
        assert_next_daemon_has_everything(&place, at);
    }
}

/// Deaths one after another, each at the next step.
#[test]
fn deaths_one_after_another_lose_nothing() {
    let place = Place::new();
    killed(&place);
    for at in ["adopt-read", "adopt-channel", "adopt-cleared", "save-written", "adopt-opened", "started"] {
        dies(daemon(&place, Some(at), &[]), at);
    }
    assert_next_daemon_has_everything(&place, "all");
}

/// The first start leaves nothing that the next could take for channels.
#[test]
fn death_at_first_start_leaves_nothing() {
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

/// A quarantine is complete, however many starts it takes, and the sound channel continues.
#[test]
fn death_while_channel_is_quarantined_loses_nothing() {
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
        assert!(said.contains("channel app/log: quarantined in "), "{at}: {said}");
        assert!(place.state_dir().exists(), "what is set aside is people's to remove");
        fs::remove_dir_all(place.state_dir()).unwrap();
        place.assert_clean();
    }
}

/// Everything is quarantined, because there is no state file.
#[test]
fn death_while_everything_is_quarantined_loses_nothing() {
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
fn death_while_channel_is_opened_loses_nothing() {
    // The first three saves of the state file are the start's.
    for at in ["open-made:2", "save-written:4", "open-named:2"] {
        let place = Place::new();
        let process = started(&place, Some(at), &[]);
        send(place.point(), "cpu", b"one\n");
        Channel::builder(place.point(), "app/log").create(true).open().expect_err("the daemon died of it");
        dies(process, at);

        let process = started(&place, None, &[]);
        assert_eq!(read(&place, "cpu0"), "one\n", "{at}");
        assert!(!place.path("app").exists(), "{at}: no client was told of the channel");
        assert_eq!(files(&place).len(), 2 + n_cpus(&place), "{at}: {:?}", files(&place));
        ends(process, at);
        place.assert_clean();
    }
}

#[test]
fn death_while_channel_goes_loses_nothing() {
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

/// A daemon dies during a read. The next daemon's first read has the data.
#[test]
fn death_during_read_brings_one_reply_twice_at_most() {
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

/// With `--discard` no later daemon has the unread data. Otherwise the next one has it.
#[test]
fn death_while_ending_keeps_unread_data() {
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
        // The kernel closes files a moment after their programs. The daemon's end removes no channel.
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

/// A channel that was read goes, an unread one stays, wherever the daemon dies in between.
#[test]
fn death_while_some_channels_go_keeps_unread_ones() {
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

/// The daemon dies while it takes over the channels of a former path of its mount point.
#[test]
fn death_while_former_path_is_taken_over_loses_nothing() {
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

/// `kill -9` and a start right after it: the killed daemon with much memory still exists, but does not count as
/// running.
#[test]
fn start_waits_for_dying_daemon() {
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

/// A definition that is half written when the daemon dies had no answer. The next daemon has the ones before it.
#[test]
fn half_written_definition_does_not_count() {
    for before in 1..4 {
        let place = Place::new();
        let at = format!("journal-half:{}", before + 1);
        let args = ["--channel=timed:timed:global"];
        let process = started(&place, Some(&at), &args);
        let connect = || {
            let peer = Peer::connect_to(&fs::read_link(place.path(".relay/socket")).unwrap());
            peer.ask::<HelloReply>(&hello(1, 1)).unwrap();
            let channel = timed::open(&peer, "timed", "timed").channel;
            (peer, channel)
        };
        let (peer, channel) = connect();
        for n in 0..before {
            assert_eq!(timed::define(&peer, channel, &format!("event {n}"), &[]).unwrap(), 256 + n);
        }
        timed::write(&peer, channel, 0, &[timed::record(256, 1, b"")]).unwrap();
        peer.send(&define_frame(channel));
        dies(process, &at);
        let process = started(&place, None, &args);
        let (peer, channel) = connect();
        assert_eq!(timed::define(&peer, channel, "event 0", &[]).unwrap(), 256);
        assert_eq!(timed::define(&peer, channel, "another", &[]).unwrap(), 256 + before);
        let trace = fs::read_to_string(place.path(".relay/channels/timed/trace")).unwrap();
        assert!(trace.ends_with(" app::db: event 0\n"), "{trace}");
        drop(peer);
        ends(process, &at);
    }
}

fn define_frame(channel: u32) -> Vec<u8> {
    let (name, target, file) = (&b"the last"[..], &b""[..], &b""[..]);
    Define { channel, level: 1, line: 1, name, target, file, fields: Vec::new() }.frame(0, 3)
}
