//! Permissions, and the errors of users without them: for root's daemon, with the options that let others in, and for
//! the daemon of a user.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Output;

use relayfs_tests::users::{
    GROUP, NOBODY, USER, by_user, gid_of, mount_for_all, program_for_all, where_users_mount,
};
use relayfs_tests::{Mount, complaint, private_shell, program, run, text, tool};

/// Runs a line of shell in the mount as a user.
fn shell(mount: &Mount, (uid, gid): (u32, u32), line: &str) -> Output {
    run(by_user(uid, gid, "/bin/sh").args(["-c", line]).current_dir(mount.point()))
}

fn send_by(mount: &Mount, uid: u32, gid: u32, message: &str) -> Output {
    let mut producer = by_user(uid, gid, program_for_all("relay-producer"));
    run(producer.arg("-m").arg(mount.point()).args(["--cpu", "0", "-n", message]))
}

fn read_by(mount: &Mount, uid: u32, gid: u32) -> Output {
    run(by_user(uid, gid, program_for_all("audience")).arg("-m").arg(mount.point()))
}

#[track_caller]
fn assert_done(output: &Output, printed: &str) {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(text(&output.stdout), printed);
}

/// Returns mode, owner and group of a path, without following links.
fn access(path: &Path) -> String {
    let status = fs::symlink_metadata(path).unwrap();
    format!("{:04o} {}:{}", status.mode() & 0o7777, status.uid(), status.gid())
}

/// The modes of all files: without options, with `--group`, and with `--socket-mode`.
#[test]
fn modes_and_owners_of_roots_mount() {
    let adm = gid_of(GROUP);
    for (args, gid, private, message, socket, channels) in [
        (&[][..], 0, "0400", "0200", "0600", "0755"),
        (&["--group", GROUP], adm, "0440", "0220", "0660", "0775"),
        (&["--group", &adm.to_string()], adm, "0440", "0220", "0660", "0775"),
        (&["--socket-mode=0666"], 0, "0400", "0200", "0666", "0777"),
        (&["--group", GROUP, "--socket-mode=0622"], adm, "0440", "0220", "0622", "0777"),
    ] {
        let made = ["--channel=app/log:global", "--channel=timed:timed"];
        let mount = mount_for_all(&[args, &made[..]].concat());
        // The owner writes the levels, as it flushes. Readers of messages read them.
        let level = if private == "0440" { "0640" } else { "0600" };
        for (paths, mode) in [
            (&["", "app", ".relay", ".relay/channels/cpu/snapshot"][..], "0755"),
            (&[".relay/channels", ".relay/channels/cpu", ".relay/channels/app"], channels),
            (&["cpu0", "app/log0", ".relay/stats", ".relay/channels/cpu/stats"], private),
            (&[".relay/channels/cpu/dropped", ".relay/channels/app/log/stats"], private),
            (&[".relay/version", ".relay/channels/cpu/mode"], "0444"),
            (&[".relay/channels/cpu/subbuf_size", ".relay/channels/cpu/n_subbufs"], "0444"),
            (&[".relay/channels/cpu/msg", ".relay/channels/app/log/msg"], message),
            (&[".relay/channels/cpu/flush", ".relay/channels/cpu/reset"], "0200"),
            (&[".relay/channels/timed/level"], level),
        ] {
            for path in paths {
                assert_eq!(access(&mount.path(path)), format!("{mode} 0:{gid}"), "{args:?}: {path}");
            }
        }
        let path = fs::read_link(mount.path(".relay/socket")).unwrap();
        assert_eq!(access(&path), format!("{socket} 0:{gid}"), "{args:?}");
        assert_eq!(access(path.parent().unwrap()), "0755 0:0");
        assert_eq!(access(&relay::layout::paths::state_dir(mount.point(), 0)), "0700 0:0");
    }
}

/// Without an option only root reads, sends or changes anything. All users may list.
#[test]
fn users_without_permission_get_errors() {
    let mount = mount_for_all(&[]);
    mount.send(0, &[b"for root"]);
    let before = mount.stats("cpu");
    let socket = fs::read_link(mount.path(".relay/socket")).unwrap();
    for user in [(USER, USER), (NOBODY, NOBODY)] {
        for line in [
            "cat cpu0",
            "cat .relay/stats",
            "cat .relay/channels/cpu/stats",
            "cat .relay/channels/cpu/dropped",
            "echo message >.relay/channels/cpu/msg",
            "echo 1 >.relay/channels/cpu/flush",
            "echo 1 >.relay/channels/cpu/reset",
            "echo message >cpu0",
            "touch new",
            "mkdir new",
            "rm -f cpu0",
            "mv cpu0 cpu7",
            "ln -s cpu0 new",
        ] {
            let output = shell(&mount, user, line);
            assert!(!output.status.success(), "{line}");
            assert!(text(&output.stderr).contains("Permission denied"), "{line}: {output:?}");
        }
        for line in ["chmod 666 cpu0", "chown 1000 cpu0", "touch -d 2020-01-01 cpu0", "ln cpu0 new"] {
            let output = shell(&mount, user, line);
            assert!(!output.status.success(), "{line}");
        }
        let told = complaint("relay-producer", &send_by(&mount, user.0, user.1, "message"));
        let expected =
            format!("not permitted to use {}: relayfsd's --group or --socket-mode", socket.display());
        assert!(told.starts_with(&expected), "{told}");
        let told = complaint("audience", &read_by(&mount, user.0, user.1));
        let expected = format!("cannot open {}: Permission denied", mount.path("cpu0").display());
        assert!(told.starts_with(&expected) && told.contains("--group"), "{told}");

        for line in [
            "ls -lR . >/dev/null",
            "cat .relay/version .relay/channels/cpu/mode >/dev/null",
            "cat .relay/channels/cpu/subbuf_size .relay/channels/cpu/n_subbufs >/dev/null",
        ] {
            assert_done(&shell(&mount, user, line), "");
        }
    }
    assert_eq!(mount.stats("cpu"), before);
    assert_eq!(mount.read("cpu0"), b"for root");
}

/// Creating, renaming and deleting is refused, for root too, with the kernel's errors.
#[test]
fn root_cannot_change_the_tree() {
    let mount = mount_for_all(&[]);
    let cpu0 = mount.path("cpu0");
    let to = mount.path("new");
    for (what, result, errno) in [
        ("create", File::create(&to).map(drop), libc::EACCES),
        ("mkdir", fs::create_dir(&to), libc::EACCES),
        ("symlink", std::os::unix::fs::symlink("cpu0", &to), libc::EACCES),
        ("unlink", fs::remove_file(&cpu0), libc::EPERM),
        ("rename", fs::rename(&cpu0, &to), libc::EPERM),
        ("link", fs::hard_link(&cpu0, &to), libc::EPERM),
        ("rmdir", fs::remove_dir(mount.path(".relay")), libc::EPERM),
        ("chmod", fs::set_permissions(&cpu0, fs::Permissions::from_mode(0o666)), libc::EPERM),
        ("chown", std::os::unix::fs::chown(&cpu0, Some(USER), None), libc::EPERM),
        ("write", fs::write(&cpu0, "message"), libc::EINVAL),
    ] {
        assert_eq!(result.map_err(|error| error.raw_os_error()), Err(Some(errno)), "{what}");
    }
    assert_eq!(access(&cpu0), "0400 0:0");
}

/// `--group` lets its members read and send. Flush and reset are root's.
#[test]
fn group_members_read_and_send() {
    let mount = mount_for_all(&["--group", GROUP]);
    let member = (USER, gid_of(GROUP));
    assert_done(&send_by(&mount, member.0, member.1, "by socket\n"), "");
    assert_done(&read_by(&mount, member.0, member.1), "by socket\n");
    assert_done(&shell(&mount, member, "echo by file >.relay/channels/cpu/msg && cat cpu*"), "by file\n");
    let stats =
        shell(&mount, member, "cat .relay/stats .relay/channels/cpu/stats .relay/channels/cpu/dropped");
    assert!(stats.status.success(), "{stats:?}");
    for line in ["echo 1 >.relay/channels/cpu/flush", "echo 1 >.relay/channels/cpu/reset", "touch new"] {
        let output = shell(&mount, member, line);
        assert!(text(&output.stderr).contains("Permission denied"), "{line}: {output:?}");
    }
    // A supplementary group counts too.
    let by_list = tool("setpriv", "util-linux")
        .args(["--reuid=1000", "--regid=1000", &format!("--groups={GROUP}"), "sh", "-c"])
        .arg("echo by list >.relay/channels/cpu/msg && cat cpu*")
        .current_dir(mount.point())
        .output()
        .unwrap();
    assert_done(&by_list, "by list\n");

    let stranger = (NOBODY, NOBODY);
    mount.send(0, &[b"for members"]);
    assert!(!shell(&mount, stranger, "cat cpu0").status.success());
    assert!(!shell(&mount, stranger, "echo x >.relay/channels/cpu/msg").status.success());
    let told = complaint("relay-producer", &send_by(&mount, stranger.0, stranger.1, "x"));
    assert!(told.starts_with("not permitted to use "), "{told}");
    assert_eq!(mount.read("cpu0"), b"for members");
}

/// `--socket-mode 0666` lets any user send, and nothing else.
#[test]
fn socket_mode_lets_all_users_send_only() {
    let mount = mount_for_all(&["--socket-mode=0666"]);
    assert_done(&send_by(&mount, NOBODY, NOBODY, "from nobody\n"), "");
    complaint("audience", &read_by(&mount, NOBODY, NOBODY));
    assert!(!shell(&mount, (NOBODY, NOBODY), "echo x >.relay/channels/cpu/msg").status.success());
    assert_done(&read_by(&mount, 0, 0), "from nobody\n");
}

/// `-o uid=,gid=,mode=` gives the files to a user.
#[test]
fn files_can_be_given_to_a_user() {
    let mount = mount_for_all(&["-o", "uid=1000,gid=65534,mode=0440"]);
    assert_eq!(access(&mount.path("cpu0")), "0440 1000:65534");
    assert_eq!(access(&mount.path(".relay/channels/cpu/msg")), "0200 1000:65534");
    mount.send(0, &[b"one\n"]);
    assert_done(&shell(&mount, (USER, USER), "cat cpu0"), "one\n");
    mount.send(0, &[b"two\n"]);
    assert_done(&shell(&mount, (NOBODY, NOBODY), "cat cpu0"), "two\n");
    assert!(!shell(&mount, (1001, 1001), "cat cpu0").status.success());
}

/// A directory on /dev/shm and /run is used only if no other user can change it.
#[test]
fn directory_that_others_can_change_is_refused() {
    let script = r#"
        relayfsd=$1; cd "$2"; mkdir relay
        try() { "$relayfsd" relay 2>&1 || :; rm -rf /dev/shm/relayfs-0 /run/relayfs; }
        setpriv --reuid=65534 --regid=65534 --clear-groups mkdir /dev/shm/relayfs-0; try
        ln -s /tmp /dev/shm/relayfs-0; try
        mkdir -m 777 /dev/shm/relayfs-0; try
        mkdir -m 770 -p /run/relayfs; try
        mkdir -p /run/relayfs; chown 65534 /run/relayfs; try
        grep -c "$2" /proc/mounts || :
    "#;
    let dir = tempfile::tempdir().unwrap();
    let output = run(private_shell(script).arg(program("relayfsd")).arg(dir.path()));
    assert!(output.status.success(), "{output:?}");
    let printed = text(&output.stdout);
    let expected = [
        "state directory: /dev/shm/relayfs-0 belongs to user 65534, not to the user who runs relayfsd",
        "state directory: /dev/shm/relayfs-0 is a symbolic link or no directory; --state-dir",
        "state directory: /dev/shm/relayfs-0 is writable for others; --state-dir",
        "socket's directory: /run/relayfs is writable for others; --socket",
        "socket's directory: /run/relayfs belongs to user 65534, not to the user who runs relayfsd",
        "0",
    ];
    assert_eq!(printed.lines().count(), expected.len(), "{printed}");
    for (line, part) in printed.lines().zip(expected) {
        assert!(line.contains(part), "{line}");
    }
}

/// execvp(3) looks for fusermount3 in the system's directories then.
#[test]
fn user_without_path_mounts() {
    let lines = where_users_mount(
        r#"
        $nobody env -u PATH "$(command -v relayfsd)" relay; echo "started $?"
        $nobody fusermount3 -u relay; echo "unmounted $?"
        "#,
    );
    assert_eq!(lines, ["started 0", "unmounted 0"]);
}

/// A user's daemon is mounted and unmounted by fusermount3, and leaves nothing behind.
#[test]
fn user_mounts_own_mount() {
    let lines = where_users_mount(
        r#"
        $nobody relayfsd relay; echo "started $?"
        $nobody stat -c '%A %u:%g %n' relay relay/cpu0 relay/.relay/version relay/.relay/channels/cpu/msg
        socket=$($nobody readlink relay/.relay/socket); echo "$socket"; stat -L -c '%A %u:%g' "$socket"
        stat -c '%A %u' /dev/shm/relayfs-65534 /dev/shm/relayfs-65534/.run/*
        $nobody relay-producer -m relay hello
        $nobody audience -m relay
        ls relay
        setpriv --reuid=1000 --regid=1000 --clear-groups ls relay
        $nobody fusermount3 -u relay; echo "unmounted $?"
        while ls -A /dev/shm | grep -q .; do :; done
        "#,
    );
    let place = "/dev/shm/relayfs-65534";
    let escaped = "/socket";
    assert_eq!(
        lines[..5],
        [
            "started 0",
            "drwxr-xr-x 65534:65534 relay",
            "-r-------- 65534:65534 relay/cpu0",
            "-r--r--r-- 65534:65534 relay/.relay/version",
            "--w------- 65534:65534 relay/.relay/channels/cpu/msg",
        ]
    );
    assert!(lines[5].starts_with(place) && lines[5].ends_with(escaped), "{lines:?}");
    assert_eq!(lines[6], "srw------- 65534:65534");
    assert_eq!(lines[7..10], ["drwx------ 65534", "drwxr-xr-x 65534", "hello"]);
    for refused in &lines[10..12] {
        assert!(refused.starts_with("ls: ") && refused.ends_with("Permission denied"), "{lines:?}");
    }
    assert_eq!(lines[12..], ["unmounted 0"]);
}

/// A user's socket is below $XDG_RUNTIME_DIR. Root may unmount too, and a signal ends the daemon as it ends root's.
#[test]
fn socket_of_user_is_in_runtime_directory() {
    let lines = where_users_mount(
        r#"
        mkdir -m 700 run; chown 65534:65534 run; export XDG_RUNTIME_DIR=$PWD/run
        $nobody relayfsd relay; echo "started $?"
        $nobody readlink relay/.relay/socket | sed 's,/relayfs/.*/,/relayfs/NAME/,'
        umount relay; echo "unmounted $?"
        while ls -A /dev/shm run | grep -q relayfs; do :; done
        $nobody relayfsd -f relay & until $nobody test -e relay/.relay/version; do :; done
        kill $!; wait $!; echo "ended $?"
        ls -A /dev/shm run; grep -c "$PWD/relay " /proc/mounts || :
        "#,
    );
    let expected =
        ["started 0", "DIR/run/relayfs/NAME/socket", "unmounted 0", "ended 0", "/dev/shm:", "", "run:", "0"];
    assert_eq!(lines, expected);
}

/// The error for a missing permission says what to do.
#[test]
fn error_of_missing_permission_says_what_to_do() {
    let lines = where_users_mount(
        r#"
        mkdir roots; $nobody relayfsd "$PWD/roots"
        $nobody relayfsd -o allow_other relay
        $nobody relayfsd --group nogroup relay
        $nobody relayfsd --group root -f relay
        $nobody env PATH="$PWD/bin" relayfsd relay
        chmod 600 /dev/fuse; $nobody relayfsd relay
        $nobody env PATH="$PWD/bin" relayfsd relay
        ls -A /dev/shm; grep -c "$PWD/relay " /proc/mounts || :
        "#,
    );
    for (line, part) in lines.iter().zip([
        "relayfsd: cannot mount on DIR/roots: fusermount3: user has no write access to mountpoint DIR/roots",
        "'user_allow_other' is set in /etc/fuse.conf",
        "'user_allow_other' is set in /etc/fuse.conf",
        "the socket's group 0 cannot be set: Operation not permitted",
        "mounting takes fusermount3, which is not in PATH: install the package fuse3, or run relayfsd as root",
        "relayfsd: cannot open /dev/fuse: Permission denied (os error 13); to let users mount: chmod 666 /dev/fuse",
        "relayfsd: cannot open /dev/fuse: Permission denied (os error 13); to let users mount: chmod 666 /dev/fuse",
        "0",
    ]) {
        assert!(line.contains(part), "{part}: {lines:#?}");
    }
    assert_eq!(lines.len(), 8, "{lines:#?}");
}

/// If /etc/fuse.conf permits it, a user lets others in. Then the modes decide, and `--group` opens the files.
#[test]
fn user_lets_others_in_by_allow_other() {
    let lines = where_users_mount(
        r#"
        echo user_allow_other >fuse.conf
        stranger="setpriv --reuid=1000 --regid=1000 --clear-groups"
        member="setpriv --reuid=1000 --regid=65534 --clear-groups"
        $nobody relayfsd -o allow_other relay
        $nobody relay-producer -m relay "for nobody"
        $stranger cat relay/.relay/version relay/cpu0
        $member cat relay/cpu0
        $member relay-producer -m relay refused 2>&1 | cut -c 1-32
        cat relay/cpu*
        $nobody fusermount3 -u relay
        mkdir run; chown 65534 run
        $nobody relayfsd --group 65534 --socket "$PWD/run/socket" relay
        $member relay-producer -m relay "from a member"
        $stranger relay-producer -m relay refused 2>&1 | cut -c 1-32
        $stranger cat relay/cpu0
        $member audience -m relay
        $nobody fusermount3 -u relay
        "#,
    );
    let expected = [
        concat!("relayfs ", env!("CARGO_PKG_VERSION")),
        "cat: relay/cpu0: Permission denied",
        "cat: relay/cpu0: Permission denied",
        "relay-producer: not permitted to",
        "for nobody",
        "relay-producer: not permitted to",
        "cat: relay/cpu0: Permission denied",
        "from a member",
    ];
    assert_eq!(lines, expected);
}
