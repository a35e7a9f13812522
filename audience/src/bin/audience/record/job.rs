//! What the recorder of one channel has to do, and where.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use audience_common::trace_dir::mend;
use nix::fcntl::Flock;

use super::ends::{self, Ends, Slots, Words};
use super::limits::Limits;
use super::progress::{Progress, Recorded};
use super::recording::{self, Rotation};
use super::store::Store;
use super::{Output, create, timed};
use crate::channel_files::Place;
use crate::error::Failure;
use crate::options::Record;
use crate::output::say;

/// A channel to record, and how.
pub(crate) struct Job<'a> {
    pub(crate) options: &'a Record,
    pub(crate) place: Place,
    /// Directory of the recording.
    pub(crate) output: PathBuf,
    /// What is known of each CPU of an earlier recording, if the recording continues one.
    pub(crate) known: BTreeMap<usize, Words>,
    pub(crate) limits: &'a Limits,
    pub(crate) store: &'a Store,
    /// Whether the recorder ends when the channel has gone, instead of waiting for it.
    pub(crate) until_gone: bool,
    /// What was recorded, for the report of all channels.
    pub(crate) shown: Option<&'a Shown>,
    /// Held while the recorder runs: no other one continues its files.
    pub(crate) lock: Option<Flock<File>>,
    /// Device and inode number of the directory.
    directory: (u64, u64),
}

/// When a recorder of one of many channels closes the channel's files for a moment.
///
/// A channel that a producer made lives as long as its files are open, also those of the recorder. So a recorder that
/// finds nothing to record looks whether it is the last that holds the channel.
#[derive(Debug)]
pub(crate) struct Idle {
    since: Instant,
    after: Duration,
}

/// Time without data until a recorder closes the files first, and the longest such time.
const IDLE_MIN: Duration = Duration::from_secs(2);
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Time for which the files are closed. The daemon hears of closes a moment later.
pub(crate) const CLOSED: Duration = Duration::from_millis(200);

impl Idle {
    pub(crate) fn new() -> Idle {
        Idle { since: Instant::now(), after: IDLE_MIN }
    }

    /// Notes that there was data.
    pub(crate) fn end(&mut self) {
        *self = Idle::new();
    }

    /// Returns whether it is time to close the files.
    pub(crate) fn is_over(&mut self) -> bool {
        let is_over = self.since.elapsed() >= self.after;
        if is_over {
            (self.since, self.after) = (Instant::now(), (2 * self.after).min(IDLE_MAX));
        }
        is_over
    }
}

/// What was recorded of a channel so far.
pub(crate) type Shown = Mutex<Vec<Recorded>>;

impl<'a> Job<'a> {
    /// Begins a recording in `below`, a path within the output. Finds out where the one before ended.
    pub(crate) fn begin(
        options: &'a Record,
        place: Place,
        to: &Output,
        below: &Path,
        limits: &'a Limits,
        store: &'a Store,
    ) -> Result<Job<'a>, Failure> {
        // Joined to nothing, a path would end with a slash.
        let within = |dir: &Path| if below == Path::new("") { dir.to_owned() } else { dir.join(below) };
        let output = within(&to.dir);
        let (mut lock, mut known) = (None, BTreeMap::new());
        if options.continues() {
            create(&output)?;
            let locked = mend::lock(&output)?.ok_or_else(|| Failure::RecorderAtWork(output.clone()))?;
            for dir in to.before.iter().map(|dir| within(dir)).filter(|dir| dir.is_dir()) {
                if dir == output {
                    timed::mend(&dir, &locked)?;
                } else {
                    mend::mend(&dir)?;
                }
                if let Some(found) = ends::load(&dir)? {
                    known = settle(&dir, found);
                    break;
                }
            }
            lock = Some(locked);
        }
        let directory = identify(&output)?;
        let (until_gone, shown) = (false, None);
        Ok(Job { options, place, output, known, limits, store, until_gone, shown, lock, directory })
    }

    /// Fails if the directory was removed, or replaced by another. What is written into its open files would be lost.
    pub(crate) fn check_directory(&self) -> Result<(), Failure> {
        match identify(&self.output) {
            Ok(now) if now != self.directory => Err(Failure::Replaced(self.output.clone())),
            found => found.map(drop),
        }
    }

    /// When another file begins; `None` if the recording has one file of each CPU.
    pub(crate) fn rotation(&self) -> Option<Rotation> {
        let Record { rotate_interval, rotate_count, .. } = self.options;
        self.options.rotates().then(|| Rotation {
            size: self.options.file_size(),
            age: *rotate_interval,
            keep: rotate_count.map(u64::from),
        })
    }

    /// Begins to note where the recording ends, if another recorder continues it.
    pub(crate) fn ends(&self) -> Result<Option<Ends>, Failure> {
        self.options.continues().then(|| Ends::create(&self.output, &self.known)).transpose()
    }

    /// Shows what was recorded.
    pub(crate) fn show(&self, recorded: impl FnOnce() -> Vec<Recorded>) {
        if let Some(shown) = self.shown {
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = recorded();
        }
    }

    /// Reports at the end what was recorded, unless it is shown elsewhere.
    pub(crate) fn end(&self, progress: &mut Progress, recorded: Vec<Recorded>) {
        match self.shown {
            Some(_) => self.show(|| recorded),
            None => progress.end(&self.output, &recorded),
        }
    }
}

/// Returns the device and inode number of a directory.
fn identify(dir: &Path) -> Result<(u64, u64), Failure> {
    let found = std::fs::metadata(dir).map_err(|error| Failure::record(dir, error))?;
    Ok((found.dev(), found.ino()))
}

/// Settles where each recording at or below a directory ended, while its files are there.
pub(crate) fn settle_all(dir: &Path, depth: usize) -> Result<(), Failure> {
    let Some(below) = depth.checked_sub(1) else { return Ok(()) };
    if let Some(slots) = ends::load(dir)?
        && let Some(lock) = mend::lock(dir)?
    {
        timed::mend(dir, &lock)?;
        Ends::create(dir, &settle(dir, slots))?;
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).try_for_each(|dir| settle_all(&dir, below))
}

/// Returns what is known of each CPU, by the slots that the last recorder has left in a directory.
fn settle(dir: &Path, slots: Slots) -> BTreeMap<usize, Words> {
    let mut known = BTreeMap::new();
    for (cpu, slots) in slots {
        match recording::settle(dir, cpu, &slots).or_else(|| timed::settle(dir, cpu, &slots)) {
            Some(words) => {
                known.insert(cpu, words);
            }
            None => say(format_args!(
                "{}: the files were changed, so it is not known where CPU {cpu} ended: messages may come twice",
                dir.display()
            )),
        }
    }
    known
}
