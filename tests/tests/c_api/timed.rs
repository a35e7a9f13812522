//! The functions of relay.h about timed channels, called by a C program.

use nix::sys::signal::Signal;
use relay::trace::event::{Event, id};
use relay_producer::{FieldType, Level, Value};
use relayfs_tests::Mount;
use relayfs_tests::librelay::Caller;
use relayfs_tests::records::{FoundRecord, merged, threads};

/// A caller on the first CPU, so that its records are in one buffer.
#[track_caller]
fn caller(mount: &Mount) -> Caller {
    let mut caller = Caller::start(mount.point());
    caller.expect(&[("go 0", "0")]);
    caller
}

fn log<'a>(level: Level, target: &'a [u8], text: &'a [u8]) -> Event<'a> {
    Event::Log { level: Some(level), target, text }
}

#[test]
fn logs_events_and_bytes_become_records() {
    let mount = Mount::new(&[]);
    let mut caller = caller(&mount);
    caller.expect(&[
        ("timed 0 - app/log 65536 4", "0"),
        ("write 0 bytes", "0"),
        ("log 0 2 app::db slow", "0"),
        ("log 0 3 - text", "0"),
        ("logf 0 1 42 reason", "0"),
        ("define 0 all u:1 i:2 f:3 b:4 s:5 y:6", "0"),
        ("event all 18446744073709551615 -2 0.5 1 text bytes", "0"),
        ("event all 0 0 0 0 - x", "0"),
        ("define 0 none", "0"),
        ("event none", "0"),
        ("flush 0", "0"),
    ]);
    let all = merged(&mount, "app/log");
    let events: Vec<Event<'_>> = all.iter().map(|kept| Event::decode(kept.id, &kept.payload)).collect();
    let expected = [
        Event::Raw(b"bytes"),
        log(Level::Warn, b"app::db", b"slow"),
        log(Level::Info, b"", b"text"),
        log(Level::Error, b"", b"42 reason: No such file or directory"),
    ];
    assert_eq!(events[..4], expected);
    assert_eq!(all[4..].iter().map(|kept| kept.id).collect::<Vec<_>>(), [256, 256, 257]);
    let fields = FieldType::ALL.map(|kind| relay_producer::Field { name: "x".into(), kind });
    let definition = relay_producer::Definition {
        name: "all".into(),
        level: None,
        target: String::new(),
        file: String::new(),
        line: 0,
        fields: fields.into(),
    };
    let values = |kept: &FoundRecord| {
        let values = definition.values(&kept.payload).expect("a value for each field");
        values.map(|(_, value)| format!("{value:?}")).collect::<Vec<_>>()
    };
    let expected = [
        Value::U64(u64::MAX),
        Value::I64(-2),
        Value::F64(0.5),
        Value::Bool(true),
        Value::Str(b"text"),
        Value::Bytes(b"bytes"),
    ];
    assert_eq!(values(&all[4]), expected.map(|value| format!("{value:?}")));
    assert_eq!(values(&all[5])[4], format!("{:?}", Value::Str(b"")));
    // Its only thread.
    assert!(all.iter().all(|kept| kept.tid == all[0].tid));
    if let Some((pid, command)) = threads(&mount, "app/log").get(&all[0].tid) {
        assert_eq!((*pid, &command[..]), (all[0].tid, "api"));
    }
    caller.end();
}

#[test]
fn wrong_calls_are_refused() {
    let mount = Mount::new(&["--channel=tiny:timed:subbuf-size=256"]);
    let mut caller = caller(&mount);
    caller.expect(&[
        ("open 0 cpu 8192 2", "0"),
        ("log 0 3 - text", "ENOTSUP"),
        ("logf 0 3 1 text", "ENOTSUP"),
        ("define 0 one", "ENOTSUP"),
        ("log - 3 - text", "EINVAL"),
        ("timed 1 - log 8192 2 start", "ENOTSUP"),
        ("timed 1 - log 63 2", "EINVAL"),
        ("timed 1 - log 8192 2", "0"),
        ("log 1 0 - text", "EINVAL"),
        ("log 1 6 - text", "EINVAL"),
        ("log 1 3 - -", "EFAULT"),
        ("event one", "EINVAL"),
        ("define 1 one number:1", "0"),
        ("define 1 one number:1", "0"),
        ("event one", "EINVAL"),
        ("event one 1 2", "EINVAL"),
        ("define 1 two a:7", "EINVAL"),
        ("define 1 two a:1 a:2", "EINVAL"),
        ("define 1 three text:5", "0"),
        ("event three -", "0"),
        ("open 2 log 8192 2 admit", "ENOTSUP"),
        ("open 2 tiny 1 1", "0"),
        ("fill 2 x 240", "0"),
        ("fill 2 x 241", "EMSGSIZE"),
        ("toobig 2", "241"),
        ("logs 2 5000", "0"),
        ("flush 2", "0"),
        ("close 1", "0"),
        ("log 1 3 - text", "EBADF"),
        ("event one 1", "EBADF"),
        // The handle may be that of another channel by then.
        ("timed 1 - other 8192 2", "0"),
        ("event one 1", "EBADF"),
    ]);
    let tiny = merged(&mount, "tiny");
    assert_eq!(tiny.iter().map(|kept| kept.id).collect::<Vec<_>>(), [id::RAW, id::LOG]);
    let Event::Log { text, .. } = Event::decode(id::LOG, &tiny[1].payload) else { panic!("{tiny:?}") };
    assert!(text.ends_with("  …".as_bytes()) && tiny[1].payload.len() == 240, "{tiny:?}");
    caller.end();
}

#[test]
fn event_is_defined_again_with_the_next_daemon() {
    let mut mount = Mount::new(&["--discard"]);
    let mut caller = caller(&mount);
    caller.expect(&[
        ("timed 0 - log 65536 4", "0"),
        ("define 0 one", "0"),
        ("define 0 two n:1", "0"),
        ("event two 1", "0"),
        ("flush 0", "0"),
    ]);
    assert_eq!(merged(&mount, "log").iter().map(|kept| kept.id).collect::<Vec<_>>(), [257]);
    assert!(mount.end(Signal::SIGTERM).success());
    mount.restart(&[]);
    let mut other = self::caller(&mount);
    other.expect(&[("timed 0 - log 65536 4", "0"), ("define 0 two n:1", "0")]);
    caller.expect(&[("flush 0", "0"), ("event two 2", "0"), ("event one", "0"), ("flush 0", "0")]);
    assert_eq!(merged(&mount, "log").iter().map(|kept| kept.id).collect::<Vec<_>>(), [256, 257]);
    caller.end();
    other.end();
}

#[test]
fn level_leaves_texts_and_events_out() {
    let mount = Mount::new(&["--channel=app/log:timed"]);
    let level = |text: &str| std::fs::write(mount.control("app/log", "level"), text).expect("the level");
    let mut caller = caller(&mount);
    caller.expect(&[("timed 0 - app/log 65536 4", "0"), ("enabled 0 5 -", "1"), ("log 0 5 app all", "0")]);
    level("warn,app::db=debug");
    caller.expect(&[
        ("enabled 0 3 -", "0"),
        ("enabled 0 2 -", "1"),
        ("enabled 0 4 app::db::pool", "1"),
        ("enabled 0 5 app::db", "0"),
        // What is wrong is for relay_log to say.
        ("enabled 0 77 -", "1"),
        ("log 0 3 app no", "0"),
        ("log 0 4 app::db yes", "0"),
        ("logf 0 3 1 no", "0"),
        ("logf 0 1 2 yes", "0"),
    ]);
    level("off");
    caller.expect(&[
        ("log 0 1 app no", "0"),
        ("logf 0 1 3 no", "0"),
        ("write 0 bytes", "0"),
        ("flush 0", "0"),
    ]);
    let all = merged(&mount, "app/log");
    let events: Vec<Event<'_>> = all.iter().map(|kept| Event::decode(kept.id, &kept.payload)).collect();
    let expected = [
        log(Level::Trace, b"app", b"all"),
        log(Level::Debug, b"app::db", b"yes"),
        log(Level::Error, b"", b"2 yes: No such file or directory"),
        Event::Raw(b"bytes"),
    ];
    assert_eq!(events, expected);
}
