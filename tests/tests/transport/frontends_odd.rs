//! The front ends where programs use them oddly: texts that fail, panic or log, layers in wrappers, threads that end.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use log::Log;
use nix::sys::signal::Signal;
use relay_producer::log::Logger;
use relay_producer::{Builder, Channel, Definition, Event, Level, TransportChoice};
use relayfs_tests::audience::audience;
use relayfs_tests::direct::pin;
use relayfs_tests::{Mount, eventually, program, stdout_of, text};
use tracing::dispatcher::with_default;
use tracing::field::Empty;
use tracing::{Dispatch, Span, info, info_span};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, Registry, registry};

const BOTH: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Socket];

fn builder(mount: &Mount, transport: TransportChoice) -> Builder {
    let builder = Channel::builder(mount.point(), "app/log").create(true).timed(true).transport(transport);
    // Records of one CPU are in order, also by the socket.
    pin(0);
    builder.geometry("subbuf-size=256K:n-subbufs=8".parse().expect("a geometry"))
}

#[track_caller]
fn layer(mount: &Mount) -> relay_producer::tracing::Layer<Registry> {
    relay_producer::tracing::layer(builder(mount, TransportChoice::Auto)).expect("a layer")
}

/// The messages, in the order in which they were written.
#[track_caller]
fn messages(mount: &Mount) -> Vec<String> {
    let args = ["-c", "app/log", "--snapshot", "-o", "cat"];
    text(&stdout_of(&mut audience(mount.point(), &args))).lines().map(str::to_owned).collect()
}

/// The messages without the numbers of spans, in the order of the alphabet.
#[track_caller]
fn sorted(mount: &Mount) -> Vec<String> {
    let mut found = messages(mount);
    found.iter_mut().for_each(|line| line.retain(|c| !c.is_ascii_digit()));
    found.sort();
    found
}

/// A value whose text does what programs' texts may do.
#[derive(Clone, Copy)]
enum Text {
    Panics,
    Fails,
    Tells,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("begun ")?;
        match self {
            Text::Panics => panic!("no text"),
            Text::Fails => Err(fmt::Error),
            Text::Tells => {
                info!("inner");
                f.write_str("ended")
            }
        }
    }
}

/// What `test-odd-frontend WHAT` prints.
#[track_caller]
fn run_odd(mount: &Mount, what: &str) -> String {
    text(&stdout_of(Command::new(program("test-odd-frontend")).arg(what).env("RELAYFS", mount.point())))
}

#[test]
fn texts_that_panic_fail_or_have_events_harm_no_other_record() {
    let mount = Mount::new(&[]);
    assert_eq!(run_odd(&mount, "texts"), "4\n");
    let found = messages(&mount);
    assert_eq!(found[0], "span 1 begins: outer");
    let n = |part: &str| found.iter().filter(|line| line.contains(part)).count();
    // Of the span's value, the later one, and an event's message and value.
    assert_eq!((n("inner span="), n("begins: within deep=true")), (4, 4), "{found:#?}");
    assert_eq!(n(r#" in 1 begins: span value="begun ""#), 1, "{found:#?}");
    assert_eq!(n(r#": late="begun ended""#), 1, "{found:#?}");
    for told in ["told begun  span=", "told begun ended span="] {
        let line = found.iter().find(|line| line.starts_with(told)).expect(told);
        assert!(line.contains("before=1 value=\"begun "), "{line}");
    }
    assert_eq!(n(" ends"), n(" begins: "), "{found:#?}");
    assert_eq!(found[found.len() - 2..], ["after span=1", "span 1 ends"]);
}

#[test]
fn destructors_of_threads_have_events() {
    let mount = Mount::new(&[]);
    run_odd(&mount, "destructors");
    let found = sorted(&mount);
    let n = |start: &str| found.iter().filter(|line| line.starts_with(start)).count();
    // Of the first thread one more: its first value is replaced.
    assert_eq!((n("known"), n("in a destructor")), (5, 3), "{found:#?}");
    assert_eq!(n("span  begins: before"), 2, "{found:#?}");
}

#[test]
fn hooks_of_panics_have_events() {
    let mount = Mount::new(&[]);
    run_odd(&mount, "hook");
    let found = messages(&mount);
    let n = |start: &str| found.iter().filter(|line| line.starts_with(start)).count();
    let place = "thread 'main' panicked at tests/src/bin/test-odd-frontend.rs:";
    assert_eq!((n(place), n("hook: ")), (3, 3), "{found:#?}");
    assert_eq!((n("hook: no text"), n("hook: an ordinary one")), (2, 1), "{found:#?}");
}

#[test]
fn logger_takes_texts_that_panic_fail_or_have_events() {
    let mount = Mount::new(&[]);
    let logger = Logger::new(builder(&mount, TransportChoice::Auto)).expect("a logger");
    let write = |value: Text| {
        let record = |args: fmt::Arguments<'_>| {
            let pairs =
                [("value", log::kv::Value::from_dyn_debug(&value)), ("last", log::kv::Value::from(1))];
            logger.log(&log::Record::builder().target("app").args(args).key_values(&&pairs[..]).build());
        };
        record(format_args!("told"));
        record(format_args!("told {value:?} to the end"));
    };
    with_default(&Dispatch::new(registry().with(layer(&mount))), || {
        assert!(catch_unwind(AssertUnwindSafe(|| write(Text::Panics))).is_err());
        write(Text::Fails);
        write(Text::Tells);
    });
    let found: Vec<String> = messages(&mount).into_iter().filter(|line| line.starts_with("told")).collect();
    let expected = [
        r#"told value="begun " last=1"#,
        r#"told begun  value="begun " last=1"#,
        r#"told value="begun ended" last=1"#,
        r#"told begun ended to the end value="begun ended" last=1"#,
    ];
    assert_eq!(found, expected);
}

#[test]
fn values_of_no_field_and_empty_ones_write_nothing() {
    let mount = Mount::new(&[]);
    with_default(&Dispatch::new(registry().with(layer(&mount))), || {
        let span = info_span!("span", late = Empty, late_too = Empty);
        span.in_scope(|| {
            span.record("undeclared", 1);
            span.record("late", Empty);
            span.record("late", None::<u64>);
            span.record("late_too", 2);
        });
        let id = span.id().expect("an id");
        drop(span);
        // What comes behind the end of a span has none.
        info!(parent: id, "of a closed span");
        info!(parent: Span::none(), "last");
    });
    let found = sorted(&mount);
    assert_eq!(found, ["last", "of a closed span", "span  begins: span", "span  ends", "span : late_too="]);
}

#[test]
fn layers_in_boxes_options_and_lists_write_each_event_once() {
    for wrap in 0..3 {
        let mount = Mount::new(&[]);
        let layer = layer(&mount);
        let dispatch = match wrap {
            0 => Dispatch::new(registry().with(layer.boxed())),
            1 => Dispatch::new(registry().with(Some(layer)).with(None::<relay_producer::tracing::Layer<_>>)),
            _ => Dispatch::new(registry().with(vec![layer.boxed()])),
        };
        with_default(&dispatch, || info_span!("span").in_scope(|| info!("told")));
        assert_eq!(sorted(&mount), ["span  begins: span", "span  ends", "told span="], "wrapper {wrap}");
    }
}

#[test]
fn subscribers_that_take_turns_do_not_mix_their_spans() {
    let mount = Mount::new(&[]);
    let [first, second] = [(); 2].map(|()| Dispatch::new(registry().with(layer(&mount))));
    let outer = with_default(&first, || info_span!("first"));
    let inner = with_default(&second, || info_span!("second"));
    // Both registries give their first span the same id.
    assert_eq!(outer.id().map(|id| id.into_u64()), inner.id().map(|id| id.into_u64()));
    let _outer = outer.enter();
    let _inner = inner.enter();
    for _ in 0..2 {
        with_default(&first, || info!("by first"));
        with_default(&second, || info!("by second"));
    }
    let found = messages(&mount);
    let number = |name: &str| {
        let begin = found.iter().find(|line| line.ends_with(&format!(" begins: {name}"))).expect("a begin");
        begin.split(' ').nth(1).expect("a number").to_owned()
    };
    let (first, second) = (number("first"), number("second"));
    let told = [format!("by first span={first}"), format!("by second span={second}")];
    assert_eq!(found[2..], [&told[..], &told[..]].concat());
}

/// Another program has other events in the channel by then, with the ids that these had before.
#[test]
fn events_keep_their_meaning_in_a_channel_that_was_made_again() {
    for transport in BOTH {
        let mut mount = Mount::new(&["--discard"]);
        let layer = relay_producer::tracing::layer(builder(&mount, transport)).expect("a layer");
        let dispatch = Dispatch::new(registry().with(layer));
        let tell = |when: &str| {
            with_default(&dispatch, || {
                info!(when, "one");
                info!(when, number = 2, "two");
            });
        };
        tell("before");
        mount.end(Signal::SIGTERM);
        mount.restart(&["--discard"]);
        let other = builder(&mount, transport).open().expect("a channel");
        let define = |n: u32| {
            let definition = Definition { name: format!("other {n}"), line: n, ..Definition::default() };
            other.define(definition).expect("an event")
        };
        let others: Vec<Event> = (0..3).map(define).collect();
        eventually("events of the layer", || {
            tell("after");
            others.iter().for_each(|other| other.write(&[]).expect("room"));
            other.log(Level::Info, "", "round").expect("room");
            messages(&mount).iter().filter(|line| line.contains("after")).count() >= 4
        });
        let mut found = messages(&mount);
        found.sort();
        found.dedup();
        let (one, two) = ("one when=after", "two when=after number=2");
        let expected = [one, "other 0", "other 1", "other 2", "round", two];
        // By text, where the daemon has not answered yet: the same message.
        assert!(expected.iter().all(|line| found.iter().any(|other| other == line)), "{found:#?}");
        assert!(
            found.iter().all(|line| expected.contains(&line.as_str()) || line.ends_with("are lost")),
            "{found:#?}"
        );
    }
}
