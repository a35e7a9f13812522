//! Producers of timed channels: what their records say, in which order, and of which thread.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::gettid;
use relay::trace::event::{Event, Stream, id};
use relay_producer::{
    BatchOptions, Channel, Definition, Field, FieldType, Level, RequestError, Transport, TransportChoice,
    Value, Wait, WriteError,
};
use relayfs_tests::direct::is_without_sequences;
use relayfs_tests::records::{FoundRecord, merged, records, threads, total};
use relayfs_tests::{Mount, Process, eventually, program, stdout_of, text};

use crate::producer::{one_line, produce, produce_well};

const BOTH: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Socket];

#[track_caller]
fn open(mount: &Mount, transport: TransportChoice, geometry: &str) -> Channel {
    let builder = Channel::builder(mount.point(), "log").create(true).timed(true).transport(transport);
    builder.geometry(geometry.parse().expect("a geometry")).open().expect("a channel")
}

fn definition(name: &str, kinds: &[FieldType]) -> Definition {
    let field = |kind: &FieldType| Field { name: kind.name().into(), kind: *kind };
    Definition {
        name: name.into(),
        level: Some(Level::Info),
        target: "tests".into(),
        file: file!().into(),
        line: 7,
        fields: kinds.iter().map(field).collect(),
    }
}

/// Messages that the channel has lost.
#[track_caller]
fn lost(mount: &Mount) -> u64 {
    ["dropped", "too_big", "contended"].iter().map(|counter| total(mount, "log", counter)).sum()
}

fn own_tid() -> u32 {
    gettid().as_raw().unsigned_abs()
}

#[test]
fn each_kind_of_record_is_in_the_buffer_with_its_thread() {
    for transport in BOTH {
        let mount = Mount::new(&[]);
        let channel = open(&mount, transport, "");
        assert!(channel.is_timed() && channel.created());
        let defined = channel.define(definition("all", &FieldType::ALL)).expect("an id");
        let values = [
            Value::U64(u64::MAX),
            Value::I64(-2),
            Value::F64(0.5),
            Value::Bool(true),
            Value::from("text"),
            Value::from(&[0u8, 255][..]),
        ];
        channel.write(b"raw\0").expect("room");
        channel.write_to(0, b"to 0").expect("room");
        channel.text("a text").expect("room");
        channel.log(Level::Warn, "app::db", "slow").expect("room");
        channel.output(Stream::Stderr, 77, b"a line").expect("room");
        defined.write(&values).expect("room");
        let mut batch = channel.batch(BatchOptions::default()).expect("a batch");
        batch.push(b"batch").expect("room");
        batch.push_text(b"text \xff").expect("room");
        batch.push_log(Level::Error, "t", b"last").expect("room");
        assert_eq!(batch.finish().expect("the results").written, 3);
        channel.flush().expect("the daemon's answer");

        let all = merged(&mount, "log");
        assert!(
            all.iter().all(|kept| kept.tid == if kept.id == id::OUTPUT { 77 } else { own_tid() }),
            "{all:?}"
        );
        let mut events: Vec<Event<'_>> =
            all.iter().map(|kept| Event::decode(kept.id, &kept.payload)).collect();
        // A message for CPU 0 may have been overtaken.
        events.retain(|event| *event != Event::Raw(b"to 0"));
        assert_eq!(events.len() + 1, all.len());
        let expected = [
            Event::Raw(b"raw\0"),
            Event::Text(b"a text"),
            Event::Log { level: Some(Level::Warn), target: b"app::db", text: b"slow" },
            Event::Output { stream: Some(Stream::Stderr), text: b"a line" },
        ];
        assert_eq!(events[..4], expected);
        let own = all.iter().find(|kept| kept.id >= id::DEFINED).expect("the program's event");
        let decoded = defined.definition().values(&own.payload).expect("its values");
        assert!(decoded.map(|(_, value)| value).eq(values));
        let log = Event::Log { level: Some(Level::Error), target: b"t", text: b"last" };
        assert_eq!(events[5..], [Event::Raw(b"batch"), Event::Text(b"text \xff"), log]);
        if channel.transport() == Transport::Shared {
            assert_eq!(threads(&mount, "log")[&own_tid()].0, std::process::id());
        }
    }
}

/// Also the first one, whose place is that of a window which no append has looked up.
#[test]
fn empty_message_is_a_record() {
    let by_batch = |channel: &Channel| {
        let mut batch = channel.batch(BatchOptions::default()).expect("a batch");
        batch.push(b"").expect("room");
        assert_eq!(batch.finish().expect("the results").written, 1);
    };
    let ways: [&dyn Fn(&Channel); 2] = [&|channel| channel.write(b"").expect("room"), &by_batch];
    for transport in BOTH {
        for write in ways {
            let mount = Mount::new(&[]);
            let channel = open(&mount, transport, "subbuf-size=4096");
            (0..2).for_each(|_| write(&channel));
            channel.flush().expect("the daemon's answer");
            let all = merged(&mount, "log");
            assert_eq!(all.len(), 2, "{all:?}");
            assert!(all.iter().all(|kept| kept.id == id::RAW && kept.payload.is_empty()), "{all:?}");
        }
    }
}

#[test]
fn what_is_too_long_is_cut_or_refused_and_counted() {
    for transport in BOTH {
        let mount = Mount::new(&[]);
        let channel = open(&mount, transport, "subbuf-size=256");
        let max = 240;
        let long = "ä".repeat(1000);
        channel.text(&long).expect("a text that is cut");
        channel.log(Level::Info, "target", &long).expect("a text that is cut");
        channel.write(&vec![1; max]).expect("room");
        let refused = channel.write(&vec![1; max + 1]);
        if channel.transport() == Transport::Shared {
            assert_eq!(refused, Err(WriteError::TooBig { len: max + 1, max }));
        }
        let huge = channel.write(&vec![1; 70_000]);
        assert_eq!(huge, Err(WriteError::TooBig { len: 70_000, max }));
        let event = channel.define(definition("bytes", &[FieldType::Bytes])).expect("an id");
        let huge = event.write(&[Value::Bytes(&[1; 300])]);
        assert_eq!(huge, Err(WriteError::TooBig { len: 302, max }));
        assert_eq!(event.write(&[Value::U64(1)]), Err(WriteError::Mismatch));
        channel.flush().expect("the daemon's answer");
        let all = merged(&mount, "log");
        assert_eq!(all.len(), 3);
        assert!(all[0].text().ends_with("ä…") && all[0].payload.len() > max - 4, "{}", all[0].text());
        let Event::Log { text, .. } = Event::decode(all[1].id, &all[1].payload) else {
            panic!("{:?}", all[1])
        };
        assert!(String::from_utf8_lossy(text).ends_with("ä…"));
        assert_eq!(lost(&mount), 3);
    }
}

#[test]
fn batch_waits_for_room_and_loses_nothing() {
    for transport in BOTH {
        let mount = Mount::new(&[]);
        let channel = open(&mount, transport, "subbuf-size=256:n-subbufs=2");
        let options = BatchOptions { wait: Wait::Forever, ..BatchOptions::default() };
        let mut kept = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut batch = channel.batch(options).expect("a batch");
                for number in 0..200 {
                    batch.push_text(format!("{number:0100}").as_bytes()).expect("a reader makes room");
                }
                let counts = batch.finish().expect("the results");
                assert_eq!((counts.written, counts.dropped, counts.too_big), (200, 0, 0));
            });
            eventually("all records", || {
                kept.extend(merged(&mount, "log"));
                kept.len() == 200
            });
        });
        kept.sort_by_key(|record| record.stamp);
        assert!((0..200).map(|number| format!("{number:0100}")).eq(kept.iter().map(FoundRecord::text)));
        assert_eq!(lost(&mount), 0);
    }
}

#[test]
fn records_need_a_timed_channel() {
    let mount = Mount::new(&[]);
    for transport in BOTH {
        let channel = Channel::builder(mount.point(), "cpu").transport(transport).open().expect("a channel");
        assert!(!channel.is_timed());
        assert_eq!(channel.text("x"), Err(WriteError::OtherKind));
        assert_eq!(channel.log(Level::Info, "x", "y"), Err(WriteError::OtherKind));
        assert!(matches!(channel.define(definition("x", &[])), Err(RequestError::NotTimed)));
        let timed = open(&mount, transport, "");
        assert_eq!(timed.write_if(b"x", &mut |_, _| None).is_ok(), timed.transport() == Transport::Socket);
        let error = timed.define(definition("", &[])).expect_err("a name is needed");
        assert_eq!(error.to_string(), "the event cannot be defined: the name of the event is empty");
    }
}

#[test]
fn same_definition_has_the_same_id_in_every_program() {
    let mount = Mount::new(&[]);
    let [one, two] = BOTH.map(|transport| open(&mount, transport, ""));
    let [first, second] = ["first", "second"].map(|name| definition(name, &[FieldType::U64]));
    for (channel, definition) in
        [(&one, &first), (&two, &second), (&two, &first), (&one, &second), (&one, &first)]
    {
        channel.define(definition.clone()).expect("an id").write(&[Value::U64(1)]).expect("room");
    }
    [&one, &two].iter().for_each(|channel| channel.flush().expect("the daemon's answer"));
    let mut ids: Vec<u16> = records(&mount, "log").iter().map(|kept| kept.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [256, 256, 256, 257, 257]);
}

/// A daemon that knows nothing of its predecessor gives other ids.
#[test]
fn next_daemon_gets_the_definitions_before_any_record() {
    for transport in BOTH {
        let mut mount = Mount::new(&["--discard"]);
        let channel = open(&mount, transport, "");
        let [one, two] = ["one", "two"].map(|name| channel.define(definition(name, &[])).expect("an id"));
        [&one, &two].iter().for_each(|event| event.write(&[]).expect("room"));
        channel.flush().expect("the daemon's answer");
        let ids = |all: &[FoundRecord]| all.iter().map(|kept| kept.id).collect::<Vec<_>>();
        assert_eq!(ids(&merged(&mount, "log")), [256, 257]);
        assert!(mount.end(Signal::SIGTERM).success());
        mount.restart(&[]);
        let other = open(&mount, TransportChoice::Socket, "");
        other.define(definition("two", &[])).expect("an id");
        eventually("a record in the next daemon's channel", || two.write(&[]).is_ok());
        one.write(&[]).expect("room");
        channel.flush().expect("the daemon's answer");
        assert_eq!(ids(&merged(&mount, "log")), [256, 257]);
        assert_eq!(other.define(definition("one", &[])).expect("an id").write(&[]), Ok(()));
        other.flush().expect("the daemon's answer");
        assert_eq!(ids(&merged(&mount, "log")), [257]);
    }
}

/// Starts `test-timed-writer` on a channel.
fn writer(mount: &Mount, args: &[&str]) -> Command {
    let mut command = Command::new(program("test-timed-writer"));
    command.arg(mount.point()).arg("log").args(args);
    command
}

#[test]
fn million_records_of_threads_under_signals_and_migrations_are_complete_and_in_order() {
    const THREADS: usize = 8;
    const PROCESSES: usize = 3;
    // By the socket it takes longer.
    let count = if is_without_sequences() { 4_167 } else { 41_667 };
    let mount = Mount::new(&["--channel=log:timed:subbuf-size=1M:n-subbufs=96"]);
    let start = |_| {
        let mut command = writer(&mount, &["threads", &THREADS.to_string(), &count.to_string()]);
        Process::start(command.stdout(Stdio::piped()))
    };
    let mut processes: Vec<Process> = (0..PROCESSES).map(start).collect();
    // Texts and records of signals, by thread.
    let mut expected = BTreeMap::new();
    let mut pids = BTreeMap::new();
    for process in &mut processes {
        assert!(process.wait().success());
        for line in text(&process.stdout()).lines() {
            let numbers: Vec<u32> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
            expected.insert(numbers[0], (numbers[1], numbers[2]));
            pids.insert(numbers[0], process.pid().as_raw().unsigned_abs());
        }
    }
    assert_eq!(expected.len(), THREADS * PROCESSES);
    let mut seen: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    let mut all = merged(&mount, "log");
    if is_without_sequences() {
        // The daemon stamps what comes by the socket: what a thread sends from two CPUs has no order.
        all.sort_by_key(|record| {
            let text = text(&record.payload);
            (record.tid, text.split(' ').nth(1).and_then(|number| number.parse::<u32>().ok()))
        });
    }
    for record in all {
        let (texts, signals) = seen.entry(record.tid).or_default();
        match Event::decode(record.id, &record.payload) {
            Event::Text(text) => {
                assert_eq!(text, format!("{} {texts}", record.tid).as_bytes(), "in order");
                *texts += 1;
            }
            Event::Log { level: Some(Level::Debug), target: b"signal", text } => {
                assert_eq!(text, format!("{signals:08}").as_bytes(), "in order");
                *signals += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, expected);
    if !is_without_sequences() {
        assert_eq!(lost(&mount), 0);
        let threads = threads(&mount, "log");
        // Two threads may share a word of the table; then the later one has it.
        let known: BTreeMap<u32, u32> = threads.iter().map(|(tid, (pid, _))| (*tid, *pid)).collect();
        assert!(known.iter().all(|(tid, pid)| pids[tid] == *pid), "{known:?}, {pids:?}");
        assert!(known.len() > THREADS * PROCESSES / 2, "{known:?}");
    }
}

#[test]
fn records_of_children_have_their_threads_and_processes() {
    let mount = Mount::new(&["--channel=log:timed"]);
    stdout_of(&mut writer(&mount, &["children"]));
    let all = merged(&mount, "log");
    let names: Vec<String> =
        all.iter().map(|kept| kept.text().split(' ').next().expect("a name").to_owned()).collect();
    assert_eq!(names, ["parent", "forked", "cloned", "spawned", "parent", "executed"]);
    let threads = threads(&mount, "log");
    for kept in &all {
        // Each of these processes has one thread.
        let pid = kept.text().rsplit(' ').next().expect("a pid").parse::<u32>().expect("a number");
        assert_eq!(kept.tid, pid, "{}", kept.text());
        if !is_without_sequences() {
            assert_eq!(
                threads.get(&kept.tid).map(|(pid, _)| *pid),
                Some(pid),
                "{}: {threads:?}",
                kept.text()
            );
        }
    }
}

#[test]
fn thread_that_may_not_read_the_counter_writes_by_the_socket() {
    let mount = Mount::new(&["--channel=log:timed"]);
    stdout_of(&mut writer(&mount, &["no-counter"]));
    let mut all = merged(&mount, "log");
    all.sort_by_key(FoundRecord::text);
    assert_eq!(all.iter().map(FoundRecord::text).collect::<Vec<_>>(), ["may not read", "may read"]);
    assert_ne!(all[0].tid, all[1].tid);
    let by_socket = if is_without_sequences() { 2 } else { 1 };
    assert_eq!(total(&mount, "log", "written"), by_socket);
}

#[test]
fn lines_become_texts_without_newline_or_logs() {
    let mount = Mount::new(&["--channel=log:timed:subbuf-size=1K:n-subbufs=64"]);
    for transport in ["--transport=auto", "--transport=socket"] {
        let produce_well = |args: &[&str], input: &[u8]| {
            produce_well(&mount, &[&["-c", "log", "--flush", transport], args].concat(), input);
        };
        produce_well(&["one", "two words"], b"");
        produce_well(&["--level=warn", "--target=app", "three"], b"");
        let long = "ä".repeat(1000);
        produce_well(&[], format!("four\n\n{long}\nfive").as_bytes());
        produce_well(&["-0"], b"six\nseven\0eight");
        produce_well(&["--level=1"], b"nine \xff\n");
        let all = merged(&mount, "log");
        let texts: Vec<&[u8]> = all.iter().map(|kept| &kept.payload[..]).collect();
        let pieces = texts.iter().filter(|text| text.starts_with("ää".as_bytes()));
        let whole = pieces.map(|piece| str::from_utf8(piece).expect("whole characters")).collect::<String>();
        assert_eq!(whole, long);
        let log = b"\x02\x03app\x05\0three";
        let rest: Vec<&[u8]> = texts.into_iter().filter(|text| !text.starts_with("ää".as_bytes())).collect();
        let expected: [&[u8]; 8] =
            [b"one", b"two words", log, b"four", b"", b"five", b"six\nseven", b"eight"];
        assert_eq!(rest[..8], expected);
        assert_eq!(rest[8..], [b"\x01\0\x06\0nine \xff"]);
    }
}

#[test]
fn timed_channel_is_created_and_level_needs_one() {
    let mount = Mount::new(&[]);
    produce_well(&mount, &["-c", "new", "--create=n-subbufs=2", "--timed", "x"], b"");
    let (code, said) = produce(&mount, &["-c", "new", "-v", "y"], b"");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("existing channel new: subbuf-size=256K:n-subbufs=2:timed"), "{said}");
    let line = one_line(produce(&mount, &["--level=info", "x"], b""), 1);
    assert!(line.contains("the channel is raw"), "{line}");
    // A channel stays what it is. The command says so, and writes.
    let (code, said) = produce(&mount, &["--create", "--timed", "raw"], b"");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("channel cpu exists, and is raw: --create does not change it"), "{said}");
    assert_eq!([mount.read("cpu0"), mount.read("cpu1")].concat(), b"raw\n");
    for contradiction in [&["--create=raw", "--timed", "x"][..], &["--create=raw:timed", "x"]] {
        let line = one_line(produce(&mount, contradiction, b""), 2);
        assert!(line.contains("'raw'") && line.contains("exclude each other"), "{line}");
    }
    let line = one_line(produce(&mount, &["--create=timed:header=4", "x"], b""), 2);
    assert!(line.contains("header"), "{line}");
}
