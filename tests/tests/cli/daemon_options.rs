//! The daemon's options on the command line, in `-o`, and in fstab, and their effects.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Group, Pid};
use relayfs_tests::background::Place;
use relayfs_tests::direct::is_without_sequences;
use relayfs_tests::{
    DEADLINE, Mount, Process, eventually, exit_code, private_shell, program, run, stdout_of, text, tool,
};

/// A group that every Debian has.
const GROUP: &str = "adm";

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Number of configured CPUs, as a C program counts them.
fn n_cpus() -> usize {
    let printed = text(&stdout_of(tool("getconf", "libc-bin").arg("_NPROCESSORS_CONF")));
    printed.trim().parse().unwrap()
}

/// Returns a channel's sub-buffer size, number of sub-buffers, and mode, as its control files have them.
fn geometry(point: &Path, channel: &str) -> String {
    let file = |name: &str| {
        let path = point.join(".relay/channels").join(channel).join(name);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    format!("{} x {}, {}", file("subbuf_size"), file("n_subbufs"), file("mode"))
}

/// The default channel is `cpu`, with a file for each configured CPU, 4 sub-buffers of 256K, in no-overwrite mode.
#[test]
fn default_channel_has_documented_geometry() {
    let mount = Mount::new(&[]);
    let mut expected: Vec<String> = (0..n_cpus()).map(|cpu| format!("cpu{cpu}")).collect();
    expected.insert(0, ".relay".into());
    expected.sort();
    assert_eq!(names(mount.point()), expected);
    assert_eq!(names(&mount.path(".relay")), ["channels", "metrics", "socket", "stats", "status", "version"]);
    assert_eq!(names(&mount.path(".relay/channels")), ["cpu"]);
    let control = [
        "consumed",
        "control",
        "dropped",
        "flush",
        "map",
        "mode",
        "msg",
        "n_subbufs",
        "reset",
        "snapshot",
        "stats",
        "status",
        "subbuf_size",
        "take",
    ];
    assert_eq!(names(&mount.path(".relay/channels/cpu")), control);
    assert_eq!(geometry(mount.point(), "cpu"), "262144 x 4, no-overwrite");
}

/// `--channel NAME[:...]` adds a channel, and may be repeated. Missing values come from the general options.
/// `--channel cpu:...` redefines the default channel.
#[test]
fn channel_options_set_geometry() {
    let mount = Mount::new(&[
        "--subbuf-size=8K",
        "--n-subbufs=2",
        "--overwrite",
        "--channel=cpu:n-subbufs=1",
        "--channel=app/log:subbuf-size=64K:n-subbufs=8:no-overwrite:header=16",
        "--channel=app/err:global",
        "--channel=a/b/c/d",
    ]);
    assert_eq!(geometry(mount.point(), "cpu"), "8192 x 1, overwrite");
    assert_eq!(geometry(mount.point(), "app/log"), "65536 x 8, no-overwrite");
    assert_eq!(geometry(mount.point(), "app/err"), "8192 x 2, overwrite");
    assert_eq!(geometry(mount.point(), "a/b/c/d"), "8192 x 2, overwrite");
    assert_eq!(names(&mount.path(".relay/channels")), ["a", "app", "cpu"]);
    let mut files: Vec<String> = (0..n_cpus()).map(|cpu| format!("log{cpu}")).collect();
    files.push("err0".into());
    files.sort();
    assert_eq!(names(&mount.path("app")), files);
    assert!(mount.path("a/b/c/d0").is_file());
    // Zero bytes at the start of each sub-buffer. The channel without a header has none.
    mount.send_to("app/log", 0, &[b"message"]);
    assert_eq!(mount.read("app/log0"), [&[0; 16][..], b"message"].concat());
    mount.send_to("app/err", 0, &[b"message"]);
    assert_eq!(mount.read("app/err0"), b"message");
}

/// Sub-buffers with headers alone are not reported at the end.
#[test]
fn headers_alone_are_not_reported_as_unread() {
    let mut mount = Mount::new(&["--header=16"]);
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    assert_eq!(mount.daemon().stderr(), "", "silence when all is well");
}

/// `-` and `_` are the same in each option, on the command line, in `--channel` and in `-o`. K, M, G are powers of
/// 1024.
#[test]
fn dashes_and_underscores_are_equal_and_units_powers_of_1024() {
    for args in [
        &["--subbuf-size=64K", "--n-subbufs=3", "--max-memory=1G", "--channel=x:subbuf-size=1M"][..],
        &["--subbuf_size", "64k", "--n_subbufs", "3", "--max_memory=1g", "--channel=x:subbuf_size=1m"],
        &["-o", "subbuf-size=65536,n-subbufs=3,max-memory=1024M,channel=x:subbuf-size=1024K"],
        &["-osubbuf_size=64K", "-o", "n_subbufs=3,max_memory=1048576K,channel=x:subbuf_size=1M"],
    ] {
        let mount = Mount::new(args);
        assert_eq!(geometry(mount.point(), "cpu"), "65536 x 3, no-overwrite", "{args:?}");
        assert_eq!(geometry(mount.point(), "x"), "1048576 x 3, no-overwrite", "{args:?}");
        let stats = fs::read_to_string(mount.path(".relay/stats")).unwrap();
        assert!(stats.contains("\nmemory_max_bytes 1073741824\n"), "{args:?}: {stats}");
    }
}

/// The long options that `--help` names.
fn long_options() -> BTreeSet<String> {
    let help = text(&stdout_of(Command::new(program("relayfsd")).arg("--help")));
    let names = help.split_whitespace().filter_map(|word| word.strip_prefix("--"));
    let names = names.map(|name| name.trim_end_matches([',', ')', ';']).split(['=', ' ']).next().unwrap());
    names.filter(|name| !["help", "version"].contains(name)).map(str::to_owned).collect()
}

/// `-o` takes each long option as key=value, with the same effect as on the command line.
#[test]
fn every_long_option_works_in_mount_options() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (point, socket, state, log, said) =
        (at("relay"), at("run/socket"), at("state"), at("log"), at("said"));
    fs::create_dir(&point).unwrap();
    let words = [
        "subbuf_size=8K".to_owned(),
        "n_subbufs=3".into(),
        "overwrite".into(),
        "header=16".into(),
        "channel=app/log:global".into(),
        "create_on_write".into(),
        "flush_interval=1m".into(),
        "max_memory=64M".into(),
        "max_connections=2".into(),
        "max_channels=9".into(),
        format!("group={GROUP}"),
        format!("stats_group={GROUP}"),
        "socket_mode=0622".into(),
        "shared=never".into(),
        format!("socket={}", socket.display()),
        format!("state_dir={}", state.display()),
        format!("log_file={}", log.display()),
        "discard".into(),
        "keep".into(),
        "single_thread".into(),
        "verbose".into(),
        "foreground".into(),
        "debug".into(),
    ];
    let given: BTreeSet<String> =
        words.iter().map(|word| word.split('=').next().unwrap().replace('_', "-")).collect();
    assert_eq!(given, long_options(), "this test has an option too many or too few");

    let mut command = Command::new(program("relayfsd"));
    command.arg(&point).arg("-o").arg(words.join(",")).stderr(File::create(&said).unwrap());
    let mut daemon = Process::start(&mut command);
    eventually("the mount", || point.join(".relay/version").exists());

    assert_eq!(geometry(&point, "cpu"), "8192 x 3, overwrite");
    assert_eq!(fs::read(point.join("app/log0")).unwrap(), [0; 16]);
    let stats = fs::read_to_string(point.join(".relay/stats")).unwrap();
    assert!(stats.contains("\nmemory_max_bytes 67108864\n"), "{stats}");
    let status = fs::metadata(&socket).unwrap();
    let gid = Group::from_name(GROUP).unwrap().expect("a group of every Debian").gid.as_raw();
    assert_eq!((status.permissions().mode() & 0o777, status.gid()), (0o622, gid));
    assert!(state.join("lock").exists() && state.join("state").exists());
    let channels: Vec<_> =
        (0..2).map(|_| relay_producer::Channel::open(&socket, "cpu").expect("a connection")).collect();
    let why = channels[0].why_socket().expect("the socket");
    assert!(is_without_sequences() || why == "relayfsd runs with --shared=never", "{why}");
    let refused = relay_producer::Channel::open(&socket, "cpu").unwrap_err().to_string();
    assert!(refused.contains("2 connections are open, the limit of --max-connections"), "{refused}");
    drop(channels);
    assert_eq!(event_loops(daemon.pid()), 1);

    daemon.signal(Signal::SIGTERM);
    assert_eq!(exit_code(daemon.wait()), 0);
    let said = fs::read_to_string(&said).unwrap();
    assert!(said.contains("relayfsd: mounted on "), "verbose: {said}");
    assert!(said.contains("relayfsd: DEBUG "), "debug: {said}");
    assert!(said.lines().all(|line| line.starts_with("relayfsd: ")), "{said}");
    assert!(state.join("1.control").exists(), "kept");
    assert!(!log.exists(), "in the foreground the log goes to standard error");
}

/// Number of a daemon's threads that serve file operations.
fn event_loops(pid: Pid) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // Other threads may end meanwhile.
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names
        .filter(|name| name.strip_prefix("fuser-").is_some_and(|rest| rest.trim().parse::<u32>().is_ok()))
        .count()
}

/// `-v` prints one line about mount, socket, CPUs, geometry and memory.
#[test]
fn verbose_is_one_line() {
    let place = Place::new();
    let args = ["-v", "--subbuf-size=8K", "--channel=app/log:global:header=16:overwrite", "--max-memory=1G"];
    let output = relayfs_tests::background::try_to_start(&mut place.command(&args));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), String::new()));
    let stats = fs::read_to_string(place.path(".relay/stats")).unwrap();
    let memory = stats.lines().find_map(|line| line.strip_prefix("memory_bytes ")).unwrap();
    let expected = format!(
        "relayfsd: mounted on {point}, socket {socket}/socket, {n} CPUs, cpu:subbuf-size=8K:n-subbufs=4, \
         app/log:subbuf-size=8K:n-subbufs=4:overwrite:global:header=16, memory {memory}K of 1G\n",
        point = place.point().display(),
        socket = place.socket_dir().display(),
        n = n_cpus(),
        memory = memory.parse::<u64>().unwrap() / 1024,
    );
    assert_eq!(text(&output.stderr), expected);
}

/// libfuse's letters: `-f` foreground, `-d` debug, which implies `-f`, `-s` single thread, `-h`, `-V`.
#[test]
fn letters_of_libfuse_are_understood() {
    for args in [&["-d"][..], &["-f", "-d"], &["-fds"], &["-s", "-f"]] {
        let place = Place::new();
        let said = place.beside("said");
        let mut daemon = Process::start(place.command(args).stderr(File::create(&said).unwrap()));
        eventually("the mount", || place.path(".relay/version").exists());
        assert!(daemon.is_running(), "{args:?}: in the foreground");
        let debug = args.iter().any(|arg| arg.contains('d'));
        let single = args.iter().any(|arg| arg.contains('s'));
        // Threads set their names themselves.
        eventually("the threads of the event loops", || {
            event_loops(daemon.pid()) == if single { 1 } else { 2 }
        });
        daemon.signal(Signal::SIGTERM);
        assert_eq!(exit_code(daemon.wait()), 0);
        let said = fs::read_to_string(&said).unwrap();
        assert_eq!(!said.is_empty(), debug, "{args:?}: {said}");
        place.assert_clean();
    }
    for args in [["-h"], ["--help"]] {
        let help = text(&stdout_of(Command::new(program("relayfsd")).args(args)));
        assert!(help.contains("Usage: relayfsd [OPTIONS] [SOURCE] MOUNTPOINT"), "{help}");
    }
    for args in [["-V"], ["--version"]] {
        let version = text(&stdout_of(Command::new(program("relayfsd")).args(args)));
        assert_eq!(version, concat!("relayfsd ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}

/// Returns a mount point's line of the mount table: source, type, options.
fn table_line(point: &Path) -> (String, String, Vec<String>) {
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(1) == point.to_str()).expect("it is mounted");
    let fields: Vec<&str> = line.split(' ').collect();
    (fields[0].into(), fields[2].into(), fields[3].split(',').map(str::to_owned).collect())
}

/// /proc/mounts says fuse.relayfsd, since fsname and subtype are set. Options that all file systems share have their
/// usual effect, or none.
#[test]
fn words_of_mount_are_understood() {
    let all = "rw,nofail,_netdev,user,noauto,auto,defaults,owner,users,group,dev,suid,async,relatime,\
               x-systemd.automount,x-systemd.requires=a.service,comment=hello";
    for (args, source, expected) in [
        (vec![], "relayfs", "rw,nosuid,nodev,allow_other,default_permissions"),
        (vec!["some-source"], "some-source", "rw,nosuid,nodev"),
        (vec!["-o", "fsname=other,subtype=relayfsd", "ignored"], "other", "rw"),
        (vec!["-o", "ro,noexec,noatime"], "relayfs", "ro,noexec,noatime,nosuid,nodev"),
        (vec!["-o", all, "src"], "src", "rw,nosuid,nodev"),
    ] {
        let mount = Mount::new(&args);
        let (shown, fs_type, options) = table_line(mount.point());
        assert_eq!((shown.as_str(), fs_type.as_str()), (source, "fuse.relayfsd"), "{args:?}");
        for word in expected.split(',') {
            assert!(options.iter().any(|option| option == word), "{word} of {args:?}: {options:?}");
        }
    }
    let mount = Mount::new(&["-o", "ro"]);
    let error = fs::write(mount.control("cpu", "msg"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

/// fstab and `mount -t fuse.relayfsd`, with relayfsd in mount(8)'s PATH.
#[test]
fn mount_and_fstab_start_it() {
    tool("mount.fuse3", "fuse3");
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        mount -t tmpfs tmpfs /usr/local/bin
        cp "$1" /usr/local/bin/relayfsd
        cd "$2"
        mkdir relay
        mount -t fuse.relayfsd some-source relay -o subbuf_size=8K,n-subbufs=2,channel=app/log:overwrite
        grep -c "^some-source $2/relay fuse.relayfsd rw" /proc/mounts
        cat relay/.relay/channels/cpu/subbuf_size relay/.relay/channels/app/log/mode
        umount relay
        echo "relayfs $2/relay fuse.relayfsd nofail,noauto,x-systemd.automount,user,n_subbufs=7 0 0" >fstab
        mount -T fstab relay
        grep -c "^relayfs $2/relay fuse.relayfsd rw" /proc/mounts
        cat relay/.relay/channels/cpu/n_subbufs
        umount relay
        mount -t fuse.relayfsd relayfs relay -o nonsense 2>&1 || echo refused
    "#;
    let output = run(private_shell(script).arg(program("relayfsd")).arg(dir.path()));
    let (printed, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{}: {printed}{said}", output.status);
    let expected = ["1", "8192", "overwrite", "1", "7", "relayfsd: unknown mount option 'nonsense' in -o"];
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..5], expected[..5], "{printed}");
    assert!(lines[5].starts_with(expected[5]) && lines.last() == Some(&"refused"), "{printed}");
}

/// `RUST_LOG` decides what is logged.
#[test]
fn rust_log_sets_the_log_level() {
    let place = Place::new();
    let said: PathBuf = place.beside("said");
    let mut command = place.command(&["-f"]);
    let mut daemon = Process::start(command.env("RUST_LOG", "info").stderr(File::create(&said).unwrap()));
    eventually("the mount", || place.path(".relay/version").exists());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(exit_code(daemon.wait()), 0);
    let said = fs::read_to_string(&said).unwrap();
    assert!(said.contains("relayfsd: channel cpu: created, "), "{said}");
    assert!(!said.contains("DEBUG"), "{said}");
}

/// In the background, each line goes to syslog as a datagram, after facility and severity.
#[test]
fn system_log_has_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let log = UnixDatagram::bind(dir.path().join("log")).unwrap();
    log.set_read_timeout(Some(DEADLINE)).unwrap();
    let script = r#"
        cd "$2"; mkdir relay; PATH=$1:$PATH
        mount -t tmpfs tmpfs /dev; mkdir /dev/shm; mknod /dev/null c 1 3; mknod /dev/fuse c 10 229
        ln -s "$2/log" /dev/log
        relayfsd relay -o discard
        relay-producer -m relay unread
        umount relay
        while test -e /dev/shm/relayfs-0; do :; done
    "#;
    let bin = program("relayfsd");
    let output = run(private_shell(script).arg(bin.parent().unwrap()).arg(dir.path()));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let mut datagram = [0; 4096];
    let len = log.recv(&mut datagram).unwrap();
    let line = text(&datagram[..len]);
    // 28: the facility "daemon", a warning.
    assert!(line.starts_with("<28>relayfsd["), "{line}");
    assert!(line.ends_with("]: --discard removed unread data: cpu 7 bytes"), "{line}");
    log.set_nonblocking(true).unwrap();
    assert!(log.recv(&mut datagram).is_err(), "and nothing else");
}
