//! A program inherits blocked signals and an ignored SIGCHLD. relayfsd mounts all the same, for root and for users,
//! whose fusermount3 it waits for, and ends by SIGTERM.

use std::process::Stdio;

use nix::sys::signal::Signal;
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{Mount, is_mounted, tool};

/// Options of env(1).
const INHERITED: [&str; 2] = ["--ignore-signal=CHLD", "--block-signal"];

#[test]
fn daemon_of_root_mounts_and_ends() {
    let mut mount = Mount::prepared(&[], |relayfsd| {
        let mut command = tool("env", "coreutils");
        command.args(INHERITED).arg(relayfsd.get_program()).args(relayfsd.get_args());
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        *relayfsd = command;
        relayfsd
    });
    assert!(mount.end(Signal::SIGTERM).success());
    assert!(!is_mounted(mount.point()));
}

#[test]
fn daemon_of_user_mounts_and_ends() {
    let script = r#"
        $nobody env INHERITED relayfsd relay; echo "$?, $($nobody cat relay/.relay/version | cut -d ' ' -f 1)"
        daemon=$(grep -lx relayfsd /proc/[0-9]*/comm | cut -d / -f 3)
        kill -TERM $daemon; timeout 60 tail -f /dev/null -s 0.01 --pid=$daemon; echo $?
        grep -q " $PWD/relay " /proc/self/mountinfo && echo mounted || echo gone
    "#;
    assert_eq!(
        where_users_mount(&script.replace("INHERITED", &INHERITED.join(" "))),
        ["0, relayfs", "0", "gone"]
    );
}
