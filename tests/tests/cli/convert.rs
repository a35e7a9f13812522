//! `audience convert`: what Perfetto's own definitions find in its result, and the other forms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;
use relay::trace::event::{Event, What};
use relay::trace::packet::HEADER_LEN;
use relay::trace::record::{RECORD_OVERHEAD, Record};
use relay_producer::{BatchOptions, Definition, Field, FieldType, Level, Value};
use relayfs_tests::audience::{Recorder, names};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::perfetto::{BOOTTIME, REALTIME, Written, decode};
use relayfs_tests::{Mount, Process, ctf, eventually, exit_code, program, run, text, tool};

/// Runs `audience convert FORM -o FILE DIR`.
fn convert(form: &str, file: &Path, dir: &Path) -> Output {
    let mut command = tool("env", "coreutils");
    run(command.arg(program("audience")).args(["convert", form, "-o"]).arg(file).arg(dir))
}

/// Converts a recording that is not damaged, and returns the file.
#[track_caller]
fn converted(form: &str, dir: &Path) -> PathBuf {
    let file = dir.with_file_name(format!("converted{form}"));
    let output = convert(form, &file, dir);
    assert_eq!(
        (exit_code(output.status), text(&output.stdout), text(&output.stderr)),
        (0, String::new(), String::new())
    );
    file
}

/// The payload of an event.
fn payload(event: &Event<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    event.encode_into(&mut payload).expect("a short payload");
    payload
}

/// Writes a packet of these events: stamp, thread, event.
fn packet(piece: &Written<'_>, cpu: u32, number: u64, discarded: u64, events: &[(u64, u32, Event<'_>)]) {
    let payloads: Vec<Vec<u8>> = events.iter().map(|(_, _, event)| payload(event)).collect();
    let mut records = Vec::new();
    for ((stamp, tid, event), payload) in events.iter().zip(&payloads) {
        // The only event of a program here.
        records.push(Record { stamp: *stamp, id: event.id().unwrap_or(256), tid: *tid, payload });
    }
    piece.packet(cpu, number, discarded, &records);
}

const fn begin(span: u64, parent: u64, name: &'static str) -> Event<'static> {
    Event::SpanBegin { span, parent, name: name.as_bytes(), fields: b"" }
}

/// The length of a packet with one text.
fn packet_len(text: &str) -> usize {
    HEADER_LEN + RECORD_OVERHEAD + text.len()
}

/// The lines of a decoded trace that begin with one of these words.
fn of(decoded: &[String], words: &[&str]) -> Vec<String> {
    let begins = |line: &&String| words.iter().any(|word| line.split(' ').next() == Some(word));
    decoded.iter().filter(begins).cloned().collect()
}

#[test]
fn recording_is_what_perfettos_definitions_find() {
    let mount = Mount::new(&["--channel=app/log:timed:subbuf-size=4K:n-subbufs=4"]);
    let channel = mount.direct_channel("app/log");
    let fields = vec![Field { name: "rows".to_owned(), kind: FieldType::U64 }];
    let target = "app::db".to_owned();
    let definition = Definition { name: "done".to_owned(), target, fields, ..Definition::default() };
    let event = channel.define(definition).unwrap();
    // As a front end defines it: the message is a field.
    let fields = [("message", FieldType::Str), ("host", FieldType::Str)];
    let fields = fields.map(|(name, kind)| Field { name: name.to_owned(), kind }).to_vec();
    let place = Definition { name: "src/db.rs:42".to_owned(), fields, ..Definition::default() };
    let place = channel.define(place).unwrap();
    on_cpu(0, || {
        channel.log(Level::Warn, "app", "slow").unwrap();
        event.write(&[Value::U64(3)]).unwrap();
        place.write(&[Value::from("connected to it"), Value::from("a")]).unwrap();
    });
    let many = mount.channel("app/log");
    let mut batch = many.batch(BatchOptions { cpu: Some(1), ..BatchOptions::default() }).unwrap();
    (0..1000).for_each(|n| batch.push_text(format!("text {n}").as_bytes()).unwrap());
    let counts = batch.finish().unwrap();
    assert!(counts.dropped > 0);
    let mut recorder = Recorder::start(mount.point(), &["-c", "app/log", "--duration", "1ms"]);
    assert_eq!(exit_code(recorder.process.wait()), 0, "{}", recorder.said());

    let decoded = decode(&converted("--perfetto", &recorder.dir));
    let instants = of(&decoded, &["instant"]);
    let us = std::process::id();
    let is_ours = |line: &&String| line.contains(&format!("[{us}]/"));
    assert_eq!(instants.iter().filter(is_ours).count() as u64, counts.written + 3, "{decoded:?}");
    let ends = |end: &str| decoded.iter().any(|line| line.ends_with(end));
    assert!(ends(" slow level=WARN target=app cpu=0 #app"), "{instants:?}");
    assert!(ends(" done target=app::db rows=3 cpu=0 #app::db"), "{instants:?}");
    assert!(ends(" connected to it event=src/db.rs:42 host=a cpu=0"), "{instants:?}");
    assert!(ends(&format!(" cpu1 messages lost {}", counts.dropped)), "{decoded:?}");
    // Each sub-buffer of CPU 1 is nearly full; the last one may be.
    let fills =
        decoded.iter().filter_map(|line| line.split(" cpu1 sub-buffer fill ").nth(1)?.parse::<u64>().ok());
    assert!(fills.max().is_some_and(|fill| (4000..=4096).contains(&fill)), "{decoded:?}");

    // Names, order and times are those of the other forms, and of babeltrace2.
    let json = fs::read_to_string(converted("--json", &recorder.dir)).unwrap();
    let texts = fs::read_to_string(converted("--text", &recorder.dir)).unwrap();
    let is_record = |line: &&str| !line.starts_with("-- ") && !line.contains("\"notice\"");
    assert_eq!(json.lines().filter(is_record).count(), instants.len());
    assert_eq!(texts.lines().filter(is_record).count(), instants.len());
    assert_eq!(
        ctf::read(&recorder.dir).events.iter().filter(|event| event.name != "lost").count(),
        instants.len()
    );
    let numbered = |line: &str| line.split("text ").nth(1)?.split([' ', '"']).next()?.parse::<u64>().ok();
    let of_json: Vec<(u64, u64)> = json
        .lines()
        .filter_map(|line| {
            Some((line.strip_prefix("{\"time\":\"")?.split('"').next()?.parse().ok()?, numbered(line)?))
        })
        .collect();
    let clocks: Vec<u64> =
        of(&decoded, &["clocks"])[0].split(' ').skip(1).map(|time| time.parse().unwrap()).collect();
    let of_perfetto: Vec<(u64, u64)> = instants
        .iter()
        .filter_map(|line| {
            Some((line.split(' ').nth(1)?.parse::<u64>().ok()? - clocks[0] + clocks[2], numbered(line)?))
        })
        .collect();
    assert_eq!(of_json.len() as u64, counts.written);
    assert_eq!(of_perfetto.len(), of_json.len());
    for (ours, json) in of_perfetto.iter().zip(&of_json) {
        // Both are converted from the stamp; their clocks run apart by less.
        assert!(ours.1 == json.1 && ours.0.abs_diff(json.0) < 1_000_000, "{ours:?} {json:?}");
    }
    assert!(texts.lines().any(|line| line.contains(" WARN app: slow")), "{texts}");
}

#[test]
fn spans_are_nested_slices_of_their_threads() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("recorded");
    let kinds = FieldType::ALL.into_iter().enumerate();
    let fields: Vec<Field> = kinds.map(|(n, kind)| Field { name: format!("f.{n}"), kind }).collect();
    let definition =
        Definition { name: "all".to_owned(), level: Some(Level::Error), fields, ..Definition::default() };
    let values = [
        Value::U64(u64::MAX),
        Value::I64(-2),
        Value::F64(0.5),
        Value::Bool(true),
        Value::Str(b"a\xff"),
        Value::Bytes(b"\0\xff"),
    ];
    let mut all = Vec::new();
    definition.encode(&values, &mut all).unwrap();
    let processes =
        "1 100 0 0 app\t/usr/bin/app\n2 200 0 0 other\t/o\nthread 100 1\nthread 101 1\nthread 200 2\n";
    // Two pieces, as after a rotation: CPU 1's first piece is younger than CPU 0's second.
    let (first, second) = (dir.join("000000"), dir.join("000001"));
    let (first, second) = (Written(&first), Written(&second));
    first.texts(&[], "1 100 0 0 app\t/usr/bin/app\nthread 100 1\n");
    second.texts(&[(256, definition)], processes);
    let end = |span| Event::SpanEnd { span };
    packet(&first, 0, 0, 0, &[(10, 100, begin(1, 0, "outer")), (20, 100, begin(2, 1, "inner"))]);
    packet(
        &first,
        1,
        0,
        0,
        &[(15, 200, begin(1, 0, "same id")), (25, 200, end(9)), (60, 300, Event::Text(b"whose?"))],
    );
    packet(
        &second,
        0,
        1,
        0,
        &[
            (30, 100, end(2)),
            (35, 100, begin(3, 1, "lost end")),
            (40, 100, begin(4, 0, "overlaps")),
            (50, 100, end(1)),
        ],
    );
    packet(
        &second,
        0,
        4,
        5,
        &[
            (70, 101, end(4)),
            (80, 101, begin(5, 0, "unfinished")),
            (90, 101, Event::Log { level: Some(Level::Info), target: b"app::db", text: b"row" }),
            (95, 100, Event::Process { pid: 100, what: Some(What::Signal), status: 11, command: b"app" }),
            (99, 200, Event::Other(&all)),
        ],
    );
    let decoded = decode(&converted("--perfetto", &dir));
    let at = |time: u64| BOOTTIME + time;
    let slices = of(&decoded, &["begin", "end", "instant"]);
    let (app, other) = ("app[100]/100", "other[200]/200");
    let expected = [
        format!("begin {} {app} outer span=1", at(10)),
        format!("begin {} {other} same id span=1", at(15)),
        format!("begin {} {app} inner span=2 parent=1", at(20)),
        format!("instant {} {other} span end span=9", at(25)),
        format!("end {} {app}", at(30)),
        format!("begin {} {app} lost end span=3 parent=1", at(35)),
        format!("begin {} {app} overlaps span=4", at(40)),
        format!("end {} {app}", at(50)),
        format!("end {} {app} unfinished=True", at(50)),
        format!("end {} {app}", at(50)),
        format!("begin {} {app} overlaps span=4 continued=True", at(50)),
        format!("instant {} ?/300 whose? cpu=1", at(60)),
        // Another thread of the process ended it.
        format!("end {} {app}", at(70)),
        format!("begin {} app[100]/101 unfinished span=5", at(80)),
        format!("instant {} app[100]/101 row level=INFO target=app::db cpu=0 #app::db", at(90)),
        format!("end {} app[100]/101 unfinished=True", at(95)),
        format!("instant {} app[100] killed by signal pid=100 status=11 command=app", at(95)),
        format!(
            "instant {} {other} all level=ERROR f.0={} f.1=-2 f.2=0.5 f.3=True f.4=a\u{fffd} f.5=00ff cpu=0",
            at(99),
            u64::MAX
        ),
        format!("end {} {other} unfinished=True", at(99)),
    ];
    assert_eq!(slices, expected, "{}", slices.join("\n"));
    assert_eq!(of(&decoded, &["log"]), [format!("log {} 100 101 4 app::db row", REALTIME + 90)]);
    let mut counters = of(&decoded, &["counter"]);
    counters.retain(|line| !line.contains("fill"));
    let lost = [
        format!("counter {} cpu0 sub-buffers overwritten 2", at(50)),
        format!("counter {} cpu0 messages lost 5", at(70)),
    ];
    assert_eq!(counters, lost);
    let mut tracks = of(&decoded, &["track"]);
    tracks.sort_unstable();
    let known = ["?/300", "app[100]", "app[100]/100", "app[100]/101", "other[200]", "other[200]/200"];
    for track in known {
        assert!(tracks.contains(&format!("track {track}")), "{track}: {tracks:?}");
    }
    let clocks = of(&decoded, &["clocks"]);
    assert_eq!(clocks[0], format!("clocks {BOOTTIME} 0 {REALTIME}"));
}

#[test]
fn damaged_recording_is_converted_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (recorded, file) = (dir.path().join("recorded"), dir.path().join("out"));
    let pieces: Vec<PathBuf> = (0..3).map(|n| recorded.join(format!("00000{n}"))).collect();
    for (n, piece) in (0..).zip(&pieces) {
        let piece = Written(piece);
        piece.texts(&[], "");
        for cpu in 0..2 {
            packet(&piece, cpu, n, 0, &[(10 * n + u64::from(cpu), 7, Event::Text(b"whole"))]);
            packet(&piece, cpu, n, 0, &[(10 * n + u64::from(cpu) + 2, 7, Event::Text(b"next"))]);
        }
    }
    // The metadata is cut, the end of a packet is, and other bytes lie in a file. The rest counts.
    fs::write(pieces[0].join("metadata"), "/* CTF 1.8 */\n").unwrap();
    let torn = fs::read(pieces[1].join("cpu0")).unwrap();
    fs::write(pieces[1].join("cpu0"), &torn[..torn.len() - 1]).unwrap();
    let mut strange = fs::read(pieces[2].join("cpu1")).unwrap();
    strange[packet_len("whole")..].fill(b'x');
    fs::write(pieces[2].join("cpu1"), strange).unwrap();
    for form in ["--perfetto", "--json", "--text"] {
        let output = convert(form, &file, &recorded);
        let said = text(&output.stderr);
        assert_eq!((exit_code(output.status), text(&output.stdout)), (1, String::new()), "{said}");
        for what in [
            "000000/metadata: ",
            "000001/cpu0: ",
            "000002/cpu1: ",
            "is damaged, see above; the rest was converted",
        ] {
            assert!(said.contains(what), "{what}: {said}");
        }
        assert_eq!(said.lines().count(), 4, "{said}");
        let found =
            if form == "--perfetto" { decode(&file).join("\n") } else { fs::read_to_string(&file).unwrap() };
        assert_eq!((found.matches("whole").count(), found.matches("next").count()), (6, 4), "{found}");
    }
    // No metadata at all.
    pieces.iter().for_each(|piece| fs::remove_file(piece.join("metadata")).unwrap());
    fs::remove_file(&file).unwrap();
    let output = convert("--json", &file, &recorded);
    assert_eq!(exit_code(output.status), 1);
    assert!(text(&output.stderr).contains("metadata"), "{output:?}");
    assert_eq!(names(dir.path()), ["recorded"]);
}

#[test]
fn result_has_its_name_only_when_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (recorded, file) = (dir.path().join("recorded"), dir.path().join("out"));
    let piece = Written(&recorded);
    piece.texts(&[], "");
    packet(&piece, 0, 0, 0, &[(1, 7, Event::Text(b"one"))]);
    fs::write(&file, "old").unwrap();
    let output = convert("--text", Path::new("-"), &recorded);
    assert_eq!(text(&output.stdout), "2026-11-22T18:00:00.000000Z cpu0 tid 7: one\n", "{output:?}");
    let output = convert("--text", Path::new("/dev/full"), &recorded);
    assert_eq!(exit_code(output.status), 1);
    assert!(text(&output.stderr).contains("cannot write /dev/full: "), "{output:?}");
    // A stream that gives nothing: the conversion waits, and a signal ends it.
    let stuck = recorded.join("cpu1");
    stdout(tool("mkfifo", "coreutils").arg(&stuck));
    let mut command = tool("env", "coreutils");
    command.arg(program("audience")).args(["convert", "--text", "-o"]).arg(&file).arg(&recorded);
    let mut process = Process::start(command.stdin(Stdio::null()));
    eventually("a hidden file", || names(dir.path()).iter().any(|name| name.starts_with(".out.")));
    process.signal(Signal::SIGTERM);
    assert_eq!(exit_code(process.wait()), 128 + Signal::SIGTERM as i32);
    assert_eq!((fs::read_to_string(&file).unwrap(), names(dir.path()).len()), ("old".to_owned(), 2));
    fs::remove_file(&stuck).unwrap();
    let output = convert("--text", &file, &recorded);
    assert!(output.status.success() && fs::read_to_string(&file).unwrap().ends_with("one\n"), "{output:?}");
}

#[track_caller]
fn stdout(command: &mut std::process::Command) {
    relayfs_tests::stdout_of(command);
}

#[test]
fn what_is_no_recording_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (args, status) in [
        (&["--json", "-o", "/dev/null", "."][..], 1),
        (&["--json", "-o", "/dev/null", "none"], 1),
        (&["--json", "--text", "-o", "/dev/null", "."], 2),
        (&["-o", "/dev/null", "."], 2),
        (&["--json", "."], 2),
        (&["--json", "-o", "/dev/null"], 2),
    ] {
        let mut command = tool("env", "coreutils");
        let output = run(command.arg(program("audience")).arg("convert").args(args).current_dir(dir.path()));
        assert_eq!(exit_code(output.status), status, "{args:?}: {output:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{output:?}");
    }
}
