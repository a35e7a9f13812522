//! A snapshot is copied while file operations continue: the copy is held up, and a single thread that serves files
//! still answers the others.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, TransportChoice};
use relayfs_tests::background::Place;
use relayfs_tests::{Process, eventually, exit_code, mortal_daemon, run, text, tool};

/// Requests to the daemon meanwhile, and a part of each answer.
const MEANWHILE: &[(&str, &str)] = &[
    ("stat -c %s .relay/channels/cpu/snapshot/cpu0", "6000"),
    ("ls -l .relay/channels/cpu/snapshot", "6000"),
    ("stat -c %s cpu0", "6000"),
    ("cat .relay/stats", "channels 1"),
    ("cat .relay/channels/cpu/stats", "cpu0.bytes 6000"),
    ("ls", "cpu0"),
    ("echo more > .relay/channels/cpu/msg && echo sent", "sent"),
    ("head -c 3 cpu0", "mmm"),
];

/// Starts a daemon that waits at a place as long as the file `hold` is there.
fn held_at(place: &Place, point: &str, args: &[&str]) -> Process {
    let mut command = Command::new(mortal_daemon());
    command.args(["-f", "--subbuf-size=4096", "--n-subbufs=8"]).args(args).arg(place.point());
    command.env("RELAYFSD_HOLD_AT", format!("{point}:{}", place.beside("hold").display()));
    let mut daemon = Process::start(command.stdin(Stdio::null()).stderr(Stdio::piped()));
    eventually("the mount", || {
        assert!(daemon.is_running(), "relayfsd ended: {}", daemon.stderr());
        place.path(".relay/version").exists()
    });
    daemon
}

fn write(place: &Place, channel: &str, messages: &[&[u8]]) {
    let builder = Channel::builder(place.point(), channel).transport(TransportChoice::Socket);
    let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
    builder.open().unwrap().write_batch(messages, options).unwrap();
}

#[test]
fn other_files_are_served_while_a_snapshot_is_copied() {
    let place = Place::new();
    let hold = place.beside("hold");
    fs::write(&hold, "").unwrap();
    let mut daemon = held_at(&place, "snapshot-part", &["-s"]);
    write(&place, "cpu", &[&[b'm'; 3000], &[b'm'; 3000]]);

    let path = place.path(".relay/channels/cpu/snapshot/cpu0");
    let look = || {
        let path = path.clone();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut file = File::open(path).expect("a snapshot");
            file.read_to_end(&mut bytes).expect("reading a snapshot");
            (bytes, file)
        })
    };
    let looking = [look(), look()];
    eventually("the copy's beginning", || place.beside("hold.reached").exists());
    for (script, part) in MEANWHILE {
        let mut shell = tool("timeout", "coreutils");
        let output = run(shell.args(["60", "sh", "-euc", script]).current_dir(place.point()));
        let said = text(&output.stdout);
        assert!(exit_code(output.status) == 0, "{script}: {}: {}", output.status, text(&output.stderr));
        assert!(said.contains(part), "{script}: {said}");
    }
    assert!(looking.iter().all(|looking| !looking.is_finished()), "there is no copy yet");
    fs::remove_file(&hold).unwrap();
    let seen = looking.map(|looking| looking.join().unwrap());
    assert!(seen[0].0 == seen[1].0, "both share one");
    assert!(!seen[0].0.is_empty() && fs::metadata(&path).unwrap().len() == seen[0].0.len() as u64);
    drop(seen);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(exit_code(daemon.wait()), 0, "{}", daemon.stderr());
}

/// A program that looks, writes and looks again finds what it wrote, also if RELEASE of the first look comes late.
#[test]
fn closed_copy_is_not_shown_again() {
    let place = Place::new();
    let (hold, reached) = (place.beside("hold"), place.beside("hold.reached"));
    let mut daemon = held_at(&place, "release", &["--channel=app:timed"]);
    for file in ["snapshot/cpu0", "trace", "take/cpu0"] {
        let path = place.path(&format!(".relay/channels/app/{file}"));
        write(&place, "app", &[b"first"]);
        let mut first = File::open(&path).unwrap();
        let before = first.metadata().unwrap().len();
        first.read_exact(&mut [0]).unwrap();
        fs::write(&hold, "").unwrap();
        drop(first);
        eventually("the end of the first look", || reached.exists());
        fs::remove_file(&reached).unwrap();
        write(&place, "app", &[b"second"]);
        let (looker, is_over) = (nix::unistd::gettid(), AtomicBool::new(false));
        let after = thread::scope(|scope| {
            scope.spawn(|| {
                let stat = || fs::read_to_string(format!("/proc/self/task/{looker}/stat")).unwrap();
                eventually("the second look", || is_over.load(Ordering::Relaxed) || !stat().contains(") R "));
                fs::remove_file(&hold).unwrap();
            });
            let after = fs::read(&path).unwrap();
            is_over.store(true, Ordering::Relaxed);
            after
        });
        // Two that are held would be all of the daemon's threads.
        eventually("the end of the second look", || reached.exists());
        fs::remove_file(&reached).unwrap();
        assert!(after.len() as u64 > before, "{file}: {before} bytes, then {}", after.len());
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(exit_code(daemon.wait()), 0, "{}", daemon.stderr());
}
