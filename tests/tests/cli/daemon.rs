//! The daemon's life: it starts, or prints why it does not; it ends in each possible way, and leaves nothing behind.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::minor;
use nix::unistd::getsid;
use relayfs_tests::background::{Daemon, Place, try_to_start};
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{
    DEADLINE, Mount, Process, complaint, eventually, exit_code, is_mounted, program, run, stdout_of, text,
    tool,
};

/// The options of a daemon in the background, and in the foreground.
const WAYS: [&[&str]; 2] = [&[], &["-f"]];

/// Sends a line to the buffer of CPU 0.
#[track_caller]
fn send(point: &Path, message: &str) {
    stdout_of(
        Command::new(program("relay-producer")).arg("-m").arg(point).args(["--cpu", "0", "--", message]),
    );
}

/// The starting process returns when the mount is usable, and prints nothing.
#[test]
fn start_returns_when_the_mount_is_usable() {
    let place = Place::new();
    let daemon = place.start(&[]);
    let version = fs::read_to_string(place.path(".relay/version")).unwrap();
    assert_eq!(version, concat!("relayfs ", env!("CARGO_PKG_VERSION"), "\n"));
    send(place.point(), "Hello world");
    assert_eq!(fs::read(place.path("cpu0")).unwrap(), b"Hello world\n");

    // It keeps nothing of its parent.
    let proc = |name: &str| fs::read_link(format!("/proc/{}/{name}", daemon.pid())).unwrap();
    assert_eq!(proc("cwd"), Path::new("/"));
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(proc(fd), Path::new("/dev/null"), "{fd}");
    }
    assert_eq!(getsid(Some(daemon.pid())), Ok(daemon.pid()));
}

/// A start that fails has an exit status and one line, in the background and in the foreground.
#[test]
fn failed_start_prints_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["relay", "others"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("file"), "").unwrap();
    fs::write(at("others/file"), "not ours").unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("circle", at("circle")).unwrap();

    for (args, point, reason) in [
        ("", "none", "/none: there is no such directory; create it: mkdir -p /"),
        ("", "none/below", "/none/below: there is no such directory"),
        ("", "dangling", "/dangling: there is no such directory"),
        ("", "file", "/file: not a directory"),
        ("", "file/below", "/file/below: not a directory"),
        ("", "circle", "/circle: Too many levels of symbolic links"),
        ("", "/proc", "/proc is busy: proc from proc is mounted there"),
        ("--state-dir=file", "relay", "/file is a symbolic link or no directory; --state-dir"),
        (
            "--state-dir=others",
            "relay",
            "/others holds files that are not relayfsd's: name an empty directory",
        ),
        ("--state-dir=none/below", "relay", "/none: No such file or directory"),
        ("--socket=file", "relay", "/file: there is something else of that name; --socket names another"),
        ("--socket=none/below/socket", "relay", "/none: No such file or directory"),
    ] {
        for way in WAYS {
            let mut command = Command::new(program("relayfsd"));
            command.args(way).args(args.split_whitespace()).arg(point).current_dir(dir.path());
            let output = try_to_start(&mut command);
            let told = complaint("relayfsd", &output);
            assert!(output.status.code() == Some(1) && told.contains(reason), "{command:?}: {told}");
            assert!(!is_mounted(&at("relay")));
        }
    }
    let told = complaint(
        "relayfsd",
        &try_to_start(
            Command::new(program("relayfsd")).arg("--log-file=none/log").arg("relay").current_dir(dir.path()),
        ),
    );
    assert!(told.starts_with("cannot log to ") && told.contains("none/log"), "{told}");
    assert_eq!(fs::read(at("others/file")).unwrap(), b"not ours");
}

/// Mount points with foreign mounts or files in use are refused.
#[test]
fn foreign_mount_is_refused_and_left_alone() {
    let place = Place::new();
    mount(Some("another"), place.point(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(place.path("file"), "another's").unwrap();
    for way in WAYS {
        let told = complaint("relayfsd", &try_to_start(&mut place.command(way)));
        assert!(told.contains("is busy: tmpfs from another is mounted there"), "{told}");
        assert_eq!(fs::read(place.path("file")).unwrap(), b"another's");
    }
}

/// A second daemon on the same mount point is refused, under any spelling of the path. The first daemon continues.
#[test]
fn second_daemon_on_mount_point_is_refused() {
    let place = Place::new();
    let _daemon = place.start(&["--socket", place.beside("socket").to_str().unwrap()]);
    send(place.point(), "unread");
    symlink("relay", place.beside("link")).unwrap();
    for point in ["relay", "relay/", "relay/.", "./relay", "relay/../relay", "link", "link/"] {
        for way in WAYS {
            let mut command = Command::new(program("relayfsd"));
            let output = try_to_start(command.args(way).arg(point).current_dir(place.beside("")));
            let told = complaint("relayfsd", &output);
            assert!(told.contains("is already mounted, and its relayfsd is alive"), "{point}: {told}");
        }
    }

    let other = Place::new();
    for (option, path, reason) in [
        ("--state-dir", place.state_dir(), "another relayfsd (process "),
        ("--socket", place.beside("socket"), "it is in use by another program; --socket names another"),
    ] {
        let option = format!("{option}={}", path.display());
        let told = complaint("relayfsd", &try_to_start(&mut other.command(&[&option])));
        assert!(told.contains(reason), "{told}");
    }
    other.assert_clean();

    assert_eq!(fs::read(place.path("cpu0")).unwrap(), b"unread\n");
}

/// Of several daemons that start for one mount point at once, one mounts. The others print why they do not.
#[test]
fn one_of_several_concurrent_daemons_mounts() {
    let place = Place::new();
    let outputs: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| try_to_start(&mut place.command(&[])))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let (mounted, refused): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!(mounted.len(), 1);
    for output in refused {
        let told = complaint("relayfsd", output);
        assert!(told.contains("is already mounted"), "{told}");
    }
    send(place.point(), "one");
    assert_eq!(fs::read(place.path("cpu0")).unwrap(), b"one\n");
    let mut daemon = Daemon::find(place.point());
    place.unmount();
    assert_eq!(daemon.wait(), 0);
    place.assert_clean();
}

/// SIGINT and SIGTERM end the daemon with exit status 0. It leaves nothing behind.
#[test]
fn ending_signals_end_daemon_with_status_0() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let place = Place::new();
        let mut daemon = place.start(&[]);
        daemon.signal(signal);
        assert_eq!(daemon.wait(), 0, "{signal}");
        place.assert_clean();

        let mut process = Process::start(place.command(&["-f"]).stderr(Stdio::piped()));
        eventually("the mount", || place.path(".relay/version").exists());
        process.signal(signal);
        assert_eq!(exit_code(process.wait()), 0, "{signal}");
        assert_eq!(process.stderr(), "", "silence when all is well");
        place.assert_clean();
    }
}

/// The daemon ends with exit status 0 after umount, umount -l and fusermount3 -u, in the background and in the
/// foreground.
#[test]
fn unmounting_ends_daemon_with_status_0() {
    let by_tool: [(&str, &str, &[&str]); 3] =
        [("umount", "mount", &[]), ("umount", "mount", &["-l"]), ("fusermount3", "fuse3", &["-u"])];
    for (name, package, args) in by_tool {
        let place = Place::new();
        let mut daemon = place.start(&[]);
        stdout_of(tool(name, package).args(args).arg(place.point()));
        assert_eq!(daemon.wait(), 0, "{name} {args:?}");
        place.assert_clean();

        let mut process = Process::start(place.command(&["-f"]).stderr(Stdio::piped()));
        eventually("the mount", || place.path(".relay/version").exists());
        stdout_of(tool(name, package).args(args).arg(place.point()));
        assert_eq!(exit_code(process.wait()), 0, "{name} {args:?}");
        assert_eq!(process.stderr(), "", "silence when all is well");
        place.assert_clean();
    }
}

/// The mount point is free when umount returns, even if the daemon has not ended yet.
#[test]
fn next_daemon_starts_right_after_umount() {
    let place = Place::new();
    for _ in 0..30 {
        let output = try_to_start(&mut place.command(&[]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        umount2(place.point(), MntFlags::UMOUNT_NOFOLLOW).unwrap();
    }
    eventually("the end of the last one", || !place.state_dir().exists() && !place.socket_dir().exists());
}

/// While a file is open, umount says that the target is busy, and nothing changes.
#[test]
fn open_file_keeps_the_mount_busy() {
    let mount = Mount::new(&[]);
    let file = File::open(mount.path("cpu0")).unwrap();
    let output = run(tool("umount", "mount").arg(mount.point()));
    assert!(!output.status.success() && text(&output.stderr).contains("busy"), "{output:?}");
    mount.send(0, &[b"still there"]);
    drop(file);
    assert_eq!(mount.read("cpu0"), b"still there");
}

/// After umount -l, readers with open files get the rest, then 0. A new daemon can mount at once, and the old one
/// ends when the last file is closed. Read data does not come back.
#[test]
fn open_files_are_read_to_their_end_after_umount_l() {
    let mut old = Mount::new(&["--subbuf-size=16", "--n-subbufs=8"]);
    old.send(0, &[b"first 10b.", b"second 10b", b"third 10b."]); // one to a sub-buffer
    let mut reader = File::open(old.path("cpu0")).unwrap();
    let mut idle = File::open(old.path("cpu1")).unwrap();
    let mut start = [0; 6];
    reader.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"first ");

    stdout_of(tool("umount", "mount").arg("-l").arg(old.point()));
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "10b.second 10bthird 10b.");
    let mut command = Command::new(program("relayfsd"));
    let mut new = Process::start(command.arg("-f").arg(old.point()));
    eventually("the new mount", || old.path(".relay/version").exists());
    send(old.point(), "to the new one");
    assert_eq!(reader.read(&mut [0; 16]).unwrap(), 0);
    assert_eq!(idle.read(&mut [0; 16]).unwrap(), 0);
    drop(reader);
    assert!(old.daemon().is_running(), "a file is still open");
    drop(idle);
    assert_eq!(exit_code(old.daemon().wait()), 0);

    assert_eq!(old.read("cpu0"), b"to the new one\n");
    new.signal(Signal::SIGTERM);
    assert_eq!(exit_code(new.wait()), 0);
}

/// A new daemon after umount -l gets the unread data, once. The open files are at their end.
#[test]
fn next_daemon_gets_unread_data_after_umount_l() {
    let mut old = Mount::new(&["--subbuf-size=16", "--n-subbufs=8"]);
    old.send(0, &[b"first 10b.", b"second 10b", b"third 10b."]);
    let mut reader = File::open(old.path("cpu0")).unwrap();
    let mut first = [0; 10];
    reader.read_exact(&mut first).unwrap();
    stdout_of(tool("umount", "mount").arg("-l").arg(old.point()));
    let mut command = Command::new(program("relayfsd"));
    let mut new = Process::start(command.arg("-f").arg(old.point()));
    eventually("the new mount", || old.path(".relay/version").exists());
    assert_eq!(exit_code(old.daemon().wait()), 0);
    let error = reader.read(&mut [0; 16]).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
    assert_eq!(text(&old.read("cpu0")), "second 10bthird 10b.");
    new.signal(Signal::SIGTERM);
    assert_eq!(exit_code(new.wait()), 0);
}

/// A start that fails removes no channel of the last daemon.
#[test]
fn failed_start_keeps_channels_of_last_daemon() {
    let mut mount = Mount::new(&[]);
    mount.send(0, &[b"precious\n"]);
    assert_eq!(exit_code(mount.end(Signal::SIGKILL)), 128 + 9);
    fs::write(mount.beside("file"), "").unwrap();
    let mut command = Command::new(program("relayfsd"));
    command.arg("--socket").arg(mount.beside("file")).arg(mount.point());
    let told = complaint("relayfsd", &try_to_start(&mut command));
    assert!(told.contains("there is something else of that name"), "{told}");
    mount.restart(&[]);
    assert_eq!(text(&mount.read("cpu0")), "precious\n");
}

/// poll(2) returns when the daemon ends in any way.
#[test]
fn end_of_daemon_wakes_pollers() {
    let unmount = |mount: &mut Mount| drop(stdout_of(tool("umount", "mount").arg("-l").arg(mount.point())));
    let terminate = |mount: &mut Mount| mount.daemon().signal(Signal::SIGTERM);
    for end in [unmount as fn(&mut Mount), terminate] {
        let mut mount = Mount::new(&[]);
        let file = File::open(mount.path("cpu0")).unwrap();
        thread::scope(|scope| {
            let (file, time_out) = (&file, PollTimeout::try_from(DEADLINE).unwrap());
            let sleeper = scope.spawn(move || {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                (poll(&mut fds, time_out), fds[0].revents())
            });
            end(&mut mount);
            let (ready, events) = sleeper.join().unwrap();
            assert_eq!((ready, events), (Ok(1), Some(PollFlags::POLLERR)));
        });
        drop(file);
        assert_eq!(exit_code(mount.daemon().wait()), 0);
    }
}

fn state_dir(mount: &Mount) -> String {
    relay::layout::paths::state_dir(mount.point(), nix::unistd::geteuid().as_raw()).display().to_string()
}

/// With open files, the daemon unmounts lazily after a short wait, or at once at a second signal. It reports unread
/// data.
#[test]
fn daemon_ends_while_files_are_open() {
    for signals in [1, 2] {
        let mut mount = Mount::new(&[]);
        mount.send(0, &[b"unread"]);
        let mut reader = File::open(mount.path("cpu0")).unwrap();
        for _ in 0..signals {
            mount.daemon().signal(Signal::SIGTERM);
            eventually("the end of the socket", || fs::metadata(mount.path(".relay/socket")).is_err());
        }
        assert_eq!(exit_code(mount.daemon().wait()), 0);
        assert!(!is_mounted(mount.point()));
        let error = reader.read(&mut [0; 16]).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
        let told = mount.daemon().stderr();
        assert!(
            told.contains(&format!("relayfsd: unread data stays in {}: cpu 6 bytes; ", state_dir(&mount))),
            "{told}"
        );
    }
}

/// If the kernel cuts the connection while it is mounted, the daemon reports that, and removes its dead mount.
#[test]
fn cut_connection_is_reported() {
    let mut mounted = Mount::new(&[]);
    let control = Place::named("connections");
    mount(Some("fusectl"), control.point(), Some("fusectl"), MsFlags::empty(), None::<&str>).unwrap();
    let number = minor(fs::metadata(mounted.point()).unwrap().dev());
    fs::write(control.path(&format!("{number}/abort")), "1").unwrap();
    assert_eq!(exit_code(mounted.daemon().wait()), 1);
    let told = mounted.daemon().stderr();
    assert!(told.starts_with("relayfsd: the FUSE connection was cut while mounted; see "), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(!is_mounted(mounted.point()));
}

/// After kill -9, the next start replaces the dead mount and continues with unread data, even while files of the dead
/// mount are open.
#[test]
fn mount_of_killed_daemon_is_replaced() {
    let place = Place::new();
    let mut dead = place.start(&[]);
    send(place.point(), "old");
    let mut reader = File::open(place.path("cpu0")).unwrap();
    dead.signal(Signal::SIGKILL);
    assert_eq!(dead.wait(), 128 + 9);
    assert!(place.is_mounted());
    assert_eq!(fs::metadata(place.path("cpu0")).unwrap_err().kind(), ErrorKind::NotConnected);

    let mut daemon = place.start(&[]);
    send(place.point(), "new");
    assert_eq!(fs::read(place.path("cpu0")).unwrap(), b"old\nnew\n");
    assert!(reader.read(&mut [0; 16]).is_err());
    place.unmount();
    assert_eq!(daemon.wait(), 0);
    place.assert_clean(); // one mount, not two upon each other
}

/// The dead mount of a killed daemon was unmounted, but its files are there.
#[test]
fn files_of_killed_daemon_without_mount_are_taken_over() {
    let place = Place::new();
    let mut dead = place.start(&[]);
    dead.signal(Signal::SIGKILL);
    dead.wait();
    place.unmount();
    assert!(place.state_dir().join("lock").exists() && place.socket_dir().join("socket").exists());

    let mut daemon = place.start(&[]);
    send(place.point(), "new");
    assert_eq!(fs::read(place.path("cpu0")).unwrap(), b"new\n");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    place.assert_clean();
}

/// The daemon removes its socket and its state directory, but no directory that was there before.
#[test]
fn directories_that_existed_before_stay() {
    for existed in [false, true] {
        let place = Place::new();
        let (state_dir, socket_dir) = (place.beside("state"), place.beside("run"));
        if existed {
            fs::create_dir(&state_dir).unwrap();
            fs::create_dir(&socket_dir).unwrap();
        }
        let socket = socket_dir.join("socket");
        let mut command = place.command(&[]);
        command.arg("--state-dir").arg(&state_dir).arg("--socket").arg(&socket);
        let mut daemon = place.start_by(&mut command);
        assert_eq!(fs::read_link(place.path(".relay/socket")).unwrap(), socket);
        send(&socket, "by the socket itself");
        assert_eq!(fs::read(place.path("cpu0")).unwrap(), b"by the socket itself\n");
        assert!(state_dir.join("lock").exists());
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait(), 0);
        place.assert_clean();
        for dir in [&state_dir, &socket_dir] {
            let left = fs::read_dir(dir).map(Iterator::count).map_err(|error| error.kind());
            assert_eq!(left, if existed { Ok(0) } else { Err(ErrorKind::NotFound) }, "{}", dir.display());
        }
    }
}

/// The kernel gives the numbers of an unmounted mount to the next one. A daemon that notices its unmount late must
/// not take the next mount for its own.
#[test]
fn late_daemon_leaves_other_mounts_alone() {
    for _ in 0..5 {
        let mut late = Mount::new(&[]);
        let stopped = Stopped::new(late.daemon().pid());
        // By the system call: umount(8) would send the daemon a request.
        umount2(late.point(), MntFlags::UMOUNT_NOFOLLOW).unwrap();
        let next = Mount::new(&[]);
        drop(stopped);
        assert_eq!(exit_code(late.daemon().wait()), 0);
        assert!(is_mounted(next.point()));
        assert_eq!(next.send(0, &[b"fine"]).written, 1);
        assert_eq!(next.read("cpu0"), b"fine");
    }
}

/// `--log-file`: empty without problems, one line about unread data, a new file after SIGHUP.
#[test]
fn log_file_has_warnings_only() {
    let place = Place::new();
    let (log, moved) = (place.beside("log"), place.beside("log.1"));
    let mut daemon = place.start(&["--log-file", log.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
    send(place.point(), "unread");
    fs::rename(&log, &moved).unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("a new log file", || log.exists());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);

    assert_eq!(fs::read_to_string(&moved).unwrap(), "");
    let lines = fs::read_to_string(&log).unwrap();
    let pid = daemon.pid();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains(&format!(" relayfsd[{pid}] WARN ")), "{lines}");
    assert!(
        lines.contains(": unread data stays in ") && lines.contains(": cpu 7 bytes; to read it: "),
        "{lines}"
    );
}

/// systemd gets READY=1 after the mount, STOPPING=1 and STATUS=.
#[test]
fn service_manager_gets_each_state() {
    for way in WAYS {
        let place = Place::new();
        let manager = UnixDatagram::bind(place.beside("notify")).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let receive = || {
            let mut datagram = [0; 4096];
            let len = manager.recv(&mut datagram).expect("a notification in time");
            text(&datagram[..len])
        };
        let mut starter = Process::start(place.command(way).env("NOTIFY_SOCKET", place.beside("notify")));

        let ready = receive();
        assert!(place.path(".relay/version").exists(), "usable when READY=1 comes");
        let mut daemon = (!way.contains(&"-f")).then(|| {
            assert_eq!(exit_code(starter.wait()), 0);
            Daemon::find(place.point())
        });
        let pid = daemon.as_ref().map_or(starter.pid(), Daemon::pid);
        assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
        assert!(ready.lines().any(|line| line == format!("MAINPID={pid}")), "{ready}");
        let status = format!("STATUS=mounted on {}, ", place.point().display());
        assert!(ready.lines().any(|line| line.starts_with(&status)), "{ready}");

        kill(pid, Signal::SIGTERM).unwrap();
        assert_eq!(receive(), "STOPPING=1\n");
        assert_eq!(daemon.as_mut().map_or_else(|| exit_code(starter.wait()), Daemon::wait), 0);
        place.assert_clean();
    }
}

/// Mount points may have any name, and be longer than a socket's address.
#[test]
fn mount_points_may_have_odd_names() {
    let long = "x".repeat(200);
    for name in ["with space", "back\\slash\\040", "-o", "a:b,c=d", "Grüße", ".hidden", &long] {
        let place = Place::named(name);
        let mut daemon = place.start(&[]);
        send(place.point(), name);
        assert_eq!(text(&fs::read(place.path("cpu0")).unwrap()), format!("{name}\n"));
        let told = complaint("relayfsd", &try_to_start(&mut place.command(&[])));
        assert!(told.contains("is already mounted"), "{name}: {told}");
        place.unmount();
        assert_eq!(daemon.wait(), 0, "{name}");
        place.assert_clean();
    }
}

/// The parent process has closed standard input, output and error.
#[test]
fn closed_standard_descriptors_do_not_matter() {
    let place = Place::new();
    let mut shell = tool("sh", "dash");
    shell.args(["-c", "exec \"$0\" \"$1\" <&- >&- 2>&-"]).arg(program("relayfsd")).arg(place.point());
    let mut daemon = place.start_by(&mut shell);
    send(place.point(), "fine");
    assert_eq!(fs::read(place.path("cpu0")).unwrap(), b"fine\n");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    place.assert_clean();
}
