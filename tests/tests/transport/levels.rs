//! A channel's file `level`: what programs write, while they run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use relay::wire::frame::{Body, FRAME_MAX, HEADER_LEN, Levels, OpenReply};
use relay::wire::socket::{Socket, find};
use relay_producer::{Channel, Definition, Level, TransportChoice};
use relayfs_tests::audience::audience;
use relayfs_tests::{DEADLINE, Mount, Process, eventually, peer, program, stdout_of, text};
use tracing::dispatcher::with_default;
use tracing::{Dispatch, Event, Subscriber, debug, error, info};
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, registry};

const CHANNEL: &str = "--channel=app/log:timed:subbuf-size=256K:n-subbufs=8";
/// What the file says of a channel without directives.
const NONE: &str = "# no directives: the levels that each program has set apply\n";

fn level(mount: &Mount) -> String {
    fs::read_to_string(mount.control("app/log", "level")).expect("the level")
}

#[track_caller]
fn set(mount: &Mount, text: &str) {
    fs::write(mount.control("app/log", "level"), text).expect("setting the level");
}

/// The messages of the channel.
#[track_caller]
fn messages(mount: &Mount) -> Vec<String> {
    let args = ["-c", "app/log", "--snapshot", "-o", "cat"];
    text(&stdout_of(&mut audience(mount.point(), &args))).lines().map(str::to_owned).collect()
}

#[test]
fn file_says_what_was_written_and_refuses_what_makes_no_sense() {
    let mount = Mount::new(&[CHANNEL]);
    assert_eq!(level(&mount), NONE);
    for (written, expected) in [
        ("info, app::db = DEBUG\n", "info,app::db=debug\n"),
        ("off", "off\n"),
        ("# a remark\napp\nother=0\n", "app=trace,other=off\n"),
        ("\n", NONE),
        ("warn", "warn\n"),
        (NONE, NONE),
        ("app=error", "app=error\n"),
    ] {
        set(&mount, written);
        assert_eq!(level(&mount), expected);
        let size = fs::metadata(mount.control("app/log", "level")).expect("its status").len();
        assert_eq!(size, expected.len() as u64);
    }
    let many: String = (0..65).map(|n| format!("t{n}=info,")).collect();
    let hostile = ["app=loud", "=info", "a b=info", "app[x]=info", "a\0=info", "\x1b[31m=info", &many];
    for wrong in hostile {
        let error = fs::write(mount.control("app/log", "level"), wrong).expect_err(wrong);
        let expected = if wrong == many { nix::libc::EMSGSIZE } else { nix::libc::EINVAL };
        assert_eq!(error.raw_os_error(), Some(expected), "{wrong:?}");
    }
    let error = fs::write(mount.control("app/log", "level"), [0xff; 100_000]).expect_err("a long one");
    assert!(matches!(error.raw_os_error(), Some(nix::libc::EMSGSIZE | nix::libc::EINVAL)), "{error}");
    assert_eq!(level(&mount), "app=error\n", "a refused write changes nothing");
    assert!(!mount.control("cpu", "level").exists(), "a raw channel has no levels");
}

#[test]
fn channels_and_events_heed_the_level_at_once() {
    for transport in [TransportChoice::Auto, TransportChoice::Socket] {
        let mount = Mount::new(&[CHANNEL]);
        let builder = Channel::builder(mount.point(), "app/log").transport(transport);
        let channel =
            builder.levels("info,app::db=warn".parse().expect("directives")).open().expect("a channel");
        let definition = Definition {
            name: "query".into(),
            level: Some(Level::Debug),
            target: "app::db".into(),
            ..Definition::default()
        };
        let event = channel.define(definition).expect("an event");
        let write = |text: &str| {
            for (level, target) in [
                (Level::Warn, "app::db"),
                (Level::Info, "app::db"),
                (Level::Info, "app"),
                (Level::Debug, "app"),
            ] {
                channel.log(level, target, &format!("{text} {target} {level}")).expect("a write");
            }
            event.write(&[]).expect("an event");
            channel.sync().expect("the daemon's answer");
        };
        write("own");
        set(&mount, "app::db=debug");
        write("db");
        set(&mount, "off");
        write("off");
        set(&mount, "trace");
        write("all");
        set(&mount, "\n");
        write("none");
        let expected = [
            "own app::db WARN",
            "own app INFO",
            "db app::db WARN",
            "db app::db INFO",
            "db app INFO",
            "query",
            "all app::db WARN",
            "all app::db INFO",
            "all app INFO",
            "all app DEBUG",
            "query",
            "none app::db WARN",
            "none app INFO",
        ];
        assert_eq!(messages(&mount), expected, "{transport:?}");
        assert!(channel.enabled(Level::Warn, b"app::db") && !channel.enabled(Level::Info, b"app::db"));
    }
}

/// The file to the byte, as relay/docs/LEVELS.md draws it, and the frame that brings it.
#[test]
fn peers_get_a_file_that_can_only_be_read() {
    let mount = Mount::new(&[CHANNEL]);
    let peer = Socket::connect(&find(mount.point()).expect("a socket"), DEADLINE).expect("a daemon");
    let ask = |packet: &[u8]| {
        peer.send(packet).expect("a request");
        assert!(peer.wait(PollFlags::POLLIN, Some(Instant::now() + DEADLINE)), "an answer in time");
        let mut bytes = vec![0; FRAME_MAX];
        let (len, files) = peer.receive_with_descriptors(&mut bytes).expect("an answer");
        bytes.truncate(len);
        (bytes, files)
    };
    ask(&peer::hello(1, 1));
    let opened = |name: &str| {
        let (answer, _) = ask(&peer::open(name, 0, 2));
        let reply = OpenReply::decode(&answer[HEADER_LEN..]).expect("a channel").channel;
        ask(&Levels { channel: reply }.frame(0, 7))
    };
    let (refused, files) = opened("cpu");
    assert!(text(&refused).contains("it is a raw channel") && files.is_empty(), "{refused:?}");
    let (answer, files) = opened("app/log");
    assert_eq!(answer, b"\x10\0\0\0\x0b\x80\0\0\x07\0\0\0\x01\0\0\0");
    let [file] =
        files.try_into().map(|[file]: [std::os::fd::OwnedFd; 1]| [fs::File::from(file)]).expect("a file");
    assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err());
    let read = || {
        let mut bytes = vec![0; 5000];
        let len = file.read_at(&mut bytes, 0).expect("its bytes");
        bytes.truncate(len);
        bytes
    };
    let mut expected = vec![0; 4096];
    expected[..12].copy_from_slice(b"relaylev\x01\0\0\0");
    assert_eq!(read(), expected);
    set(&mount, "app=info");
    expected[64] = 1;
    expected[1216] = 8;
    expected[1280..1288].copy_from_slice(b"app=info");
    assert_eq!(read(), expected);
    set(&mount, "off");
    expected[64] = 2;
    expected[128] = 3;
    expected[192..195].copy_from_slice(b"off");
    assert_eq!(read(), expected);
}

/// `test-frontend levels`, and what it logs.
struct Program {
    process: Process,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    rounds: usize,
}

impl Program {
    fn start(mount: &Mount, what: &str) -> Program {
        let mut command = Command::new(program("test-frontend"));
        command.arg(what).env("RELAYFS", mount.point()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let child = process.child();
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        Program { process, input, output: BufReader::new(output), rounds: 0 }
    }

    /// Has it log once, and returns what is there of that round: by which crate, target, level.
    fn logs(&mut self, mount: &Mount) -> BTreeSet<String> {
        self.rounds += 1;
        let round = format!("round{}", self.rounds);
        writeln!(self.input.as_mut().expect("a pipe"), "{round}").expect("a line");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, format!("{round}\n"));
        let begin = format!("{round} ");
        messages(mount).iter().filter_map(|line| line.strip_prefix(&begin)).map(str::to_owned).collect()
    }

    /// Has it log until it logs this: for each crate, the levels of the targets `app` and `app::db`.
    #[track_caller]
    fn comes_to_log(&mut self, mount: &Mount, expected: [(&str, &str, &str); 3]) {
        let levels = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
        let of = |by: &str, target: &str, initials: &str| -> Vec<String> {
            let is_in = |level: &&&str| initials.contains(&level[..1]);
            levels.iter().filter(is_in).map(|level| format!("{by} {target} {level}")).collect()
        };
        let all = expected.iter().flat_map(|(by, app, db)| [of(by, "app", app), of(by, "db", db)].concat());
        let all: BTreeSet<String> = all.collect();
        let mut found = BTreeSet::new();
        eventually(&format!("{all:?}"), || {
            found = self.logs(mount);
            found == all
        });
    }
}

/// What a program logs while the channel has no directives.
const ALL: [(&str, &str, &str); 3] =
    [("tracing", "EWIDT", "EWIDT"), ("log", "EWI", "EWI"), ("channel", "EWIDT", "EWIDT")];

fn same(app: &'static str, db: &'static str) -> [(&'static str, &'static str, &'static str); 3] {
    ["tracing", "log", "channel"].map(|by| (by, app, db))
}

#[test]
fn running_programs_follow_the_level() {
    for what in ["levels", "levels-by-socket", "levels-in-child"] {
        let mount = Mount::new(&[CHANNEL]);
        let mut program = Program::start(&mount, what);
        program.comes_to_log(&mount, ALL);
        set(&mount, "warn,app::db=debug");
        program.comes_to_log(&mount, same("EW", "EWID"));
        set(&mount, "off");
        program.comes_to_log(&mount, same("", ""));
        set(&mount, "app::db=trace");
        let all = "EWIDT";
        let expected = [("tracing", all, all), ("log", "EWI", all), ("channel", all, all)];
        program.comes_to_log(&mount, expected);
        set(&mount, "\n");
        program.comes_to_log(&mount, ALL);
        drop(program.input.take());
        assert_eq!(program.process.wait().code(), Some(0), "{what}");
    }
}

#[test]
fn level_outlives_the_daemon() {
    for what in ["levels", "levels-by-socket"] {
        let mut mount = Mount::new(&[CHANNEL]);
        let mut program = Program::start(&mount, what);
        set(&mount, "error,app::db=info");
        program.comes_to_log(&mount, same("E", "EWI"));
        mount.end(Signal::SIGKILL);
        mount.restart(&[CHANNEL]);
        assert_eq!(level(&mount), "error,app::db=info\n");
        program.comes_to_log(&mount, same("E", "EWI"));
        set(&mount, "info");
        program.comes_to_log(&mount, same("EWI", "EWI"));
        // A program that writes nothing finds the daemon that has none of it.
        set(&mount, "off");
        program.comes_to_log(&mount, same("", ""));
        mount.end(Signal::SIGKILL);
        mount.restart(&[CHANNEL, "--discard"]);
        mount.end(Signal::SIGTERM);
        mount.restart(&[CHANNEL]);
        assert_eq!(level(&mount), NONE);
        program.comes_to_log(&mount, ALL);
    }
}

/// A layer that counts the events it gets.
struct Counter(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Counter {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn other_layers_and_the_programs_filter_stay() {
    let mount = Mount::new(&[CHANNEL]);
    let counted = Arc::new(AtomicUsize::new(0));
    let layer =
        || relay_producer::tracing::layer(Channel::builder(mount.point(), "app/log")).expect("a layer");
    let both = registry().with(layer()).with(Counter(Arc::clone(&counted)));
    let filtered = registry().with(layer().with_filter(EnvFilter::new("app=info,app::db=debug")));
    let (both, filtered) = (Dispatch::new(both), Dispatch::new(filtered));
    let mut round = 0;
    let mut comes_to_log = |dispatch: &Dispatch, expected: &[&str]| {
        eventually(&format!("{expected:?}"), || {
            round += 1;
            with_default(dispatch, || {
                error!(target: "app", "{round} app error");
                info!(target: "app", "{round} app info");
                debug!(target: "app", "{round} app debug");
                debug!(target: "app::db", "{round} db debug");
            });
            let begin = format!("{round} ");
            let lines = messages(&mount);
            let found: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(&begin)).collect();
            found == expected
        });
    };
    comes_to_log(&both, &["app error", "app info", "app debug", "db debug"]);
    set(&mount, "app=error,app::db=off");
    comes_to_log(&both, &["app error"]);
    set(&mount, "off");
    comes_to_log(&both, &[]);
    comes_to_log(&filtered, &[]);
    set(&mount, "trace");
    comes_to_log(&filtered, &["app error", "app info", "db debug"]);
    set(&mount, "debug,app::db=warn");
    comes_to_log(&filtered, &["app error", "app info"]);
    set(&mount, "off");
    comes_to_log(&both, &[]);
    let before = counted.load(Ordering::Relaxed);
    comes_to_log(&both, &[]);
    assert_eq!(counted.load(Ordering::Relaxed) - before, 4, "the other layer gets all");
}
