//! `relayfsd doctor`, in real situations: what it says, what it advises, and its exit status.

use std::fs;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use relayfs_tests::background::Place;
use relayfs_tests::direct::{with_own_areas, without_sequences};
use relayfs_tests::ends::without_ends;
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{Mount, private_shell, program, programs, run, stdout_of, text};

fn doctor(args: &[&str], point: &std::path::Path) -> Output {
    run(Command::new(program("relayfsd")).arg("doctor").args(args).arg(point))
}

/// The line about a thing, with its verdict, and the line that mends it, if there is one.
#[track_caller]
fn line_of<'a>(said: &'a str, thing: &str) -> (&'a str, &'a str, Option<&'a str>) {
    let lines: Vec<&str> = said.lines().collect();
    let is_it = |line: &&str| line.get(6..).is_some_and(|rest| rest.starts_with(&format!("{thing} ")));
    let at = lines.iter().position(is_it).unwrap_or_else(|| panic!("no {thing} in:\n{said}"));
    let mend = lines.get(at + 1).and_then(|next| next.trim_start().strip_prefix("mend: "));
    (lines[at][..6].trim_end(), lines[at][6 + thing.len()..].trim_start(), mend)
}

#[test]
fn free_directory_is_fine() {
    let place = Place::new();
    let output = doctor(&[], place.point());
    let said = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    for thing in ["device", "privileges", "mount point", "room"] {
        assert_eq!(line_of(&said, thing).0, "ok", "{said}");
    }
    assert!(!said.contains("FAILS"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with(&format!("relayfsd works here, on {}", place.point().display())), "{last}");
    // It has left nothing, and mounted nothing.
    place.assert_clean();
}

#[test]
fn live_mount_is_fine_and_nothing_is_consumed() {
    let mount = Mount::new(&[]);
    mount.send(0, &[b"unread"]);
    let output = doctor(&[], mount.point());
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(line_of(&said, "mount point").1.ends_with("a relayfsd is mounted there"), "{said}");
    assert!(line_of(&said, "socket").1.ends_with("this user may send"), "{said}");
    assert_eq!(mount.read("cpu0"), b"unread");
}

#[test]
fn stale_mount_fails_and_the_command_mends_it() {
    let mut mount = Mount::new(&["--channel=app/log"]);
    mount.send(0, &[b"unread"]);
    mount.end(Signal::SIGKILL);
    let output = doctor(&[], mount.point());
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let point = mount.point().display().to_string();
    let (verdict, what, mend) = line_of(&said, "mount point");
    assert_eq!((verdict, what.contains("has died")), ("FAILS", true), "{said}");
    assert_eq!(mend, Some(format!("relayfsd {point}, which continues it; or umount {point}").as_str()));
    // What it has left is named, too.
    let is_left = |line: &str| line.starts_with("ok    left ") && line.contains(&format!(", of {point}: "));
    assert!(said.lines().any(is_left), "{said}");
    assert!(
        said.ends_with(&format!("does not work here, on {point}: 1 thing fails\n"))
            || said.contains(&format!("does not work here, on {point}: 1 thing fails; ")),
        "{said}"
    );

    // For another mount point it is a thing to know.
    let place = Place::new();
    let other = doctor(&[], place.point());
    let said = text(&other.stdout);
    assert!(other.status.success(), "{said}");
    let stale = said.lines().filter(|line| line.starts_with("costs stale mount"));
    assert!(stale.clone().any(|line| line.contains(&point)), "{said}");

    stdout_of(Command::new(program("relayfsd")).arg(mount.point()).arg("--discard"));
    assert!(doctor(&[], mount.point()).status.success());
    assert_eq!(mount.read("cpu0"), b"unread");
    mount.detach();
}

#[test]
fn missing_directory_and_foreign_mount_are_named() {
    let place = Place::new();
    let none = place.beside("none");
    let output = doctor(&[], &none);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let mend = format!("mkdir -p {}", none.display());
    assert_eq!(line_of(&said, "mount point").2, Some(mend.as_str()));

    let output = doctor(&[], std::path::Path::new("/proc"));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(line_of(&said, "mount point").1.contains("is mounted there"), "{said}");

    let file = place.beside("file");
    fs::write(&file, "").unwrap();
    assert!(text(&doctor(&[], &file).stdout).contains("not a directory"));
}

/// The error is that of the daemon.
#[test]
fn unknown_option_is_wrong_usage() {
    let output = run(Command::new(program("relayfsd")).args(["doctor", "--what"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("relayfsd: "), "{output:?}");
}

/// Runs a script in a private place, with a directory `relay`; returns what it printed.
fn in_private(script: &str) -> String {
    let script = format!(
        "PATH=$1:$PATH; dir=$(mktemp -d); cd \"$dir\"; mkdir relay; set +e\n{script}\ncd /; rm -r \"$dir\""
    );
    text(&stdout_of(private_shell(&script).arg(programs())))
}

#[test]
fn missing_device_fails_with_the_command_for_it() {
    let said = in_private(
        "mount -t tmpfs tmpfs /dev; mkdir /dev/shm; mknod /dev/null c 1 3; relayfsd doctor relay; echo $?",
    );
    assert_eq!(line_of(&said, "device").0, "FAILS", "{said}");
    let mend = line_of(&said, "device").2.unwrap_or_default();
    assert!(mend.starts_with("modprobe fuse") && mend.contains("--device /dev/fuse"), "{mend}");
    assert!(said.ends_with("\n1\n"), "{said}");
}

#[test]
fn small_tmpfs_fails_and_a_disk_costs() {
    let said = in_private("mount -o remount,size=512k /dev/shm; relayfsd doctor relay; echo $?");
    let (verdict, what, mend) = line_of(&said, "room");
    assert_eq!((verdict, what.contains("too little")), ("FAILS", true), "{said}");
    assert!(
        mend.is_some_and(|mend| mend.contains("remount,size=256M /dev/shm;") && mend.contains("--shm-size")),
        "{said}"
    );
    assert!(said.ends_with("\n1\n"), "{said}");

    // Another file system, which is full and not small: its size must grow.
    let full = "mkdir state; mount -t tmpfs -o size=300M tmpfs state; fallocate -l 299M state/full";
    let said = in_private(&format!("{full}; relayfsd doctor --state-dir state/x relay; umount state"));
    let (verdict, _, mend) = line_of(&said, "room");
    assert_eq!(verdict, "FAILS", "{said}");
    assert!(
        mend.is_some_and(|mend| mend.contains("remount,size=512M /") && mend.contains("/state;")),
        "{said}"
    );

    let said = in_private("relayfsd doctor --state-dir \"$dir/state\" relay; echo $?");
    let (verdict, what, _) = line_of(&said, "room");
    assert_eq!((verdict, what.contains("no tmpfs")), ("costs", true), "{said}");
    assert!(said.ends_with("\n0\n"), "{said}");
}

/// The default of `--max-memory` is a quarter of what is free. What the doctor says of that is what the daemon does.
#[test]
fn room_for_one_channel_alone_is_too_little_without_an_option() {
    let said = in_private(
        "kib=$((2 * 1024 + $(nproc --all) * 1100)); mount -o remount,size=${kib}k /dev/shm
        relayfsd doctor relay; relayfsd relay; echo $?
        mend=$(relayfsd doctor relay | grep -A 1 ' room ' | sed -n 's/.*mend: \\(--max-memory [^;]*\\).*/\\1/p')
        relayfsd $mend relay; echo $?; umount relay",
    );
    let (verdict, what, mend) = line_of(&said, "room");
    assert_eq!((verdict, what.contains("--max-memory is ")), ("FAILS", true), "{said}");
    assert!(mend.is_some_and(|mend| mend.starts_with("--max-memory ")), "{said}");
    assert!(said.ends_with("\n1\n0\n"), "{said}");
}

#[test]
fn root_without_its_capability_cannot_mount() {
    let said =
        in_private("setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin relayfsd doctor relay; echo $?");
    let (verdict, _, mend) = line_of(&said, "privileges");
    assert_eq!(verdict, "FAILS", "{said}");
    assert!(mend.is_some_and(|mend| mend.contains("--cap-add SYS_ADMIN")), "{said}");
}

#[test]
fn damaged_files_that_were_set_aside_are_named() {
    let mut mount = Mount::new(&[]);
    mount.send(0, &[b"unread"]);
    mount.end(Signal::SIGKILL);
    let state = relay::layout::paths::state_dir(mount.point(), 0);
    let entries = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
    let control = entries.filter(|path| path.extension().is_some_and(|end| end == "control")).last().unwrap();
    fs::write(control, "damaged").unwrap();
    mount.restart(&[]);
    let output = doctor(&[], mount.point());
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    let found = said.lines().find(|line| line.contains(&format!("{}/quarantine-", state.display())));
    assert!(found.is_some_and(|line| line.starts_with("costs quarantine")), "{said}");
}

/// Without sequences, producers can only send.
#[test]
fn missing_sequences_cost() {
    let place = Place::new();
    let mut command = Command::new(program("relayfsd"));
    let output = run(without_sequences(command.arg("doctor").arg(place.point())));
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert_eq!(line_of(&said, "sequences").0, "costs", "{said}");
    let mend = line_of(&said, "sequences").2;
    assert!(mend.is_some_and(|mend| mend.contains("seccomp")), "{said}");
}

/// Root's daemon learns how a process ended from the kernel alone.
#[test]
fn kernel_that_does_not_tell_ends_costs() {
    let place = Place::new();
    let doctor = || {
        let mut command = Command::new(program("relayfsd"));
        command.arg("doctor").arg(place.point());
        command
    };
    let said = text(&stdout_of(&mut doctor()));
    assert_eq!(line_of(&said, "ends of processes").0, "ok", "{said}");
    let output = run(without_ends(&mut doctor()));
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    let (verdict, what, mend) = line_of(&said, "ends of processes");
    assert_eq!((verdict, mend), ("costs", Some("use Linux 6.15 or later")), "{said}");
    assert!(what.contains("relay-producer --exec"), "{said}");
}

/// A C library without areas costs nothing.
#[test]
fn own_areas_are_sequences() {
    let place = Place::new();
    let mut command = Command::new(program("relayfsd"));
    let said = text(&stdout_of(with_own_areas(command.arg("doctor").arg(place.point()))));
    assert_eq!(line_of(&said, "sequences").0, "ok", "{said}");
}

#[test]
fn user_gets_advice_for_users() {
    let lines = where_users_mount(
        r#"
        $nobody relayfsd doctor relay; echo status $?
        echo user_allow_other >fuse.conf; $nobody relayfsd doctor relay | grep user_allow_other
        mkdir roots; $nobody relayfsd doctor roots; echo status $?
        relayfsd roots; $nobody relayfsd doctor roots | grep socket
        umount roots; rmdir roots
    "#,
    );
    let said = lines.join("\n");
    let first = said.split("status").next().unwrap();
    assert!(said.contains("status 0\n"), "{said}");
    assert!(line_of(first, "privileges").1.ends_with("mounts for this user"), "{said}");
    assert_eq!(line_of(first, "passthrough").0, "costs", "{said}");
    let (verdict, _, mend) = line_of(first, "user_allow_other");
    assert_eq!((verdict, mend), ("costs", Some("as root: echo user_allow_other >>/etc/fuse.conf")));
    let later = said.split("status 0\n").nth(1).unwrap();
    assert!(later.starts_with("ok    user_allow_other"), "{later}");
    let (verdict, what, mend) = line_of(later, "mount point");
    assert!(verdict == "FAILS" && what.contains("belongs to uid 0"), "{later}");
    assert!(mend.is_some_and(|mend| mend.starts_with("as root: chown 65534 ")), "{later}");
    let last = later.split("status 1\n").nth(1).unwrap();
    let (verdict, what, mend) = line_of(last, "socket");
    assert!(verdict == "costs" && what.contains("(mode 0600, group 0)"), "{last}");
    assert!(mend.is_none() || mend.is_some_and(|mend| mend.contains("--group")), "{last}");
}
