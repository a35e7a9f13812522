//! `audience record`: a thread for each CPU copies its buffer into a separate file.
//!
//! ```text
//!            .----- no such channel, or it has gone: every 0.2 s, ------.
//!            v          and when something has been mounted             |
//!   wait for the channel --> a thread for each CPU --> one ends by itself, a signal, or the time is over
//!                                                                       |
//!                            flush, record what is left, report the result
//! ```

mod lane;
mod progress;
mod recording;
mod source;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::channel_files::{CpuFile, Identity, Place};
use crate::error::Failure;
use crate::losses::Tally;
use crate::mount::is_mounted;
use crate::options::Record;
use crate::signals::{self, Stop};
use crate::wait_for_channel::{LOOK_AGAIN, Mounts, if_there, missing, poll_timeout};
use lane::Halt;
use progress::{Progress, Recorded};
use recording::{Recording, Rotation, prepare};
use source::{Left, Source};

/// Time between two reads of the loss counters. Counts since the last read are lost when the channel goes with its
/// daemon.
const COUNT_AGAIN: Duration = Duration::from_secs(1);

/// Longest wait for the next daemon to identify its buffers.
///
/// After that they are recorded as new buffers.
///
/// A daemon that is ending still serves its files for a moment. But the socket of a running daemon may also be at a
/// place that this program does not see, so the wait has a limit.
const NEXT_DAEMON_MAX: Duration = Duration::from_secs(5);

/// Records until a signal, the time limit, or an error.
pub(crate) fn run(options: &Record) -> Result<(), Failure> {
    // Only for its errors: a path that is no directory will not become a mount point.
    is_mounted(&options.what.mount)?;
    prepare(&options.output)?;
    let mut recorder = Recorder {
        options,
        place: options.what.place(),
        stop: signals::catch(None, || {})?,
        // A time beyond the clock's range is no limit.
        end: options.duration.and_then(|duration| Instant::now().checked_add(duration)),
        recordings: BTreeMap::new(),
        left: BTreeMap::new(),
        left_since: None,
        tally: Tally::default(),
        progress: Progress::new(options.progress),
    };
    let result = recorder.run();
    if !recorder.recordings.is_empty() {
        let recorded = recorded(&recorder.totals());
        recorder.progress.end(&options.output, &recorded, &recorder.tally);
    }
    result
}

struct Recorder<'a> {
    options: &'a Record,
    place: Place,
    stop: Stop,
    /// When `--duration` is over.
    end: Option<Instant>,
    /// By CPU; kept from one daemon to the next.
    recordings: BTreeMap<usize, Recording>,
    /// By CPU, how far the last daemon's buffers were recorded.
    left: BTreeMap<usize, Left>,
    /// Since when there are files again, but no daemon that identifies their buffers.
    left_since: Option<Instant>,
    tally: Tally,
    progress: Progress,
}

/// By CPU, the bytes that its thread has recorded.
type Totals = Vec<(usize, Arc<AtomicU64>)>;

impl Recorder<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        let mut first = true;
        let mut waiting_told = false;
        let mounts = Mounts::watch()?;
        loop {
            if let Some(files) = if_there(self.place.open(self.options.what.cpu))? {
                if first {
                    self.tally.begin(&self.place.stats_path());
                }
                self.record(files)?;
                waiting_told = false;
            } else {
                self.left_since = None;
                if !std::mem::replace(&mut waiting_told, true) {
                    self.progress.say(missing(&self.place));
                }
            }
            // The counters of a channel that comes later begin at zero, while we run.
            first = false;
            if self.is_over() {
                return Ok(());
            }
            self.rest(LOOK_AGAIN, Some(&mounts))?;
        }
    }

    /// Records these files until the recording is over or the channel has gone.
    fn record(&mut self, files: Vec<CpuFile>) -> Result<(), Failure> {
        let dir = &self.options.output;
        let rotation = self
            .options
            .rotate_size
            .map(|size| Rotation { size, keep: self.options.rotate_count.map(u64::from) });
        for file in &files {
            if let Entry::Vacant(entry) = self.recordings.entry(file.cpu) {
                entry.insert(Recording::new(dir, file.cpu, rotation)?);
            }
        }
        let capacity = capacity(&self.place);
        let first = files.first().map(CpuFile::identity);
        if self.left_since.is_some_and(|since| since.elapsed() >= NEXT_DAEMON_MAX) {
            self.left.clear();
        }
        let open = |file: CpuFile| {
            let cpu = file.cpu;
            Some((cpu, Source::open(&self.place, file, self.left.get(&cpu))?))
        };
        let Some(mut sources) = files.into_iter().map(open).collect::<Option<BTreeMap<usize, Source>>>()
        else {
            self.left_since.get_or_insert_with(Instant::now);
            return Ok(());
        };
        self.left_since = None;
        let halt = &Halt::new()?;
        // Moved out of `self`, because the threads borrow them.
        let mut recordings = std::mem::take(&mut self.recordings);
        let totals: Totals = totals(&recordings);
        let (sources, result) = thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut spawned = Ok(());
            for (&cpu, recording) in &mut recordings {
                let Some(mut source) = sources.remove(&cpu) else { continue };
                let work = move || {
                    let result = lane::record(&mut source, recording, halt, capacity);
                    ((cpu, source), result)
                };
                match thread::Builder::new().name(format!("cpu{cpu}")).spawn_scoped(scope, work) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => spawned = Err(Failure::system("start a thread", error)),
                }
            }
            let watched = spawned.and_then(|()| {
                self.watch(first.as_ref(), &totals, || threads.iter().any(|thread| thread.is_finished()))
            });
            halt.set();
            let ends = threads.into_iter().map(thread::ScopedJoinHandle::join);
            let ends = ends.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let (sources, results): (Vec<_>, Vec<_>) = ends.unzip();
            (sources, results.into_iter().fold(watched, Result::and))
        });
        // Before the files are closed: they may be all that keeps the channel.
        self.tally.add(&self.place.stats_path());
        self.left.extend(sources.into_iter().filter_map(|(cpu, source)| Some((cpu, source.leave()?))));
        self.recordings = recordings;
        result
    }

    /// Waits until the recording is over, the channel has gone, or a thread has ended. Flushes if the recording is
    /// over.
    fn watch(
        &mut self,
        first: Option<&Identity>,
        totals: &Totals,
        has_ended: impl Fn() -> bool,
    ) -> Result<(), Failure> {
        let mut counted = Instant::now();
        while !has_ended() {
            if self.is_over() {
                flush(&self.place);
                return Ok(());
            }
            self.rest(self.progress.due_in().map_or(LOOK_AGAIN, |time| time.min(LOOK_AGAIN)), None)?;
            if first.is_some_and(Identity::was_replaced) {
                return Ok(());
            }
            let due = self.progress.due_in().is_some_and(|time| time.is_zero());
            if due || counted.elapsed() >= COUNT_AGAIN {
                self.tally.add(&self.place.stats_path());
                counted = Instant::now();
            }
            if due {
                self.progress.report(recorded(totals), &self.tally);
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.stop.caught().is_some() || self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Waits this time at most; ends early when something is mounted or the recording is over.
    fn rest(&self, time: Duration, mounts: Option<&Mounts>) -> Result<(), Failure> {
        let left = self.end.map_or(time, |end| end.saturating_duration_since(Instant::now()).min(time));
        let mut fds = vec![PollFd::new(self.stop.as_fd(), PollFlags::empty())];
        fds.extend(mounts.map(Mounts::poll_fd));
        match poll(&mut fds, poll_timeout(left)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Failure::system("poll", errno)),
        }
    }

    fn totals(&self) -> Totals {
        totals(&self.recordings)
    }
}

fn totals(recordings: &BTreeMap<usize, Recording>) -> Totals {
    recordings.iter().map(|(cpu, recording)| (*cpu, recording.total())).collect()
}

fn recorded(totals: &Totals) -> Vec<Recorded> {
    // Relaxed: the numbers are only shown, and order nothing else.
    totals.iter().map(|(cpu, total)| (*cpu, total.load(Ordering::Relaxed))).collect()
}

/// Finishes every unfinished sub-buffer, so that all its content can be recorded.
///
/// Errors are ignored: without the right, or without the channel, the recording takes what it can read unflushed.
fn flush(place: &Place) {
    let _ = fs::write(place.control_path("flush"), "1");
}

/// The capacity of each buffer of the channel, in bytes.
fn capacity(place: &Place) -> u64 {
    let number = |file| fs::read_to_string(place.control_path(file)).ok()?.trim().parse::<u64>().ok();
    number("subbuf_size")
        .zip(number("n_subbufs"))
        .map_or(u64::MAX, |(size, count)| size.saturating_mul(count))
}
