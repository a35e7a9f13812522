//! The CTF text that belongs to packets.

use std::fmt::Write;

use crate::clock::{Clock, Timeline};
use crate::layout::geometry::{Geometry, GeometrySpec};
use crate::trace::definition::{self, ParsedEvents};
use crate::trace::quoted::{quote, unquote};

/// The first line. Readers of CTF refuse text without it.
const FIRST_LINE: &str = "/* CTF 1.8 */\n";
/// Version of the text, in `env`. Another version has other text outside of names, numbers and definitions.
const FORMAT: u32 = 1;
/// Types, and the trace.
const TYPES: &str = include_str!("metadata/types.ctf");
/// The stream and the built-in events.
const STREAM: &str = include_str!("metadata/stream.ctf");
/// Nanoseconds of a second.
const NANOS: i128 = 1_000_000_000;

/// What `metadata` says, apart from the events of programs.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// Name of the machine.
    pub hostname: String,
    /// Name of the channel.
    pub channel: String,
    /// The channel's geometry.
    pub geometry: Geometry,
    /// Release of the program that writes.
    pub release: String,
    /// What the stamps mean.
    pub timeline: Timeline,
}

/// Why a text is no metadata of relayfs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The text is no CTF 1.8.
    #[error("the first line is not /* CTF 1.8 */")]
    NotCtf,
    /// The text has no value of this name that could be right.
    #[error("{what} is missing, or not as relayfs writes it; read the trace with babeltrace2")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
    /// Something else, or another release, wrote the text.
    #[error("line {line} is not as relayfs writes it; read the trace with babeltrace2")]
    Foreign {
        /// Number of the line, from 1 on.
        line: usize,
    },
    /// The text ends too early.
    #[error("the text ends at line {line}, within what relayfs writes first")]
    Cut {
        /// Number of the last line.
        line: usize,
    },
}

impl Metadata {
    /// Returns the CTF text, with the text of `ID.events` at its end.
    pub fn write(&self, events: &str) -> String {
        let mut text = self.head();
        text.push_str(events);
        text
    }

    /// Reads a text that [`Metadata::write`] wrote, and the events in it.
    pub fn parse(text: &str) -> Result<(Metadata, ParsedEvents), MetadataError> {
        if !text.starts_with(FIRST_LINE) {
            return Err(MetadataError::NotCtf);
        }
        let metadata = collect(text)?;
        let head = metadata.head();
        let Some(events) = text.strip_prefix(&head[..]) else { return Err(first_difference(text, &head)) };
        Ok((metadata, definition::parse(events)))
    }

    /// The text up to the events of programs.
    fn head(&self) -> String {
        let Metadata { hostname, channel, release, timeline, .. } = self;
        let mut text = format!("{FIRST_LINE}{TYPES}\nenv {{\n");
        let geometry = self.geometry.to_string();
        let (major, minor) = numbers(release);
        let named =
            [("hostname", hostname), ("channel", channel), ("geometry", &geometry), ("release", release)];
        for (key, name) in named {
            text.push_str(&format!("\t{key} = "));
            quote(name, &mut text);
            text.push_str(";\n");
        }
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\ttracer_name = \"relayfs\";\n\ttracer_major = {major};\n\ttracer_minor = {minor};\n"
        );
        let _ = writeln!(text, "\trelay_format = {FORMAT};\n}};\n");
        write_clock(timeline, &mut text);
        text.push_str(STREAM);
        text
    }
}

/// The first two numbers of a release.
fn numbers(release: &str) -> (u32, u32) {
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn write_clock(timeline: &Timeline, text: &mut String) {
    let clock = timeline.clock().name();
    let (frequency, offset_s, offset) = ctf_clock(timeline);
    let description = match timeline.clock() {
        Clock::Monotonic => "CLOCK_MONOTONIC",
        Clock::Tsc => "time stamp counter of the processor",
    };
    let _ = writeln!(text, "/* relay clock {clock} {} */", timeline.ticks_per_second());
    for anchor in timeline.anchors() {
        let _ = writeln!(text, "/* relay anchor {anchor} */");
    }
    let _ = write!(
        text,
        "clock {{\n\tname = \"{clock}\";\n\tdescription = \"{description}\";\n\tfreq = {frequency};\n\t\
         offset_s = {offset_s};\n\toffset = {offset};\n\tabsolute = true;\n}};\n\n\
         typealias integer {{ size = 64; align = 8; signed = false; map = clock.{clock}.value; }} := ts64;\n"
    );
}

/// Frequency, and CLOCK_REALTIME at tick 0 as seconds and ticks. CTF has one rate, so the last epoch decides.
fn ctf_clock(timeline: &Timeline) -> (u64, i128, i128) {
    let last = timeline.anchors().next_back().copied().unwrap_or_default();
    let first = timeline.anchors().find(|anchor| anchor.epoch == last.epoch).copied().unwrap_or(last);
    let nominal = u128::from(timeline.ticks_per_second());
    let (ticks, nanos) = (last.ticks - first.ticks, last.monotonic.saturating_sub(first.monotonic));
    let measured = (u128::from(ticks) * NANOS as u128 + u128::from(nanos) / 2).checked_div(u128::from(nanos));
    // What is far off is no rate of this clock: two anchors within an instant, or damage.
    let measured = measured.filter(|rate| (nominal / 4..=nominal * 4).contains(rate));
    let frequency = match timeline.clock() {
        Clock::Monotonic => nominal,
        Clock::Tsc => measured.unwrap_or(nominal),
    } as i128;
    let start = i128::from(last.realtime) - i128::from(last.ticks) * NANOS / frequency;
    (frequency as u64, start.div_euclid(NANOS), start.rem_euclid(NANOS) * frequency / NANOS)
}

/// The metadata that the lines of a text say, right or wrong. What else is wrong is found out by comparison.
fn collect(text: &str) -> Result<Metadata, MetadataError> {
    let lines = || text.lines().take_while(|line| *line != "stream {");
    let after = |key: &'static str, end: &'static str| {
        lines().filter_map(move |line| line.strip_prefix(key)?.strip_suffix(end))
    };
    let missing = |what| MetadataError::Missing { what };
    let named = |key, what| after(key, ";").find_map(|mut name| unquote(&mut name)).ok_or(missing(what));
    let geometry = named("\tgeometry = ", "geometry")?;
    let geometry = geometry.parse::<GeometrySpec>().and_then(GeometrySpec::build);
    let mut clock = String::new();
    for (key, word) in [("/* relay clock ", "clock"), ("/* relay anchor ", "anchor")] {
        for words in after(key, " */") {
            let _ = writeln!(clock, "{word} {words}");
        }
    }
    Ok(Metadata {
        hostname: named("\thostname = ", "hostname")?,
        channel: named("\tchannel = ", "channel")?,
        geometry: geometry.map_err(|_| missing("geometry"))?,
        release: named("\trelease = ", "release")?,
        timeline: clock.parse().map_err(|_| missing("clock"))?,
    })
}

fn first_difference(text: &str, head: &str) -> MetadataError {
    let same = text.lines().zip(head.lines()).take_while(|(line, right)| line == right).count();
    let n_lines = text.lines().count();
    let is_cut = same == n_lines || (same + 1 == n_lines && !text.ends_with('\n'));
    if is_cut { MetadataError::Cut { line: n_lines } } else { MetadataError::Foreign { line: same + 1 } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Anchor;
    use crate::trace::definition::{Definition, Field, FieldType};

    const FREQUENCY: u64 = 3_000_000_000;

    fn anchor(seconds: u64, realtime: u64, epoch: u64) -> Anchor {
        let monotonic = seconds * 1_000_000_000;
        Anchor { ticks: seconds * FREQUENCY, monotonic, realtime, boottime: monotonic, epoch }
    }

    fn metadata(clock: Clock, anchors: &[Anchor]) -> Metadata {
        Metadata {
            hostname: "host".to_owned(),
            channel: "app/log*/\n\"".to_owned(),
            geometry: "subbuf-size=64K:overwrite:timed".parse::<GeometrySpec>().unwrap().build().unwrap(),
            release: "0.1.0".to_owned(),
            timeline: Timeline::new(clock, FREQUENCY, anchors),
        }
    }

    fn events() -> String {
        let fields = vec![Field { name: "rows".to_owned(), kind: FieldType::U64 }];
        Definition { name: "connected".to_owned(), fields, ..Definition::default() }.block(256)
    }

    #[test]
    fn a_text_is_read_as_it_was_written() {
        let anchors =
            [anchor(1, 5_000_000_000, 0), anchor(2, 6_000_000_000, 0), anchor(3, 99_000_000_000, 1)];
        for clock in [Clock::Tsc, Clock::Monotonic] {
            let written = metadata(clock, &anchors).write(&events());
            let (read, events) = Metadata::parse(&written).unwrap();
            assert_eq!((read.hostname.as_str(), read.channel.as_str()), ("host", "app/log*/\n\""));
            assert_eq!(read.geometry, metadata(clock, &anchors).geometry);
            assert!(read.timeline.anchors().eq(&anchors));
            assert_eq!(events.definitions.get(256).unwrap().name, "connected");
            assert!(events.refused.is_empty());
        }
    }

    #[test]
    fn the_clock_says_what_the_anchors_say() {
        // The clock is 100 ppm faster than first measured.
        let fast = |seconds: u64| FREQUENCY * seconds + FREQUENCY * seconds / 10_000;
        let at = |seconds: u64| Anchor {
            ticks: fast(seconds),
            ..anchor(seconds, (1000 + seconds) * 1_000_000_000, 0)
        };
        let text = metadata(Clock::Tsc, &[at(1), at(11)]).write("");
        let lines = "\tfreq = 3000300000;\n\toffset_s = 1000;\n\toffset = 0;\n";
        assert!(text.contains(lines), "{text}");
        let text = metadata(
            Clock::Monotonic,
            &[Anchor { ticks: 7, monotonic: 7, realtime: 2_500_000_007, ..Anchor::default() }],
        )
        .write("");
        let lines = "\tfreq = 1000000000;\n\toffset_s = 2;\n\toffset = 500000000;\n";
        assert!(text.contains(lines), "{text}");
        // The real time at tick 0 may lie before 1970.
        let text = metadata(
            Clock::Monotonic,
            &[Anchor { ticks: 1_500_000_000, monotonic: 1_500_000_000, ..Anchor::default() }],
        )
        .write("");
        assert!(text.contains("\toffset_s = -2;\n\toffset = 500000000;\n"), "{text}");
    }

    #[test]
    fn other_texts_are_refused_with_their_line() {
        let text = metadata(Clock::Tsc, &[anchor(1, 2, 0)]).write(&events());
        let refused = |text: &str| Metadata::parse(text).unwrap_err().to_string();
        assert_eq!(refused(""), "the first line is not /* CTF 1.8 */");
        assert_eq!(refused(&text[1..]), "the first line is not /* CTF 1.8 */");
        let other = refused(&text.replace("\t\tu32 tid;\n", "\t\tu16 tid;\n"));
        let line = 1 + text.lines().position(|line| line == "\t\tu32 tid;").unwrap();
        assert_eq!(
            other,
            format!("line {line} is not as relayfs writes it; read the trace with babeltrace2")
        );
        let other = refused(&text.replace("geometry", "geology"));
        assert_eq!(
            other,
            "geometry is missing, or not as relayfs writes it; read the trace with babeltrace2"
        );
        assert!(refused(&text.replace("freq = 3", "freq = 4")).contains("is not as relayfs writes it"));
        assert!(refused(&text.replace("relay_format = 1", "relay_format = 2")).starts_with("line "));
        let head = text.len() - events().len();
        for cut in 0..head {
            assert!(Metadata::parse(&text[..cut]).is_err(), "{cut}");
        }
        let cut = refused(&text[..head - 10]);
        assert!(cut.starts_with("the text ends at line"), "{cut}");
        // Events that are cut are another matter.
        let (_, events) = Metadata::parse(&text[..text.len() - 1]).unwrap();
        assert!(events.definitions.is_empty());
    }

    proptest! {
        #[test]
        fn any_anchors_and_names_are_read_back(hostname: String, numbers in proptest::collection::vec(any::<[u64; 5]>(), 0..5), tsc: bool, frequency: u64) {
            let anchor = |[ticks, monotonic, realtime, boottime, epoch]: [u64; 5]| Anchor { ticks, monotonic, realtime, boottime, epoch };
            let anchors: Vec<_> = numbers.into_iter().map(anchor).collect();
            let clock = if tsc { Clock::Tsc } else { Clock::Monotonic };
            let timeline = Timeline::new(clock, frequency, &anchors);
            let written = Metadata { hostname: hostname.clone(), timeline, ..metadata(clock, &[]) };
            let (read, _) = Metadata::parse(&written.write("")).unwrap();
            prop_assert_eq!(read.hostname, hostname);
            prop_assert_eq!(read.timeline.to_string(), written.timeline.to_string());
        }

        #[test]
        fn any_text_is_refused_or_read(text: String, at: prop::sample::Index) {
            let good = metadata(Clock::Tsc, &[anchor(1, 2, 0)]).write(&events());
            let at = at.index(good.len());
            if good.is_char_boundary(at) {
                let _ = Metadata::parse(&format!("{}{text}{}", &good[..at], &good[at..]));
                let _ = Metadata::parse(&format!("{}{text}", &good[..at]));
            }
        }
    }
}
