//! What the next daemon recovers. Channels keep geometry and numbers, also those that producers opened. Damaged
//! channels are quarantined with a line in the log. The daemon knows a mount point by its path and by its directory.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, gettid};
use relay_producer::Channel;
use relayfs_tests::background::Place;
use relayfs_tests::direct::{assert_direct, is_without_sequences, on_cpu};
use relayfs_tests::{Mount, complaint, eventually, exit_code, private_shell, program, run, stdout_of, text};

const ARGS: &[&str] = &["--subbuf-size=4096", "--n-subbufs=4"];

fn state_dir(mount: &Mount) -> PathBuf {
    relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw())
}

fn kill(mount: &mut Mount) {
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
}

/// Ends the daemon, and returns its standard error.
fn told(mount: &mut Mount) -> String {
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    mount.daemon().stderr()
}

#[test]
fn next_daemon_keeps_all_counters_and_positions() {
    let args = [ARGS, &["--channel=app/ring:overwrite:header=8", "--channel=all:global"]].concat();
    let mut mount = Mount::new(&args);
    for n in 0..9 {
        mount.send(0, &[&[b'0' + n; 1000]]);
        mount.send_to("app/ring", 1, &[&[b'a' + n; 3000]]);
        mount.send_to("all", 0, &[&[b'A' + n; 500]]);
    }
    let mut first = [0; 2500];
    std::io::Read::read_exact(&mut File::open(mount.path("cpu0")).unwrap(), &mut first).unwrap();
    let stats = |mount: &Mount| ["cpu", "app/ring", "all"].map(|channel| mount.stats(channel));
    let (before, sizes) = (stats(&mount), ["cpu0", "app/ring1", "all0"].map(|file| size(&mount, file)));
    kill(&mut mount);
    mount.restart(&args);
    assert_eq!(stats(&mount), before);
    assert_eq!(["cpu0", "app/ring1", "all0"].map(|file| size(&mount, file)), sizes);
    let expected: Vec<u8> = (0..9).flat_map(|n| [b'0' + n; 1000]).collect();
    assert!(mount.read("cpu0") == expected[2500..], "the rest, and nothing else");
    let ring: Vec<u8> = (5..9).flat_map(|n| [[0; 8].to_vec(), [b'a' + n; 3000].to_vec()].concat()).collect();
    assert!(mount.read("app/ring1") == ring, "the four that are left");
    assert_eq!(mount.read("all0").len(), 4500);
}

fn size(mount: &Mount, file: &str) -> u64 {
    fs::metadata(mount.path(file)).unwrap().len()
}

/// Channels of dead producers stay while they have unread data. Then they go, and the totals keep their counts.
#[test]
fn channel_without_holder_stays_until_read() {
    let mut mount = Mount::new(ARGS);
    let holds = Channel::builder(mount.point(), "app/log").create(true).open().unwrap();
    mount.send_to("app/log", 0, &[b"unread\n"]);
    let empty = Channel::builder(mount.point(), "empty").create(true).open().unwrap();
    drop((holds, empty));
    kill(&mut mount);
    mount.restart(ARGS);
    // A process that another test was just starting may have had its files for a moment.
    eventually("the empty channel's end", || !mount.path("empty0").exists());
    assert_eq!(text(&mount.read("app/log0")), "unread\n");
    eventually("the channel's end", || !mount.path("app").exists());
    for _ in 0..2 {
        let stats = fs::read_to_string(mount.path(".relay/stats")).unwrap();
        assert!(stats.contains("\ngone.read_bytes 7\n"), "{stats}");
        kill(&mut mount);
        mount.restart(ARGS);
    }
}

/// The channel of a producer that only writes lives as long as that producer. Pollers hear of the sub-buffers it
/// finishes.
#[test]
fn orphaned_producer_wakes_pollers() {
    if is_without_sequences() {
        return not_direct();
    }
    let mut mount = Mount::new(ARGS);
    let channel = Channel::builder(mount.point(), "app").create(true).open().unwrap();
    assert_direct(&channel);
    on_cpu(0, || channel.write(b"before ").unwrap());
    kill(&mut mount);
    on_cpu(0, || channel.write(b"meanwhile ").unwrap());
    mount.restart(ARGS);
    assert_eq!(text(&mount.read("app0")), "before meanwhile ");
    assert!(mount.path("app0").exists(), "its producer lives");

    let file = File::open(mount.path("app0")).unwrap();
    let tid = OnceLock::new();
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            tid.get_or_init(gettid);
            let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::from(20_000u16))
        });
        eventually("a sleeper", || tid.get().is_some_and(|tid| sleeps_in_poll(*tid)));
        // Two sub-buffers: the first is finished, and no daemon hears the bell.
        on_cpu(0, || (0..2).for_each(|_| channel.write(&[b'x'; 3000]).unwrap()));
        assert_eq!(sleeper.join().unwrap(), Ok(1));
    });
    drop(file);
    assert_eq!(mount.read("app0").len(), 6000);
    assert!(has_orphans(&mount, "app"), "it has not come back");
    channel.flush().unwrap(); // comes back
    eventually("no orphaned producer", || !has_orphans(&mount, "app"));
    assert_direct(&channel);
    on_cpu(0, || channel.write(b"afterwards").unwrap());
    assert_eq!(text(&mount.read("app0")), "afterwards");
    // The next daemon knows it by the mark of the second one.
    kill(&mut mount);
    mount.restart(ARGS);
    assert!(has_orphans(&mount, "app"));
    drop(channel);
    eventually("the channel's end", || !mount.path("app0").exists());
}

/// Returns whether the daemon takes a channel's producers for those of an earlier daemon.
fn has_orphans(mount: &Mount, channel: &str) -> bool {
    let status = fs::read_to_string(mount.control(channel, "status")).unwrap();
    status.lines().any(|line| line == "orphans 1")
}

/// Returns whether a thread of this process sleeps in poll(2), so that its poll request has been answered.
fn sleeps_in_poll(thread: Pid) -> bool {
    let wchan = fs::read_to_string(format!("/proc/self/task/{thread}/wchan"));
    wchan.is_ok_and(|wchan| wchan.contains("poll"))
}

/// Without sequences, producers write over the socket, and the daemon loses what it has not read: stated, not
/// skipped.
fn not_direct() {
    let mount = Mount::new(ARGS);
    let channel = Channel::open(mount.point(), "cpu").unwrap();
    assert!(channel.why_socket().is_some());
}

/// Each damaged channel is quarantined with a reason. Its producers get an error, and find the new channel.
#[test]
fn damaged_channel_is_quarantined() {
    type Damage = (&'static str, fn(&Path), &'static str);
    let damages: &[Damage] = &[
        ("a short file", |dir| truncate(&dir.join("2.data1"), 100), "it has 100 bytes instead of 16384"),
        (
            "a file that is far too long",
            |dir| truncate(&dir.join("2.control"), 1 << 40),
            "it has 1099511627776 bytes instead of",
        ),
        ("a missing file", |dir| fs::remove_file(dir.join("2.data0")).unwrap(), "No such file"),
        ("no header", |dir| scribble(&dir.join("2.control"), 0, b"nonsense"), "it is no control file"),
        (
            "another layout",
            |dir| scribble(&dir.join("2.control"), 8, &[9]),
            "its layout is of another release",
        ),
        (
            "another geometry",
            |dir| scribble(&dir.join("2.control"), 36, &[3]),
            "its geometry is not the channel's",
        ),
        ("a wild writer", |dir| scribble(&dir.join("2.control"), 4096, &[0xff; 8]), "its word 'state' says"),
        (
            "a wild reader",
            |dir| scribble(&dir.join("2.control"), 4160, &[0xff; 8]),
            "its word 'consumed' says",
        ),
        (
            "a link",
            |dir| {
                fs::rename(dir.join("2.data0"), dir.join("elsewhere")).unwrap();
                symlink(dir.join("elsewhere"), dir.join("2.data0")).unwrap();
            },
            "Too many levels of symbolic links",
        ),
        (
            "a file for all",
            |dir| {
                fs::set_permissions(dir.join("2.data0"), fs::Permissions::from_mode(0o666)).unwrap();
            },
            "others could have written it",
        ),
        (
            "a second name",
            |dir| {
                fs::hard_link(dir.join("2.data0"), dir.parent().unwrap().join(".second")).unwrap();
            },
            "others could have written it",
        ),
    ];
    for (what, damage, reason) in damages {
        let args = [ARGS, &["--channel=evil"]].concat();
        let mut mount = Mount::new(&args);
        mount.send(0, &[b"good\n"]);
        mount.send_to("evil", 0, &[b"evil\n"]);
        kill(&mut mount);
        let dir = state_dir(&mount);
        damage(&dir);
        mount.restart(&args);
        let _ = fs::remove_file(dir.parent().unwrap().join(".second"));
        assert_eq!(text(&mount.read("cpu0")), "good\n", "{what}");
        assert_eq!(text(&mount.read("evil0")), "", "{what}: a new one");
        mount.send_to("evil", 0, &[b"new\n"]);
        assert_eq!(text(&mount.read("evil0")), "new\n", "{what}");
        assert!(dir.join("quarantine-1/state").exists(), "{what}");
        let said = told(&mut mount);
        let line = said
            .lines()
            .find(|line| line.contains("quarantined in"))
            .unwrap_or_else(|| panic!("{what}: {said}"));
        assert!(line.contains("channel evil: quarantined in ") && line.contains(reason), "{what}: {line}");
        assert!(dir.join("quarantine-1/2.control").exists(), "{what}");
    }
}

fn truncate(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn scribble(path: &Path, at: u64, bytes: &[u8]) {
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(path).unwrap(), bytes, at)
        .unwrap();
}

/// If the list of channels is damaged, the daemon quarantines everything.
#[test]
fn damaged_state_file_quarantines_everything() {
    let damages: &[fn(&Path)] = &[
        |state| fs::write(state, "nonsense").unwrap(),
        |state| fs::remove_file(state).unwrap(),
        |state| fs::write(state, fs::read_to_string(state).unwrap().replace(" 4096 ", " 0 ")).unwrap(),
        |state| {
            fs::remove_file(state).unwrap();
            fs::create_dir(state).unwrap();
        },
    ];
    for damage in damages {
        let mut mount = Mount::new(ARGS);
        mount.send(0, &[b"old\n"]);
        kill(&mut mount);
        let dir = state_dir(&mount);
        damage(&dir.join("state"));
        mount.restart(ARGS);
        assert_eq!(text(&mount.read("cpu0")), "");
        assert!(dir.join("quarantine-1/1.data0").exists());
        let said = told(&mut mount);
        assert!(said.contains(" all contents quarantined in "), "{said}");
    }
}

/// Producers of a quarantined channel learn of it at the next switch, and find the new channel.
#[test]
fn producers_of_quarantined_channel_find_new_one() {
    if is_without_sequences() {
        return not_direct();
    }
    let mut mount = Mount::new(ARGS);
    let channel = mount.direct_channel("cpu");
    on_cpu(0, || channel.write(b"old").unwrap());
    kill(&mut mount);
    fs::remove_file(state_dir(&mount).join("1.data1")).unwrap();
    mount.restart(ARGS);
    eventually("the end of the old buffers", || on_cpu(0, || channel.write(&[b'x'; 1000])).is_err());
    eventually("the new ones", || on_cpu(0, || channel.write(b"new")).is_ok());
    channel.flush().unwrap();
    let got = text(&mount.read("cpu0"));
    assert!(!got.is_empty() && got.len().is_multiple_of(3) && got.replace("new", "").is_empty(), "{got}");
}

/// A channel of the command line keeps its geometry while it has unread data. The start after that uses the command
/// line's.
#[test]
fn new_geometry_waits_until_channel_is_read() {
    let other = ["--subbuf-size=8192", "--n-subbufs=2"];
    let size = |mount: &Mount| fs::read_to_string(mount.control("cpu", "subbuf_size")).unwrap();
    let mut mount = Mount::new(ARGS);
    let channel = Channel::open(mount.point(), "cpu").unwrap();
    mount.send(0, &[b"old\n"]);
    kill(&mut mount);
    mount.restart(&other);
    assert_eq!(size(&mount), "4096\n");
    assert_eq!(text(&mount.read("cpu0")), "old\n");
    kill(&mut mount);
    mount.restart(&other);
    assert_eq!(size(&mount), "8192\n");
    eventually("the new channel", || channel.write(b"new\n").is_ok() && channel.flush().is_ok());
    eventually("the new geometry", || channel.geometry().subbuf_size() == 8192);
    let said = told(&mut mount);
    assert!(!said.contains("continues as"), "{said}");
}

/// A new directory under the same path continues with the channels of that path.
#[test]
fn new_directory_of_same_path_continues_channels() {
    let script = r#"
        mkdir /run/a /run/b; mkdir /run/point; mount --bind /run/a /run/point; mkdir /run/point/relay
        relayfsd=$1; producer=$2
        $relayfsd /run/point/relay
        echo old | $producer -m /run/point/relay
        read name pid </dev/shm/relayfs-0/run-point-relay/lock
        kill -9 $pid
        while kill -0 $pid 2>/dev/null; do :; done
        umount -l /run/point/relay; umount -l /run/point; mount --bind /run/b /run/point; mkdir /run/point/relay
        $relayfsd --log-file=/run/log /run/point/relay
        cat /run/point/relay/cpu*
        ls -d /dev/shm/relayfs-0/*
        umount /run/point/relay
    "#;
    let mut command = private_shell(script);
    command.args([program("relayfsd"), program("relay-producer")]);
    let said = text(&stdout_of(&mut command));
    assert_eq!(said, "old\n/dev/shm/relayfs-0/run-point-relay\n");
}

/// The daemon takes over what was left under a former path of the mount point, and its producers continue to write.
#[test]
fn renamed_mount_point_continues_channels() {
    let mut place = Place::named("old/relay");
    let mut daemon = place.start(ARGS);
    let former = place.state_dir();
    let channel = Channel::open(place.point(), "cpu").unwrap();
    on_cpu(0, || channel.write(b"before\n")).unwrap();
    channel.sync().unwrap();
    daemon.signal(Signal::SIGKILL);
    assert_eq!(daemon.wait(), 128 + 9);
    nix::mount::umount2(place.point(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    place.rename("new/relay");
    let mut expected = "before\n".to_owned();
    if !is_without_sequences() {
        on_cpu(0, || channel.write(b"meanwhile\n")).unwrap();
        expected += "meanwhile\n";
    }
    let log = place.beside("log");
    // The quarantine of the last start stays.
    let refused = place.state_dir().join("quarantine-1");
    fs::create_dir_all(&refused).unwrap();
    fs::write(refused.join("state"), "for people").unwrap();
    fs::write(place.state_dir().join("lock"), "relayfsd 1\n").unwrap();
    fs::set_permissions(place.state_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut daemon = place.start(&[ARGS, &["--log-file", log.to_str().unwrap()]].concat());
    let read = || text(&fs::read(place.path("cpu0")).unwrap());
    assert_eq!(read(), expected);
    if !is_without_sequences() {
        on_cpu(0, || channel.write(b"afterwards\n")).unwrap();
        assert_eq!(read(), "afterwards\n");
    }
    assert!(!former.exists());
    let said = fs::read_to_string(log).unwrap();
    let line =
        format!("{} was left of {} under another path, and is ", former.display(), place.point().display());
    assert!(said.contains(&line), "{said}");
    drop(channel);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    assert_eq!(fs::read_to_string(place.state_dir().join("quarantine-1/state")).unwrap(), "for people");
}

/// A new directory with the inode number of a removed one gets nothing of that one's channels.
#[test]
fn new_directory_with_reused_inode_begins_empty() {
    let mut place = Place::named("old/relay");
    let mut daemon = place.start(ARGS);
    let channel = Channel::open(place.point(), "cpu").unwrap();
    channel.write_to(0, b"old\n").unwrap();
    channel.sync().unwrap();
    drop(channel);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    let former = place.state_dir();
    // As if the file system had used the number again.
    let state = former.join("state");
    let (said, born) =
        (fs::read_to_string(&state).unwrap(), |line: &str| line.split([':', ' ']).nth(3).unwrap().to_owned());
    let line = said.lines().find(|line| line.starts_with("point ")).unwrap();
    fs::write(&state, said.replace(&born(line), "1000000000.000000000")).unwrap();
    place.rename("new/relay");
    let mut daemon = place.start(ARGS);
    assert_eq!(text(&fs::read(place.path("cpu0")).unwrap()), "");
    assert!(former.exists());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
}

/// A second daemon on a state directory is refused, and the first continues. A child of a daemon does not keep its
/// lock.
#[test]
fn second_daemon_on_state_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let args = ["--state-dir", state.to_str().unwrap()];
    let mut mount = Mount::new(&args);
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let output = run(Command::new(program("relayfsd")).arg("-f").args(args).arg(&other));
    let said = complaint("relayfsd", &output);
    let pid = mount.daemon().pid();
    assert!(said.contains(&format!("another relayfsd (process {pid}) uses ")), "{said}");
    mount.send(0, &[b"one\n"]);
    assert_eq!(text(&mount.read("cpu0")), "one\n");
}
