//! Headers come back as they were written, and no header of a stranger makes the reader panic.

use proptest::prelude::*;
use relay::clock::Clock;

use super::*;

const CPU: Kind = Kind::Cpu(3);
const NAMES: [&str; 12] = [
    FORMAT_NAME,
    INSTANCE,
    PART,
    GEOMETRY,
    NUMBER,
    POSITION,
    LOST,
    TOO_BIG,
    CLOCK,
    ANCHOR,
    DICTIONARY,
    PROCESSES,
];

fn geometry(text: &str) -> Geometry {
    text.parse::<GeometrySpec>().unwrap().build().unwrap()
}

fn anchor(ticks: u64) -> Anchor {
    Anchor { ticks, monotonic: ticks, realtime: 7 + ticks, boottime: ticks, epoch: 0 }
}

fn timed(anchors: &[Anchor]) -> Headers {
    let timeline = Timeline::new(Clock::Tsc, 2_994_373_000, anchors);
    let meaning = Some(Meaning { timeline, dictionary: 5523, processes: Some(5530) });
    let geometry = geometry("subbuf-size=64K:n-subbufs=8:overwrite:timed");
    let sub_buffer = SubBuffer { geometry, position: 1 << 20, lost: 7, too_big: 2, meaning };
    Headers { instance: 0x1234, number: 12, part: Part::WHOLE, sub_buffer: Some(sub_buffer) }
}

fn shown(headers: &Headers) -> String {
    format!("{headers:?}")
}

#[test]
fn headers_are_as_the_document_says() {
    let map = timed(&[anchor(10)]).encode();
    let value = |name: &str| map.get(name).map(|value| value.as_str().to_owned());
    for (name, expected) in [
        ("Relay-Format", Some("1")),
        ("Relay-Instance", Some("0000000000001234")),
        ("Relay-Part", None),
        ("Relay-Geometry", Some("subbuf-size=64K:n-subbufs=8:overwrite:timed")),
        ("Relay-Number", Some("12")),
        ("Relay-Position", Some("1048576")),
        ("Relay-Lost", Some("7")),
        ("Relay-Lost-Too-Big", Some("2")),
        ("Relay-Clock", Some("tsc 2994373000")),
        ("Relay-Anchor", Some("0 10 10 17 10")),
        ("Relay-Dictionary", Some("5523")),
        ("Relay-Processes", Some("5530")),
    ] {
        assert_eq!(value(name).as_deref(), expected, "{name}");
    }
}

/// Where a client keeps one header of a name, it still has all anchors.
#[test]
fn anchors_are_in_one_header() {
    let map = timed(&[1, 2, 3].map(|n| anchor(n * 1_000_000_000))).encode();
    let values: Vec<&str> = map.get_all(ANCHOR).map(|value| value.as_str()).collect();
    assert_eq!(values.len(), 1);
    assert_eq!(values[0].split(',').nth(1), Some("0 2000000000 2000000000 2000000007 2000000000"));
}

#[test]
fn headers_come_back() {
    let mut all = vec![timed(&[anchor(10)]), timed(&[1, 2, 3, 4].map(|n| anchor(n * 1_000_000_000)))];
    let mut raw = timed(&[]);
    if let Some(sub_buffer) = &mut raw.sub_buffer {
        (sub_buffer.geometry, sub_buffer.meaning) = (geometry("subbuf-size=100:n-subbufs=3:header=4"), None);
    }
    raw.part = Part::new(2, 3).unwrap();
    all.push(raw.clone());
    for headers in all {
        assert_eq!(shown(&Headers::decode(CPU, &headers.encode()).unwrap()), shown(&headers));
    }
    let text = Headers { sub_buffer: None, ..raw };
    for kind in [Kind::Metadata, Kind::Processes] {
        assert_eq!(shown(&Headers::decode(kind, &text.encode()).unwrap()), shown(&text));
    }
    assert_eq!(Headers::decode(CPU, &text.encode()).unwrap_err(), WrongHeader::Missing(GEOMETRY));
}

#[test]
fn what_no_forwarder_writes_is_refused() {
    let with = |name: &'static str, value: &str| {
        let mut map = timed(&[anchor(10)]).encode();
        map.insert(name, value);
        Headers::decode(CPU, &map).unwrap_err().to_string()
    };
    assert_eq!(
        with(FORMAT_NAME, "2"),
        "its format is 2, this release reads 1: install the release that wrote it"
    );
    for (name, value) in [
        (FORMAT_NAME, "one"),
        (INSTANCE, "1234"),
        (INSTANCE, "+000000000001234"),
        (PART, "0/1"),
        (PART, "2/1"),
        (PART, "+1/1"),
        (PART, "1"),
        (PART, "1/4294967296"),
        (GEOMETRY, "subbuf-size=0"),
        (GEOMETRY, "box"),
        (NUMBER, ""),
        (NUMBER, "+1"),
        (NUMBER, "-1"),
        (POSITION, "18446744073709551616"),
        (LOST, "x"),
        (TOO_BIG, "x"),
        (CLOCK, "sundial 1"),
        (ANCHOR, "1 2 3"),
        (DICTIONARY, "x"),
        (PROCESSES, "x"),
    ] {
        assert_eq!(with(name, value), format!("the header {name} is '{value}'"));
    }
    assert_eq!(
        with(NUMBER, &"\u{e4}".repeat(100)),
        format!("the header {NUMBER} is '{}...'", "\u{e4}".repeat(30))
    );
    for name in [FORMAT_NAME, INSTANCE, GEOMETRY, NUMBER, POSITION, LOST, TOO_BIG, CLOCK, DICTIONARY] {
        let map = timed(&[anchor(10)]).encode();
        let kept = map.iter().filter(|(other, _)| AsRef::<str>::as_ref(*other) != name);
        let map: HeaderMap = kept.map(|(name, values)| (name.clone(), values[0].clone())).collect();
        assert_eq!(Headers::decode(CPU, &map).unwrap_err(), WrongHeader::Missing(name));
    }
}

#[test]
fn more_were_too_big_than_were_lost_is_not_believed() {
    let mut map = timed(&[]).encode();
    map.insert(TOO_BIG, "9");
    assert_eq!(Headers::decode(CPU, &map).unwrap().sub_buffer.unwrap().too_big, 7);
}

proptest! {
    #[test]
    fn any_headers_are_read_or_refused(values in proptest::collection::vec((0..NAMES.len(), prop_oneof![
        any::<u64>().prop_map(|number| number.to_string()), "[0-9/ :+=a-z-]{0,40}", "[^\r\n]{0,100}",
    ]), 0..8)) {
        let mut map = timed(&[anchor(10)]).encode();
        for (name, value) in &values {
            map.append(NAMES[*name], value.as_str());
        }
        for kind in [CPU, Kind::Metadata] {
            if let Ok(headers) = Headers::decode(kind, &map) {
                let again = Headers::decode(kind, &headers.encode()).unwrap();
                prop_assert_eq!(shown(&again), shown(&headers));
            }
        }
    }
}
