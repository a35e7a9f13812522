//! What the next daemon makes of what one has left: channels go on with their geometry and their numbers, also those
//! that producers had opened; what is damaged is set aside and told; a mount point is known by its path and by its
//! directory.

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

/// What the daemon says until its end, which comes now.
fn told(mount: &mut Mount) -> String {
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    mount.daemon().stderr()
}

#[test]
fn every_number_goes_on() {
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

/// Channels that producers opened are there again while there is something unread in them; then they go, and what they
/// had counted stays.
#[test]
fn channels_of_nobody_are_there_until_they_are_read() {
    let mut mount = Mount::new(ARGS);
    let holds = Channel::builder(mount.point(), "app/log").create(true).open().unwrap();
    mount.send_to("app/log", 0, &[b"unread\n"]);
    let empty = Channel::builder(mount.point(), "empty").create(true).open().unwrap();
    drop((holds, empty));
    kill(&mut mount);
    mount.restart(ARGS);
    assert!(!mount.path("empty0").exists());
    assert_eq!(text(&mount.read("app/log0")), "unread\n");
    eventually("the channel's end", || !mount.path("app").exists());
    for _ in 0..2 {
        let stats = fs::read_to_string(mount.path(".relay/stats")).unwrap();
        assert!(stats.contains("\ngone.read_bytes 7\n"), "{stats}");
        kill(&mut mount);
        mount.restart(ARGS);
    }
}

/// A producer that only writes does not come back by itself, but its channel is there as long as it is, and who polls
/// its buffer hears of what it finishes.
#[test]
fn a_producer_of_an_earlier_daemon_is_heard() {
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
        // Two sub-buffers: the first is finished, and nobody hears the bell.
        on_cpu(0, || (0..2).for_each(|_| channel.write(&[b'x'; 3000]).unwrap()));
        assert_eq!(sleeper.join().unwrap(), Ok(1));
    });
    drop(file);
    assert_eq!(mount.read("app0").len(), 6000);
    channel.flush().unwrap(); // comes back
    drop(channel);
    eventually("the channel's end", || !mount.path("app0").exists());
}

/// Whether a thread of this process sleeps in poll(2); what it polls has been asked then.
fn sleeps_in_poll(thread: Pid) -> bool {
    let wchan = fs::read_to_string(format!("/proc/self/task/{thread}/wchan"));
    wchan.is_ok_and(|wchan| wchan.contains("poll"))
}

/// Without sequences nothing is written directly, and what a socket takes is lost with the daemon: said, not skipped.
fn not_direct() {
    let mount = Mount::new(ARGS);
    let channel = Channel::open(mount.point(), "cpu").unwrap();
    assert!(channel.why_socket().is_some());
}

/// What is damaged is set aside, by channel, with a reason; its producers are told and find the new one.
#[test]
fn what_is_damaged_is_set_aside() {
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
        assert!(dir.join("refused-1/state").exists(), "{what}");
        let said = told(&mut mount);
        let line =
            said.lines().find(|line| line.contains("set aside")).unwrap_or_else(|| panic!("{what}: {said}"));
        assert!(line.contains("channel evil: it cannot go on") && line.contains(reason), "{what}: {line}");
        assert!(dir.join("refused-1/2.control").exists(), "{what}");
    }
}

fn truncate(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn scribble(path: &Path, at: u64, bytes: &[u8]) {
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(path).unwrap(), bytes, at)
        .unwrap();
}

/// Where the list of channels is damaged, nothing goes on; all of it is kept.
#[test]
fn without_the_list_of_channels_all_is_set_aside() {
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
        assert!(dir.join("refused-1/1.data0").exists());
        let said = told(&mut mount);
        assert!(said.contains(" cannot go on, and is set aside in "), "{said}");
    }
}

/// Producers of what was set aside are told at the next switch, and find the new channel.
#[test]
fn producers_of_what_is_set_aside_come_back() {
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

/// A channel of the command line goes on as it was while it has something unread; once it has not, it is what the
/// command line says.
#[test]
fn another_geometry_has_to_wait_for_readers() {
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

/// A directory that was made again under its path continues with what was written to that path.
#[test]
fn another_directory_of_that_path_goes_on() {
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

/// What was left under a former path of the mount point is taken over, and its producers write on.
#[test]
fn a_renamed_mount_point_goes_on() {
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
    // What the last start set aside stays beside it.
    let refused = place.state_dir().join("refused-1");
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
    assert_eq!(fs::read_to_string(place.state_dir().join("refused-1/state")).unwrap(), "for people");
}

/// A new directory that has the inode number of a removed one has nothing to do with what was left of that.
#[test]
fn another_directory_of_that_number_begins_empty() {
    let mut place = Place::named("old/relay");
    let mut daemon = place.start(ARGS);
    let channel = Channel::open(place.point(), "cpu").unwrap();
    channel.write_to(0, b"old\n").unwrap();
    channel.sync().unwrap();
    drop(channel);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    let former = place.state_dir();
    // As if the file system had given the number again.
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

/// Two daemons on one state directory: the second is refused, and the first goes on; the lock does not outlive its
/// daemon in a child.
#[test]
fn one_daemon_a_state_directory() {
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
