//! Starts and checks processes that write shared buffers under signals and migrations.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::direct::with_sequences;
use crate::known::{NUMBERED_MIN, Pattern};
use crate::progress::{Progress, STREAMS, Stream, get};
use crate::streams::{Numbers, Received};
use crate::{Mount, Process, exit_code, program};

/// A running `test-stress-writer` that writes to channel `cpu`.
#[derive(Debug)]
pub struct StressWriter {
    process: Process,
    progress: Progress,
    path: PathBuf,
    number: u32,
}

/// The work of a writer that has ended.
#[derive(Debug)]
pub struct Done {
    progress: Progress,
    number: u32,
}

impl StressWriter {
    /// Starts a writer of messages of these lengths; with `handlers`, its signal handlers write too.
    #[track_caller]
    pub fn start(mount: &Mount, number: u32, lengths: RangeInclusive<usize>, handlers: bool) -> StressWriter {
        let path = mount.beside(&format!("progress{number}"));
        let progress = Progress::create(&path).expect("a file for the progress");
        let mut command = Command::new(program("test-stress-writer"));
        command.arg(mount.point()).arg("cpu").arg(&path).arg(number.to_string());
        command.args([lengths.start().to_string(), lengths.end().to_string()]);
        command.arg(if handlers { "handler" } else { "plain" });
        with_sequences(&mut command).stdin(Stdio::null());
        StressWriter { process: Process::start(&mut command), progress, path, number }
    }

    /// Writes begun so far.
    pub fn attempts(&self) -> u64 {
        self.progress.streams().map(|stream| get(&stream.attempts)).sum()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Fails the test if the writer has ended before it was stopped.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if !self.process.is_running() {
            panic!("writer {} ended by itself: {}", self.number, exit_code(self.process.wait()));
        }
    }

    /// Kills the writer.
    #[track_caller]
    pub fn kill(mut self) -> Done {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
        self.done()
    }

    /// Asks the writer to end.
    pub fn stop(&self) {
        self.progress.common().stop.store(1, Ordering::Release);
    }

    /// Waits for the writer's end, and checks that every call has returned.
    #[track_caller]
    pub fn finish(mut self) -> Done {
        self.stop();
        assert_eq!(exit_code(self.process.wait()), 0, "the end of writer {}", self.number);
        assert!(self.progress.streams().all(|stream| get(&stream.in_flight) == 0));
        self.done()
    }

    fn done(self) -> Done {
        std::fs::remove_file(&self.path).expect("removing the file of the progress");
        Done { progress: self.progress, number: self.number }
    }
}

impl Done {
    /// How often its threads' CPUs were changed.
    pub fn moves(&self) -> u64 {
        get(&self.progress.common().moves)
    }

    /// The counts of each stream of messages, with the number of its writer.
    pub fn streams(&self) -> impl Iterator<Item = (u32, &Stream)> {
        (self.number * STREAMS as u32..).zip(self.progress.streams())
    }
}

/// Checks that the bytes of all buffers have each message whose write returned Ok, once and in order, and nothing else.
/// Returns the number of bytes.
#[track_caller]
pub fn assert_each_once(buffers: impl IntoIterator<Item = Vec<u8>>, done: &[Done]) -> u64 {
    let pattern = Pattern::default();
    let mut numbers: BTreeMap<u32, Numbers> = BTreeMap::new();
    let mut short = [0; NUMBERED_MIN];
    let mut bytes = 0;
    for buffer in buffers {
        let mut received = Received::new(&pattern, false);
        received.take(&buffer);
        received.finish();
        bytes += received.bytes();
        received
            .writers
            .iter()
            .for_each(|(writer, of_cpu)| numbers.entry(*writer).or_default().merge(of_cpu));
        short.iter_mut().zip(received.short).for_each(|(sum, count)| *sum += count);
    }
    for (writer, stream) in done.iter().flat_map(Done::streams) {
        let found = numbers.remove(&writer).unwrap_or_default();
        let count = get(&stream.numbered);
        assert_eq!((found.end(), found.count()), (count, count), "writer {writer}");
    }
    assert!(numbers.is_empty(), "messages of no writer: {:?}", numbers.keys());
    for (len, found) in short.iter().enumerate().skip(1) {
        let told: u64 = done.iter().flat_map(Done::streams).map(|(_, stream)| get(&stream.short[len])).sum();
        assert_eq!(*found, told, "messages of {len} bytes");
    }
    bytes
}
