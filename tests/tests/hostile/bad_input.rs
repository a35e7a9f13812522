//! Bad input: each has a clear line and an exit status that is not 0, or an error reply. All else continues.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recv, send, socket,
};
use relay::wire::frame::{Body, Refusal};
use relayfs_tests::background::{Place, try_to_start};
use relayfs_tests::{Mount, complaint, eventually, exit_code, private_shell, program, run, text, tool};

/// Runs `relay-producer -m WHERE ARGS`.
fn produce(place: &Path, args: &[impl AsRef<OsStr>]) -> Output {
    run(Command::new(program("relay-producer")).arg("-m").arg(place).args(args))
}

/// Runs `audience -m WHERE ARGS`.
fn listen_to(place: &Path, args: &[&str]) -> Output {
    run(Command::new(program("audience")).arg("-m").arg(place).args(args))
}

/// Checks that a program failed with this exit status and one line that contains `part`.
#[track_caller]
fn assert_refused(name: &str, output: &Output, code: i32, part: &str) {
    let told = complaint(name, output);
    assert!(told.contains(part), "{part}: {told}");
    assert_eq!(exit_code(output.status), code, "{told}");
}

/// Checks that other clients write and read as before.
#[track_caller]
fn assert_unharmed(mount: &mut Mount) {
    assert_eq!(mount.send(0, &[b"unharmed"]).written, 1);
    assert_eq!(mount.read("cpu0"), b"unharmed");
    assert!(mount.daemon().is_running());
}

/// Bad sizes (0, no number, over the limit), unknown options, and other errors before the daemon does anything.
#[test]
fn wrong_usage_of_daemon_is_one_line() {
    let place = Place::new();
    for (args, part) in [
        ("--subbuf-size=0", "subbuf-size 0 is out of range: 1 to 67108864 bytes"),
        ("--subbuf-size=65M", "subbuf-size 68157440 is out of range"),
        ("--subbuf-size=many", "'many' is not a size: digits, then at most one of K, M, G"),
        ("--subbuf-size=", "--subbuf-size"),
        ("--subbuf-size=4KB", "'4KB' is not a size"),
        ("--subbuf-size=1.5M", "'1.5M' is not a size"),
        ("--subbuf-size=-1", "'-1' is not a size"),
        ("--subbuf-size=99999999999G", "'99999999999G' is too large"),
        ("--n-subbufs=0", "n-subbufs 0 is out of range: 1 to 65536"),
        ("--n-subbufs=65537", "n-subbufs 65537 is out of range"),
        ("--n-subbufs=x", "'x' is not a size"),
        ("--subbuf-size=64M --n-subbufs=64K", "65536 sub-buffers of 67108864 bytes are too many"),
        ("--header=256K", "header 262144 leaves no room in a sub-buffer of 262144 bytes"),
        ("--header=x", "'x' is not a size"),
        ("--max-memory=lots", "'lots' is not a size"),
        ("--max-connections=-1", "--max-connections"),
        ("--max-connections=0", "a number from 1 up"),
        ("--max-channels=0", "a number from 1 to 65536"),
        ("--max-channels=65537", "a number from 1 to 65536"),
        ("--socket-mode=0999", "'0999' is not a mode: octal"),
        ("--socket-mode=rw", "'rw' is not a mode"),
        ("--group=no-such-group", "--group no-such-group: no such group"),
        ("--channel=", "'' is not a channel name"),
        ("--channel=.hidden", "'.hidden' is not a channel name"),
        ("--channel=a/b/c/d/e", "'a/b/c/d/e' is not a channel name: 4 components at most"),
        ("--channel=../up", "'../up' is not a channel name"),
        ("--channel=a:subbuf-size=0", "--channel a:subbuf-size=0: subbuf-size 0 is out of range"),
        ("--channel=a:n-subbufs=x", "n-subbufs: 'x' is not a size"),
        ("--channel=a:nonsense", "unknown channel option 'nonsense': known are subbuf-size="),
        ("--channel=a:overwrite:no-overwrite", "'overwrite' and 'no-overwrite' exclude each other"),
        ("--channel=a:header=1M", "header 1048576 leaves no room"),
        // Conflicts of names: a directory, another channel and digits, twice, and the default channel.
        ("--channel=a --channel=a", "this channel is given twice"),
        ("--channel=app --channel=app/log", "app is the channel app; choose a name outside it"),
        ("--channel=app/log --channel=app", "app is the directory of channel app/log"),
        (
            "--channel=a --channel=a1",
            "a1 is the file of CPU 1 of channel a; choose a name that does not end in digits",
        ),
        ("--channel=cpu1", "cpu1 is the file of CPU 1 of channel cpu"),
        ("--nonsense", "'--nonsense'"),
        ("-x", "'-x'"),
        ("--overwrite=yes", "--overwrite"),
        ("-o nonsense", "unknown mount option 'nonsense' in -o"),
        ("-o subbuf_size", "--subbuf-size"),
        ("-o subbuf_size=x", "'x' is not a size"),
        ("-o channel=.a", "'.a' is not a channel name"),
        ("-o allow_root", "allow_other"),
        ("one two", "unexpected value"),
    ] {
        for way in [None, Some("-f")] {
            let args: Vec<&str> = way.into_iter().chain(args.split_whitespace()).collect();
            let output = try_to_start(&mut place.command(&args));
            assert_refused("relayfsd", &output, 2, part);
        }
    }
    let output = try_to_start(&mut Command::new(program("relayfsd")));
    assert_refused("relayfsd", &output, 2, "MOUNTPOINT");
    place.assert_clean();
}

/// Wrong usage of the other two programs.
#[test]
fn wrong_usage_of_producer_and_reader_is_one_line() {
    let mut mount = Mount::new(&[]);
    for (args, part) in [
        (&["--nonsense", "x"][..], "'--nonsense'"),
        (&["--cpu=-1", "x"], "'-1'"),
        (&["--cpu=first", "x"], "'first'"),
        (&["--chunk=0"], "chunks of 0 bytes are not possible"),
        (&["--chunk=x"], "'x' is not a size"),
        (&["--chunk=4K", "-0"], "cannot be used with"),
        (&["--wait=soon", "x"], "not a duration"),
        (&["--channel=.x", "x"], "'.x' is not a channel name"),
        (&["--channel=", "x"], "'' is not a channel name"),
        (&["--create=subbuf-size=0", "--channel=new", "x"], "subbuf-size 0 is out of range"),
        (&["--create=nonsense", "--channel=new", "x"], "unknown channel option 'nonsense'"),
        (&["--create=subbuf-size=16:header=16", "--channel=new", "x"], "header 16 leaves no room"),
    ] {
        assert_refused("relay-producer", &produce(mount.point(), args), 2, part);
    }
    for (args, part) in [
        (&["--nonsense"][..], "'--nonsense'"),
        (&["operand"], "'operand'"),
        (&["--cpu=x"], "'x'"),
        (&["--channel=.x"], "'.x' is not a channel name"),
        (&["--interval=1"], "--follow"),
        (&["-f", "--interval=0"], "not between"),
    ] {
        assert_refused("audience", &listen_to(mount.point(), args), 2, part);
    }
    assert_unharmed(&mut mount);
}

/// An unknown channel is an error that lists the existing ones. So is a CPU out of range.
#[test]
fn unknown_channel_and_cpu_are_errors() {
    let mut mount = Mount::new(&["--channel=app/log:global", "--channel=app/err"]);
    let n_cpus = fs::read_dir(mount.point()).unwrap().count() - 2; // without .relay and app
    let unknown = "no channel 'nonsense' (existing: app/err, app/log, cpu); use --create to create it";
    assert_refused("relay-producer", &produce(mount.point(), &["-c", "nonsense", "x"]), 1, unknown);
    let output = listen_to(mount.point(), &["-c", "nonsense"]);
    assert_refused("audience", &output, 1, "no channel 'nonsense' in ");
    assert!(text(&output.stderr).contains(" (existing: app/err, app/log, cpu)"), "{output:?}");
    for cpu in [n_cpus, usize::MAX] {
        let expected = format!("no buffer for CPU {cpu}: this channel has them for CPUs 0 to {}", n_cpus - 1);
        let args = [format!("--cpu={cpu}"), "x".to_owned()];
        assert_refused("relay-producer", &produce(mount.point(), &args), 1, &expected);
        let expected = format!("has no file for CPU {cpu}, only for 0");
        assert_refused("audience", &listen_to(mount.point(), &[&args[0]]), 1, &expected);
    }
    assert_unharmed(&mut mount);
}

/// Conflicts of names, bad names and bad geometries that only the daemon can see, when a producer opens a channel.
#[test]
fn impossible_channel_is_refused_at_run_time() {
    let mut mount = Mount::new(&["--max-memory=4M", "--channel=app/log", "--subbuf-size=64K"]);
    for (channel, geometry, part) in [
        ("app", "", "channel 'app': app is the directory of channel app/log; choose another name"),
        ("app/log/x", "", "channel 'app/log/x': app/log is the channel app/log; choose a name outside it"),
        (
            "app/log7",
            "",
            "channel 'app/log7': app/log7 is the file of CPU 7 of channel app/log; choose a name that does not end",
        ),
        ("cpu0", "", "channel 'cpu0': cpu0 is the file of CPU 0 of channel cpu"),
        ("new", "=header=64K", "channel 'new': header 65536 leaves no room in a sub-buffer of 65536 bytes"),
        ("new", "=subbuf-size=2M:n-subbufs=2:global", "channel 'new' needs 4"),
    ] {
        let output = produce(mount.point(), &["-c", channel, &format!("--create{geometry}"), "x"]);
        assert_refused("relay-producer", &output, 1, part);
    }
    assert_eq!(fs::read_dir(mount.path(".relay/channels")).unwrap().count(), 2, "app and cpu");
    assert_unharmed(&mut mount);
}

/// `--max-memory` bounds all channels together. The error comes when the channel is opened, and has the numbers. A
/// `--channel` that cannot be opened ends the start.
#[test]
fn memory_limit_refuses_channels() {
    let place = Place::new();
    let needs = "channel 'cpu' needs ";
    assert_refused("relayfsd", &try_to_start(&mut place.command(&["--max-memory=64K"])), 1, needs);
    let args = ["--max-memory=4M", "--subbuf-size=4K", "--channel=big:subbuf-size=8M:n-subbufs=1:global"];
    for way in [None, Some("-f")] {
        let args: Vec<&str> = way.into_iter().chain(args).collect();
        let output = try_to_start(&mut place.command(&args));
        let told = complaint("relayfsd", &output);
        assert!(
            told.starts_with("channel 'big' needs 8200K (subbuf-size=8M:n-subbufs=1:global, 1 buffers); ")
        );
        assert!(
            told.ends_with(" of 4M are in use: use smaller buffers or raise --max-memory of relayfsd"),
            "{told}"
        );
        place.assert_clean();
    }

    let mut mount = Mount::new(&["--max-memory=4M", "--subbuf-size=4K"]);
    let create = |name: &str| {
        produce(mount.point(), &["-c", name, "--create=subbuf-size=3M:n-subbufs=1:global", name])
    };
    assert!(create("first").status.success());
    let output = create("second");
    assert_refused("relay-producer", &output, 1, "channel 'second' needs 3080K (");
    assert!(text(&output.stderr).contains(" of 4M are in use: use smaller buffers or raise --max-memory"));
    // Freed memory can be used again.
    assert_eq!(mount.read("first0"), b"first\n");
    eventually("the end of the first channel", || !mount.path("first0").exists());
    assert!(create("second").status.success());
    assert_unharmed(&mut mount);
}

/// The default limit is a quarter of the smallest of RAM, the cgroup's memory.max and the free space of the tmpfs. A
/// tmpfs that is full anyway is an error when the channel is opened, not later.
#[test]
fn full_tmpfs_refuses_channels_at_open() {
    let script = r#"
        cd "$2"; mkdir relay; PATH=$1:$PATH
        mount -o remount,size=64M /dev/shm
        relayfsd -v relay 2>&1 | sed 's/.* of //'
        umount relay
        mount -o remount,size=4M /dev/shm
        relayfsd relay 2>&1 || echo "refused $?"
        relayfsd --max-memory=1G --subbuf-size=4K relay
        relay-producer -m relay -c big --create=subbuf-size=8M:n-subbufs=1:global x 2>&1 || echo "refused $?"
        relay-producer -m relay unharmed; cat relay/cpu*; ls relay
        umount relay
        relayfsd --max-memory=1G --subbuf-size=8M relay 2>&1 || echo "refused $?"
        while ls -A /dev/shm /run/relayfs | grep -q relay$; do :; done
    "#;
    let dir = tempfile::tempdir().unwrap();
    let bin = program("relayfsd");
    let output = run(private_shell(script).arg(bin.parent().unwrap()).arg(dir.path()));
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(output.status.success(), "{output:?}");
    let full = "cannot allocate its buffers in /dev/shm/relayfs-0/";
    for (line, part) in lines.iter().zip([
        "15M", // of 64M, a little is in use
        "relayfsd: channel 'cpu' needs ",
        "refused 1",
        &format!("relay-producer: channel 'big': {full}"),
        "refused 1",
        "unharmed",
    ]) {
        assert!(line.contains(part), "{part}: {lines:#?}");
    }
    let last = &lines[lines.len() - 2..];
    assert!(last[0].contains(&format!("relayfsd: channel 'cpu': {full}")), "{lines:#?}");
    assert!(last[0].contains("No space left on device"), "{lines:#?}");
    assert_eq!(last[1], "refused 1");
}

/// /dev/fuse is missing.
#[test]
fn missing_dev_fuse_is_reported() {
    let script = r#"
        cd "$2"; mkdir relay
        mount -t tmpfs tmpfs /dev; mkdir /dev/shm; mknod -m 666 /dev/null c 1 3
        "$1" relay 2>&1 || echo "refused $?"
        "$1" -f relay 2>&1 || echo "refused $?"
        mknod /dev/fuse c 10 59 # of no driver
        "$1" relay 2>&1 || echo "refused $?"
        ls -A /dev/shm; test -e /run/relayfs && echo left || echo clean
    "#;
    let dir = tempfile::tempdir().unwrap();
    let output = run(private_shell(script).arg(program("relayfsd")).arg(dir.path()));
    let missing =
        "relayfsd: /dev/fuse is missing: modprobe fuse; in a container, add it: --device /dev/fuse\n";
    let expected = format!("{missing}refused 1\n").repeat(3) + "clean\n";
    assert_eq!(text(&output.stdout), expected, "{output:?}");
}

/// Root in a container without the capability to mount.
#[test]
fn missing_capability_to_mount_is_reported() {
    let place = Place::new();
    let mut command = tool("setpriv", "util-linux");
    command.arg("--bounding-set=-sys_admin").arg(program("relayfsd")).arg(place.point());
    let expected = format!(
        "mounting on {} is not permitted: it takes CAP_SYS_ADMIN; in a container: --cap-add SYS_ADMIN",
        place.point().display()
    );
    assert_refused("relayfsd", &try_to_start(&mut command), 1, &expected);
    place.assert_clean();
}

/// CPUs that are offline, or forbidden to the daemon: here the machine seems to have two CPUs more, which the kernel
/// lets no thread run on. Messages for them are refused and counted. A flush does all other CPUs and names those in
/// its error.
#[test]
fn messages_for_unusable_cpus_are_refused_and_counted() {
    let script = r#"
        cd "$2"; mkdir relay; PATH=$1:$PATH
        n=$(getconf _NPROCESSORS_CONF); m=$((n + 1))
        mount -t tmpfs tmpfs /sys/devices/system/cpu
        for i in $(seq 0 $m); do mkdir /sys/devices/system/cpu/cpu$i; done
        echo 0-$m >/sys/devices/system/cpu/possible
        set +e
        {
            exec 2>&1
            relayfsd --log-file=log relay
            ls relay/cpu$m
            relay-producer -m relay --cpu $n x || echo "refused $?"
            relay-producer -m relay --cpu 0 --flush kept || echo "refused $?"
            grep -e "cpu$n.dropped " -e cpu0.produced relay/.relay/channels/cpu/stats
            echo 1 2>/dev/null >relay/.relay/channels/cpu/flush || echo "refused $?"
            grep -e cpu0.produced relay/.relay/channels/cpu/stats
            sed 's/.*channel/channel/' log | sort -V
            cat relay/cpu$n relay/cpu0
            umount relay
        } | sed -E "s/(CPU |cpu)$n/\1N/g; s/(CPU |cpu)$m/\1M/g"
    "#;
    let dir = tempfile::tempdir().unwrap();
    let bin = program("relayfsd");
    tool("getconf", "libc-bin");
    let output = run(private_shell(script).arg(bin.parent().unwrap()).arg(dir.path()));
    let why = "is offline or not allowed to the daemon (Invalid argument)";
    let expected = format!(
        "relay/cpuM\n\
         relay-producer: CPU N {why}; 0 messages had been written\nrefused 1\n\
         relay-producer: CPU N {why}; CPU M {why}; 1 messages had been written\nrefused 1\n\
         cpu0.produced 1\ncpuN.dropped 1\n\
         refused 1\n\
         cpu0.produced 2\n\
         channel cpu: flush: CPU N {why}\nchannel cpu: flush: CPU M {why}\n\
         kept\n"
    );
    assert_eq!(text(&output.stdout), expected, "{output:?}");
}

/// Not mounted, no directory, killed, ended; the reader reports it too.
#[test]
fn missing_daemon_is_reported() {
    let place = Place::new();
    let at = |name: &str| place.beside(name);
    fs::write(at("file"), "").unwrap();
    for (name, part) in [
        ("relay", "it is an ordinary directory; mount one with: relayfsd /"),
        ("none", "there is no such path"),
        ("file", "it is neither a directory nor a socket"),
    ] {
        let expected = format!("no relayfs is mounted on {}: {part}", at(name).display());
        assert_refused("relay-producer", &produce(&at(name), &["x"]), 1, &expected);
    }
    let missing = "there is no such directory; name the mount point: -m MOUNTPOINT";
    assert_refused("audience", &listen_to(&at("none"), &[]), 1, missing);
    assert_refused("audience", &listen_to(&at("file"), &[]), 1, "is not a directory; name the mount point");

    let socket = at("socket");
    let mut daemon = place.start(&["--socket", socket.to_str().unwrap()]);
    assert_refused("audience", &listen_to(&socket, &[]), 1, "is a socket, and sockets are for producers");
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert_refused(
        "relay-producer",
        &produce(place.point(), &["x"]),
        1,
        "has died and left its mount behind: umount it, or start it again: relayfsd ",
    );
    assert_refused("relay-producer", &produce(&socket, &["x"]), 1, "no daemon answers on ");
}

/// A socket of another type, or of a program that speaks another protocol.
#[test]
fn foreign_socket_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (stream, datagram, impostor) =
        (dir.path().join("stream"), dir.path().join("datagram"), dir.path().join("impostor"));
    let _stream = UnixListener::bind(&stream).unwrap();
    let _datagram = UnixDatagram::bind(&datagram).unwrap();
    for path in [&stream, &datagram] {
        let expected = format!("{} is not a relayfs socket: it is of another type", path.display());
        assert_refused("relay-producer", &produce(path, &["x"]), 1, &expected);
    }

    let seqpacket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(seqpacket.as_raw_fd(), &UnixAddr::new(&impostor).unwrap()).unwrap();
    listen(&seqpacket, Backlog::new(8).unwrap()).unwrap();
    // Only its accept() is used, which works for any Unix socket.
    let listener = UnixListener::from(seqpacket);
    let newer = Refusal { errno: libc::EPROTONOSUPPORT, text: "no common protocol\nversion".into() };
    let newer = newer.frame(0, 1);
    for (answer, part) in [
        (&b""[..], "hung up without an answer: its daemon is ending, or it is not a relayfs socket"),
        (b"220 mail.example.org ESMTP\r\n", "is not a relayfs socket: frame says "),
        (&[0x55; 4000], "is not a relayfs socket: frame says "),
        (&[0x55; 8000], "is not a relayfs socket: an answer of 8000 bytes"),
        (&newer, "no common protocol\\nversion"),
    ] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let (peer, _) = listener.accept().unwrap();
                let mut hello = [0; 64];
                recv(peer.as_raw_fd(), &mut hello, MsgFlags::empty()).unwrap();
                if !answer.is_empty() {
                    send(peer.as_raw_fd(), answer, MsgFlags::MSG_NOSIGNAL).unwrap();
                }
            });
            assert_refused("relay-producer", &produce(&impostor, &["x"]), 1, part);
        });
    }
}

/// `msg`: ENOSPC when full, EMSGSIZE when too big. `flush` and `reset`: all but `1` is EINVAL.
#[test]
fn control_files_refuse_bad_input() {
    let mut mount = Mount::new(&["--channel=small:subbuf-size=8:n-subbufs=1:global"]);
    let write = |file: &str, bytes: &[u8]| {
        fs::write(mount.control("small", file), bytes).map_err(|error| error.raw_os_error())
    };
    assert_eq!(write("msg", b"123456789"), Err(Some(libc::EMSGSIZE)));
    assert_eq!(write("msg", &vec![0; 1 << 20]), Err(Some(libc::EMSGSIZE)));
    assert_eq!(write("msg", b"12345678"), Ok(()));
    assert_eq!(write("msg", b"9"), Err(Some(libc::ENOSPC)));
    for file in ["flush", "reset"] {
        for bytes in [&b"0"[..], b"2", b"11", b"1 ", b"yes", b"1\n1", b"\n", &[0; 5000]] {
            assert_eq!(write(file, bytes), Err(Some(libc::EINVAL)), "{file}: {bytes:?}");
        }
    }
    for file in ["stats", "mode", "n_subbufs", "subbuf_size", "dropped"] {
        assert_eq!(write(file, b"1"), Err(Some(libc::EINVAL)), "{file}");
    }
    let stats = mount.stats("small");
    assert_eq!((stats["total.written"], stats["total.dropped"]), (1, 1));
    assert!(stats["total.too_big"] > 0);
    assert_eq!(mount.read("small0"), b"12345678");
    assert_unharmed(&mut mount);
}
