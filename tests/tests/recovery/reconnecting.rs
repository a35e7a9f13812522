//! Readers outlive their daemons: `audience --follow`, `audience record` and the library continue with the next
//! daemon where they were, wherever in a read the last one died. A recording has nothing twice.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use audience::{ReadError, Reader};
use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, TransportChoice};
use relayfs_tests::audience::{Follower, Recorder};
use relayfs_tests::background::Place;
use relayfs_tests::direct::{is_without_sequences, on_cpu};
use relayfs_tests::{Mount, Process, eventually, exit_code, mortal_daemon, text};

const ARGS: &[&str] = &["--subbuf-size=4096", "--n-subbufs=4"];
const KILLED: i32 = 128 + 9;

fn kill(mount: &mut Mount) {
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), KILLED);
}

/// A daemon in the foreground that dies at a place of `relayfsd/src/process/kill_point.rs`, if one is named.
fn started(place: &Place, at: Option<&str>, args: &[&str]) -> Process {
    let mut command = Command::new(mortal_daemon());
    command.arg("-f").args(ARGS).args(args).arg(place.point()).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::start(command.envs(at.map(|at| ("RELAYFSD_KILL_AT", at))));
    eventually("the mount", || {
        assert!(process.is_running(), "relayfsd ended: {}", process.stderr());
        place.path(".relay/version").exists()
    });
    process
}

/// Writes to CPU 0, over the socket.
fn send(place: &Place, message: &str) {
    let builder = Channel::builder(place.point(), "cpu").transport(TransportChoice::Socket);
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    let counts =
        builder.open().expect("a channel").write_batch([message.as_bytes()], options).expect("writing");
    assert_eq!(counts.written, 1);
}

/// After a crash, and after an end with `--keep`, data from before, meanwhile and afterwards is printed once. The
/// waiting reader prints one line.
#[test]
fn follow_continues_with_next_daemon() {
    for (signal, args) in [(Signal::SIGKILL, &[][..]), (Signal::SIGTERM, &["--keep"])] {
        let args = [ARGS, args].concat();
        let mut mount = Mount::new(&args);
        let follower = Follower::start(mount.point(), &[]);
        let channel = Channel::open(mount.point(), "cpu").expect("a channel");
        let mut expected = String::new();
        for round in 0..3 {
            for daemon in ["with", "without"] {
                if daemon == "without" {
                    mount.end(signal);
                    let said =
                        || follower.said().lines().filter(|line| line.ends_with("; waiting for it")).count();
                    eventually("a word about it", || said() == round + 1);
                }
                // A message over the socket needs a daemon.
                if daemon == "with" || !is_without_sequences() {
                    let message = format!("round {round}, {daemon} a daemon\n");
                    on_cpu(0, || channel.write(message.as_bytes())).expect("writing");
                    expected += &message;
                }
                if daemon == "with" {
                    follower.has_read(&expected);
                    // A daemon that dies before it has noted a read gives its bytes again.
                    eventually("the note of what is read", || mount.is_read("cpu"));
                }
            }
            mount.restart(&args);
            follower.has_read(&expected);
            eventually("a daemon again", || channel.flush().is_ok());
        }
        let said = follower.end();
        assert_eq!(said.lines().count(), 3, "{said}");
        assert_eq!(said.contains("has died"), signal == Signal::SIGKILL, "{said}");
    }
}

/// A daemon dies in a read: the data that it had not replied comes. Of the data that it had, at most the reply in
/// flight comes again.
#[test]
fn follow_prints_one_reply_twice_at_most() {
    for (at, expected) in [
        ("read-found", "one two three four "),
        ("read-replied", "one two three one two three four "),
        ("read-published", "one two three four "),
    ] {
        let place = Place::new();
        let mut dying = started(&place, Some(at), &[]);
        ["one ", "two ", "three "].iter().for_each(|message| send(&place, message));
        let follower = Follower::start(place.point(), &["--cpu=0"]);
        assert_eq!(exit_code(dying.wait()), KILLED, "{at}");
        let mut daemon = started(&place, None, &[]);
        send(&place, "four ");
        follower.has_read(expected);
        follower.end();
        daemon.signal(Signal::SIGTERM);
        daemon.wait();
    }
}

/// A recording has nothing twice: it knows how far it is recorded.
#[test]
fn recording_has_nothing_twice_after_crash() {
    for at in ["read-found", "read-replied", "read-published"] {
        for mode in ["--header=0", "--overwrite"] {
            let place = Place::new();
            let mut dying = started(&place, Some(at), &[mode]);
            ["one ", "two ", "three "].iter().for_each(|message| send(&place, message));
            let mut recorder = Recorder::start(place.point(), &["--cpu=0"]);
            assert_eq!(exit_code(dying.wait()), KILLED, "{at} {mode}");
            let mut daemon = started(&place, None, &[mode]);
            send(&place, "four ");
            eventually("the last message", || text(&recorder.recorded(0)).ends_with("four "));
            assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
            assert_eq!(text(&recorder.recorded(0)), "one two three four ", "{at} {mode}");
            let said = recorder.said();
            assert!(said.contains("cpu0: 19 bytes recorded, nothing lost"), "{at} {mode}: {said}");
            daemon.signal(Signal::SIGTERM);
            daemon.wait();
        }
    }
}

/// A daemon that does not continue the buffers has new ones. The recording skips nothing of those.
#[test]
fn new_buffers_are_recorded_from_their_beginning() {
    let mut mount = Mount::new(ARGS);
    let mut recorder = Recorder::start(mount.point(), &["--cpu=0"]);
    recorder.is_ready();
    mount.send(0, &[&[b'o'; 3000]]);
    eventually("the first part", || recorder.recorded(0).len() == 3000);
    kill(&mut mount);
    let dir = state_dir(&mount);
    fs::rename(&dir, mount.beside("elsewhere"))
        .or_else(|_| fs::remove_dir_all(&dir))
        .expect("no state directory");
    mount.restart(ARGS);
    mount.send(0, &[&[b'n'; 100]]);
    eventually("the second part", || recorder.recorded(0).len() == 3100);
    assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
}

fn state_dir(mount: &Mount) -> PathBuf {
    relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw())
}

/// The library: a reader gives back to the next daemon what it took from the last one, and continues with unread
/// data.
#[test]
fn reader_reopens_with_next_daemon() {
    let mut mount = Mount::new(ARGS);
    for n in 0..3 {
        mount.send(0, &[&[b'0' + n; 3000]]);
    }
    let mut reader = Reader::open_cpu(mount.point(), "cpu", 0).expect("a reader");
    let id = reader.buffers_id().clone();
    assert_eq!(reader.consumed_bytes(0), Some(0));
    let first = reader.next_finished(0).expect("the first sub-buffer");
    assert_eq!((first.number, first.begin, first.len()), (0, 0, 3000));
    kill(&mut mount);
    assert!(matches!(reader.release(0), Err(ReadError::Gone)));
    assert!(matches!(reader.wait(None), Ok(true) | Err(ReadError::Gone)));
    assert!(reader.reopen().is_err(), "there is none yet");
    let second = reader.next_finished(0).expect("what is finished can be taken all the same");
    assert_eq!((second.number, second.begin), (1, 3000));
    assert!(matches!(reader.release(0), Err(ReadError::Gone)));

    mount.restart(ARGS);
    assert!(reader.reopen().expect("the next daemon"), "the same buffers");
    assert!(*reader.buffers_id() == id);
    assert_eq!(mount.stats("cpu")["cpu0.read_subbufs"], 0);
    reader.release(0).expect("no other reader has had them");
    assert_eq!(mount.stats("cpu")["cpu0.read_bytes"], 6000);
    eventually("the daemon's word", || reader.consumed_bytes(0) == Some(6000));
    mount.send(0, &[&[b'3'; 3000]]);
    assert!(reader.wait(None).expect("a ring"));
    assert_eq!(reader.next_finished(0).map(|third| (third.number, third.begin)), Some((2, 6000)));

    // An end that keeps nothing: the buffers are new.
    mount.read("cpu0");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    mount.restart(ARGS);
    assert!(!reader.reopen().expect("the next daemon"), "other buffers");
    assert!(*reader.buffers_id() != id);
    assert!(reader.next_finished(0).is_none());
    mount.send(0, &[&[b'4'; 4000], &[b'5'; 4000]]);
    assert_eq!(reader.next_finished(0).map(|first| (first.number, first.begin)), Some((0, 0)));
    reader.release(0).expect("no other reader reads");
}
