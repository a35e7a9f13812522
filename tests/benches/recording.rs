//! Recordings of a timed channel on tmpfs, beside those of `lttng` with the same load: messages that are in them, and bytes.

use std::cell::RefCell;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, Transport, Wait};
use relayfs_tests::lttng::{Lttng, NOT_INSTALLED};
use relayfs_tests::measure::{
    MESSAGE_LEN, Measurement, Values, WRITER_CPU, alternately, head, on_cpu, row, title,
};
use relayfs_tests::{Mount, Process, eventually, program};

/// Messages of a recording.
const MESSAGES: usize = 5_000_000;

fn main() -> ExitCode {
    head("recordings");
    title(
        &format!("{MESSAGE_LEN} B of text on CPU 0, 8 x 1 MiB, onto tmpfs: messages recorded"),
        "million/s",
    );
    let mount = Mount::new(&["--channel=log:timed:subbuf-size=1M:n-subbufs=8"]);
    let channel = Channel::builder(mount.point(), "log").open().expect("a channel");
    assert_eq!(channel.transport(), Transport::Shared, "{:?}", channel.why_socket());
    let lttng = Lttng::recording();
    let [ours, waiting, theirs] = [(); 3].map(|()| Kept::default());
    let mut names =
        vec![("audience record", &ours), ("audience record, and a producer that waits for room", &waiting)];
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| ours.note(record(&mount, &channel, Wait::No))),
        Box::new(|| waiting.note(record(&mount, &channel, Wait::Forever))),
    ];
    if let Some(lttng) = &lttng {
        names.push(("lttng, discarding", &theirs));
        measurements.push(Box::new(|| {
            let emitted = lttng.emit(MESSAGE_LEN, MESSAGES);
            let kept = MESSAGES as u64 - emitted.lost;
            theirs.note((emitted.nanos * MESSAGES as f64 / 1e9, kept, emitted.bytes))
        }));
    }
    let all = alternately(&mut measurements);
    drop(measurements);
    for ((name, kept), values) in names.into_iter().zip(&all) {
        row(name, values);
        row("  messages lost, per cent", Values::from(kept.lost.take()));
        row("  bytes of a recorded message", Values::from(kept.bytes.take()));
    }
    if lttng.is_none() {
        row("lttng", NOT_INSTALLED);
    }
    ExitCode::SUCCESS
}

/// What recordings came to.
#[derive(Default)]
struct Kept {
    lost: RefCell<Vec<f64>>,
    bytes: RefCell<Vec<f64>>,
}

impl Kept {
    /// Takes the seconds, the messages that were recorded and their bytes. Returns millions of them a second.
    fn note(&self, (seconds, recorded, bytes): (f64, u64, u64)) -> f64 {
        self.lost.borrow_mut().push(100.0 - 100.0 * recorded as f64 / MESSAGES as f64);
        self.bytes.borrow_mut().push(bytes as f64 / recorded as f64);
        recorded as f64 / 1e6 / seconds
    }
}

/// Seconds from the first message to when the last is consumed, the messages that are recorded, and their bytes.
fn record(mount: &Mount, channel: &Channel, wait: Wait) -> (f64, u64, u64) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let mut command = Command::new(program("audience"));
    command
        .args(["record", "-c", "log", "--progress", "0", "-m"])
        .arg(mount.point())
        .arg("-o")
        .arg(dir.path());
    let mut recorder = Process::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
    // It makes the first file for the first records.
    channel.text("the first").expect("room");
    channel.flush().expect("the daemon's answer");
    eventually("a recorder that has begun", || dir.path().join("metadata").exists());
    let before = lost(mount);
    let text = "m".repeat(MESSAGE_LEN);
    let begun = Instant::now();
    on_cpu(WRITER_CPU, || match wait {
        Wait::No => {
            for _ in 0..MESSAGES {
                // A message without room is counted.
                let _ = channel.text(black_box(&text));
            }
        }
        _ => {
            let mut batch = channel.batch(BatchOptions { cpu: Some(WRITER_CPU), wait }).expect("a batch");
            for _ in 0..MESSAGES {
                batch.push(black_box(text.as_bytes())).expect("pushing a message");
            }
            assert_eq!(batch.finish().expect("the end of a batch").written, MESSAGES as u64);
        }
    });
    // The recorder takes what the buffers hold when it ends.
    recorder.signal(Signal::SIGINT);
    assert!(recorder.wait().success(), "audience record fails");
    let seconds = begun.elapsed().as_secs_f64();
    let recorded = MESSAGES as u64 - (lost(mount) - before);
    (seconds, recorded, len_of(dir.path()))
}

fn lost(mount: &Mount) -> u64 {
    mount.stats("log")["total.dropped"]
}

fn len_of(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).expect("a recording");
    files.map(|file| file.and_then(|file| file.metadata()).expect("a file").len()).sum()
}
