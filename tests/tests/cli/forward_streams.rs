//! `relay-forward --from` and streams that are not as they were: created again, purged, or full of what no forwarder
//! writes.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use relayfs_tests::forwarded::{Follower, Origin, from, packet};
use relayfs_tests::nats::{NatsClient, NatsServer};
use relayfs_tests::{Process, complaint, eventually, exit_code, run, text};

const NAME: &str = "app/log";
/// Processes that name the thread of all records.
const PROCESSES: &str = "7 700 0 0 app\t/bin/app\nthread 7 7\n";

fn server(more: &str) -> (NatsServer, NatsClient) {
    let server = NatsServer::start(&[]);
    let mut client = server.client();
    client.create_stream("relay", more);
    (server, client)
}

/// Deletes the stream and creates it again.
fn create_again(client: &mut NatsClient) {
    client.request("$JS.API.STREAM.DELETE.relay", "");
    client.create_stream("relay", "");
}

/// What it prints, and what it says on standard error.
fn read(server: &NatsServer, args: &[&str]) -> (i32, String, String) {
    let output = run(&mut from(&server.url(), args));
    (exit_code(output.status), text(&output.stdout), text(&output.stderr))
}

/// The stream is created again, and gets more messages than it had, while the follower stands still.
#[test]
fn follower_reads_all_of_a_stream_that_was_created_again() {
    let (server, mut client) = server("");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("", &mut client);
    (0..5).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
    // Newer texts of a high sequence.
    origin.send_own_texts("", &mut client);
    origin.send_text(0, 5, 0, 1005, &mut client);
    let follower = Follower::start(&server, &["-c", NAME, "--hold", "50ms"]);
    let lines = |numbers: std::ops::Range<u64>| numbers.map(|n| format!("a.0.{n}")).collect::<Vec<_>>();
    let expected = lines(0..6);
    follower.has(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    follower.process().signal(Signal::SIGSTOP);
    create_again(&mut client);
    // Other texts with the same sequences as those of the old stream. The channel is the same.
    origin.send_own_texts(PROCESSES, &mut client);
    (6..40).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
    follower.process().signal(Signal::SIGCONT);
    let expected = lines(0..40);
    follower.has(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    let out = follower.out();
    assert!(out.lines().skip(6).all(|line| line.contains(" app[700]: ")), "{out}");
    assert_eq!(follower.end(), "");
}

/// The same for a stream that has sub-buffers which were read before.
#[test]
fn follower_drops_what_it_has_read_before() {
    let (server, mut client) = server("");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts(PROCESSES, &mut client);
    (0..5).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
    let follower = Follower::start(&server, &["-c", NAME, "--hold", "50ms"]);
    follower.has(&["a.0.0", "a.0.1", "a.0.2", "a.0.3", "a.0.4"]);
    create_again(&mut client);
    origin.send_own_texts(PROCESSES, &mut client);
    (2..7).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
    follower.has(&["a.0.0", "a.0.1", "a.0.2", "a.0.3", "a.0.4", "a.0.5", "a.0.6"]);
    assert_eq!(follower.end(), "");
}

/// Answers in the place of a copy that does not know yet that the stream was created again.
#[test]
fn copy_that_lags_behind_does_not_hide_what_is_in_the_new_stream() {
    let (server, mut client) = server(",\"allow_direct\":true");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts(PROCESSES, &mut client);
    (0..6).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
    let follower = Follower::start(&server, &["-c", NAME, "--hold", "50ms"]);
    let lines = |numbers: std::ops::Range<u64>| numbers.map(|n| format!("a.0.{n}")).collect::<Vec<_>>();
    let expected = lines(0..6);
    follower.has(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    // The last message of the old stream, for every question about the CPU.
    let n_asked = Arc::new(AtomicUsize::new(0));
    let (subject, old, asked) = (origin.subject("cpu0"), origin.headers(5, 0), Arc::clone(&n_asked));
    let answer = move |_: &str, request: &str| {
        if !request.contains(&subject) {
            return Some((b"NATS/1.0 404 Message Not Found\r\n\r\n".to_vec(), Vec::new()));
        }
        let mut headers = format!(
            "NATS/1.0\r\nNats-Stream: relay\r\nNats-Subject: {subject}\r\nNats-Sequence: 8\r\n\
             Nats-Time-Stamp: 2024-01-01T00:00:00Z\r\n"
        );
        old.iter().for_each(|(name, value)| headers.push_str(&format!("{name}: {value}\r\n")));
        // Relaxed: the number says nothing about other memory.
        asked.fetch_add(1, Ordering::Relaxed);
        Some(((headers + "\r\n").into_bytes(), packet(0, 5, 0, 1005, "a.0.5")))
    };
    let copy = server.client();
    thread::spawn(move || copy.serve("$JS.API.DIRECT.GET.relay", answer));
    client.request("$JS.API.STREAM.DELETE.relay", "");
    // No other copy answers: the stream allows no direct questions.
    client.create_stream("relay", "");
    origin.send_own_texts(PROCESSES, &mut client);
    (6..20).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
    let expected = lines(0..20);
    follower.has(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(n_asked.load(Ordering::Relaxed) > 0, "the copy was asked");
    assert_eq!(follower.end(), "");
}

#[test]
fn later_text_is_taken_in_the_place_of_one_that_is_gone() {
    let (server, mut client) = server("");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts(PROCESSES, &mut client);
    let first = origin.clone();
    first.send_text(0, 0, 0, 1000, &mut client);
    // Texts that are not this channel's, a text in parts without the first, and then its own.
    let mut other = Origin { instance: 5, ..origin.clone() };
    other.send_own_texts("7 1 0 0 other\t/bin/other\nthread 7 7\n", &mut client);
    client.publish(&origin.subject("metadata"), &[], b"foreign");
    client.publish(&origin.subject("processes"), &[("Relay-Format", "2")], b"foreign");
    origin.send_own_texts(PROCESSES, &mut client);
    first.send_text(0, 1, 0, 2000, &mut client);
    // A packet that names messages of another kind, as of a stream that was there before.
    let wrong = Origin { texts: Some((3, 3)), ..origin.clone() };
    wrong.send_text(0, 2, 0, 3000, &mut client);
    let purged = client.request("$JS.API.STREAM.PURGE.relay", "{\"seq\":3}");
    assert!(purged.contains("\"purged\":2"), "{purged}");
    let (code, out, said) = read(&server, &["-c", NAME]);
    assert_eq!((code, said.as_str()), (0, ""), "{out}");
    assert_eq!(out.lines().filter(|line| line.contains(" app[700]: a.0.")).count(), 3, "{out}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = run(from(&server.url(), &["--record"]).arg(dir.path().join("r")));
    assert_eq!(exit_code(output.status), 0, "{}", text(&output.stderr));
    assert_eq!(relayfs_tests::ctf::agree(&dir.path().join("r/a").join(NAME)), 3);
}

/// Anchors are in one header: a server that does not answer directly gives the last of several.
#[test]
fn all_anchors_of_a_message_count() {
    for more in ["", ",\"allow_direct\":true"] {
        let (server, mut client) = server(more);
        let mut origin = Origin::made_up("a", NAME);
        // An hour is between the wall times of two stamps that are a second apart: the clock was set between them.
        let anchors = "0 0 0 1700000000000000000 0,0 1000000000 1000000000 1700003600000000000 1000000000";
        origin.send_own_texts("", &mut client);
        origin.clock[1].1 = anchors.to_owned();
        origin.send_text(0, 0, 0, 0, &mut client);
        origin.send_text(0, 1, 0, 1_000_000_000, &mut client);
        let (code, out, said) = read(&server, &["-o", "short-unix", "-c", NAME]);
        assert_eq!((code, said.as_str()), (0, ""));
        let times: Vec<&str> = out.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        assert_eq!(times, ["1700000000.000000", "1700003600.000000"]);
    }
}

/// Many messages of nonsense are neither memory nor lines.
#[test]
fn many_refused_messages_in_a_row_are_counted() {
    let (server, mut client) = server("");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("", &mut client);
    origin.send_text(0, 0, 0, 1000, &mut client);
    for _ in 0..300 {
        client.publish(&origin.subject("cpu0"), &[], b"nonsense");
    }
    origin.send_text(0, 1, 0, 2000, &mut client);
    for _ in 0..20 {
        client.publish(&origin.subject("cpu0"), &[], b"nonsense");
    }
    let (code, out, said) = read(&server, &["-c", NAME]);
    assert_eq!(code, 1, "{said}");
    let told: Vec<&str> = out.lines().filter(|line| line.contains(" refused")).collect();
    assert_eq!(told.len(), 2 * 8 + 2, "{out}");
    assert!(told[8].contains("292 more messages are refused"), "{}", told[8]);
    assert!(told[17].contains("12 more messages are refused"), "{}", told[17]);
    assert!(said.contains("320 messages of the stream are refused or incomplete"), "{said}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = run(from(&server.url(), &["--record"]).arg(dir.path().join("r")));
    assert_eq!(text(&output.stderr).matches(" refused").count(), 2 * 8 + 2 + 1, "{}", text(&output.stderr));
}

/// Headers that no client can parse end its connection if a replica gives them directly.
#[test]
fn unreadable_headers_cost_a_lane_one_connection() {
    let (server, mut client) = server(",\"allow_direct\":true");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("", &mut client);
    for cpu in 0..2 {
        origin.send_text(cpu, 0, 0, 1000, &mut client);
        for _ in 0..20 {
            client.publish_with(&origin.subject(&format!("cpu{cpu}")), b"no headers at all", b"");
        }
        origin.send_text(cpu, 1, 0, 2000, &mut client);
    }
    let before = server.counted().connections;
    let (code, out, said) = read(&server, &["-c", NAME]);
    assert_eq!(code, 1, "{said}");
    for record in ["a.0.0", "a.0.1", "a.1.0", "a.1.1"] {
        assert_eq!(out.matches(record).count(), 1, "{out}");
    }
    // One at the start, and one for each of the two lanes.
    let connections = server.counted().connections - before;
    assert!(connections <= 3, "{connections} connections");
    // A follower says nothing of that: the next connection is there at once.
    let follower = Follower::start(&server, &["-c", NAME, "--hold", "10ms"]);
    eventually("all records", || follower.out().matches(": a.").count() == 4);
    assert_eq!(follower.end(), "");
}

/// Lanes are at work when the program ends, and lose their connection: that is no trouble to speak of.
#[test]
fn early_end_says_one_thing() {
    let (server, mut client) = server("");
    for host in ["a", "b", "c", "d"] {
        let mut origin = Origin::made_up(host, NAME);
        origin.send_own_texts("", &mut client);
        for cpu in 0..4 {
            (0..4).for_each(|number| origin.send_text(cpu, number, 0, 1000 + number, &mut client));
        }
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().join("r");
    assert_eq!(exit_code(run(from(&server.url(), &["--record"]).arg(&dir)).status), 0);
    for _ in 0..40 {
        let again = run(from(&server.url(), &["--record"]).arg(&dir));
        assert!(complaint("relay-forward", &again).contains("holds a recording already"));
    }
}

/// Anything with the right to publish can make subjects. Their number is bounded, and a choice of them is read whole.
#[test]
fn more_subjects_than_are_read_are_said() {
    const LANES_MAX: u32 = 1 << 14;
    let (server, mut client) = server("");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("", &mut client);
    origin.send_text(0, 0, 0, 1000, &mut client);
    let many = Origin { host: "many".to_owned(), ..origin.clone() };
    for cpu in 0..LANES_MAX {
        client.publish(&many.subject(&format!("cpu{cpu}")), &[], b"");
    }
    let (code, out, said) = read(&server, &["--host", "a"]);
    assert_eq!((code, said.as_str(), out.lines().count()), (0, "", 1));
    let (code, out, said) = read(&server, &["-o", "cat"]);
    assert_eq!((code, out.lines().count()), (1, 1), "{}", said.lines().last().unwrap_or_default());
    let told = format!("the stream has more than {LANES_MAX} subjects of what is asked for");
    assert_eq!(said.matches(&told).count(), 1);
}

/// Returns a pipe that has no room.
#[track_caller]
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let len = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1)).expect("the least length");
    writer.write_all(&vec![b'\n'; len as usize]).expect("a full pipe");
    (reader, writer)
}

/// A recorder reads each CPU at its turn. The stream that is there then may be another one.
#[test]
fn recording_has_nothing_of_a_stream_that_was_created_again() {
    let (server, mut client) = server("");
    let origin = Origin { geometry: "subbuf-size=4K:n-subbufs=4".to_owned(), ..Origin::made_up("a", NAME) };
    let origin = Origin { clock: Vec::new(), ..origin };
    origin.send(0, 0, 0, 1, b"before", &mut client);
    client.publish(&origin.subject("cpu0"), &[], b"nonsense");
    (1..5).for_each(|number| origin.send(0, number, 0, 1, b"before", &mut client));
    origin.send(1, 0, 0, 1, b"before", &mut client);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |cpu| dir.path().join(format!("r/a/{NAME}/cpu{cpu}"));
    // The recorder stands still where it says that a message is refused.
    let (reader, writer) = full_pipe();
    let mut command = from(&server.url(), &["--record"]);
    let mut recorder = Process::start(command.arg(dir.path().join("r")).stderr(writer));
    eventually("the first sub-buffer", || fs::read(file(0)).is_ok_and(|bytes| bytes == b"before"));
    create_again(&mut client);
    // Their sequences are among those that the stream had at the start.
    origin.send(1, 0, 0, 1, b"after", &mut client);
    (0..10).for_each(|number| origin.send(0, number, 0, 1, b"after", &mut client));
    drop(command);
    // The wait for the recorder has an end, and that for what it says has none.
    let said = thread::spawn(move || io::read_to_string(reader).expect("what it says"));
    let status = recorder.wait();
    let said = said.join().expect("a reader");
    assert_eq!(exit_code(status), 1, "{said}");
    assert!(said.contains("was deleted and created again meanwhile"), "{said}");
    let recorded = fs::read_to_string(file(0)).expect("a recording");
    assert_eq!(recorded.replace("before", ""), "");
    assert!(!file(1).exists(), "{:?}", fs::read_to_string(file(1)));
}

/// What is fetched before its turn waits in memory, and of many channels some would have no room there.
#[test]
fn recorder_fetches_each_cpu_at_its_turn() {
    const CPUS: usize = 100;
    const LEN: usize = 1_000_000;
    let (server, mut client) = server(",\"allow_direct\":true");
    let origin = Origin { geometry: "subbuf-size=1M:n-subbufs=4".to_owned(), ..Origin::made_up("a", NAME) };
    let origin = Origin { clock: Vec::new(), ..origin };
    for cpu in 0..CPUS {
        (0..2).for_each(|number| origin.send(cpu, number, 0, 1, &vec![b'x'; LEN], &mut client));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["--record", dir.path().to_str().expect("a path")];
    let follower = Follower::start(&server, &args);
    let len = |cpu| fs::metadata(dir.path().join(format!("a/{NAME}/cpu{cpu}"))).map_or(0, |file| file.len());
    eventually("all bytes", || (0..CPUS).all(|cpu| len(cpu) == 2 * LEN as u64));
    let status = fs::read_to_string(format!("/proc/{}/status", follower.process().pid())).expect("a process");
    let most =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok());
    let most: usize = most.expect("the most memory that it had");
    assert!(most < CPUS * LEN / 1024 / 2, "{most} kB");
    follower.end();
}
