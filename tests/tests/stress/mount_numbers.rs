//! The daemon unmounts only its own mount: by its numbers alone, a mount looks like a later one.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use relayfs_tests::stopped::stands_still;
use relayfs_tests::{Mount, eventually, is_mounted};
use tempfile::TempDir;

use crate::turn;

/// Number of mounts that are made at once, so that one gets the numbers.
const OTHERS: usize = 16;

/// The mount of another program.
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

/// Returns number and device of the mount on a path.
fn numbers(point: &Path) -> Option<(String, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    let mut lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines.find(|fields| Some(fields[4]) == point.to_str())?;
    Some((line[0].to_owned(), line[2].to_owned()))
}

/// Returns a mount that was unmounted while its daemon was stopped, and the numbers that it had.
fn unmounted_and_standing_still() -> (Mount, Option<(String, String)>) {
    let mut ours = Mount::new(&[]);
    let gone = numbers(ours.point());
    ours.daemon().signal(Signal::SIGSTOP);
    stands_still(ours.daemon().pid());
    // Not umount(8), which would send the daemon a request.
    umount2(ours.point(), MntFlags::UMOUNT_NOFOLLOW).expect("unmounting: this test takes root");
    (ours, gone)
}

/// The kernel gives mounts and devices the lowest free numbers. So a mount made between the unmount and the end of
/// the daemon may get both numbers. The daemon must not take that mount for its own.
#[test]
fn mount_with_reused_numbers_is_left_alone() {
    let _turn = turn();
    // Other tests mount too, and may get the numbers.
    eventually("a mount with the numbers of one that is gone", || {
        let (mut ours, gone) = unmounted_and_standing_still();
        let others: Vec<Tmpfs<TempDir>> = (0..OTHERS).map(|_| Tmpfs::new()).collect();
        let met = others.iter().any(|other| numbers(other.0.path()) == gone);
        ours.daemon().signal(Signal::SIGCONT);
        assert!(ours.daemon().wait().success());
        assert!(others.iter().all(|other| is_mounted(other.0.path())), "a mount of another program is gone");
        met
    });
}

/// The next mount is on the same mount point, where another user's daemon may run.
#[test]
fn next_mount_on_same_point_is_left_alone() {
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
