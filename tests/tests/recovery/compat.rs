//! The daemon understands the files and protocols of earlier releases. `tests/compat` keeps, for each version of the
//! layout, the state directory of a killed daemon, and for each version of the protocol a recorded session. They are
//! never edited.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use relay::trace::event::id;
use relay::trace::record::Records;
use relay::wire::frame::FRAME_MAX;
use relay::wire::socket::{Socket, find};
use relayfs_tests::{DEADLINE, Mount, exit_code, program, stdout_of, text, workspace};

fn recorded(name: &str) -> PathBuf {
    workspace().join("tests/compat").join(name)
}

/// Copies a recorded state directory, with its permissions.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        fs::copy(&path, to.join(&name)).unwrap();
        fs::set_permissions(to.join(&name), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// The unread data of the channels of layout 1. `cpu0` and `cpu1` have two messages each. Of nine in `plain`, two and
/// two bytes were read, and the ninth was dropped. Of nine in the ring of `app/ring`, the oldest are overwritten, and
/// eight bytes were read. A producer had opened `app/held`.
fn plain() -> String {
    (3..9).map(|n| format!("plain message number {n}\n")).collect::<String>().split_off(2)
}

fn ring() -> String {
    (6..10).map(|n| format!("\0\0\0\0\0\0\0\0message {n} for the ring of the app\n")).collect()
}

#[test]
fn state_directory_of_layout_1_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    copy(&recorded("layout-1"), &state);
    let args = [
        "--state-dir",
        state.to_str().unwrap(),
        "--subbuf-size=64",
        "--n-subbufs=4",
        "--channel=plain:global",
        "--channel=app/ring:global:overwrite:header=8",
    ];
    let mut mount = Mount::new(&args);
    let gone = fs::read_to_string(mount.path(".relay/stats")).unwrap();
    assert!(gone.contains("gone.written 1\n"), "{gone}");
    // The streams continue, and so do their inode numbers: that release had no salt.
    assert_eq!(fs::metadata(mount.path("plain0")).unwrap().ino(), 4 << 56 | 2 << 24);
    assert_eq!(text(&mount.read("plain0")), plain());
    assert_eq!(text(&mount.read("app/ring0")), ring()[8..]);
    assert_eq!(text(&mount.read("app/held0")), "held while unread\n");
    let stats = mount.stats("plain");
    assert_eq!(
        (stats["total.dropped"], stats["total.bytes"], stats["total.read_bytes"]),
        (1, 8 * 23, 8 * 23)
    );
    let n_cpus = (0..).take_while(|cpu| mount.path(&format!("cpu{cpu}")).exists()).count();
    if n_cpus == 2 {
        for cpu in 0..2 {
            let expected = format!("one of cpu {cpu}\ntwo of cpu {cpu}\n");
            assert_eq!(text(&mount.read(&format!("cpu{cpu}"))), expected);
        }
    } else {
        assert!(state.join("quarantine-1/1.control").exists(), "that of a machine with two CPUs");
    }
    assert_eq!(mount.send_to("plain", 0, &[b"new"]).written, 1);
    assert_eq!(text(&mount.read("plain0")), "new");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

/// Earlier releases have counted all bytes of dropped messages in the word that is now for those of other CPUs.
#[test]
fn dropped_bytes_of_earlier_release_are_continued() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    copy(&recorded("layout-1"), &state);
    let control = fs::OpenOptions::new().read(true).write(true).open(state.join("2.control")).unwrap();
    let mut header = [0; 64];
    control.read_exact_at(&mut header, 0).unwrap();
    let block = u64::from_le_bytes(header[56..].try_into().unwrap());
    control.write_all_at(&1000u64.to_le_bytes(), block + 144).unwrap();
    let args = ["--state-dir", state.to_str().unwrap(), "--channel=plain:global"];
    let mut mount = Mount::new(&args);
    assert_eq!(mount.stats("plain")["total.dropped_bytes"], 1000);
    // Two more, which find no room.
    while mount.stats("plain")["total.dropped"] < 3 {
        mount.send_to("plain", 0, &[b"one more"]);
    }
    assert_eq!(mount.stats("plain")["total.dropped_bytes"], 1000 + 2 * 8);
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

#[test]
fn state_directory_of_layout_1_can_be_printed() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    copy(&recorded("layout-1"), &state);
    let look = |channel: &str| {
        let mut command = Command::new(program("audience"));
        text(&stdout_of(command.arg("--state").arg(&state).args(["--channel", channel])))
    };
    assert_eq!(look("plain"), plain());
    assert_eq!(look("app/ring"), ring());
    assert_eq!(look("app/held"), "held while unread\n");
    assert_eq!(look("cpu"), "one of cpu 0\ntwo of cpu 0\none of cpu 1\ntwo of cpu 1\n");
}

/// What the timed channels of layout 1 have unread. A record of `plain` was too big, and records 1 to 3 of the ring are
/// overwritten.
const TIMED_PLAIN: [&str; 3] = [
    "2026-11-29T17:29:50.483227Z cpu0 tid 2646: plain record number 1",
    "2026-11-29T17:29:50.487332Z cpu0 tid 2646: plain record number 2",
    "2026-11-29T17:29:50.491884Z cpu0 tid 2646: plain record number 3",
];
const TIMED_RING: [&str; 6] = [
    "2026-11-29T17:29:50.521661Z cpu0 tid 2646: record 4 of the ring",
    "2026-11-29T17:29:50.521893Z cpu0 tid 2646: record 5 of the ring",
    "2026-11-29T17:29:50.522097Z cpu0 tid 2646: record 6 of the ring",
    "2026-11-29T17:29:50.522336Z cpu0 tid 2646: record 7 of the ring",
    "2026-11-29T17:29:50.522569Z cpu0 tid 2646: record 8 of the ring",
    "2026-11-29T17:29:50.522774Z cpu0 tid 2646: record 9 of the ring",
];

/// The records' lines, without those about losses and about the clock: the machine's clock may be behind the recorded one.
fn records(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.ends_with(" --")).collect()
}

/// The texts of lines: behind time, CPU and thread.
fn texts<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    lines.iter().map(|line| line.split_once(": ").map_or(*line, |(_, text)| text)).collect()
}

#[test]
fn timed_channels_of_layout_1_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    copy(&recorded("layout-1-timed"), &state);
    let args = [
        "--state-dir",
        state.to_str().unwrap(),
        "--channel=plain:timed:global:subbuf-size=4K:n-subbufs=2",
        "--channel=app/ring:timed:global:overwrite:subbuf-size=128:n-subbufs=2",
    ];
    let mut mount = Mount::new(&args);
    let trace = |channel: &str| fs::read_to_string(mount.control(channel, "trace")).unwrap();
    assert_eq!(texts(&records(&trace("plain"))), texts(&TIMED_PLAIN));
    // A record about the clock may have overwritten the older half.
    let ring = trace("app/ring");
    let ring = texts(&records(&ring));
    assert!(texts(&TIMED_RING).ends_with(&ring) && ring.len() >= TIMED_RING.len() / 2, "{ring:?}");
    assert_eq!(mount.stats("plain")["total.too_big"], 1);
    // That release had no levels.
    let level = mount.control("plain", "level");
    assert!(fs::read_to_string(&level).unwrap().starts_with("# no directives"));
    fs::write(&level, "app=info\n").unwrap();
    assert_eq!(fs::read_to_string(&level).unwrap(), "app=info\n");
    fs::write(mount.control("plain", "msg"), "new\n").unwrap();
    let expected = [&texts(&TIMED_PLAIN)[..], &["new"]].concat();
    assert_eq!(texts(&records(&trace("plain"))), expected);
    let bytes = mount.read("plain0");
    let read = Records::new(&bytes).map(Result::unwrap).filter(|record| record.id != id::CLOCK);
    let read: Vec<String> = read.map(|record| text(record.payload)).collect();
    assert_eq!(read, expected);
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

#[test]
fn timed_channels_of_layout_1_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    copy(&recorded("layout-1-timed"), &state);
    let look = |channel: &str| {
        let mut command = Command::new(program("audience"));
        let command = command.arg("--state").arg(&state).args(["--channel", channel]).env("TZ", "UTC");
        text(&stdout_of(command))
    };
    assert_eq!(records(&look("plain")), TIMED_PLAIN);
    assert_eq!(records(&look("app/ring")), TIMED_RING);
}

/// A producer and reader of version 1 of the protocol gets the recorded answers.
#[test]
fn protocol_1_gets_the_recorded_answers() {
    let mount = Mount::new(&["--subbuf-size=64", "--n-subbufs=4", "--channel=plain:global"]);
    let peer = Socket::connect(&find(mount.point()).unwrap(), DEADLINE).unwrap();
    let session = fs::read_to_string(recorded("protocol-1.txt")).unwrap();
    let mut answers = 0;
    for (line, number) in session.lines().zip(1..) {
        if let Some(sent) = line.strip_prefix("> ") {
            let packet: Vec<u8> = pattern(sent).0.into_iter().map(|byte| byte.expect("a byte")).collect();
            peer.send(&packet).unwrap();
        } else if let Some(expected) = line.strip_prefix("< ") {
            let (expected, n_fds) = expected.split_once('+').unwrap_or((expected, "0 descriptors"));
            let (bytes, fds) = receive(&peer);
            let (pattern, open_end) = pattern(expected);
            let fits = (bytes.len() == pattern.len() || open_end && bytes.len() > pattern.len())
                && pattern.iter().zip(&bytes).all(|(expected, byte)| expected.is_none_or(|e| e == *byte));
            assert!(fits, "line {number}: {expected}\n came: {bytes:02x?}, {}", text(&bytes));
            assert_eq!(format!("{} descriptors", fds.len()), n_fds.trim(), "line {number}");
            answers += 1;
        }
    }
    assert_eq!(answers, 17, "not the whole session was played");
}

/// Returns the bytes of a line, and whether more may follow.
fn pattern(line: &str) -> (Vec<Option<u8>>, bool) {
    let open_end = line.contains('*');
    let digits: Vec<char> = line.chars().filter(|c| !c.is_whitespace() && *c != '*').collect();
    let byte = |pair: &[char]| match pair {
        ['.', '.'] => None,
        _ => Some(u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hexadecimal")),
    };
    (digits.chunks(2).map(byte).collect(), open_end)
}

fn receive(peer: &Socket) -> (Vec<u8>, Vec<OwnedFd>) {
    assert!(peer.wait(PollFlags::POLLIN, Some(Instant::now() + DEADLINE)), "an answer in time");
    let mut bytes = vec![0; FRAME_MAX];
    let (len, fds) = peer.receive_with_descriptors(&mut bytes).expect("a packet");
    bytes.truncate(len);
    (bytes, fds)
}
