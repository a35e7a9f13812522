//! The command `audience` with a real daemon.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use relay_producer::Channel;
use relayfs_tests::audience::{Follower, audience, by_program};
use relayfs_tests::background::Place;
use relayfs_tests::{
    Mount, Process, eventually, exit_code, is_mounted, private_shell, program, run, text, tool,
};

/// Runs the command. Returns exit status, standard output and standard error.
#[track_caller]
fn listen(point: &Path, args: &[&str]) -> (i32, String, String) {
    let output = run(&mut audience(point, args));
    (exit_code(output.status), text(&output.stdout), text(&output.stderr))
}

/// Runs the command, expects success without messages, and returns its output.
#[track_caller]
fn listen_well(point: &Path, args: &[&str]) -> String {
    let (code, read, said) = listen(point, args);
    assert_eq!((code, said.as_str()), (0, ""), "{args:?}");
    read
}

/// Installs `audience` in a new directory, with a shell script as the `relayfsd` beside it, if there is one.
fn audience_beside(script: Option<&str>, place: &Place) -> PathBuf {
    let dir = place.beside("bin");
    fs::create_dir(&dir).expect("a directory for programs");
    // Another process copies it. A file that is open for writing cannot be executed, and processes that other tests
    // start inherit open files for a moment.
    let install = |from: &Path, to: &str| {
        let status =
            tool("install", "coreutils").arg(from).arg(dir.join(to)).status().expect("running install");
        assert!(status.success(), "installing {to}");
    };
    if let Some(script) = script {
        let written = place.beside("script");
        fs::write(&written, format!("#!/bin/sh\n{script}\n")).expect("a script");
        install(&written, "relayfsd");
    }
    install(&program("audience"), "audience");
    dir.join("audience")
}

/// Returns a path as text for a script.
fn shown(path: &Path) -> &str {
    path.to_str().expect("ASCII")
}

/// Waits until nothing of a daemon is left.
#[track_caller]
fn assert_comes_clean(place: &Place) {
    assert!(!place.is_mounted());
    eventually("the daemon to end", || !place.state_dir().exists() && !place.socket_dir().exists());
}

/// The command reads each cpuN to its end, one CPU after the other, and consumes it.
#[test]
fn each_cpu_is_read_to_its_end_in_order() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "4"]);
    assert_eq!(listen_well(mount.point(), &[]), "");
    let long = "l".repeat(3000);
    mount.send(1, &[b"one ", long.as_bytes(), long.as_bytes(), b" end\n"]);
    mount.send(0, &[b"zero\n"]);
    assert_eq!(listen_well(mount.point(), &[]), format!("zero\none {long}{long} end\n"));
    assert_eq!(listen_well(mount.point(), &[]), "", "reading consumes");
    assert!(is_mounted(mount.point()), "it was mounted before");
}

/// The first commands of the README, with the default mount point, and at the end without a mount.
#[test]
fn first_commands_need_no_options() {
    let script = r#"
        export PATH="$1:$PATH"
        unset RELAYFS
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/relay
        relayfsd /mnt/relay
        echo "Hello world" | relay-producer
        cat /mnt/relay/cpu*
        relay-producer --cpu 1 "to cpu 1"
        audience
        umount /mnt/relay
        audience
        mountpoint -q /mnt/relay || echo "nothing left behind""#;
    let bin = program("audience");
    let output = run(private_shell(script).arg(bin.parent().expect("a directory")));
    let said = "audience: nothing was mounted on /mnt/relay: it is mounted for this reading\n";
    assert_eq!((exit_code(output.status), text(&output.stderr).as_str()), (0, said));
    assert_eq!(text(&output.stdout), "Hello world\nto cpu 1\nnothing left behind\n");
}

/// `-c app/log`, `--cpu N`, global channels, and the mount point from the environment.
#[test]
fn channel_cpu_and_mount_can_be_chosen() {
    let mount = Mount::new(&["--channel", "app/log", "--channel", "all:global"]);
    for (channel, cpu) in [("cpu", 0), ("cpu", 1), ("app/log", 0), ("app/log", 1), ("all", 1), ("all", 0)] {
        mount.send_to(channel, cpu, &[format!("{channel} {cpu}\n").as_bytes()]);
    }
    assert_eq!(listen_well(mount.point(), &["-c", "all"]), "all 1\nall 0\n");
    assert_eq!(listen_well(mount.point(), &["--channel=app/log", "--cpu", "1"]), "app/log 1\n");
    assert_eq!(listen_well(mount.point(), &["-c", "app/log"]), "app/log 0\n");
    assert_eq!(listen_well(mount.point(), &["--cpu=0"]), "cpu 0\n");
    let output = run(Command::new(program("audience")).env("RELAYFS", mount.point()));
    assert_eq!((exit_code(output.status), text(&output.stdout)), (0, "cpu 1\n".to_owned()));
}

/// Each bad input has one clear line and an exit status that is not 0.
#[test]
fn error_is_one_line_that_names_its_cause() {
    let mount = Mount::new(&["--channel", "app/log", "--channel", "all:global"]);
    let file = mount.beside("file");
    fs::write(&file, "").expect("a file");
    let socket = fs::read_link(mount.path(".relay/socket")).expect("the socket's name");
    let (point, missing) = (mount.point(), mount.beside("missing"));
    let full = file.parent().expect("a directory with a file");
    for (point, args, part) in [
        (point, &["-c", "nope"][..], "no channel 'nope'"),
        (point, &["-c", "nope"], " (existing: all, app/log, cpu)"),
        (point, &["-c", "app"], "no channel 'app'"),
        (point, &["--cpu", "4000"], "no file for CPU 4000, only for 0"),
        (point, &["-c", "all", "--cpu", "1"], "no file for CPU 1, only for 0"),
        (&file, &[], "not a directory"),
        (&file, &["-f"], "not a directory"),
        (&socket, &[], "sockets are for producers"),
        (&missing, &[], "missing: there is no such directory; name the mount point: -m MOUNTPOINT"),
        (
            full,
            &[],
            "no relayfs is mounted there, and it holds other files; name the mount point: -m MOUNTPOINT",
        ),
    ] {
        let (code, read, said) = listen(point, args);
        assert_eq!((code, read.as_str()), (1, ""), "{args:?}: {said}");
        assert!(said.starts_with("audience: ") && said.contains(part), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    }
    assert!(!is_mounted(full), "other files are not mounted over");
    for args in
        [&["-c", "../x"][..], &["--interval=1"], &["-f", "--interval=0"], &["--nonsense"], &["operand"]]
    {
        let (code, read, said) = listen(mount.point(), args);
        assert_eq!((code, read.as_str(), said.lines().count()), (2, "", 1), "{args:?}: {said}");
    }
}

/// The command mounts if needed, and unmounts what it mounted, again and again, while the last daemon ends.
#[test]
fn missing_mount_is_made_and_unmounted() {
    let place = Place::new();
    for _ in 0..10 {
        let (code, read, said) = listen(place.point(), &[]);
        assert_eq!((code, read, said), (0, String::new(), mounted_for_this(&place)));
        assert_comes_clean(&place);
    }
    let (code, _, said) = listen(place.point(), &["-c", "nope"]);
    assert_eq!(code, 1);
    assert!(said.contains("no channel 'nope'"), "{said}");
    assert_comes_clean(&place);
}

/// Returns the message about the mount.
fn mounted_for_this(place: &Place) -> String {
    format!("audience: nothing was mounted on {}: it is mounted for this reading\n", place.point().display())
}

/// Data of a dead daemon is printed, with or without its dead mount, and stays for the next daemon.
#[test]
fn left_over_data_is_printed_and_stays() {
    let mut mount = Mount::new(&[]);
    mount.send(0, &[b"precious\n"]);
    mount.end(Signal::SIGKILL);
    let look = || {
        for args in [&[][..], &["--snapshot"], &["--cpu=0"]] {
            let (code, read, said) = listen(mount.point(), args);
            assert_eq!((code, read.as_str()), (0, "precious\n"), "{args:?}: {said}");
            assert!(
                said.contains(": this is what its last daemon left in ")
                    && said.contains("; nothing is consumed; ")
            );
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    };
    look();
    umount2(mount.point(), MntFlags::MNT_DETACH).expect("a dead mount");
    look();
    assert!(!is_mounted(mount.point()), "it has not mounted anything");
    let (code, _, said) = listen(mount.point(), &["-c", "nope"]);
    assert!(code == 1 && said.contains("no channel 'nope' in "), "{said}");
    mount.restart(&[]);
    assert_eq!(text(&mount.read("cpu0")), "precious\n");
}

/// The mount point was renamed: a daemon that mounts it would take the data over.
#[test]
fn left_over_data_of_a_renamed_mount_point_is_printed() {
    let place = Place::named("old/relay");
    let mut daemon = Process::start(place.command(&["-f"]).stdin(Stdio::null()));
    eventually("the mount", || place.path(".relay/version").exists());
    let channel = Channel::open(place.point(), "cpu").expect("a channel");
    channel.write_to(0, b"precious\n").expect("room");
    channel.sync().expect("it is written");
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    umount2(place.point(), MntFlags::MNT_DETACH).expect("a dead mount");
    fs::rename(place.beside("old"), place.beside("new")).expect("another name");
    let (code, read, said) = listen(&place.beside("new/relay"), &[]);
    assert_eq!((code, read.as_str()), (0, "precious\n"), "{said}");
    assert!(place.state_dir().exists());
}

/// The command does not mount over a dead mount of which nothing is left.
#[test]
fn dead_mount_without_data_is_reported() {
    let place = Place::new();
    let mut daemon = Process::start(place.command(&["-f"]).stdin(Stdio::null()));
    eventually("the mount", || place.path(".relay/version").exists());
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    fs::remove_dir_all(place.state_dir()).expect("what it left");
    let (code, read, said) = listen(place.point(), &[]);
    assert_eq!((code, read.as_str(), said.lines().count()), (1, "", 1), "{said}");
    assert!(
        said.contains(": its relayfsd was killed or crashed, and what it left is another user's, or gone: "),
        "{said}"
    );
}

/// Data that arrives while it has mounted, and that it does not read, stays.
#[test]
fn data_that_is_not_read_stays() {
    let place = Place::new();
    let script = format!(
        "{} \"$1\" && {} -m \"$1\" --cpu=0 unread",
        shown(&program("relayfsd")),
        shown(&program("relay-producer"))
    );
    let audience = audience_beside(Some(&script), &place);
    let output = run(&mut by_program(&audience, place.point(), &["--cpu=1"]));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, mounted_for_this(&place)));
    eventually("the end of the daemon", || listen(place.point(), &[]).1 == "unread\n");
    assert!(!place.is_mounted());
}

/// Another process mounts between the check and the command's own try. That try fails, and the command uses the other
/// mount and leaves it.
#[test]
fn mount_of_faster_process_is_used_and_left() {
    let place = Place::new();
    let daemon = program("relayfsd");
    let producer = program("relay-producer");
    let script = format!(
        "{daemon} \"$1\" && {producer} -m \"$1\" --cpu=0 theirs && exec {daemon} \"$1\"",
        daemon = shown(&daemon),
        producer = shown(&producer)
    );
    let audience = audience_beside(Some(&script), &place);
    let output = run(&mut by_program(&audience, place.point(), &[]));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
    assert_eq!(text(&output.stdout), "theirs\n");
    assert!(place.is_mounted());
    umount2(place.point(), MntFlags::empty()).expect("no process uses it");
    assert_comes_clean(&place);
}

/// relayfsd is found beside the command, or in PATH.
#[test]
fn relayfsd_is_found_beside_or_in_path() {
    let place = Place::new();
    let audience = audience_beside(None, &place);
    let daemons = program("relayfsd").parent().expect("a directory").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(daemons).chain(std::env::split_paths(&path))).expect("a PATH");
    let output = run(by_program(&audience, place.point(), &[]).env("PATH", path));
    assert_eq!((exit_code(output.status), text(&output.stderr)), (0, mounted_for_this(&place)));
    assert_comes_clean(&place);

    let output = run(by_program(&audience, place.point(), &[]).env("PATH", place.beside("bin")));
    let said = text(&output.stderr);
    assert_eq!(exit_code(output.status), 1, "{said}");
    assert!(said.contains("no relayfsd beside this program or in PATH"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// A signal during the read does not leave the mount behind. The daemon has more data than the pipe holds, so the
/// signal comes during the read.
#[test]
fn interrupted_read_unmounts_its_mount() {
    let place = Place::new();
    let (daemon, producer) = (program("relayfsd"), program("relay-producer"));
    let script = format!(
        "{} \"$1\" && head -c 500000 /dev/zero | {} -m \"$1\" --cpu=0 --chunk=1000",
        shown(&daemon),
        shown(&producer)
    );
    let audience = audience_beside(Some(&script), &place);
    let mut command = by_program(&audience, place.point(), &[]);
    let mut stuck =
        Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut first = [0];
    let mut out = stuck.child().stdout.take().expect("piped");
    out.read_exact(&mut first).expect("its output");
    assert!(place.is_mounted());
    // The first signal asks it to end. The second one, of any kind, ends it by force.
    stuck.signal(Signal::SIGTERM);
    stuck.signal(Signal::SIGINT);
    let code = exit_code(stuck.wait());
    assert!([Signal::SIGTERM, Signal::SIGINT].map(|signal| 128 + signal as i32).contains(&code), "{code}");
    assert!(!place.is_mounted());
    eventually("the daemon to end", || !place.socket_dir().exists());
}

/// A message appears within an interval, even if its sub-buffer is not finished.
#[test]
fn follow_prints_unfinished_sub_buffers() {
    let mount = Mount::new(&["--flush-interval=never"]);
    mount.send(1, &[b"before\n"]);
    for args in [&[][..], &["--interval=0.01"]] {
        let follower = Follower::start(mount.point(), args);
        let mut expected = if args.is_empty() { "before\n".to_owned() } else { String::new() };
        follower.has_read(&expected);
        for (n, cpu) in [0, 1, 1, 0].into_iter().enumerate() {
            let message = format!("message {n} to {cpu}\n");
            mount.send(cpu, &[message.as_bytes()]);
            expected += &message;
            follower.has_read(&expected);
        }
        assert_eq!(mount.stats("cpu")["total.produced"], 0, "all of them in unfinished sub-buffers");
        assert_eq!(follower.end(), "");
    }
}

/// poll(2) watches all CPUs at once: with an interval of a day, it reports each finished sub-buffer. Empty
/// sub-buffers make no difference, and the last message is read at the end.
#[test]
fn follow_polls_all_cpus_at_once() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "64"]); // room for all that is flushed
    mount.send(0, &[b"before\n"]);
    let follower = Follower::start(mount.point(), &["--interval=86400"]);
    let mut expected = "before\n".to_owned();
    follower.has_read(&expected);
    for cpu in [1, 0, 0, 1] {
        let message = format!("to {cpu}\n");
        (0..5).for_each(|_| mount.poke("cpu", "flush"));
        mount.send(cpu, &[message.as_bytes()]);
        mount.poke("cpu", "flush");
        expected += &message;
        follower.has_read(&expected);
    }
    mount.send(1, &[b"last\n"]);
    let out = follower.out.clone();
    assert_eq!(follower.end(), "");
    assert_eq!(fs::read_to_string(out).expect("its output"), expected + "last\n");
}

/// `-f` of one CPU does not read the others.
#[test]
fn follow_of_one_cpu_reads_no_other() {
    let mount = Mount::new(&[]);
    let follower = Follower::start(mount.point(), &["--cpu=1", "--interval=0.01"]);
    mount.send(0, &[b"zero\n"]);
    mount.send(1, &[b"one\n"]);
    follower.has_read("one\n");
    assert_eq!(follower.end(), "");
    assert_eq!(text(&mount.read("cpu0")), "zero\n");
}

/// `--follow` waits for the mount and the channel, and prints one line about it.
#[test]
fn follow_waits_for_directory_mount_and_channel() {
    let place = Place::new();
    fs::remove_dir(place.point()).expect("an empty directory");
    let follower = Follower::start(place.point(), &["-c", "app/log"]);
    eventually("a word about waiting", || !follower.said().is_empty());
    fs::create_dir(place.point()).expect("a directory again");
    let mut daemon = Process::start(place.command(&["-f"]).stdin(Stdio::null()));
    eventually("the mount", || place.path(".relay/version").exists());
    let channel = Channel::builder(place.point(), "app/log").create(true).open().expect("a channel");
    channel.write_to(1, b"at last\n").expect("room");
    follower.has_read("at last\n");
    let said = follower.end();
    assert_eq!(said, format!("audience: {} is not mounted; waiting for it\n", place.point().display()));
    daemon.signal(Signal::SIGTERM);
    daemon.wait();

    let mount = Mount::new(&[]);
    let follower = Follower::start(mount.point(), &["-c", "app/log"]);
    eventually("a word about waiting", || !follower.said().is_empty());
    let channel = Channel::builder(mount.point(), "app/log").create(true).open().expect("a channel");
    channel.write_to(0, b"here\n").expect("room");
    follower.has_read("here\n");
    let said = follower.end();
    assert!(
        said.contains("no channel 'app/log'") && said.contains(" (existing: cpu); waiting for it"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// It outlives the daemon, however that ends, and continues with the next one.
#[test]
fn follow_continues_after_end_of_daemon() {
    let mut mount = Mount::new(&[]);
    let follower = Follower::start(mount.point(), &[]);
    let mut expected = String::new();
    let mut say = |mount: &Mount, message: &str| {
        mount.send(1, &[message.as_bytes()]);
        expected += message;
        follower.has_read(&expected);
        // A daemon that dies before it has noted a read gives its bytes again.
        eventually("the note of what is read", || mount.is_read("cpu"));
    };
    say(&mount, "first\n");
    mount.end(Signal::SIGKILL);
    mount.restart(&[]);
    say(&mount, "after a kill\n");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    mount.restart(&[]);
    say(&mount, "after a clean end\n");
    umount2(mount.point(), MntFlags::MNT_DETACH).expect("unmounting");
    assert_eq!(exit_code(mount.daemon().wait()), 0, "it does not hold on to what was detached");
    mount.restart(&[]);
    say(&mount, "after umount -l\n");
    let said = follower.end();
    assert!(said.lines().all(|line| line.ends_with("; waiting for it")), "{said}");
}

/// It ends without a message when the reader of its output ends, with -f even if there is nothing to write.
#[test]
fn closed_output_ends_it_without_message() {
    let mount = Mount::new(&[]);
    let line = [b'x'; 100];
    for option in ["", "-f"] {
        mount.send(0, &[&[&b"first\n"[..]], &[&line[..]; 2000][..]].concat());
        let err = mount.beside("err");
        let script = format!(
            "{} -m {} {option} 2> {} | head -n 1",
            shown(&program("audience")),
            shown(mount.point()),
            shown(&err)
        );
        let output = run(tool("sh", "dash").args(["-c", &script]));
        assert_eq!(text(&output.stdout), "first\n");
        assert_eq!(fs::read_to_string(err).expect("what it said"), "", "{option}");
        mount.poke("cpu", "reset");

        mount.send(0, &[b"first\n"]);
        let args: &[&str] = if option.is_empty() { &[] } else { &["-f"] };
        let mut command = audience(mount.point(), args);
        let mut process = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut first = [0; 6];
        let mut out = process.child().stdout.take().expect("piped");
        out.read_exact(&mut first).expect("its output");
        drop(out);
        assert_eq!((exit_code(process.wait()), process.stderr()), (0, String::new()), "{option}");
    }
}

/// A signal ends it even if its output is stuck.
#[test]
fn signal_ends_it_even_if_output_is_stuck() {
    let mount = Mount::new(&[]);
    mount.send(0, &[&[b'x'; 1000][..]; 500]);
    let mut command = audience(mount.point(), &["-f"]);
    let mut process = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut first = [0];
    let mut out = process.child().stdout.take().expect("piped");
    out.read_exact(&mut first).expect("its output");
    process.signal(Signal::SIGINT);
    assert_eq!(exit_code(process.wait()), 128 + Signal::SIGINT as i32);
}

/// A follower loses nothing of waiting producers, on any CPU, however small the buffers are.
#[test]
fn follower_loses_nothing_of_waiting_producers() {
    const LINES: usize = 20_000;
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "2"]);
    let follower = Follower::start(mount.point(), &[]);
    let input =
        |cpu: usize| (0..LINES).map(|n| format!("{cpu} {n} {}\n", "x".repeat(n % 70))).collect::<String>();
    let mut producers = [0, 1].map(|cpu| {
        let mut command = Command::new(program("relay-producer"));
        command.arg("-m").arg(mount.point()).arg("--wait").arg(format!("--cpu={cpu}"));
        let mut process = Process::start(command.stdin(Stdio::piped()).stderr(Stdio::piped()));
        let mut stdin = process.child().stdin.take().expect("piped");
        let feeder = thread::spawn(move || stdin.write_all(input(cpu).as_bytes()));
        (process, feeder)
    });
    for (process, _) in &mut producers {
        assert_eq!((exit_code(process.wait()), process.stderr()), (0, String::new()));
    }
    for (_, feeder) in producers {
        feeder.join().expect("the feeder").expect("the producer reads everything");
    }
    let out = follower.out.clone();
    assert_eq!(follower.end(), "");
    let got = fs::read_to_string(out).expect("its output");
    for cpu in [0, 1] {
        let prefix = format!("{cpu} ");
        let of_cpu: String = got.split_inclusive('\n').filter(|line| line.starts_with(&prefix)).collect();
        assert!(of_cpu == input(cpu), "CPU {cpu}: {} of {} bytes", of_cpu.len(), input(cpu).len());
    }
    assert_eq!(got.lines().count(), 2 * LINES);
}
