//! Tools that remember their place in a file: by offset alone, or by inode number and offset. A new stream has other
//! inode numbers, a continued one has the same. An offset that no stream has reached yet consumes nothing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::sys::signal::Signal;
use relayfs_tests::lines::{assert_same, send_lines};
use relayfs_tests::{Mount, exit_code, stdout_of, text, tool};

const ARGS: &[&str] = &["--channel=app/log"];

/// Returns the inode numbers of all files of a channel.
fn inodes(mount: &Mount) -> Vec<u64> {
    let of_log = ["stats", "control", "msg", "snapshot", "snapshot/cpu0", "map/cpu0", "consumed/cpu0", ""];
    let control = of_log.iter().map(|file| mount.control("app/log", file));
    let files = ["cpu0", "cpu1", "app/log0"].map(|file| mount.path(file));
    control.chain(files).map(|path| fs::metadata(path).expect("a file").ino()).collect()
}

#[test]
fn inode_numbers_tell_one_stream_from_the_next() {
    let mut mount = Mount::new(ARGS);
    let first = inodes(&mount);
    assert_eq!(fs::metadata(mount.point()).unwrap().ino(), 1);
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
    mount.restart(&[ARGS, &["--keep"]].concat());
    assert_eq!(inodes(&mount), first, "after a crash the streams continue");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    mount.restart(ARGS);
    assert_eq!(inodes(&mount), first, "kept, they continue");
    // Nothing is unread, so nothing is left for the next daemon.
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    mount.restart(ARGS);
    let next = inodes(&mount);
    assert!(next.iter().all(|inode| !first.contains(inode)), "{first:?} and {next:?}");
    assert_eq!(fs::metadata(mount.point()).unwrap().ino(), 1);
}

/// A log shipper that remembers its offset alone, and comes back to a shorter stream.
#[test]
fn offset_of_an_earlier_stream_consumes_nothing() {
    let mut mount = Mount::new(&[]);
    let earlier = send_lines(&mount, 0..2000);
    assert_eq!(mount.read("cpu0").len(), earlier.len());
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    mount.restart(&[]);
    let content = send_lines(&mount, 0..100);
    let file = File::open(mount.path("cpu0")).unwrap();
    let mut bytes = vec![0; 4096];
    for at in [earlier.len() as u64, 1 << 40] {
        assert_eq!(file.read_at(&mut bytes, at).unwrap(), 0);
    }
    let path = mount.path("cpu0").display().to_string();
    let mut dd = tool("dd", "coreutils");
    let skipped = stdout_of(dd.args([&format!("if={path}"), "bs=1M", "skip=5", "status=none"]));
    assert_eq!(text(&skipped), "");
    let mut tail = tool("tail", "coreutils");
    assert_eq!(text(&stdout_of(tail.args(["-c", "+1000000", &path]))), "");
    assert_eq!(mount.stats("cpu")["cpu0.discarded_bytes"], 0);
    assert_same("what was unread", &mount.read("cpu0"), &content);
}
