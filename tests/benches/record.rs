//! What one record of a timed channel costs a producer: beside a bare message, and beside an event of LTTng-UST.

use std::process::ExitCode;

use relay_producer::{Channel, Definition, Field, FieldType, Level, Transport, Value};
use relayfs_tests::Mount;
use relayfs_tests::lttng::{Lttng, NOT_INSTALLED};
use relayfs_tests::measure::{MESSAGE_LEN, Measurement, WRITER_CPU, alternately, head, nanos, row, title};

/// Records that are written in one go.
const COUNT: usize = 10_000_000;
/// Events that LTTng-UST is asked for at once.
const EVENTS: usize = 1_000_000;
const GEOMETRY: &str = "subbuf-size=1M:n-subbufs=4:overwrite";
/// Target of the measured `log` records.
const TARGET: &str = "app::db";

fn main() -> ExitCode {
    head("one record of a timed channel");
    let mount = Mount::new(&[]);
    let raw = create(&mount, "raw", false);
    let timed = create(&mount, "timed", true);
    let field = |name: &str, kind| Field { name: name.into(), kind };
    let event = timed.define(Definition {
        name: "query".into(),
        level: Some(Level::Info),
        target: TARGET.into(),
        file: file!().into(),
        line: line!(),
        fields: vec![
            field("rows", FieldType::U64),
            field("nanoseconds", FieldType::U64),
            field("statement", FieldType::Str),
        ],
    });
    let event = event.expect("defining an event");
    let lttng = Lttng::overwriting();
    let message = "m".repeat(MESSAGE_LEN);
    let message = std::hint::black_box(message.as_str());
    title(&format!("one thread, 4 x 1 MiB overwritten, {MESSAGE_LEN} B of text"), "ns");
    let mut names =
        vec!["bare message", "text", "log, with level and target", "event of two numbers and a text"];
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| written(|_| raw.write(message.as_bytes()).expect("room"))),
        Box::new(|| written(|_| timed.text(message).expect("room"))),
        Box::new(|| written(|_| timed.log(Level::Info, TARGET, message).expect("room"))),
        Box::new(|| {
            written(|bytes| {
                let statement = Value::Str(&message.as_bytes()[16..]);
                event.write(&[Value::U64(bytes.len() as u64), Value::U64(2), statement]).expect("room");
            })
        }),
    ];
    if let Some(lttng) = &lttng {
        names.push("event of LTTng-UST");
        measurements.push(Box::new(|| lttng.emit(MESSAGE_LEN, EVENTS).nanos));
    }
    let all = alternately(&mut measurements);
    for (name, values) in names.into_iter().zip(&all) {
        let (bare, text) = (values.over(&all[0]), values.over(&all[1]));
        row(name, format_args!("{values:<30}{bare:<28} of a bare message   {text} of a text"));
    }
    if lttng.is_none() {
        row("event of LTTng-UST", NOT_INSTALLED);
    }
    ExitCode::SUCCESS
}

fn written(call: impl FnMut(&[u8])) -> f64 {
    nanos(WRITER_CPU, COUNT, MESSAGE_LEN, call)
}

fn create(mount: &Mount, name: &str, timed: bool) -> Channel {
    let builder = Channel::builder(mount.point(), name).create(true).timed(timed);
    let channel = builder.geometry(GEOMETRY.parse().expect("a geometry")).open().expect("creating a channel");
    assert_eq!(channel.transport(), Transport::Shared, "{:?}", channel.why_socket());
    channel
}
