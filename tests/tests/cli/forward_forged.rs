//! `relay-forward --from` and answers that come late, make no sense, or are of another stream: a client gives them in the
//! place of JetStream.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use relayfs_tests::forwarded::{Follower, Origin, from, packet};
use relayfs_tests::nats::{NatsClient, NatsServer};
use relayfs_tests::{complaint, eventually, exit_code, run, text};

const NAME: &str = "app/log";
const INFO: &str = "$JS.API.STREAM.INFO.relay";
const MSG_GET: &str = "$JS.API.STREAM.MSG.GET.relay";
const DIRECT_GET: &str = "$JS.API.DIRECT.GET.relay";
/// Headers of an answer that has none.
const PLAIN: &[u8] = b"NATS/1.0\r\n\r\n";

/// Headers and body of an answer; `None`: there is none.
type Answer = Option<(Vec<u8>, Vec<u8>)>;

fn plain(body: impl Into<Vec<u8>>) -> Answer {
    Some((PLAIN.to_vec(), body.into()))
}

/// A direct answer that there is no such message.
fn not_found() -> Answer {
    Some((b"NATS/1.0 404 Message Not Found\r\n\r\n".to_vec(), Vec::new()))
}

/// A stream with JetStream, and a server without, whose API asks the first one.
struct Forged {
    stream: NatsServer,
    server: NatsServer,
}

impl Forged {
    #[track_caller]
    fn new() -> (Forged, NatsClient) {
        let forged = Forged { stream: NatsServer::start(&[]), server: NatsServer::without_jetstream() };
        let mut client = forged.stream.client();
        client.create_stream("relay", "");
        (forged, client)
    }

    /// With this many sub-buffers of a record each, behind the channel's texts.
    #[track_caller]
    fn with_records(n: u64) -> (Forged, Origin) {
        let (forged, mut client) = Forged::new();
        let mut origin = Origin::made_up("a", NAME);
        origin.send_own_texts("", &mut client);
        (0..n).for_each(|number| origin.send_text(0, number, 0, 1000 + number, &mut client));
        (forged, origin)
    }

    /// Begins to answer. `answer` gets a question, and what asks the stream.
    fn serve(
        &self,
        mut answer: impl FnMut(&str, &str, &mut dyn FnMut() -> String) -> Answer + Send + 'static,
    ) {
        let mut stream = self.stream.client();
        let all =
            move |subject: &str, body: &str| answer(subject, body, &mut || stream.request(subject, body));
        let mut ready = self.server.client();
        let client = self.server.client();
        thread::spawn(move || client.serve("$JS.API.>", all));
        // It has subscribed.
        eventually("answers", || ready.request(INFO, "").contains("\"config\""));
    }
}

/// Returns a direct answer: this sub-buffer of CPU 0, stored on a day. The channel's texts are before the first one.
fn direct(origin: &Origin, number: u64, day: &str) -> Answer {
    let mut headers = format!(
        "NATS/1.0\r\nNats-Stream: relay\r\nNats-Subject: {}\r\nNats-Sequence: {}\r\n\
         Nats-Time-Stamp: {day}T00:00:00Z\r\n",
        origin.subject("cpu0"),
        number + 3
    );
    for (name, value) in origin.headers(number, 0) {
        headers.push_str(&format!("{name}: {value}\r\n"));
    }
    let packet = packet(0, number, 0, 1000 + number, &format!("a.0.{number}"));
    Some(((headers + "\r\n").into_bytes(), packet))
}

/// Returns information about a stream, with another time of its creation.
fn created(info: &str, day: &str) -> String {
    let (before, created) = info.split_once("\"created\":\"").expect("a time");
    let (_, rest) = created.split_once('"').expect("a time");
    format!("{before}\"created\":\"{day}T00:00:00Z\"{rest}")
}

/// What no server answers is a trouble of this answer alone.
#[test]
fn answers_that_make_no_sense_leave_nothing_out() {
    let (forged, _) = Forged::with_records(4);
    let mut wrong = ["[1]", "7", "\"message\"", "{}"].into_iter();
    forged.serve(move |subject, _, ask| {
        let wrong = if subject == MSG_GET { wrong.next() } else { None };
        wrong.map_or_else(|| plain(ask()), plain)
    });
    let output = run(&mut from(&forged.server.url(), &["-c", NAME, "-o", "cat"]));
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((exit_code(output.status), out.as_str()), (0, "a.0.0\na.0.1\na.0.2\na.0.3\n"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// The reader starts behind the creation, which a copy has not heard of.
#[test]
fn copy_that_lags_behind_at_the_start_does_not_hide_what_is_in_the_new_stream() {
    let (forged, origin) = Forged::with_records(20);
    let subject = origin.subject("cpu0");
    let n_asked = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&n_asked);
    forged.serve(move |to, body, ask| match to {
        INFO => plain(ask().replace("\"allow_direct\":false", "\"allow_direct\":true")),
        DIRECT_GET if body.contains(&subject) => {
            // Relaxed: the number says nothing about other memory.
            asked.fetch_add(1, Ordering::Relaxed);
            direct(&origin, 5, "2024-01-01")
        }
        DIRECT_GET => not_found(),
        _ => plain(ask()),
    });
    let output = run(&mut from(&forged.server.url(), &["-c", NAME, "-o", "cat"]));
    let expected: String = (0..20).map(|number| format!("a.0.{number}\n")).collect();
    assert_eq!((exit_code(output.status), text(&output.stdout)), (0, expected), "{}", text(&output.stderr));
    assert!(n_asked.load(Ordering::Relaxed) > 0, "the copy was asked");
}

/// Messages of a mirror are older than itself. The leader is asked for the first one, and whether there are more.
#[test]
fn messages_of_a_mirror_are_read_from_any_copy() {
    const N: u64 = 20;
    let (forged, origin) = Forged::with_records(N);
    let subject = origin.subject("cpu0");
    let n_asked = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&n_asked);
    forged.serve(move |to, body, ask| match to {
        INFO => {
            let info = ask().replace("\"allow_direct\":false", "\"allow_direct\":true");
            plain(created(&info, "2100-01-01"))
        }
        DIRECT_GET if body.contains(&subject) => {
            let from = body.split("\"seq\":").nth(1).and_then(|rest| rest.split([',', '}']).next());
            let number = from.expect("a sequence").parse::<u64>().expect("a sequence").saturating_sub(3);
            if number < N { direct(&origin, number, "2099-01-01") } else { not_found() }
        }
        DIRECT_GET => not_found(),
        _ => {
            // Relaxed: the number says nothing about other memory.
            asked.fetch_add(usize::from(body.contains(&subject)), Ordering::Relaxed);
            plain(ask())
        }
    });
    let output = run(&mut from(&forged.server.url(), &["-c", NAME, "-o", "cat"]));
    let expected: String = (0..N).map(|number| format!("a.0.{number}\n")).collect();
    assert_eq!((exit_code(output.status), text(&output.stdout)), (0, expected), "{}", text(&output.stderr));
    assert_eq!(n_asked.load(Ordering::Relaxed), 2);
}

/// More CPUs than ask at a time, and the server goes for good while all of them ask.
#[test]
fn server_that_goes_while_all_lanes_ask_ends_a_reader() {
    const AT_ONCE: usize = 64;
    let (mut forged, mut client) = Forged::new();
    let origin = Origin::made_up("a", NAME);
    (0..AT_ONCE + 6).for_each(|cpu| _ = client.publish(&origin.subject(&format!("cpu{cpu}")), &[], b""));
    let n_asked = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&n_asked);
    forged.serve(move |subject, _, ask| {
        if subject != MSG_GET {
            return plain(ask());
        }
        // Relaxed: the number says nothing about other memory.
        asked.fetch_add(1, Ordering::Relaxed);
        None
    });
    let url = forged.server.url();
    let reader = thread::spawn(move || run(&mut from(&url, &["-c", NAME])));
    eventually("all questions", || n_asked.load(Ordering::Relaxed) == AT_ONCE);
    forged.server.kill();
    let output = reader.join().expect("the reader");
    let said = text(&output.stderr);
    assert!(exit_code(output.status) == 1 && said.ends_with("; no answer for 30s\n"), "{said}");
}

/// Nothing of the old stream has come before.
#[test]
fn stream_that_is_created_again_is_not_said_to_have_nothing() {
    for args in [&["-n", "5"][..], &["-c", NAME], &["--record"]] {
        let (forged, mut client) = Forged::new();
        Origin::made_up("a", NAME).send_text(0, 0, 0, 1000, &mut client);
        let mut n_looks = 0;
        forged.serve(move |subject, body, ask| match subject {
            INFO if body.is_empty() => {
                n_looks += 1;
                // One is the test's, and two are of the start.
                plain(if n_looks > 3 { created(&ask(), "2030-01-01") } else { ask() })
            }
            MSG_GET => {
                plain("{\"error\":{\"code\":404,\"err_code\":10037,\"description\":\"no message found\"}}")
            }
            _ => plain(ask()),
        });
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = from(&forged.server.url(), args);
        if args == ["--record"] {
            command.arg(dir.path().join("r"));
        }
        let said = complaint("relay-forward", &run(&mut command));
        assert!(said.starts_with("stream 'relay' was deleted and created again"), "{args:?}: {said}");
    }
}

/// The server is away, and then it has no stream.
#[test]
fn follower_says_each_reason_that_keeps_it_from_reading() {
    let mut server = NatsServer::start(&[]);
    server.kill();
    let follower = Follower::of(&server.url(), &["-c", NAME]);
    eventually("no server", || follower.said().contains("; trying again"));
    server.restart(&[]);
    eventually("no stream", || follower.said().contains("has no stream 'relay'"));
    let mut client = server.client();
    client.create_stream("relay", "");
    let mut origin = Origin::made_up("a", NAME);
    origin.send_own_texts("", &mut client);
    origin.send_text(0, 0, 0, 1000, &mut client);
    follower.has(&["a.0.0"]);
    let said = follower.end();
    assert!(said.lines().count() == 3 && said.contains("reading stream 'relay'"), "{said}");
}

/// Anything with the right to publish can put parts without an end before a text.
#[test]
fn search_for_a_text_ends() {
    for (part, n, is_found) in [("2/3", 500, true), ("2/3", 1100, false), ("1/3", 1100, false)] {
        let server = NatsServer::start(&[]);
        let mut client = server.client();
        client.create_stream("relay", "");
        let mut origin = Origin::made_up("a", NAME);
        let instance = format!("{:016x}", origin.instance);
        let headers = [
            ("Relay-Format", "1"),
            ("Relay-Instance", instance.as_str()),
            ("Relay-Number", "0"),
            ("Relay-Part", part),
        ];
        let subject = origin.subject("metadata");
        (0..n).for_each(|_| _ = client.publish(&subject, &headers, b"x"));
        origin.send_own_texts("", &mut client);
        origin.texts = origin.texts.map(|(_, processes)| (1, processes));
        origin.send_text(0, 0, 0, 1000, &mut client);
        let output = run(&mut from(&server.url(), &["-c", NAME, "-o", "cat"]));
        let (code, said) = (exit_code(output.status), text(&output.stderr));
        assert_eq!(
            (code, said.contains("without its dictionary")),
            (i32::from(!is_found), !is_found),
            "{said}"
        );
    }
}
