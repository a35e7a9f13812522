//! Starts and checks processes that write shared buffers under signals and migrations.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::direct::with_sequences;
use crate::progress::{Progress, STREAMS, Stream, get};
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
