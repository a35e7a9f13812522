//! From a producer that waits for room, on CPU 0, to a reader on another CPU, losing nothing: end to end, beside a pipe and
//! what `lttng` records.

use std::cell::RefCell;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use relay_producer::{BatchOptions, Channel, TransportChoice, Wait};
use relayfs_tests::lttng::{Lttng, NOT_INSTALLED};
use relayfs_tests::measure::{
    MESSAGE_LEN, Measurement, Values, WRITER_CPU, alternately, head, on_cpu, reader_cpu, row, title,
};
use relayfs_tests::peers::{Reader, pipe, play_other_end};
use relayfs_tests::{Mount, Process, eventually, program, tool};

/// Messages written at once, directly; and by slower ways.
const MESSAGES: usize = 30_000_000;
const MESSAGES_SLOWLY: usize = 5_000_000;
const MESSAGES_SINGLY: usize = 1_000_000;
/// Lines in the file that `relay-producer` gets.
const LINES: usize = 10_000_000;
/// Of relayfs and of LTTng.
const GEOMETRY: [&str; 4] = ["--subbuf-size", "1M", "--n-subbufs", "8"];

fn main() -> ExitCode {
    if let Some(played) = play_other_end() {
        return played;
    }
    head("end to end");
    messages();
    lines();
    ExitCode::SUCCESS
}

fn million_a_second(n: usize, taken: Duration) -> f64 {
    n as f64 / taken.as_secs_f64() / 1e6
}

fn messages() {
    title(&format!("{MESSAGE_LEN}-byte messages, 8 x 1 MiB, reads of 128 KiB"), "million/s");
    let mount = Mount::new(&GEOMETRY);
    let direct = open(&mount, TransportChoice::Shared);
    let socket = open(&mount, TransportChoice::Socket);
    let message = [b'm'; MESSAGE_LEN];
    let block = message.repeat((64 << 10) / MESSAGE_LEN);
    let blocks = MESSAGES / (block.len() / MESSAGE_LEN);
    let lttng = Lttng::recording();
    let lost = RefCell::new(Vec::new());
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| relay(&mount, &direct, MESSAGES)),
        Box::new(|| relay(&mount, &socket, MESSAGES_SLOWLY)),
        Box::new(|| million_a_second(MESSAGES_SINGLY, pipe(&message, MESSAGES_SINGLY))),
        Box::new(|| million_a_second(blocks * block.len() / MESSAGE_LEN, pipe(&block, blocks))),
    ];
    if let Some(lttng) = &lttng {
        measurements.push(Box::new(|| {
            let emitted = lttng.emit(MESSAGE_LEN, MESSAGES_SLOWLY);
            let share = emitted.lost as f64 / MESSAGES_SLOWLY as f64;
            lost.borrow_mut().push(100.0 * share);
            1e3 / emitted.nanos * (1.0 - share)
        }));
    }
    let all = alternately(&mut measurements);
    drop(measurements);
    let names = [
        "relayfs, waiting for room, nothing lost",
        "relayfs by socket, the same",
        "pipe, 64-byte writes",
        "pipe, 64 KiB writes",
        "lttng to tmpfs, discarding: events recorded",
    ];
    for (name, values) in names.into_iter().zip(&all) {
        row(name, format_args!("{values:<36}relayfs: {} times", all[0].over(values)));
    }
    if lttng.is_some() {
        row("  of all events lost there, per cent", Values::from(lost.into_inner()));
    } else {
        row("lttng to tmpfs", NOT_INSTALLED);
    }
}

fn open(mount: &Mount, transport: TransportChoice) -> Channel {
    Channel::builder(mount.point(), "cpu").transport(transport).open().expect("opening a channel")
}

/// Million messages a second, from the first to when the reader has the last.
fn relay(mount: &Mount, channel: &Channel, n: usize) -> f64 {
    let reader = Reader::of_relay(&mount.path("cpu0"), n * MESSAGE_LEN);
    let message = [b'm'; MESSAGE_LEN];
    let (counts, taken) = on_cpu(WRITER_CPU, || {
        let begun = Instant::now();
        let mut batch = channel.batch(BatchOptions { cpu: Some(0), wait: Wait::Forever }).expect("a batch");
        for _ in 0..n {
            batch.push(black_box(&message)).expect("pushing a message");
        }
        let counts = batch.finish().expect("the end of a batch");
        // The last of them are in a sub-buffer that is not full.
        channel.flush().expect("finishing it");
        reader.wait();
        (counts, begun.elapsed())
    });
    assert_eq!(counts.written, n as u64);
    assert_eq!(mount.stats("cpu")["total.dropped"], 0, "nothing is lost");
    million_a_second(n, taken)
}

/// `relay-producer` with a file, and programs that read.
fn lines() {
    title(&format!("relay-producer --wait < file, {MESSAGE_LEN}-byte lines, 8 x 1 MiB"), "million lines/s");
    let mount = Mount::new(&GEOMETRY);
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file on tmpfs");
    let mut line = [b'm'; MESSAGE_LEN];
    line[MESSAGE_LEN - 1] = b'\n';
    let block = line.repeat(10_000);
    for _ in 0..LINES / 10_000 {
        file.write_all(&block).expect("filling a file on tmpfs");
    }
    let cpu0 = mount.path("cpu0");
    let audience = || {
        let mut command = on_reader_cpu(&program("audience"));
        command.args(["--follow", "--mount"]).arg(mount.point());
        produce(&mount, file.path(), start(&mut command))
    };
    let cat = || {
        let mut command = on_reader_cpu(Path::new("sh"));
        // It ends whenever there is nothing to read at the moment.
        command.args(["-c", "while :; do cat \"$1\"; done", "sh"]).arg(&cpu0);
        produce(&mount, file.path(), start(&mut command))
    };
    let reads = || produce(&mount, file.path(), Reader::of_relay(&cpu0, LINES * MESSAGE_LEN));
    let all = alternately(&mut [Box::new(audience), Box::new(cat), Box::new(reads)]);
    let names = [
        "into audience --follow > /dev/null",
        "into cat > /dev/null, again and again",
        "into reads of 128 KiB",
    ];
    names.into_iter().zip(&all).for_each(|(name, values)| row(name, values));
}

fn on_reader_cpu(program: &Path) -> Command {
    let mut command = tool("taskset", "util-linux");
    command.arg("-c").arg(reader_cpu().to_string()).arg(program);
    command
}

fn start(command: &mut Command) -> Process {
    Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// Million lines a second, from the start of `relay-producer` to when everything has been read. The reader ends with it.
fn produce<R>(mount: &Mount, file: &Path, reader: R) -> f64 {
    let before = mount.stats("cpu")["total.read_bytes"];
    let mut command = tool("taskset", "util-linux");
    command
        .args(["-c", &WRITER_CPU.to_string()])
        .arg(program("relay-producer"))
        .arg("--mount")
        .arg(mount.point());
    command.args(["--wait", "--flush"]).stdin(File::open(file).expect("our file"));
    let begun = Instant::now();
    let status = command.status().expect("relay-producer");
    eventually("a reader that has read everything", || {
        mount.stats("cpu")["total.read_bytes"] - before == (LINES * MESSAGE_LEN) as u64
    });
    let taken = begun.elapsed();
    assert!(status.success(), "relay-producer: {status}");
    drop(reader);
    million_a_second(LINES, taken)
}
