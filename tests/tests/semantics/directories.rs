//! Channels that mkdir(1) makes and rmdir(1) removes, and those that a daemon with `--create-on-write` makes.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Output;

use relay_producer::Channel;
use relayfs_tests::users::{GROUP, NOBODY, by_user, gid_of, mount_for_all, program_for_all};
use relayfs_tests::{Mount, complaint, eventually, program, run, stdout_of, text, tool};

/// Runs a tool on a directory below `.relay/channels`.
fn tool_on(mount: &Mount, line: &[&str], name: &str) -> Output {
    let mut command = tool(line[0], "coreutils");
    run(command.args(&line[1..]).arg(mount.path(".relay/channels").join(name)))
}

#[track_caller]
fn assert_refused(output: &Output, why: &str) {
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(why), "{output:?}");
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[test]
fn mkdir_makes_a_channel_and_rmdir_removes_it() {
    let mount = Mount::new(&["--n-subbufs=3", "--subbuf-size=4K"]);
    fs::create_dir(mount.control("log", "")).unwrap();
    assert_eq!(fs::read_to_string(mount.control("log", "n_subbufs")).unwrap(), "3\n");
    assert_eq!(fs::create_dir(mount.control("log", "")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    // No client holds it, and it stays. Whether the daemon has seen the end of the connection yet is no matter.
    mount.send_to("log", 0, &[b"one"]);
    assert_refused(&tool_on(&mount, &["rmdir"], "log"), "not empty");
    assert_eq!(mount.read("log0"), b"one");
    let open = Channel::open(mount.point(), "log").unwrap();
    assert_refused(&tool_on(&mount, &["rmdir"], "log"), "busy");
    drop(open);
    eventually("the end of the connection", || fs::remove_dir(mount.control("log", "")).is_ok());
    assert!(!exists(&mount.path("log0")) && !exists(&mount.control("log", "")));
    let stats = fs::read_to_string(mount.path(".relay/stats")).unwrap();
    assert!(stats.contains("channels 1\n") && stats.contains("gone.bytes 3\n"), "{stats}");
}

#[test]
fn nested_names_are_made_by_mkdir_with_parents() {
    let mount = Mount::new(&[]);
    let made = tool_on(&mount, &["mkdir", "-p"], "app/web/log");
    assert!(made.status.success(), "{made:?}");
    assert!(exists(&mount.path("app/web/log0")) && exists(&mount.control("app/web/log", "stats")));
    assert!(!exists(&mount.path("app0")), "the name is a directory now");
    // Beside it, in a directory that is there.
    fs::create_dir(mount.control("app/other", "")).unwrap();
    assert_refused(&tool_on(&mount, &["rmdir"], "app"), "not empty");
    // A channel with data does not become a directory, nor one of the command line.
    fs::create_dir(mount.control("full", "")).unwrap();
    fs::write(mount.control("full", "msg"), "x").unwrap();
    assert_eq!(fs::create_dir(mount.control("full/log", "")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::create_dir(mount.control("cpu/log", "")).unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(fs::remove_dir(mount.control("cpu", "")).unwrap_err().raw_os_error(), Some(libc::EPERM));
    let refused = fs::remove_dir(mount.control("full", "snapshot")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    for name in [".hidden", "a b", "cpu7"] {
        assert!(fs::create_dir(mount.control(name, "")).is_err(), "{name}");
    }
    assert_eq!(fs::create_dir(mount.path("elsewhere")).unwrap_err().kind(), ErrorKind::PermissionDenied);
}

/// As for channels that producers make: those that may send, within the same limits.
#[test]
fn mkdir_is_for_users_that_may_send() {
    let adm = gid_of(GROUP);
    let mount = mount_for_all(&["--group", GROUP, "--max-channels=5"]);
    let by = |uid, gid, line: &str| {
        run(by_user(uid, gid, "/bin/sh").args(["-c", line]).current_dir(mount.path(".relay/channels")))
    };
    assert_refused(&by(NOBODY, NOBODY, "mkdir a"), "Permission denied");
    assert!(by(NOBODY, adm, "mkdir a").status.success());
    assert_refused(&by(1000, adm, "rmdir a"), "not permitted");
    assert!(by(NOBODY, adm, "mkdir b").status.success());
    // Of the rest, a user gets no more than it leaves.
    assert_refused(&by(NOBODY, adm, "mkdir c"), "No space left");
    assert!(by(1000, adm, "mkdir c").status.success());
    assert!(by(NOBODY, adm, "rmdir a").status.success());
    assert!(by(0, 0, "rmdir b c").status.success());
}

#[test]
fn producers_create_channels_where_the_daemon_says_so() {
    let mount = mount_for_all(&["--create-on-write", "--socket-mode=0666", "--n-subbufs=2"]);
    let producer = |name: &str, message: &str| {
        let mut command = by_user(NOBODY, NOBODY, program_for_all("relay-producer"));
        run(command.arg("-m").arg(mount.point()).args(["-c", name, "-n", message]))
    };
    let written = producer("app/log", "hello");
    assert!(written.status.success(), "{written:?}");
    assert_eq!(fs::read_to_string(mount.control("app/log", "n_subbufs")).unwrap(), "2\n");
    // A reader makes none.
    let mut recorder = tool("timeout", "coreutils");
    recorder.arg("60").arg(program("audience")).arg("record").arg("-m").arg(mount.point());
    recorder.args(["-c", "none", "--duration=100ms", "-o"]).arg(mount.beside("rec"));
    run(&mut recorder);
    assert!(!exists(&mount.control("none", "")));
    let mut reader = std::process::Command::new(program("audience"));
    assert_eq!(text(&stdout_of(reader.arg("-m").arg(mount.point()).args(["-c", "app/log"]))), "hello");

    let without = Mount::new(&[]);
    let mut command = std::process::Command::new(program("relay-producer"));
    let refused = run(command.arg("-m").arg(without.point()).args(["-c", "log", "hello"]));
    assert!(complaint("relay-producer", &refused).contains("use --create to create it"));
}
