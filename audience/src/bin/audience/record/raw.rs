//! `audience record` of a raw channel: a thread for each CPU copies its buffer into a separate file.
//!
//! ```text
//!            .----- no such channel, or it has gone: every 0.2 s, ------.
//!            v          and when something has been mounted             |
//!   wait for the channel --> a thread for each CPU --> one ends by itself, a signal, or the time is over
//!                                                                       |
//!                            flush, record what is left, report the result
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cpu_thread::{self, Halt};
use super::ends::Ends;
use super::flush;
use super::job::{CLOSED, Idle, Job};
use super::progress::{Progress, Recorded, of_cpus};
use super::recording::{End, Recording};
use super::source::{Before, Left, Source};
use crate::channel_files::{CpuFile, Identity, Place};
use crate::error::Failure;
use crate::losses::Tally;
use crate::unread;
use crate::wait_for_channel::{LOOK_AGAIN, Mounts, if_there, missing};

/// Time between two reads of the loss counters. Counts since the last read are lost when the channel goes with its
/// daemon.
const COUNT_AGAIN: Duration = Duration::from_secs(1);

/// Bytes of a buffer's rest that are recorded at the end if its capacity is unknown.
///
/// It is well above the usual capacity. What is beyond stays in the buffer.
const CAPACITY_UNKNOWN: u64 = 64 << 20;

/// Longest wait for the next daemon to identify its buffers.
///
/// After that they are recorded as new buffers.
///
/// A daemon that is ending still serves its files for a moment. But the socket of a running daemon may also be at a
/// place that this program does not see, so the wait has a limit.
const NEXT_DAEMON_MAX: Duration = Duration::from_secs(5);

/// Records until a signal, the time limit, or an error.
///
/// `at_once`: the channel was there when the recorder started.
pub(crate) fn run(job: &Job<'_>, progress: Progress, at_once: bool) -> Result<(), Failure> {
    let mut recorder = Recorder {
        job,
        ends: job.ends()?,
        recordings: BTreeMap::new(),
        left: BTreeMap::new(),
        left_since: None,
        idle: Idle::new(),
        is_idle: false,
        tally: Tally::default(),
        progress,
    };
    let result = recorder.run(at_once);
    let finished = recorder.recordings.values_mut().try_for_each(Recording::finish);
    if !recorder.recordings.is_empty() {
        let recorded = recorded(&recorder.totals(), &recorder.tally);
        job.end(&mut recorder.progress, recorded);
    }
    result.and(finished)
}

struct Recorder<'a> {
    job: &'a Job<'a>,
    /// Where the recordings end, for the next recorder.
    ends: Option<Ends>,
    /// By CPU; kept from one daemon to the next.
    recordings: BTreeMap<usize, Recording<'a>>,
    /// By CPU, how far the last daemon's buffers were recorded.
    left: BTreeMap<usize, Left>,
    /// Since when there are files again, but no daemon that identifies their buffers.
    left_since: Option<Instant>,
    idle: Idle,
    /// Whether the files were closed since there is nothing to record.
    is_idle: bool,
    tally: Tally,
    progress: Progress,
}

/// By CPU, the bytes that its thread has recorded.
type Totals = Vec<(usize, Arc<AtomicU64>)>;

impl Recorder<'_> {
    fn run(&mut self, mut first: bool) -> Result<(), Failure> {
        let mut waiting_told = false;
        let mounts = Mounts::watch()?;
        loop {
            let opened = if_there(self.job.place.open_of_kind(self.job.options.what.cpu))?;
            if let Some((files, is_timed)) = opened {
                if is_timed {
                    return Err(Failure::KindChanged(self.job.place.channel.clone()));
                }
                if first {
                    self.tally.begin(&self.job.place.stats_path());
                }
                self.record(files)?;
                waiting_told = false;
            } else if self.job.until_gone {
                return Ok(());
            } else {
                self.left_since = None;
                if !std::mem::replace(&mut waiting_told, true) {
                    self.progress.say(missing(&self.job.place));
                }
            }
            // The counters of a channel that comes later begin at zero, while we run.
            first = false;
            if self.job.limits.is_over() {
                return Ok(());
            }
            let rest = if std::mem::take(&mut self.is_idle) { CLOSED } else { LOOK_AGAIN };
            self.job.limits.rest(rest, Some(&mounts))?;
        }
    }

    /// Records these files until the recording is over or the channel has gone.
    fn record(&mut self, files: Vec<CpuFile>) -> Result<(), Failure> {
        for file in &files {
            if let Entry::Vacant(entry) = self.recordings.entry(file.cpu) {
                entry.insert(open(self.job, self.ends.as_ref(), file.cpu)?);
            }
        }
        let capacity = capacity(&self.job.place);
        let first = files.first().map(CpuFile::identity);
        let is_patient = self.left_since.is_none_or(|since| since.elapsed() < NEXT_DAEMON_MAX);
        let (job, left, recordings) = (self.job, &self.left, &mut self.recordings);
        let open = |file: CpuFile| {
            let cpu = file.cpu;
            let before = match recordings.get_mut(&cpu).and_then(Recording::end) {
                Some(end) => Before::Kept(end.of_stream(file.inode())),
                None => Before::Left(left.get(&cpu)),
            };
            Some((cpu, Source::open(&job.place, file, before, is_patient)?))
        };
        let Some(mut sources) = files.into_iter().map(open).collect::<Option<BTreeMap<usize, Source>>>()
        else {
            self.left_since.get_or_insert_with(Instant::now);
            return Ok(());
        };
        self.left_since = None;
        let needs_flushes = sources.values().any(Source::needs_flushes);
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
                    let result = cpu_thread::record(&mut source, recording, halt, capacity);
                    ((cpu, source), result)
                };
                match thread::Builder::new().name(format!("cpu{cpu}")).spawn_scoped(scope, work) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => spawned = Err(Failure::system("start a thread", error)),
                }
            }
            let watched = spawned.and_then(|()| {
                self.watch(first.as_ref(), &totals, needs_flushes, || {
                    threads.iter().any(|thread| thread.is_finished())
                })
            });
            halt.set();
            let ends = threads.into_iter().map(thread::ScopedJoinHandle::join);
            let ends = ends.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let (sources, results): (Vec<_>, Vec<_>) = ends.unzip();
            (sources, results.into_iter().fold(watched, Result::and))
        });
        // Before the files are closed: they may be all that keeps the channel.
        self.tally.add(&self.job.place.stats_path());
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
        needs_flushes: bool,
        has_ended: impl Fn() -> bool,
    ) -> Result<(), Failure> {
        let (mut counted, mut before) = (Instant::now(), sum(totals));
        while !has_ended() {
            if self.job.limits.is_over() {
                flush(&self.job.place);
                return Ok(());
            }
            self.job
                .limits
                .rest(self.progress.due_in().map_or(LOOK_AGAIN, |time| time.min(LOOK_AGAIN)), None)?;
            if first.is_some_and(Identity::was_replaced) {
                return Ok(());
            }
            if std::mem::replace(&mut before, sum(totals)) != before {
                self.idle.end();
            } else if self.job.until_gone && self.idle.is_over() {
                self.is_idle = true;
                return Ok(());
            }
            let due = self.progress.due_in().is_some_and(|time| time.is_zero());
            if due || counted.elapsed() >= COUNT_AGAIN {
                self.tally.add(&self.job.place.stats_path());
                self.job.show(|| recorded(totals, &self.tally));
                if needs_flushes && unread::of_channel(&self.job.place).is_some_and(|bytes| bytes > 0) {
                    flush(&self.job.place);
                }
                self.job.store.keep_limit()?;
                self.job.check_directory()?;
                counted = Instant::now();
            }
            if due {
                self.progress.report(recorded(totals, &self.tally));
            }
        }
        Ok(())
    }

    fn totals(&self) -> Totals {
        totals(&self.recordings)
    }
}

fn totals(recordings: &BTreeMap<usize, Recording>) -> Totals {
    recordings.iter().map(|(cpu, recording)| (*cpu, recording.total())).collect()
}

fn sum(totals: &Totals) -> u64 {
    // Relaxed: the numbers only say whether there was something.
    totals.iter().map(|(_, total)| total.load(Ordering::Relaxed)).sum()
}

fn recorded(totals: &Totals, tally: &Tally) -> Vec<Recorded> {
    // Relaxed: the numbers are only shown, and order nothing else.
    of_cpus(totals.iter().map(|(cpu, total)| (*cpu, total.load(Ordering::Relaxed))), tally)
}

/// Begins the recording of a CPU, or continues it.
fn open<'a>(job: &Job<'a>, ends: Option<&Ends>, cpu: usize) -> Result<Recording<'a>, Failure> {
    let Some(ends) = ends else { return Recording::new(&job.output, cpu, job.rotation(), job.store) };
    let end = ends.slot(cpu).map(|slot| End::new(slot, job.known.get(&cpu)));
    Recording::open(&job.output, cpu, job.rotation(), job.store, end)
}

/// The capacity of each buffer of the channel, in bytes; [`CAPACITY_UNKNOWN`] if its files do not say.
fn capacity(place: &Place) -> u64 {
    let number = |file| fs::read_to_string(place.control_path(file)).ok()?.trim().parse::<u64>().ok();
    number("subbuf_size")
        .zip(number("n_subbufs"))
        .map_or(CAPACITY_UNKNOWN, |(size, count)| size.saturating_mul(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise writers that are as fast as the recorder could keep it for ever.
    #[test]
    fn rest_of_a_channel_without_control_files_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { mount: dir.path().to_owned(), channel: "cpu".parse().unwrap() };
        assert_eq!(capacity(&place), CAPACITY_UNKNOWN);
        let control = |file: &str| place.control_path(file);
        fs::create_dir_all(control("")).unwrap();
        fs::write(control("subbuf_size"), "4096\n").unwrap();
        assert_eq!(capacity(&place), CAPACITY_UNKNOWN);
        fs::write(control("n_subbufs"), "8\n").unwrap();
        assert_eq!(capacity(&place), 32768);
    }
}
