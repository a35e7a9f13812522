//! The command `relay-producer` when the buffer has no room, a line is too long, or the daemon ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use relayfs_tests::{Mount, Process, eventually, exit_code, program, text};

use super::producer::{AUTO, MESSAGE_MAX, SOCKET, bytes, one_line, produce, produce_well, start, total};

/// `--wait` waits for room instead of dropping. The reader here reads only when the buffer is full, so that each
/// possible loss would happen.
#[test]
fn wait_loses_nothing_to_slow_reader() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "2"]);
    let input: String = (0..3000).map(|n| format!("line {n} {}\n", "x".repeat(n % 90))).collect();
    let mut n_sent = 0;
    for (wait, transport) in
        [("--wait", SOCKET), ("--wait=10m", SOCKET), ("--wait", AUTO), ("--wait=10m", AUTO)]
    {
        let mut producer = start(&mount, &["--cpu=0", wait, transport]);
        let mut stdin = producer.child().stdin.take().expect("piped");
        let lines = input.clone();
        let feeder = thread::spawn(move || stdin.write_all(lines.as_bytes()));
        let mut file = File::open(mount.path("cpu0")).expect("the buffer");
        let mut got = Vec::new();
        let mut block = [0; 4096];
        while producer.is_running() {
            eventually("a full buffer, or the end", || {
                let stats = mount.stats("cpu");
                stats["cpu0.produced"] - stats["cpu0.consumed"] == 2 || !producer.is_running()
            });
            let len = file.read(&mut block).expect("reading the buffer");
            got.extend_from_slice(&block[..len]);
        }
        file.read_to_end(&mut got).expect("reading the rest");
        feeder.join().expect("the feeder").expect("the producer reads everything");
        assert_eq!((exit_code(producer.wait()), producer.stderr()), (0, String::new()));
        assert!(got == input.as_bytes(), "{wait}: {} of {} bytes", got.len(), input.len());
        assert_eq!(total(&mount, "cpu", "dropped"), 0, "{wait}");
        if transport == SOCKET {
            n_sent += 3000;
            assert_eq!(total(&mount, "cpu", "written"), n_sent, "{wait}");
        }
    }
}

/// Messages count as dropped when the command gives up; a line on stderr says how many and why. Without a reader,
/// 2 x 4 messages of 1000 bytes fit.
#[test]
fn message_without_room_is_dropped_at_once_or_after_wait() {
    let input = bytes(20_000);
    let waits = [&[][..], &["--wait=0"], &["--wait=30ms"], &["--wait=0.03"]].into_iter();
    for (wait, transport) in waits.flat_map(|wait| [(wait, SOCKET), (wait, AUTO)]) {
        let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "2"]);
        let args = [&["--cpu=0", "--chunk=1000", transport], wait].concat();
        let said = one_line(produce(&mount, &args, &input), 3);
        let (cause, use_wait) = match wait {
            [] => ("found the buffer full", "--wait"),
            ["--wait=0"] => ("found the buffer full", "a longer --wait"),
            _ => ("found no room in time", "a longer --wait"),
        };
        assert_eq!(
            said,
            format!(
                "relay-producer: 12 of 20 messages dropped: 12 {cause} (read it more often, give it more sub-buffers, or \
                 use {use_wait})"
            )
        );
        let counted = |counter| total(&mount, "cpu", counter);
        assert_eq!((counted("dropped"), counted("too_big")), (12, 0), "{args:?}");
        assert_eq!(counted("bytes"), 8000, "{args:?}");
        if transport == SOCKET {
            assert_eq!(counted("written"), 8, "{args:?}");
        }
        assert!(mount.read("cpu0") == input[..8000], "{wait:?}: the first eight, in order");
    }
}

/// While a producer waits, none of its messages count as dropped, and other producers write. If it is killed, its
/// waiting batch goes.
#[test]
fn waiting_producer_delays_no_other_producer() {
    let mount = Mount::new(&["--subbuf-size", "4096", "--n-subbufs", "1"]);
    let mut waiting = start(&mount, &["--cpu=0", "--chunk=1000", "--wait", SOCKET]);
    let mut stdin = waiting.child().stdin.take().expect("piped");
    stdin.write_all(&[b'a'; 10_000]).expect("a pipe holds that");
    eventually("a full buffer", || mount.stats("cpu")["cpu0.written"] == 4);
    assert_eq!(total(&mount, "cpu", "dropped"), 0, "waiting is not dropping");

    produce_well(&mount, &["--cpu=1", "elsewhere"], b"");
    one_line(produce(&mount, &["--cpu=0", "no room"], b""), 3);
    assert_eq!(text(&mount.read("cpu1")), "elsewhere\n");

    waiting.signal(Signal::SIGKILL);
    waiting.wait();
    eventually("the claim to be dropped", || total(&mount, "cpu", "dropped") == 1 + 6);
    assert_eq!(mount.read("cpu0"), [b'a'; 4000]);
    produce_well(&mount, &["--cpu=0", "room"], b"");
    assert_eq!(text(&mount.read("cpu0")), "room\n");
}

/// A line that is too long for a message is skipped and reported with its number. The command writes the other lines.
#[test]
fn too_long_lines_are_skipped_and_reported_by_number() {
    let mount = Mount::new(&["--subbuf-size", "4096"]);
    let (fits, over, huge) = ("f".repeat(4095), "o".repeat(4096), "h".repeat(5 << 20));
    let input = format!("one\n{fits}\n{over}\n\n{huge}\nsix\n{huge}");
    let (code, said) = produce(&mount, &["--cpu=0", SOCKET], input.as_bytes());
    let skipped = |number| {
        format!(
            "relay-producer: line {number} skipped: longer than a message of this channel may be, 4096 bytes\n"
        )
    };
    let summary = "relay-producer: 3 of 7 messages dropped: 3 longer than a message of this channel may be, 4096 bytes\n"
        .to_owned();
    assert_eq!((code, said), (3, [skipped(3), skipped(5), skipped(7), summary].concat()));
    assert!(mount.read("cpu0") == format!("one\n{fits}\n\nsix\n").as_bytes());
    // A message longer than any message may be is never sent, and counts as dropped.
    let counted = |counter| total(&mount, "cpu", counter);
    eventually("the counts", || (counted("too_big"), counted("dropped")) == (1, 2));

    let long = "l".repeat(4097);
    let (code, said) = produce(&mount, &["-n", "--cpu=0", "short", &long, "short"], b"");
    assert_eq!(code, 3);
    assert!(said.contains("1 of 3 messages dropped: 1 longer"), "{said}");
    assert_eq!(text(&mount.read("cpu0")), "shortshort");
}

/// The command skips a line of any length in bounded memory.
#[test]
fn endless_line_takes_bounded_memory() {
    let mount = Mount::new(&["--subbuf-size", "2M"]);
    // Shared buffers would count as the producer's memory.
    let mut producer = start(&mount, &["--cpu=0", SOCKET]);
    let mut stdin = producer.child().stdin.take().expect("piped");
    for _ in 0..64 {
        stdin.write_all(&vec![b'x'; MESSAGE_MAX]).expect("the producer reads");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", producer.pid())).expect("our own child");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 16 << 10, "{peak} KiB for a line of 64 MiB");
    let last = vec![b'y'; MESSAGE_MAX - 1];
    stdin.write_all(&[b"\n", &last[..], b"\n"].concat()).expect("the producer reads");
    drop(stdin);
    assert_eq!(exit_code(producer.wait()), 3);
    assert!(producer.stderr().starts_with("relay-producer: line 1 skipped"));
    assert!(mount.read("cpu0") == [&last[..], b"\n"].concat(), "the longest line that is a message");
}

/// A producer whose daemon is killed ends with one line that has the number of written messages, never with SIGPIPE.
#[test]
fn killed_daemon_ends_producer_with_count_of_written() {
    const GEOMETRY: &[&str] = &["--subbuf-size", "4096", "--n-subbufs", "1"];
    let mut mount = Mount::new(GEOMETRY);
    let mut waiting = start(&mount, &["--cpu=0", "--wait", SOCKET]);
    let mut stdin = waiting.child().stdin.take().expect("piped");
    stdin.write_all(&b"0123456789abcde\n".repeat(300)).expect("a pipe holds that");
    drop(stdin);
    // A file: with a pipe, the producer waits for the next daemon, see `pipeline.rs`.
    let lines = mount.beside("lines");
    fs::write(&lines, b"0123456789abcde\n".repeat(300)).expect("a file");
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["--cpu=1", "--wait", SOCKET]);
    command.stdin(File::open(&lines).expect("a file")).stderr(Stdio::piped());
    let mut of_file = Process::start(&mut command);
    eventually("two full buffers", || {
        let stats = mount.stats("cpu");
        (stats["cpu0.written"], stats["cpu1.written"]) == (256, 256)
    });

    mount.end(Signal::SIGKILL);
    let said = one_line((exit_code(waiting.wait()), waiting.stderr()), 1);
    assert!(said.contains("daemon has gone away") && said.ends_with("messages had been written"), "{said}");
    let said = one_line((exit_code(of_file.wait()), of_file.stderr()), 1);
    assert!(said.contains("daemon has gone away") && said.ends_with("messages had been written"), "{said}");

    let said = one_line(produce(&mount, &["x"], b""), 1);
    assert!(said.contains("has died"), "{said}");
    mount.restart(GEOMETRY);
    assert_eq!(mount.read("cpu0").len(), 4096, "the next daemon has what was in the buffer");
    produce_well(&mount, &["--cpu=0", "again"], b"");
    assert_eq!(text(&mount.read("cpu0")), "again\n");
}

/// A daemon that ends in order drops no message that waits inside it: the next one gets it.
#[test]
fn message_waiting_in_an_ending_daemon_reaches_the_next_one() {
    const GEOMETRY: &[&str] = &["--subbuf-size=4096", "--n-subbufs=1"];
    type End = (&'static str, fn(&mut Mount));
    const ENDS: [End; 3] = [
        ("SIGTERM", |mount| mount.daemon().signal(Signal::SIGTERM)),
        ("umount", |mount| mount.unmount()),
        ("umount -l", |mount| mount.detach()),
    ];
    let all: Vec<u8> = (b'a'..=b'f').flat_map(|byte| [byte; 1000]).collect();
    for (daemon, transport) in
        [(&[][..], SOCKET), (&[], AUTO), (&["--shared=never"], AUTO), (&["--discard"], SOCKET)]
    {
        let args = [GEOMETRY, daemon].concat();
        let expected = if daemon == ["--discard"] { &all[4000..] } else { &all };
        // The end of a wait with a limit could be mistaken for the end of its time.
        for (wait, (name, end)) in
            ["--wait", "--wait=100s"].into_iter().flat_map(|wait| ENDS.map(|end| (wait, end)))
        {
            let case = format!("{daemon:?} {transport} {wait} {name}");
            let mut mount = Mount::new(&args);
            let mut waiting = start(&mount, &["--cpu=0", wait, "--chunk=1000", transport]);
            let mut stdin = waiting.child().stdin.take().expect("piped");
            stdin.write_all(&all).expect("a pipe holds that");
            eventually("a full buffer", || mount.stats("cpu")["cpu0.bytes"] == 4000);
            end(&mut mount);
            assert_eq!(exit_code(mount.daemon().wait()), 0, "{case}");
            mount.restart(&args);
            drop(stdin);
            // The rest may come while this reads.
            let mut got = mount.read("cpu0");
            let code = exit_code(waiting.wait());
            got.extend(mount.read("cpu0"));
            let said = waiting.stderr();
            assert_eq!((code, mount.stats("cpu")["total.dropped"]), (0, 0), "{case}: {said}");
            assert!(got == expected, "{case}: {} bytes; {said}", got.len());
        }
    }
}

/// A producer that reads a file and has no buffers waits for no other daemon. It says how far it came.
#[test]
fn file_producer_fails_when_its_messages_are_handed_back() {
    let mut mount = Mount::new(&["--subbuf-size=4096", "--n-subbufs=1"]);
    let lines = mount.beside("lines");
    fs::write(&lines, b"0123456789abcde\n".repeat(300)).expect("a file");
    let mut command = Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args(["--cpu=0", "--wait", SOCKET]);
    command.stdin(File::open(&lines).expect("a file")).stderr(Stdio::piped());
    let mut waiting = Process::start(&mut command);
    eventually("a full buffer", || mount.stats("cpu")["cpu0.written"] == 256);
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    let said = one_line((exit_code(waiting.wait()), waiting.stderr()), 1);
    assert!(said.ends_with("the daemon has gone away; 256 messages had been written"), "{said}");
}
