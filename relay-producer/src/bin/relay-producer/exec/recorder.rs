//! Keeping the program's lines, in a channel that may come later than the program.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use relay_producer::{Channel, Stream};

use crate::cli::Options;
use crate::{Failure, say};

/// Least time between two tries to open the channel.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of an `output` record before the line.
const OUTPUT_HEAD: usize = 3;

/// Where lines are kept, once there is a daemon.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    options: &'a Options,
    program: &'a OsStr,
    /// The program's process.
    pid: u32,
    channel: OnceLock<Channel>,
    /// When the channel may be tried again.
    next_try: Mutex<Instant>,
    /// Lines that came before the channel.
    missed: AtomicU64,
}

impl<'a> Recorder<'a> {
    /// Opens the channel. If that fails, it says so, and a later line tries again.
    pub(crate) fn new(options: &'a Options, program: &'a OsStr) -> Recorder<'a> {
        let recorder = Recorder {
            options,
            program,
            pid: 0,
            channel: OnceLock::new(),
            next_try: Mutex::new(Instant::now() + RETRY_INTERVAL),
            missed: AtomicU64::new(0),
        };
        match recorder.open() {
            // Set once, here or by the thread with the lock.
            Ok(channel) => drop(recorder.channel.set(channel)),
            Err(failure) => say(&format!("{failure}; the program runs without a record until it is there")),
        }
        recorder
    }

    /// Says which process the lines are of.
    pub(crate) fn of_process(self, pid: u32) -> Recorder<'a> {
        Recorder { pid, ..self }
    }

    /// Returns the channel, if there is one by now.
    pub(crate) fn channel(&self) -> Option<&Channel> {
        self.channel.get().or_else(|| self.look())
    }

    /// Returns the channel for lines that have come, connected to the daemon of now if there is one.
    pub(crate) fn channel_now(&self) -> Option<&Channel> {
        let channel = self.channel()?;
        channel.look_for_daemon();
        Some(channel)
    }

    /// Notes what comes while there is no channel.
    pub(crate) fn miss(&self, bytes: &[u8]) {
        // Relaxed: a count, for a message.
        self.missed.fetch_add(memchr::memchr_iter(b'\n', bytes).count() as u64, Ordering::Relaxed);
    }

    /// Keeps a line, which is not longer than [`line_max`].
    pub(crate) fn keep(&self, channel: &Channel, stream: Stream, line: &[u8]) {
        // A line without room is counted, as for every producer that does not wait.
        let _ = if channel.is_timed() {
            channel.output(stream, self.pid, line)
        } else {
            channel.write(&[line, b"\n"].concat())
        };
    }

    /// Lets the daemon take what is on its way, and keeps how the program has ended.
    pub(crate) fn finish(self, status: ExitStatus) {
        let command = self.command().as_bytes();
        let Some(channel) = self.channel.into_inner() else { return };
        // The end is often all that a quiet program leaves to the next daemon. Without a daemon, buffers that were mapped
        // still take it.
        channel.look_for_daemon();
        let _ = channel.sync();
        if channel.is_timed() && channel.output_ended(self.pid, command, status).is_err() {
            // The daemon notes the end of a process whose connection ends with it, if its kernel tells.
            std::mem::forget(channel);
        }
    }

    /// Returns the name of the program's command.
    fn command(&self) -> &'a OsStr {
        Path::new(self.program).file_name().unwrap_or_default()
    }

    #[cold]
    fn look(&self) -> Option<&Channel> {
        let mut next_try = self.next_try.try_lock().ok()?;
        if Instant::now() < *next_try {
            return None;
        }
        let opened = self.open();
        *next_try = Instant::now() + RETRY_INTERVAL;
        let _ = self.channel.set(opened.ok()?);
        let missed = self.missed.load(Ordering::Relaxed);
        let (mount, s) = (self.options.mount(), if missed == 1 { "" } else { "s" });
        let mount = mount.display();
        say(&format!(
            "a relayfsd of {mount} is there: lines are kept from now on; {missed} line{s} came before"
        ));
        self.channel.get()
    }

    fn open(&self) -> Result<Channel, Failure> {
        crate::open(self.options, self.command())
    }
}

/// Returns the longest piece of a line that a channel takes, in bytes.
pub(crate) fn line_max(channel: &Channel) -> usize {
    channel.geometry().payload_max().saturating_sub(if channel.is_timed() { OUTPUT_HEAD } else { 1 })
}
