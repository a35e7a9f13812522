//! A trusted process truncates a channel's files. That channel is broken: each access reports it, and `reset`
//! recreates it. The daemon and its other channels continue, whatever a client asks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use relay::layout::state_file::{STATE_FILE, StateFile};
use relay_producer::{BatchOptions, Channel, TransportChoice, Wait};
use relayfs_tests::{DEADLINE, Mount, eventually, exit_code, run, text, tool};

/// Commands that make the daemon access a channel's files. They may fail, but none may hang.
const LOOKS: &[&str] = &[
    "cat evil0",
    "dd if=evil0 bs=4096 skip=1",
    "python3 -c 'import os, fcntl; f = os.open(\"evil0\", os.O_RDONLY); fcntl.fcntl(f, fcntl.F_SETFL, os.O_DIRECT); r, w = os.pipe(); os.splice(f, w, 4096)'",
    "cat .relay/channels/evil/map/cpu0",
    "echo message >.relay/channels/evil/msg",
    "cat .relay/channels/evil/stats",
    "cat .relay/channels/evil/dropped",
    "cat .relay/channels/evil/snapshot/cpu0",
    "cat .relay/channels/evil/control",
    "echo 1 >.relay/channels/evil/flush",
    "echo 0 1 >.relay/channels/evil/consumed/cpu0",
    "cat .relay/channels/evil/consumed/cpu0",
];
/// Commands that do not depend on the buffers' contents, and succeed.
const HARMLESS: &[&str] =
    &["ls -l evil0 evil1 .relay/channels/evil/snapshot", "cat .relay/channels/evil/subbuf_size"];

/// A mount with a healthy channel, and one with truncated files.
struct Scene {
    mount: Mount,
    state: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(mode: &str, more: &[&str]) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let evil = format!("evil:subbuf-size=8K:n-subbufs=4:{mode}");
        let mut args =
            vec!["--state-dir", state.to_str().unwrap(), "--channel", "good", "--channel", evil.as_str()];
        args.extend(more);
        let mount = Mount::new(&args);
        Scene { mount, state, _dir: dir }
    }

    /// Opens the channel's file of this kind.
    fn file(&self, suffix: &str) -> File {
        let path = file_of(&self.state, suffix);
        File::options().read(true).write(true).open(path).expect("a file of a channel")
    }

    /// Fills all sub-buffers.
    fn fill(&self) {
        for cpu in 0..2 {
            self.mount.send_to("evil", cpu, &[&[b'm'; 6000][..]; 4]);
        }
    }

    /// Recreates the channel, and checks that it works.
    fn renew(&self) {
        self.mount.poke("evil", "reset");
        self.mount.send_to("evil", 0, &[b"again"]);
        assert_eq!(self.mount.read("evil0"), b"again");
    }

    fn assert_others_unharmed(&mut self) {
        assert!(self.mount.daemon().is_running());
        self.mount.send_to("good", 0, &[b"unharmed"]);
        assert_eq!(self.mount.read("good0"), b"unharmed");
        assert_eq!(self.mount.stats("good")["total.corrected"], 0);
    }

    /// Runs a shell command in the mount. The command must end by itself.
    fn look(&self, look: &str) -> (bool, String) {
        let mut command = tool("timeout", "coreutils");
        let output = run(command.args(["60", "sh", "-c", look]).current_dir(self.mount.point()));
        let code = exit_code(output.status);
        assert!(code < 100, "{look}: {code}");
        (code == 0, text(&output.stderr))
    }
}

fn file_of(state: &Path, suffix: &str) -> PathBuf {
    let entries = StateFile::parse(&fs::read_to_string(state.join(STATE_FILE)).unwrap()).unwrap().channels;
    let evil = entries.iter().find(|entry| entry.name.as_str() == "evil").expect("the channel");
    state.join(format!("{}.{suffix}", evil.id))
}

/// How files are truncated.
const CUTS: [(&str, u64); 5] =
    [("data0", 0), ("data0", 4096), ("data0", 16 << 10), ("control", 0), ("control", 4096)];

#[test]
fn access_to_truncated_channel_fails_until_reset() {
    tool("python3", "python3");
    for mode in ["no-overwrite", "overwrite"] {
        let mut scene = Scene::new(mode, &[]);
        for (file, len) in CUTS {
            for look in LOOKS {
                scene.fill();
                scene.file(file).set_len(len).unwrap();
                let (done, said) = scene.look(look);
                let told = said.contains("Input/output error") || said.contains("Errno 5");
                assert!(!done && told, "{mode} {file} {len} {look}: {said}");
                for look in HARMLESS {
                    assert!(scene.look(look).0, "{mode} {file} {len}: {look}");
                }
                scene.renew();
            }
            scene.assert_others_unharmed();
        }
        // A longer file does no harm.
        scene.file("data0").set_len(1 << 20).unwrap();
        scene.file("control").set_len(1 << 20).unwrap();
        scene.mount.send_to("evil", 0, &[b"as ever"]);
        assert_eq!(scene.mount.read("evil0"), b"as ever");
        assert!(scene.mount.end(Signal::SIGTERM).success());
        let log = scene.mount.daemon().stderr();
        let broken = log.lines().filter(|line| line.contains("channel evil: broken")).count();
        assert_eq!(broken, CUTS.len() * LOOKS.len(), "one line each: {log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Readers with open files, pollers and producers learn of the damage.
#[test]
fn readers_and_producers_of_truncated_channel_get_errors() {
    for mode in ["no-overwrite", "overwrite"] {
        for (file, len) in CUTS {
            let mut scene = Scene::new(mode, &[]);
            let what = format!("{mode} {file} {len}");
            let mount = &scene.mount;
            let direct = mount.direct_channel("good"); // producers of other channels get no error
            let socket = mount.channel("evil");
            let mut open = File::open(mount.path("evil0")).unwrap();
            let mut positions = File::open(mount.control("evil", "control")).unwrap();
            let mut msg = File::options().write(true).open(mount.control("evil", "msg")).unwrap();
            let other = File::open(mount.path("evil1")).unwrap();
            let waiting = thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let mut fds = [PollFd::new(other.as_fd(), PollFlags::POLLIN)];
                    let n = poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
                    (n, fds[0].revents())
                });
                mount.send_to("evil", 0, &[&[b'm'; 6000][..]; 4]);
                scene.file(file).set_len(len).unwrap();
                // The first bytes may still be whole. A later read finds the damage.
                eventually(&what, || {
                    open.read(&mut [0; 3000]).is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
                });
                waiting.join().unwrap()
            });
            assert_eq!(waiting, (1, Some(PollFlags::POLLERR)), "{what}");
            let is_refused = |result: std::io::Result<usize>| {
                result.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
            };
            assert!(is_refused(positions.read(&mut [0; 100])), "{what}");
            assert!(is_refused(msg.write(b"message")), "{what}");
            assert!(is_refused(open.read_at(&mut [0; 100], 0)), "{what}");
            // The daemon closes the producer's connection, and refuses the channel to its next one.
            let mut said = String::new();
            eventually("a refusal", || {
                said = socket.flush().err().map_or_else(String::new, |error| error.to_string());
                said.contains("is broken")
            });
            assert!(said.contains("; write 1 to "), "{said}");
            let new = Channel::builder(mount.point(), "evil").transport(TransportChoice::Socket).open();
            let said = new.expect_err("a refusal").to_string();
            assert!(said.contains("channel 'evil' is broken"), "{what}: {said}");
            direct.write(b"direct").unwrap();
            direct.sync().unwrap();
            scene.mount.poke("good", "reset");
            scene.assert_others_unharmed();
            scene.renew();
        }
    }
}

/// A waiting batch ends, and the flush timer meets the damage.
#[test]
fn broken_channel_ends_waiting_batch() {
    let mut scene = Scene::new("no-overwrite", &["--flush-interval=5ms"]);
    scene.fill();
    let channel = scene.mount.channel("evil");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
            channel.write_batch([[b'w'; 6000]; 3], options)
        });
        scene.file("control").set_len(0).unwrap();
        // No client accesses the channel, only the daemon's timer.
        eventually("the end of the waiting", || waiting.is_finished());
        let counts = waiting.join().unwrap();
        assert!(counts.as_ref().is_ok_and(|counts| counts.dropped > 0) || counts.is_err(), "{counts:?}");
    });
    scene.assert_others_unharmed();
    scene.renew();
}

/// A broken channel of a producer goes with its last holder. The next producer gets a new channel.
#[test]
fn broken_channel_of_producer_goes_with_last_holder() {
    let scene = Scene::new("no-overwrite", &[]);
    let made = |name| {
        Channel::builder(scene.mount.point(), name).create(true).transport(TransportChoice::Socket).open()
    };
    let first = made("made").unwrap();
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    first.write_batch([b"unread"], options).unwrap();
    let entries = fs::read_to_string(scene.state.join(STATE_FILE)).unwrap();
    let entry = StateFile::parse(&entries).unwrap().channels.into_iter().find(|c| c.name.as_str() == "made");
    let path = scene.state.join(format!("{}.data0", entry.expect("the channel").id));
    File::options().write(true).open(path).unwrap().set_len(0).unwrap();
    let refused = made("made").expect_err("the channel has a holder").to_string();
    assert!(refused.contains("is broken"), "{refused}");
    drop(first);
    eventually("its end", || !scene.mount.control("made", "mode").exists());
    let again = made("made").unwrap();
    assert!(again.created());
}

/// The next daemon quarantines a truncated channel, and continues the others.
#[test]
fn next_daemon_quarantines_truncated_channel() {
    for (file, len) in CUTS {
        let mut scene = Scene::new("no-overwrite", &[]);
        scene.fill();
        scene.mount.send_to("good", 1, &[b"kept"]);
        let path = file_of(&scene.state, file);
        scene.mount.end(Signal::SIGKILL);
        File::options().write(true).open(path).unwrap().set_len(len).unwrap();
        let state = scene.state.to_str().unwrap().to_owned();
        let args = ["--state-dir", &state, "--channel=good", "--channel=evil:subbuf-size=8K:n-subbufs=4"];
        scene.mount.restart(&args);
        assert_eq!(scene.mount.read("good1"), b"kept", "{file} {len}");
        assert_eq!(scene.mount.read("evil0"), b"", "{file} {len}");
        scene.mount.send_to("evil", 0, &[b"again"]);
        assert_eq!(scene.mount.read("evil0"), b"again", "{file} {len}");
        assert!(scene.mount.end(Signal::SIGTERM).success());
        let log = scene.mount.daemon().stderr();
        assert!(log.contains("channel evil: quarantined in "), "{file} {len}: {log}");
    }
}

/// The state file is truncated too.
#[test]
fn next_daemon_quarantines_all_if_state_file_is_truncated() {
    for len in [0, 20, 100] {
        let mut scene = Scene::new("no-overwrite", &[]);
        scene.fill();
        scene.mount.end(Signal::SIGKILL);
        File::options().write(true).open(scene.state.join(STATE_FILE)).unwrap().set_len(len).unwrap();
        let state = scene.state.to_str().unwrap().to_owned();
        scene.mount.restart(&["--state-dir", &state, "--channel=good"]);
        scene.assert_others_unharmed();
    }
}

/// A process truncates and extends files all the time: reads fail or return data, and none hangs.
#[test]
fn reads_return_while_files_shrink_and_grow() {
    let mut scene = Scene::new("no-overwrite", &[]);
    for _ in 0..20 {
        scene.fill();
        let file = scene.file("data0");
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for len in [0, 32 << 10] {
                        file.set_len(len).unwrap();
                    }
                }
            });
            for _ in 0..10 {
                scene.look("cat evil0 || true");
            }
            over.store(true, Ordering::Relaxed);
        });
        scene.mount.poke("evil", "reset");
        scene.assert_others_unharmed();
    }
}
