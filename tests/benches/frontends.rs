//! What one event of `tracing` or `log` costs a program, beside other subscribers and loggers.
//!
//! Each subscriber is the default of the measuring thread, which costs all of them the same.

use std::fs::File;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use log::Log;
use relay_producer::log::Logger;
use relay_producer::{Builder, Channel, Transport};
use relayfs_tests::Mount;
use relayfs_tests::measure::{Measurement, Values, WRITER_CPU, alternately, head, on_cpu, row, title};
use tempfile::TempDir;
use tracing::dispatcher::with_default;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, debug, info, info_span};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{fmt, registry};

/// Events that are written in one go into the channel, and into files.
const COUNT: usize = 1_000_000;
const COUNT_OF_FILES: usize = 200_000;
const GEOMETRY: &str = "subbuf-size=1M:n-subbufs=4:overwrite";

/// Where the subscribers write.
struct Places {
    mount: Mount,
    /// On tmpfs.
    dir: TempDir,
}

impl Places {
    fn builder(&self) -> Builder {
        let builder = Channel::builder(self.mount.point(), "app/log").create(true).timed(true);
        builder.geometry(GEOMETRY.parse().expect("a geometry"))
    }

    fn layer<S>(&self) -> relay_producer::tracing::Layer<S> {
        relay_producer::tracing::layer(self.builder()).expect("a layer")
    }

    fn file(&self) -> File {
        let path: PathBuf = self.dir.path().join("log");
        File::create(path).expect("a file on tmpfs")
    }
}

fn main() -> ExitCode {
    head("one event of tracing and log");
    let places = Places { mount: Mount::new(&[]), dir: TempDir::new_in("/dev/shm").expect("tmpfs") };
    let channel = places.builder().open().expect("a channel");
    assert_eq!(channel.transport(), Transport::Shared, "{:?}", channel.why_socket());
    events(&places);
    disabled(&places);
    spans(&places);
    logs(&places);
    ExitCode::SUCCESS
}

/// Parts of a measurement. The best one counts: other work of the machine disturbs some of them, in every program alike.
const PARTS: u64 = 200;

/// Nanoseconds of one call on a CPU, the first calls left out.
fn nanos(n: usize, mut call: impl FnMut(u64)) -> f64 {
    on_cpu(WRITER_CPU, || {
        (0..100).for_each(&mut call);
        let of_part = n as u64 / PARTS;
        let part = |part: u64| {
            let begun = Instant::now();
            for number in part * of_part..(part + 1) * of_part {
                call(black_box(number));
            }
            begun.elapsed().as_secs_f64() * 1e9 / of_part as f64
        };
        (0..PARTS).map(part).fold(f64::INFINITY, f64::min)
    })
}

/// Prints a table whose first row is what the others are compared with.
fn table(names: &[&str], all: &[Values]) {
    for (name, values) in names.iter().zip(all) {
        row(name, format_args!("{values:<40}{} of the first", values.over(&all[0])));
    }
}

fn events(places: &Places) {
    title("tracing: an event with 3 fields and a message", "ns");
    let event = |number: u64| info!(rows = number, host = "example.org", ratio = 0.5, "connected");
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| with_default(&Dispatch::new(registry().with(places.layer())), || nanos(COUNT, event))),
        Box::new(|| with_default(&Dispatch::new(registry()), || nanos(COUNT, event))),
        Box::new(|| {
            let (writer, _guard) = tracing_appender::non_blocking(places.file());
            let layer = fmt::layer().with_ansi(false).with_writer(writer);
            with_default(&Dispatch::new(registry().with(layer)), || nanos(COUNT_OF_FILES, event))
        }),
        Box::new(|| {
            let layer = fmt::layer().with_ansi(false).with_writer(Mutex::new(places.file()));
            with_default(&Dispatch::new(registry().with(layer)), || nanos(COUNT_OF_FILES, event))
        }),
    ];
    let all = alternately(&mut measurements);
    table(
        &["relayfs", "no layer", "fmt, tracing-appender non-blocking, tmpfs", "fmt to a file on tmpfs"],
        &all,
    );
}

fn disabled(places: &Places) {
    title("tracing: an event that is disabled by its level", "ns");
    let event = |number: u64| debug!(rows = number, host = "example.org", ratio = 0.5, "connected");
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| {
            let layer = registry().with(places.layer()).with(LevelFilter::INFO);
            with_default(&Dispatch::new(layer), || nanos(COUNT * 10, event))
        }),
        Box::new(|| {
            with_default(&Dispatch::new(registry().with(LevelFilter::INFO)), || nanos(COUNT * 10, event))
        }),
    ];
    let all = alternately(&mut measurements);
    table(&["relayfs", "no layer"], &all);
}

fn spans(places: &Places) {
    title("tracing: entering and leaving a span", "ns");
    let measure = |dispatch: Dispatch| {
        with_default(&dispatch, || {
            let span = info_span!("query", rows = 1);
            nanos(COUNT, |_| drop(span.enter()))
        })
    };
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| measure(Dispatch::new(registry().with(places.layer())))),
        Box::new(|| measure(Dispatch::new(registry()))),
    ];
    let all = alternately(&mut measurements);
    table(&["relayfs", "no layer"], &all);
}

fn logs(places: &Places) {
    title("log: a message with a number, and one without", "ns");
    let logger = Logger::new(places.builder()).expect("a logger");
    let env_logger = || {
        let mut builder = env_logger::Builder::new();
        builder.filter_level(log::LevelFilter::Info);
        builder.target(env_logger::Target::Pipe(Box::new(places.file()))).build()
    };
    let with_number = |logger: &dyn Log, number: u64| {
        let mut record = log::Record::builder();
        let record = record.level(log::Level::Info).target("app::db");
        logger.log(&record.args(format_args!("connected, {number} rows")).build());
    };
    let constant = |logger: &dyn Log| {
        let mut record = log::Record::builder();
        logger.log(
            &record
                .level(log::Level::Info)
                .target("app::db")
                .args(format_args!("connected to the server"))
                .build(),
        );
    };
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| nanos(COUNT, |number| with_number(black_box(&logger), number))),
        Box::new(|| nanos(COUNT, |_| constant(black_box(&logger)))),
        Box::new(|| {
            let logger = env_logger();
            nanos(COUNT_OF_FILES, |number| with_number(black_box(&logger), number))
        }),
        Box::new(|| {
            let logger = env_logger();
            nanos(COUNT_OF_FILES, |_| constant(black_box(&logger)))
        }),
    ];
    let all = alternately(&mut measurements);
    table(
        &["relayfs", "relayfs, constant text", "env_logger to a file on tmpfs", "the same, constant text"],
        &all,
    );
}
