//! "Unmounts what is ours and nothing else": by its numbers alone a mount cannot be told from one that came later.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use relayfs_tests::{Mount, eventually, is_mounted};
use tempfile::TempDir;

use crate::turn;

/// Mounts that are made at once, for one of them to get the numbers.
const OTHERS: usize = 16;

/// Somebody else's mount.
struct Tmpfs<P: AsRef<Path>>(P);

impl<P: AsRef<Path>> Tmpfs<P> {
    fn on(dir: P) -> Tmpfs<P> {
        mount(Some("other"), dir.as_ref(), Some("tmpfs"), MsFlags::empty(), Some("size=4k"))
            .expect("mounting a tmpfs: this test takes root");
        Tmpfs(dir)
    }
}

impl Tmpfs<TempDir> {
    fn new() -> Tmpfs<TempDir> {
        Tmpfs::on(tempfile::tempdir().expect("a temporary directory"))
    }
}

impl<P: AsRef<Path>> Drop for Tmpfs<P> {
    fn drop(&mut self) {
        let _ = umount2(self.0.as_ref(), MntFlags::MNT_DETACH);
    }
}

/// Number and device of the mount on a path.
fn numbers(point: &Path) -> Option<(String, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    let mut lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines.find(|fields| Some(fields[4]) == point.to_str())?;
    Some((line[0].to_owned(), line[2].to_owned()))
}

/// A mount that was taken off while its daemon could not notice, and the numbers that it had.
fn unmounted_and_standing_still() -> (Mount, Option<(String, String)>) {
    let mut ours = Mount::new(&[]);
    let gone = numbers(ours.point());
    ours.daemon().signal(Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", ours.daemon().pid());
    eventually("a daemon that stands still", || fs::read_to_string(&stat).unwrap().contains(") T "));
    // Not umount(8), which would ask the daemon.
    umount2(ours.point(), MntFlags::UMOUNT_NOFOLLOW).expect("unmounting: this test takes root");
    (ours, gone)
}

/// The kernel gives mounts and devices the lowest numbers that are free. So whoever mounts between the end of a daemon's
/// mount and the end of the daemon may get both of its numbers; the daemon must not take that mount for its own.
#[test]
fn who_gets_the_numbers_of_a_mount_that_is_gone_keeps_his_mount() {
    let _turn = turn();
    // Other tests mount as well, and may be faster.
    eventually("a mount with the numbers of one that is gone", || {
        let (mut ours, gone) = unmounted_and_standing_still();
        let others: Vec<Tmpfs<TempDir>> = (0..OTHERS).map(|_| Tmpfs::new()).collect();
        let met = others.iter().any(|other| numbers(other.0.path()) == gone);
        ours.daemon().signal(Signal::SIGCONT);
        assert!(ours.daemon().wait().success());
        assert!(others.iter().all(|other| is_mounted(other.0.path())), "a mount of somebody else is gone");
        met
    });
}

/// The same on the very mount point, where another user's daemon may be mounted next: that one is alive.
#[test]
fn who_mounts_next_in_the_same_place_keeps_his_mount() {
    let _turn = turn();
    eventually("a mount with the numbers of one that is gone", || {
        let (mut ours, gone) = unmounted_and_standing_still();
        let next = Tmpfs::on(ours.point().to_owned());
        let met = numbers(&next.0) == gone;
        ours.daemon().signal(Signal::SIGCONT);
        assert!(ours.daemon().wait().success());
        assert!(is_mounted(&next.0), "the next mount is gone");
        met
    });
}
