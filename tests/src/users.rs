//! Commands of other users; the tests run as root.

use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Group;
use tempfile::TempDir;

use crate::{Mount, private_shell, program, run, stdout_of, text, tool};

/// A group that every Debian has.
pub const GROUP: &str = "adm";
/// A user that is in no other group.
pub const USER: u32 = 1000;
/// The user nobody, without any rights of root.
pub const NOBODY: u32 = 65534;

/// The number of a group.
#[track_caller]
pub fn gid_of(group: &str) -> u32 {
    Group::from_name(group).expect("the system's database").expect("a group of every Debian").gid.as_raw()
}

/// Mounts as root in a directory that every user may enter.
#[track_caller]
pub fn mount_for_all(args: &[&str]) -> Mount {
    let mount = Mount::new(args);
    open_to_all(&mount);
    mount
}

/// Lets every user enter the directory of a mount.
#[track_caller]
pub fn open_to_all(mount: &Mount) {
    fs::set_permissions(mount.beside(""), fs::Permissions::from_mode(0o755)).expect("a directory of ours");
}

/// A program of ours by a path that every user may use, wherever the workspace is.
pub fn program_for_all(name: &str) -> PathBuf {
    // Left open, because child processes find the program through the descriptor.
    let fd = File::open(program(name)).expect("a program").into_raw_fd();
    format!("/proc/self/fd/{fd}").into()
}

/// Copies these files into a directory in which every user may read and run them.
#[track_caller]
pub fn copied_for_all(files: &[PathBuf]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a directory of ours");
    // By another process: a file that this process or its child has open for writing cannot be executed.
    stdout_of(tool("install", "coreutils").args(["-m", "755", "-t"]).arg(dir.path()).args(files));
    dir
}

/// A command that a user runs with only this group.
pub fn by_user(uid: u32, gid: u32, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.uid(uid).gid(gid).env_remove("XDG_RUNTIME_DIR");
    command
}

/// Runs a script as root in a place where the user nobody may use FUSE.
///
/// It has a private /dev/fuse of mode 0666, as udev makes it. `$nobody COMMAND` runs a command as that user. The
/// programs are in PATH. The script runs in a directory of root, with a directory `relay` that belongs to that user.
#[track_caller]
pub fn where_users_mount(script: &str) -> Vec<String> {
    tool("fusermount3", "fuse3");
    tool("setpriv", "util-linux");
    let setup = r#"
        cd "$1"; chmod 755 .; shift
        mkdir bin dev relay; chown 65534:65534 relay
        mount -t tmpfs tmpfs bin; cp "$@" bin; PATH=$PWD/bin:$PATH
        mount -t tmpfs tmpfs dev; mknod -m 666 dev/fuse c 10 229; mount --bind dev/fuse /dev/fuse
        : >fuse.conf; mount --bind fuse.conf /etc/fuse.conf
        unset XDG_RUNTIME_DIR
        nobody="setpriv --reuid=65534 --regid=65534 --clear-groups"
        set +e; exec 2>&1
    "#;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = private_shell(&format!("{setup}\n{script}"));
    command
        .arg(dir.path())
        .args(["relayfsd", "relay-producer", "audience", "librelayfs_preload.so"].map(program));
    let output = run(&mut command);
    assert!(output.status.success(), "{output:?}");
    // The path of the temporary directory differs in each run.
    let printed = text(&output.stdout).replace(dir.path().to_str().expect("ASCII"), "DIR");
    printed.lines().map(str::to_owned).collect()
}
