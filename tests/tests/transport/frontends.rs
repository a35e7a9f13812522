//! The front ends for `tracing`, `log` and panics: what `audience` shows of them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;

use log::Log;
use nix::sys::signal::Signal;
use relay_producer::log::Logger;
use relay_producer::{Builder, Channel, FrontendError, TransportChoice, panic_hook};
use relayfs_tests::audience::{Recorder, audience};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::direct::with_sequences;
use relayfs_tests::perfetto::decode;
use relayfs_tests::{Mount, Process, eventually, program, run, stdout_of, text};
use tracing::dispatcher::with_default;
use tracing::{Dispatch, Span, debug, error, info, info_span, warn};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, registry};

const BOTH: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Socket];

fn builder(mount: &Mount, transport: TransportChoice) -> Builder {
    let builder = Channel::builder(mount.point(), "app/log").create(true).timed(true).transport(transport);
    builder.geometry("subbuf-size=256K:n-subbufs=8".parse().expect("a geometry"))
}

#[track_caller]
fn subscriber(mount: &Mount, transport: TransportChoice) -> Dispatch {
    let layer = relay_producer::tracing::layer(builder(mount, transport)).expect("a layer");
    Dispatch::new(registry().with(layer))
}

/// The lines of `audience -c app/log --snapshot ARGS`.
#[track_caller]
fn shown(mount: &Mount, args: &[&str]) -> Vec<String> {
    let args = [&["-c", "app/log", "--snapshot"], args].concat();
    text(&stdout_of(&mut audience(mount.point(), &args))).lines().map(str::to_owned).collect()
}

/// The messages of `audience -o cat`, as soon as there are `n` that begin in this way.
#[track_caller]
fn messages(mount: &Mount, start: &str, n: usize) -> Vec<String> {
    let mut found = Vec::new();
    eventually(&format!("{n} messages that begin with {start:?}"), || {
        found = shown(mount, &["-o", "cat"]);
        found.retain(|line| line.starts_with(start));
        found.len() >= n
    });
    found
}

/// The value of a member in a line of JSON, as it stands there.
fn member<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{name}\":"))?;
    match rest.strip_prefix('"') {
        Some(text) => text.split('"').next(),
        None => rest.split([',', '}']).next(),
    }
}

#[test]
fn nested_spans_of_eight_threads_are_there_once_with_their_fields() {
    const THREADS: u64 = 8;
    for (transport, rounds) in BOTH.into_iter().zip([50, 10]) {
        let mount = Mount::new(&[]);
        let dispatch = subscriber(&mount, transport);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let dispatch = &dispatch;
                scope.spawn(move || {
                    with_default(dispatch, || {
                        for number in 0..rounds {
                            let _outer = info_span!("outer", thread).entered();
                            let _inner = info_span!("inner", number).entered();
                            info!(thread, number, half = number as f64 / 2.0, "of {thread}");
                        }
                    });
                });
            }
        });
        let n_events = (THREADS * rounds) as usize;
        let mut lines = Vec::new();
        eventually("all records", || {
            lines = shown(&mount, &["-o", "json"]);
            lines.len() == n_events * 5
        });
        let of = |event: &str| -> BTreeMap<String, (usize, &String)> {
            let of_event = lines.iter().enumerate().filter(|(_, line)| member(line, "event") == Some(event));
            of_event
                .map(|(at, line)| (member(line, "span").expect("a number").to_owned(), (at, line)))
                .collect()
        };
        let (begins, ends) = (of("span_begin"), of("span_end"));
        assert_eq!((begins.len(), ends.len()), (n_events * 2, n_events * 2), "each span has a number");
        let mut events = BTreeMap::new();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("\"message\"")) {
            let [thread, number, half] =
                ["thread", "number", "half"].map(|name| member(line, name).expect("a field"));
            assert_eq!(member(line, "message"), Some(format!("of {thread}").as_str()));
            assert_eq!(half.parse(), Ok(number.parse::<f64>().expect("a number") / 2.0));
            assert_eq!((member(line, "level"), member(line, "target")), (Some("INFO"), Some(module_path!())));
            assert!(events.insert((thread, number), at).is_none(), "twice: {line}");
            // Its span, and the one around that.
            let mut span = member(line, "span").expect("a span");
            for (name, args) in [("inner", format!("number={number}")), ("outer", format!("thread={thread}"))]
            {
                let ((begin, first), (end, last)) = (begins[span], ends[span]);
                assert!(begin < at && at < end, "{first} {line} {last}");
                assert_eq!((member(first, "name"), member(first, "args")), (Some(name), Some(args.as_str())));
                assert!([first, last].iter().all(|other| member(other, "tid") == member(line, "tid")));
                span = member(first, "parent").expect("a parent");
            }
            assert_eq!(span, "0");
        }
        assert_eq!(events.len(), n_events);
        slices_nest(&mount, n_events);
    }
}

/// Checks the slices that Perfetto shows of a recording: each event lies in an inner one, which lies in an outer one.
fn slices_nest(mount: &Mount, n_events: usize) {
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log", "--duration", "1ms"]);
    assert_eq!(recorder.process.wait().code(), Some(0), "{}", recorder.said());
    let file = recorder.dir.with_file_name("spans.pftrace");
    let mut convert = Command::new(program("audience"));
    stdout_of(convert.args(["convert", "--perfetto", "-o"]).arg(&file).arg(&recorder.dir));
    let mut open: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut instants = 0;
    let decoded = decode(&file);
    for line in &decoded {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let [what, _, track, rest @ ..] = &words[..] else { continue };
        let slices = open.entry((*track).to_owned()).or_default();
        match *what {
            "begin" => slices.push(rest[0].to_owned()),
            "end" => assert!(slices.pop().is_some(), "an end without a begin: {line}"),
            "instant" if rest.first() == Some(&"of") => {
                assert_eq!(slices[..], ["outer", "inner"], "{line}");
                instants += 1;
            }
            _ => {}
        }
    }
    assert!(open.values().all(Vec::is_empty), "slices without an end: {open:?}");
    assert_eq!(instants, n_events, "{:#?}", &decoded[..decoded.len().min(100)]);
}

/// A place whose values have the type of its parameter.
fn generic(value: impl tracing::Value) {
    info!(value, "generic");
}

#[test]
fn values_keep_their_types_as_far_as_a_place_has_few() {
    let mount = Mount::new(&[]);
    with_default(&subscriber(&mount, TransportChoice::Auto), || {
        let none: Option<u64> = None;
        info!(u = u64::MAX, i = -1, f = 0.5, b = true, s = "text", none, d = ?Some(1), "all");
        for maybe in [None, Some(7u64), None] {
            info!(maybe, "maybe");
        }
        generic(1u64);
        generic(-1i64);
        generic(true);
        generic("text");
        generic(0.5);
        generic(2u64);
        info!(message = 3, "no message" = 1);
        info!("bare");
        warn!(parent: Span::none(), huge = u128::MAX);
    });
    let lines = shown(&mount, &["-o", "json"]);
    let fields: Vec<&str> =
        lines.iter().map(|line| line.split_once("\"fields\":").expect("typed fields").1).collect();
    let expected = [
        r#"{"message":"all","u":18446744073709551615,"i":-1,"f":0.5,"b":true,"s":"text","none":"","d":"Some(1)"}}"#,
        r#"{"message":"maybe","maybe":""}}"#,
        r#"{"message":"maybe","maybe":7}}"#,
        r#"{"message":"maybe","maybe":""}}"#,
        r#"{"message":"generic","value":1}}"#,
        r#"{"message":"generic","value":-1}}"#,
        r#"{"message":"generic","value":true}}"#,
        r#"{"message":"generic","value":"text"}}"#,
        r#"{"message":"generic","value":"0.5"}}"#,
        r#"{"message":"generic","value":2}}"#,
        r#"{"message":3,"no message":1}}"#,
        r#"{"message":"bare"}}"#,
        r#"{"huge":"340282366920938463463374607431768211455"}}"#,
    ];
    assert_eq!(fields, expected);
    let event = &lines[0];
    assert!(event.contains("\"event\":\"") && event.contains("frontends.rs:"), "{event}");
    let messages = shown(&mount, &["-o", "cat"]);
    assert_eq!(messages[2], "maybe maybe=7");
    assert!(messages[12].contains("frontends.rs:"), "a place without a message: {}", messages[12]);
}

#[test]
fn hostile_names_and_long_values_cost_no_record() {
    for geometry in ["", "subbuf-size=64", "subbuf-size=256"] {
        let mount = Mount::new(&[]);
        let builder = builder(&mount, TransportChoice::Auto).geometry(geometry.parse().expect("a geometry"));
        let layer = relay_producer::tracing::layer(builder).expect("a layer");
        let long = "ä".repeat(5000);
        with_default(&Dispatch::new(registry().with(layer)), || {
            info!("\0" = 1, "a\" = \u{1b}[31m\n" = 2, "span" = 3, "{} \\ \u{202e}" = 4, "hostile\n\x1b[2J");
            info!(target: "/* */ \"\0\n", "target");
            info!(first = long.as_str(), number = 7, second = %long, "long");
            let _span = info_span!("\0*/\n", "span" = "\"", long = long.as_str()).entered();
            error!(span = "mine", "{long}");
        });
        let json = shown(&mount, &["-o", "json"]);
        let lines = shown(&mount, &[]);
        assert_eq!(lines.len(), json.len(), "one line is one record: {lines:#?}");
        assert!(!lines.concat().contains(['\0', '\x1b', '\u{202e}']), "{lines:#?}");
        if geometry.is_empty() {
            assert_eq!(json.len(), 6);
            assert!(json[0].contains(r#""span":3,"{} \\"#) && json[0].contains("hostile\\n"), "{}", json[0]);
            let cut = &json[2];
            assert!(
                cut.contains("ä…") && cut.contains(r#""number":7"#) && cut.contains(r#""second":"#),
                "{cut}"
            );
            assert!(json[3].contains("ä…"), "{}", json[3]);
            assert!(json[4].contains(r#""span":"#) && json[4].contains(r#""span_2":"mine"#), "{}", json[4]);
        }
    }
}

#[test]
fn next_daemon_gets_every_place_again() {
    for transport in BOTH {
        let mut mount = Mount::new(&[]);
        let dispatch = subscriber(&mount, transport);
        let tell = |when: &str| with_default(&dispatch, || info!(when, number = 1, "known"));
        tell("before");
        messages(&mount, "known when=before number=1", 1);
        mount.end(Signal::SIGKILL);
        tell("between");
        mount.restart(&["--discard"]);
        eventually("an event of the next daemon", || {
            tell("after");
            shown(&mount, &["-o", "cat"]).iter().any(|line| line == "known when=after number=1")
        });
        with_default(&dispatch, || debug!(number = 2, "new"));
        messages(&mount, "new number=2", 1);
    }
}

#[test]
fn direct_writers_lose_no_event_when_a_daemon_crashes() {
    let mut mount = Mount::new(&[]);
    let channel = builder(&mount, TransportChoice::Auto).open().expect("a channel");
    let dispatch = subscriber(&mount, TransportChoice::Auto);
    let tell = |number: u64| with_default(&dispatch, || info!(number, "known"));
    tell(0);
    mount.end(Signal::SIGKILL);
    let is_shared = channel.transport() == relay_producer::Transport::Shared;
    (1..100).for_each(tell);
    // A place that no daemon knows: its event is a text.
    with_default(&dispatch, || warn!(rows = 3, host = "a b", "unknown"));
    mount.restart(&[]);
    if is_shared {
        let known = messages(&mount, "known", 100);
        assert!((0..100).map(|number| format!("known number={number}")).eq(known));
        assert_eq!(messages(&mount, "unknown", 1), [r#"unknown rows=3 host="a b""#]);
    }
}

#[test]
fn filters_and_other_layers_compose() {
    let mount = Mount::new(&[]);
    let builder = || builder(&mount, TransportChoice::Auto);
    let (db, web) = (EnvFilter::new("app::db=debug"), EnvFilter::new("app::web=info"));
    let both = registry()
        .with(relay_producer::tracing::layer(builder()).expect("a layer").with_filter(db))
        .with(relay_producer::tracing::layer(builder()).expect("a layer").with_filter(web));
    // On one CPU: by the socket, records of two CPUs need not be in order.
    on_cpu(0, || {
        with_default(&Dispatch::new(both), || {
            let _db = tracing::debug_span!(target: "app::db", "query", rows = 1).entered();
            let _web = info_span!(target: "app::web", "request").entered();
            debug!(target: "app::db", "in db");
            debug!(target: "app::web", "hidden");
            info!(target: "app::web", "in web");
            error!(target: "other", "hidden");
        });
    });
    let lines = shown(&mount, &["-o", "cat"]);
    let begin = |name: &str| {
        let of = |line: &&String| line.contains(&format!(" begins: {name}"));
        let [line] = lines.iter().filter(of).collect::<Vec<_>>()[..] else { panic!("{lines:#?}") };
        line.split(' ').nth(1).expect("its number").to_owned()
    };
    let (query, request) = (begin("query rows=1"), begin("request"));
    assert_eq!(lines[0], format!("span {query} begins: query rows=1"));
    assert_eq!(lines[1], format!("span {request} begins: request"), "its layer does not know the other span");
    assert_eq!(lines[2..4], [format!("in db span={query}"), format!("in web span={request}")]);
    assert_eq!(lines[4..], [format!("span {request} ends"), format!("span {query} ends")]);
}

#[test]
fn spans_that_are_entered_twice_or_never_are_complete() {
    let mount = Mount::new(&[]);
    // On one CPU: by the socket, records of two CPUs need not be in order.
    on_cpu(0, || {
        with_default(&subscriber(&mount, TransportChoice::Auto), || {
            let twice = info_span!("twice", rows = 1, late = tracing::field::Empty);
            let never = info_span!(parent: &twice, "never", of = "all", later = tracing::field::Empty);
            never.record("later", 2);
            info!(parent: &never, "explicit");
            twice.in_scope(|| twice.record("late", 5));
            thread::scope(|scope| {
                scope.spawn(|| twice.in_scope(|| ()));
            });
            drop(never);
        });
    });
    let lines = shown(&mount, &["-o", "cat"]);
    let (never, twice) = {
        let explicit: Vec<&str> = lines[0].split('=').collect();
        assert_eq!(explicit[0], "explicit span");
        let first: Vec<&str> = lines[1].split(' ').collect();
        (explicit[1], first[1])
    };
    let expected = [
        format!("explicit span={never}"),
        format!("span {twice} begins: twice rows=1"),
        format!("span {twice}: late=5"),
        format!("span {twice} ends"),
        format!("span {twice} begins: twice"),
        format!("span {twice} ends"),
        format!("span {never} in {twice} begins: never of=all later=2"),
        format!("span {never} ends"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn log_records_have_level_target_and_pairs() {
    let mount = Mount::new(&[]);
    let logger = Logger::new(builder(&mount, TransportChoice::Auto)).expect("a logger");
    let write = |target: &str, args: std::fmt::Arguments<'_>, pairs: &[(&str, &str)]| {
        let mut record = log::Record::builder();
        record.level(log::Level::Warn).target(target).args(args);
        logger.log(&record.key_values(&pairs).build());
    };
    let long = "ä".repeat(2000);
    write("app::db", format_args!("constant"), &[]);
    write("app::db", format_args!("{} of {}", 1, 2), &[("rows", "3"), ("host", "a b"), ("k=1", "\n")]);
    write("a\x1b[31m\n", format_args!("{long}"), &[("last", "one")]);
    write(&"t".repeat(300), format_args!("{}", "x".repeat(300)), &[]);
    write("huge", format_args!("{}", "y".repeat(100_000)), &[("not", "there")]);
    let lines = shown(&mount, &[]);
    let message = |at: usize| lines[at].split_once("WARN ").expect("its level").1;
    assert_eq!(message(0), "app::db: constant");
    assert_eq!(message(1), r#"app::db: 1 of 2 rows=3 host="a b" "k=1"="\n""#);
    assert_eq!(message(2), format!(r"a\x1b[31m\n: {long} last=one"));
    assert!(message(3).starts_with("ttt") && message(3).ends_with(&format!("t…: {}", "x".repeat(300))));
    assert!(message(4).starts_with("huge: yyy") && message(4).ends_with("y…") && message(4).len() > 65_000);
}

#[test]
fn raw_channels_and_wrong_names_are_errors() {
    let mount = Mount::new(&[]);
    let raw = || Channel::builder(mount.point(), "cpu");
    let layer = relay_producer::tracing::layer::<tracing_subscriber::Registry>(raw());
    let errors = [layer.err(), Logger::new(raw()).err(), panic_hook(raw()).err()];
    for error in errors {
        let error = error.expect("a refusal");
        assert!(matches!(error, FrontendError::Raw { .. }), "{error:?}");
        let says = "channel cpu: cannot take records: it is raw; name another one, or create it with 'timed'";
        assert_eq!(error.to_string(), says);
    }
    assert!(matches!(Logger::new("a//b"), Err(FrontendError::Open(relay_producer::OpenError::Name(_)))));
}

/// `test-frontend WHAT`, with the mount in its environment.
fn frontend(mount: &Mount, what: &str) -> Command {
    let mut command = Command::new(program("test-frontend"));
    command.arg(what).env("RELAYFS", mount.point());
    command
}

#[test]
fn panic_is_kept_with_its_place_and_backtrace() {
    let mount = Mount::new(&[]);
    let output = run(&mut frontend(&mount, "panic"));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "hook before\n".to_owned()));
    let lines = shown(&mount, &["--level", "error", "--target", "panic"]);
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    let place = "ERROR panic: thread 'worker' panicked at tests/src/bin/test-frontend.rs:";
    assert!(line.contains(place) && line.contains(": no bread\\n"), "{line}");
    assert!(line.contains("test_frontend::panic_in_thread"), "a backtrace: {line}");
}

#[test]
fn program_finds_a_daemon_that_comes_later() {
    let mut mount = Mount::new(&[]);
    mount.end(Signal::SIGTERM);
    let mut command = frontend(&mount, "ticks");
    let mut process = Process::start(command.stdin(Stdio::piped()).stderr(Stdio::piped()));
    let mut stderr = BufReader::new(process.child().stderr.take().expect("a pipe"));
    for _ in ["the layer", "the logger"] {
        let mut line = String::new();
        stderr.read_line(&mut line).expect("its standard error");
        let start =
            "relay-producer: app/log: messages are lost until there is a daemon: no relayfs is mounted on ";
        assert!(line.starts_with(start), "{line}");
    }
    mount.restart(&[]);
    eventually("ticks by both crates", || {
        if !mount.control("app/log", "trace").exists() {
            return false;
        }
        let lines = shown(&mount, &["-o", "cat"]);
        ["tick number=", "log tick number="]
            .iter()
            .all(|start| lines.iter().any(|line| line.starts_with(start)))
    });
    let missed = messages(&mount, "", 1)
        .into_iter()
        .filter(|line| line.ends_with(" came before the daemon, and are lost"));
    assert_eq!(missed.count(), 2, "of the layer, and of the logger");
    drop(process.child().stdin.take());
    assert_eq!(process.wait().code(), Some(0));
    let mut rest = String::new();
    stderr.read_line(&mut rest).expect("its standard error");
    assert_eq!(rest, "");
}

#[test]
fn directly_written_event_takes_no_memory() {
    let mount = Mount::with_sequences(&[]);
    let counted = text(&stdout_of(with_sequences(&mut frontend(&mount, "allocations"))));
    assert_eq!(counted, "tracing 0 log 0\n");
    for last in [
        "event 999 of 1000 span=",
        "message 999 of 1000",
        "pairs 999 of 1000 number=999 text=\"in quotes\" debug=Some(999)",
    ] {
        assert!(!messages(&mount, last, 1).is_empty(), "{last}");
    }
}

#[test]
fn events_of_signal_handlers_and_of_what_they_interrupt_are_there_once() {
    let mount = Mount::with_sequences(&["--channel=app/log:timed:subbuf-size=1M:n-subbufs=16"]);
    let logged = text(&stdout_of(with_sequences(&mut frontend(&mount, "signals"))));
    let (main, handled) = logged.trim_end().split_once(' ').expect("two numbers");
    let lines = shown(&mount, &["-o", "cat"]);
    let numbers = |what: &str| -> Vec<u64> {
        let of = |line: &String| line.strip_prefix(what)?.rsplit_once("number=")?.1.parse().ok();
        lines.iter().filter_map(of).collect()
    };
    for (what, count) in [("main span=", main), ("handled ", handled)] {
        let (mut found, count) = (numbers(what), count.parse().expect("a number"));
        found.sort_unstable();
        assert!(count > 0 && found.iter().copied().eq(0..count), "{what} {count}: {}", found.len());
    }
    let n = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!((n(" begins: inner"), n(" ends")), (20_000, 20_001));
}
