//! What the time stamp of a record costs, in one process: the record beside a bare message of the same payload.

use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;

use relay::clock::Clock;
use relay::ring::buffer::Buffer;
use relay::ring::rseq::Sequences;
use relay::ring::writer::{Appended, Writer};
use relay::{Geometry, GeometrySpec};
use relayfs_tests::measure::{
    MESSAGE_LEN, Measurement, WRITER_CPU, alternately, head, n_cpus, nanos, on_cpu, row, title,
};

/// Lengths of payloads, in bytes.
const LENGTHS: [usize; 4] = [16, MESSAGE_LEN, 256, 1024];
const GEOMETRY: &str = "subbuf-size=1M:n-subbufs=4:overwrite";
/// Head of each record: an id of a program, and a thread.
const HEAD: u64 = 256 | 4711 << 16;

fn main() -> ExitCode {
    head("a record with its stamp");
    let sequences = Sequences::find().expect("restartable sequences: the kernel has them");
    let clocks = [None, Some(Clock::Tsc), Some(Clock::Monotonic)];
    let clocks: Vec<Option<Clock>> =
        clocks.into_iter().filter(|clock| clock.is_none_or(Clock::is_readable)).collect();
    for len in LENGTHS {
        title(&format!("one thread, {GEOMETRY}, {len} B and the record's 16"), "ns");
        let longer = buffers(None);
        let mut measurements: Vec<Measurement<'_>> = Vec::new();
        for clock in &clocks {
            let buffers = buffers(*clock);
            measurements.push(Box::new(move || match clock {
                None => written(sequences, &buffers, len),
                Some(_) => stamped(sequences, &buffers, len),
            }));
        }
        // What the 16 bytes alone cost: a bare message as long as the record.
        measurements.push(Box::new(|| written(sequences, &longer, len + 16)));
        let all = alternately(&mut measurements);
        row("bare message", &all[0]);
        row(&format!("bare message of {} B", len + 16), with_ratio(&all[clocks.len()], &all[0]));
        for (clock, values) in clocks.iter().zip(&all).skip(1) {
            let name = clock.map_or("", Clock::name);
            row(&format!("record, clock {name}"), with_ratio(values, &all[0]));
        }
    }
    threads(sequences);
    ExitCode::SUCCESS
}

/// Records of two threads on two CPUs, beside those of one.
fn threads(sequences: Sequences) {
    title(&format!("{MESSAGE_LEN} B and the record's 16, all threads together"), "million/s");
    let Some(clock) = [Clock::Tsc, Clock::Monotonic].into_iter().find(|clock| clock.is_readable()) else {
        return;
    };
    let buffers = buffers(Some(clock));
    let rate = |cpus: &[usize]| {
        let start = Barrier::new(cpus.len());
        let nanos: Vec<f64> = thread::scope(|scope| {
            let write = |cpu: usize| {
                let (start, buffers) = (&start, &buffers);
                scope.spawn(move || {
                    on_cpu(cpu, || start.wait());
                    stamped_on(cpu, sequences, buffers, MESSAGE_LEN)
                })
            };
            let threads: Vec<_> = cpus.iter().map(|cpu| write(*cpu)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread that writes")).collect()
        });
        nanos.iter().map(|nanos| 1e3 / nanos).sum()
    };
    if n_cpus() < 2 {
        return row("two threads on two CPUs", "not there: one CPU");
    }
    let all = alternately(&mut [Box::new(|| rate(&[0])), Box::new(|| rate(&[0, 1]))]);
    row(&format!("one thread, clock {}", clock.name()), &all[0]);
    row("two threads on two CPUs", format_args!("{:<36}{} of one thread", all[1], all[1].over(&all[0])));
}

fn with_ratio(
    values: &relayfs_tests::measure::Values,
    bare: &relayfs_tests::measure::Values,
) -> impl std::fmt::Display {
    format!("{values:<36}{} of the bare message", values.over(bare))
}

/// Returns a buffer for each CPU, timed if there is a clock.
fn buffers(clock: Option<Clock>) -> Vec<Buffer> {
    let spec: GeometrySpec = GEOMETRY.parse().expect("a geometry");
    let geometry: Geometry =
        GeometrySpec { timed: Some(clock.is_some()), ..spec }.build().expect("a geometry");
    let clock = clock.unwrap_or(Clock::Monotonic);
    let new = |_| Buffer::anonymous_with_clock(geometry, 0, clock).expect("memory for a buffer");
    (0..n_cpus()).map(new).collect()
}

/// How many messages are written in one go.
fn count(len: usize) -> usize {
    (1_500_000_000 / (len + 200)).min(5_000_000)
}

fn written(sequences: Sequences, buffers: &[Buffer], len: usize) -> f64 {
    nanos(WRITER_CPU, count(len), len, |message| {
        let cpu = sequences.cpu();
        let writer = Writer::new(&buffers[cpu], sequences.on(cpu));
        if writer.append(message) != Appended::Done {
            writer.write(message).expect("a message that fits");
        }
    })
}

fn stamped(sequences: Sequences, buffers: &[Buffer], len: usize) -> f64 {
    stamped_on(WRITER_CPU, sequences, buffers, len)
}

fn stamped_on(cpu: usize, sequences: Sequences, buffers: &[Buffer], len: usize) -> f64 {
    nanos(cpu, count(len), len, |payload| {
        let cpu = sequences.cpu();
        let writer = Writer::new(&buffers[cpu], sequences.on(cpu));
        if writer.append_record(HEAD, payload) != Appended::Done {
            writer.write_record(HEAD, payload).expect("a record that fits");
        }
    })
}
