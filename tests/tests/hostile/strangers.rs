//! Another user tries all that the daemon must refuse: the table "What a stranger is answered" of
//! `relayfsd/docs/SECURITY.md`, line by line. And the capabilities that root's daemon drops.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use relayfs_tests::background::Place;
use relayfs_tests::direct::is_without_sequences;
use relayfs_tests::users::{GROUP, NOBODY, USER, by_user, gid_of, mount_for_all, program_for_all};
use relayfs_tests::{Mount, exit_code, private_shell, program, run, text, tool};

/// Returns the answer of a user's shell to a line, without the shell's own words.
fn answer(uid: u32, dir: &Path, line: &str) -> String {
    let output = run(by_user(uid, uid, "/bin/sh").args(["-c", line]).current_dir(dir));
    let (said, code) = (text(&output.stderr), exit_code(output.status));
    let last = said
        .lines()
        .rfind(|line| !line.is_empty())
        .unwrap_or_default()
        .rsplit(": ")
        .next()
        .unwrap_or_default()
        .to_owned();
    if code == 0 { format!("done {}", text(&output.stdout)) } else { last }
}

fn socket_of(mount: &Mount) -> PathBuf {
    fs::read_link(mount.path(".relay/socket")).unwrap()
}

/// Files in the mount and in the state directory, and the daemon's in /proc.
#[test]
fn files_and_processes_refuse_a_stranger() {
    let mut mount = mount_for_all(&["--group", GROUP, "--channel=timed:timed"]);
    mount.send(0, &[b"secret"]);
    let state = relay::layout::paths::state_dir(mount.point(), 0);
    let socket = socket_of(&mount);
    let pid = mount.daemon().pid();
    let [state, socket] = [&state, &socket].map(|path| path.to_str().unwrap().to_owned());
    let refused = "Permission denied";
    for (attempt, expected) in [
        // The tree.
        ("cat cpu0".to_owned(), refused),
        ("echo x >cpu0".into(), refused),
        ("cat .relay/channels/cpu/control".into(), refused),
        ("echo x >.relay/channels/cpu/control".into(), refused),
        ("cat .relay/channels/cpu/snapshot/cpu0".into(), refused),
        ("cat .relay/channels/cpu/map/cpu0".into(), refused),
        ("cat .relay/channels/cpu/consumed/cpu0".into(), refused),
        ("echo 0 1 >.relay/channels/cpu/consumed/cpu0".into(), refused),
        ("cat .relay/channels/cpu/stats".into(), refused),
        ("echo x >.relay/channels/cpu/msg".into(), refused),
        ("echo 1 >.relay/channels/cpu/flush".into(), refused),
        ("echo 1 >.relay/channels/cpu/reset".into(), refused),
        ("cat .relay/channels/timed/clock".into(), refused),
        ("cat .relay/channels/timed/metadata".into(), refused),
        ("cat .relay/channels/timed/processes".into(), refused),
        ("cat .relay/channels/timed/trace".into(), refused),
        ("cat .relay/channels/timed/level".into(), refused),
        ("echo off >.relay/channels/timed/level".into(), refused),
        ("cat .relay/channels/timed/snapshot/metadata".into(), refused),
        ("cat .relay/channels/timed/mode".into(), "done no-overwrite timed\n"),
        ("cat .relay/version >/dev/null".into(), "done "),
        ("cat .relay/channels/cpu/subbuf_size".into(), "done 262144\n"),
        // The state directory.
        (format!("ls {state}"), refused),
        (format!("cat {state}/state"), refused),
        (format!("cat {state}/1.data0"), refused),
        (format!("echo x >{state}/1.control"), refused),
        (format!("cat {state}/2.events"), refused),
        (format!("echo x >{state}/2.processes"), refused),
        (format!("cat {state}/2.levels"), refused),
        (format!("stat {state}/1.control"), refused),
        (format!("touch {state}/new"), refused),
        (format!("ln {state}/1.control ."), refused),
        (format!("mv {state} {state}-away"), refused),
        (format!("rm -r {state}"), refused),
        (format!("mkdir {state}-mine"), refused),
        // The socket's directory.
        (format!("rm -f {socket}"), refused),
        (format!("mv {socket} {socket}-away"), refused),
        (format!("ln -s /tmp {socket}-mine"), refused),
        // The daemon.
        (format!("ls /proc/{pid}/fd"), refused),
        (format!("ls /proc/{pid}/map_files"), refused),
        (format!("cat /proc/{pid}/mem"), refused),
        (format!("cat /proc/{pid}/maps"), refused),
        (format!("cat /proc/{pid}/environ"), refused),
        (format!("ls /proc/{pid}/root/"), refused),
        (format!("kill -STOP {pid}"), "Operation not permitted"),
        (format!("kill -KILL {pid}"), "Operation not permitted"),
        (format!("echo -1000 >/proc/{pid}/oom_score_adj"), refused),
    ] {
        for uid in [USER, NOBODY] {
            let answered = answer(uid, mount.point(), &attempt);
            assert_eq!(answered, expected, "{attempt}");
        }
    }
    assert_eq!(mount.read("cpu0"), b"secret");
    assert!(Path::new(&socket).exists());
}

/// Mounts over the daemon's mount, of its directory elsewhere, and unmounts.
#[test]
fn stranger_cannot_mount_or_unmount() {
    tool("fusermount3", "fuse3");
    let mut mount = mount_for_all(&[]);
    let point = mount.point().display().to_string();
    for line in [
        format!("umount {point}"),
        format!("umount -l {point}"),
        format!("fusermount3 -u {point}"),
        format!("mount --bind /tmp {point}"),
    ] {
        let answered = answer(USER, Path::new("/"), &line);
        assert!(!answered.starts_with("done"), "{line}: {answered}");
    }
    let mut second = by_user(USER, USER, program_for_all("relayfsd"));
    let output = run(second.arg(mount.point()));
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(mount.send(0, &[b"x"]).written, 1);
    assert_eq!(mount.read("cpu0"), b"x");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

/// `socket MODE`: which users may connect, and what their frames do. The kernel says who the peer is.
#[test]
fn frames_of_stranger_are_refused() {
    for (args, uid, gid, connects) in [
        (&[][..], USER, USER, false),
        (&["--group", GROUP], USER, USER, false),
        (&["--group", GROUP], USER, gid_of(GROUP), true),
        (&["--socket-mode=0666"], USER, USER, true),
    ] {
        let mount = mount_for_all(args);
        let mut command = by_user(uid, gid, program_for_all("relay-producer"));
        let output = run(command.arg("-m").arg(mount.point()).args(["--transport=socket", "x"]));
        assert_eq!(output.status.success(), connects, "{args:?}: {output:?}");
        if !connects {
            continue;
        }
        // Direct writing needs a trusted user, and restartable sequences.
        let trusted = gid != USER;
        let (writes, why) = match is_without_sequences() {
            true => (false, "restartable sequences"),
            false => (trusted, "uid 1000 is "),
        };
        let mut command = by_user(uid, gid, program_for_all("relay-producer"));
        let output = run(command.arg("-m").arg(mount.point()).args(["--transport=shared", "x"]));
        assert_eq!(output.status.success(), writes, "{args:?}: {output:?}");
        assert!(writes || text(&output.stderr).contains(why), "{output:?}");
        // Reading: WATCH and CONSUME need a SHARE to read, which needs the permission to read the file.
        let mut command = by_user(uid, gid, program_for_all("test-stranger"));
        let output = run(command.arg("watch").arg(socket_of(&mount)).arg("cpu"));
        let said = text(&output.stdout);
        let expected = if trusted { "shared" } else { "EPERM: uid 1000 may not read the channel's files" };
        assert!(said.starts_with(&format!("share to read: {expected}\n")), "{said}");
        let not_shared = "EPERM: channel 0 was not shared for reading";
        assert!(
            trusted || said.ends_with(&format!("watch: {not_shared}\nconsume: {not_shared}\n")),
            "{said}"
        );
    }
}

/// Another user cannot make a reader's maps writable, nor the files that were shared with a reader.
#[test]
fn files_shared_with_reader_stay_read_only() {
    let mount = mount_for_all(&["--socket-mode=0666", "-o", "mode=0444"]);
    mount.send(0, &[b"as it was"]);
    let mut command = by_user(USER, USER, program_for_all("test-stranger"));
    let output = run(command.arg("scribble").arg(socket_of(&mount)).arg("cpu"));
    let mut expected = vec!["share to write: refused".to_owned(), "share to read: N descriptors".to_owned()];
    for file in ["control", "data"] {
        for (attempt, answer) in [
            ("open again to write", "EACCES: Permission denied"),
            ("open again to read", "EACCES: Permission denied"),
            ("truncate", "EINVAL: Invalid argument"),
            ("fchmod", "EPERM: Operation not permitted"),
            ("fchown", "EPERM: Operation not permitted"),
            ("map to write", "EACCES: Permission denied"),
            ("mprotect to write", "EACCES: Permission denied"),
            ("write", "EBADF: Bad file number"),
        ] {
            expected.push(format!("{file} {attempt}: {answer}"));
        }
    }
    let said: Vec<String> = text(&output.stdout)
        .lines()
        .map(|line| match line.strip_suffix(" descriptors") {
            Some(_) => "share to read: N descriptors".to_owned(),
            None => line.to_owned(),
        })
        .collect();
    assert_eq!(said, expected, "{output:?}");
    assert_eq!(mount.read("cpu0"), b"as it was");
}

/// Another user plants links and directories in the daemon's places. The daemon follows and uses none, and says what
/// is in its way. It takes over channels only from a directory that no other user could change.
#[test]
fn planted_links_and_directories_are_refused() {
    let script = r#"
        relayfsd=$1; cd "$2"; mkdir relay prey; echo precious >prey/file
        user="setpriv --reuid=1000 --regid=1000 --clear-groups"
        chmod 1777 /dev/shm
        name=$("$relayfsd" -f relay 2>/dev/null & until test -e relay/.relay/version; do :; done
               ls /dev/shm/relayfs-0; kill $!; wait $!)
        try() { "$relayfsd" relay 2>&1 || :; rm -rf /dev/shm/relayfs-0 /run/relayfs; }
        # Links in place of each directory and file.
        $user ln -s "$PWD/prey" /dev/shm/relayfs-0; try
        mkdir -m 700 /dev/shm/relayfs-0; ln -s "$PWD/prey" /dev/shm/relayfs-0/$name; try
        mkdir -m 700 -p /dev/shm/relayfs-0/$name; ln -s "$PWD/prey/file" /dev/shm/relayfs-0/$name/lock; try
        mkdir -m 755 /run/relayfs; ln -s "$PWD/prey" /run/relayfs/$name; try
        mkdir -m 755 -p /run/relayfs/$name; ln -s "$PWD/prey/file" /run/relayfs/$name/socket; try
        # A name that is taken denies the start, and that is said.
        $user mkdir /dev/shm/relayfs-0; try
        ls prey; cat prey/file
        # Another user's state directory, named by root.
        $user mkdir /dev/shm/mine; $user touch /dev/shm/mine/state
        "$relayfsd" --state-dir /dev/shm/mine relay 2>&1 || :
        # Left by root, but one file is a link, has another link, is another user's or open to others.
        for what in "ln -sf $PWD/prey/file \$data" "ln \$data /dev/shm/another" "chown 1000 \$data" "chmod 666 \$data"; do
            rm -rf /dev/shm/relayfs-0 /dev/shm/another
            "$relayfsd" -f --keep relay 2>/dev/null & until test -e relay/.relay/version; do :; done
            kill $!; wait $!
            data=$(echo /dev/shm/relayfs-0/*/1.data0)
            eval "$what"
            "$relayfsd" -f relay 2>log & until test -e relay/.relay/version; do :; done
            kill $!; wait $!
            grep -o '1.data0: .*' log | head -n 1
        done
        cat prey/file
    "#;
    let dir = tempfile::tempdir().unwrap();
    let output = run(private_shell(script).arg(program("relayfsd")).arg(dir.path()));
    assert!(output.status.success(), "{output:?}");
    let printed = text(&output.stdout);
    let lines: Vec<&str> = printed.lines().collect();
    let expected = [
        "relayfs-0 is a symbolic link or no directory; --",
        " is a symbolic link or no directory; --",
        "lock: Too many levels of symbolic links",
        " is a symbolic link or no directory; --",
        "there is something else of that name; --socket names another",
        "/dev/shm/relayfs-0 belongs to user 1000, not to the user who runs relayfsd",
        "file",
        "precious",
        "/dev/shm/mine belongs to user 1000, not to the user who runs relayfsd",
        "1.data0: Too many levels of symbolic links",
        "1.data0: others could have written it",
        "1.data0: Permission denied",
        "1.data0: others could have written it",
        "precious",
    ];
    assert_eq!(lines.len(), expected.len(), "{printed}");
    for (line, part) in lines.iter().zip(expected) {
        assert!(line.contains(part), "{part}: {printed}");
    }
}

/// Returns the capability sets of each thread of a process.
fn capabilities(pid: nix::unistd::Pid) -> Vec<(String, String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may end meanwhile.
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let sets = |status: String| {
        let name = status.lines().next().unwrap().to_owned();
        let line = |line: &str| {
            let (set, value) = line.split_once(":\t")?;
            set.starts_with("Cap")
                .then(|| u64::from_str_radix(value, 16).map(|value| (set.to_owned(), value)))
        };
        let sets: Vec<_> = status.lines().filter_map(line).map(Result::unwrap).collect();
        sets.into_iter().map(|(set, value)| (name.clone(), set, value)).collect::<Vec<_>>()
    };
    statuses.flat_map(sets).collect()
}

const SYS_ADMIN: u64 = 1 << 21;
const DAC_OVERRIDE: u64 = 1 << 1;

/// After its start, all threads of root's daemon have CAP_SYS_ADMIN alone, which is enough.
#[test]
fn root_keeps_one_capability() {
    let beside = tempfile::tempdir().unwrap();
    let log = beside.path().join("log");
    let place = Place::new();
    let mut daemon = place.start(&["--discard", "--group", GROUP, "--log-file", log.to_str().unwrap()]);
    fs::write(place.path(".relay/channels/cpu/msg"), "x").unwrap();
    fs::write(place.path(".relay/channels/cpu/flush"), "1").unwrap();
    let sets = capabilities(daemon.pid());
    assert!(sets.len() > 5 * 6, "{sets:?}");
    for (thread, set, value) in sets {
        let expected = if ["CapEff", "CapPrm", "CapBnd"].contains(&set.as_str()) { SYS_ADMIN } else { 0 };
        assert_eq!(value, expected, "{thread} {set}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(status.contains("\nNoNewPrivs:\t1\n"), "{status}");
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    place.assert_clean();
}

/// If the daemon's files are in other users' directories, root's daemon keeps the capability to remove them.
#[test]
fn root_keeps_capability_for_directories_of_others() {
    let mut beside = tempfile::tempdir().unwrap();
    beside.disable_cleanup(false);
    let dir = beside.path().join("users");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(USER), Some(USER)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let socket = dir.join("socket");
    let mut mount = Mount::new(&["--socket", socket.to_str().unwrap()]);
    for (thread, set, value) in capabilities(mount.daemon().pid()) {
        let expected =
            if ["CapEff", "CapPrm", "CapBnd"].contains(&set.as_str()) { SYS_ADMIN | DAC_OVERRIDE } else { 0 };
        assert_eq!(value, expected, "{thread} {set}");
    }
    assert!(socket.exists());
    assert!(mount.end(Signal::SIGTERM).success());
    assert!(!socket.exists());
}
