//! `audience record --all`: a recorder for each channel, also for those that are made later.
//!
//! ```text
//!   list of channels, every second --> a thread for each new one --> it ends when its channel has gone
//! ```
//!
//! A channel that comes again continues its recording: `.recorder` has where that ended.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use relay::ChannelName;

use super::job::{Job, Shown};
use super::limits::Limits;
use super::progress::{Progress, Recorded, sum};
use super::store::Store;
use super::{Output, raw, timed};
use crate::channel_files::{Place, known};
use crate::error::Failure;
use crate::losses::Losses;
use crate::options::Record;
use crate::output::say;
use crate::wait_for_channel::{Mounts, missing_mount};

/// Longest time between two looks at the list of channels.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Time until a channel is tried again that could not be recorded.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Records all channels until a signal, the time limit, or an error of the recording's files.
pub(crate) fn run(options: &Record, output: &Output, limits: &Limits, store: &Store) -> Result<(), Failure> {
    let mut all = All {
        options,
        output,
        limits,
        store,
        progress: Progress::new(options.progress),
        channels: BTreeMap::new(),
        is_first: true,
    };
    let mounts = Mounts::watch()?;
    let result = thread::scope(|scope| {
        let mut running = Running::new();
        let watched = all.watch(scope, &mut running, &mounts);
        limits.halt();
        let ended = all.join(&mut running, true);
        watched.and(ended)
    });
    let recorded = all.recorded();
    all.progress.end(&options.output, &recorded);
    result
}

struct All<'a> {
    options: &'a Record,
    output: &'a Output,
    limits: &'a Limits,
    store: &'a Store,
    progress: Progress,
    channels: BTreeMap<String, Channel>,
    is_first: bool,
}

/// The recorders at work, by channel.
type Running<'scope> = BTreeMap<String, ScopedJoinHandle<'scope, Result<(), Failure>>>;

/// A channel that was found.
#[derive(Default)]
struct Channel {
    shown: Arc<Shown>,
    /// What earlier recorders of this run have recorded.
    before: (u64, Losses),
    /// When it could not be recorded, and why.
    failed: Option<(Instant, String)>,
}

impl<'a> All<'a> {
    /// Records until it is over.
    fn watch<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        running: &mut Running<'scope>,
        mounts: &Mounts,
    ) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let mut waiting_told = false;
        while !self.limits.is_over() {
            self.join(running, false)?;
            let names = known(&self.options.what.mount);
            match missing_mount(&self.options.what.mount).filter(|_| names.is_empty()) {
                Some(missing) if !std::mem::replace(&mut waiting_told, true) => {
                    self.progress.say(format_args!("{missing}; waiting for it"));
                }
                Some(_) => {}
                None => waiting_told = false,
            }
            for name in names.iter().filter_map(|name| name.parse::<ChannelName>().ok()) {
                self.begin(scope, running, &name)?;
            }
            self.is_first = false;
            self.store.keep_limit()?;
            if self.progress.due_in().is_some_and(|time| time.is_zero()) {
                let recorded = self.recorded();
                self.progress.report(recorded);
            }
            let due = self.progress.due_in().map_or(LOOK_AGAIN, |time| time.min(LOOK_AGAIN));
            self.limits.rest(due, Some(mounts))?;
        }
        Ok(())
    }

    /// Begins to record a channel, unless it is being recorded.
    fn begin<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        running: &mut Running<'scope>,
        name: &ChannelName,
    ) -> Result<(), Failure>
    where
        'a: 'scope,
    {
        let is_new = !self.channels.contains_key(name.as_str());
        let channel = self.channels.entry(name.as_str().to_owned()).or_default();
        let is_waiting = channel.failed.as_ref().is_some_and(|(at, _)| at.elapsed() < TRY_AGAIN);
        if running.contains_key(name.as_str()) || is_waiting {
            return Ok(());
        }
        // The counters of a channel that comes later begin at zero, while we run.
        let at_once = self.is_first || !is_new;
        let place = Place { mount: self.options.what.mount.clone(), channel: name.clone() };
        let (options, output, limits, store) = (self.options, self.output, self.limits, self.store);
        let shown = Arc::clone(&channel.shown);
        let work = move || {
            let below = Path::new(place.channel.as_str()).to_owned();
            let mut job = Job::begin(options, place, output, &below, limits, store)?;
            (job.until_gone, job.shown) = (true, Some(&*shown));
            let silent = Progress::new(Some(Duration::ZERO));
            if job.place.is_timed() {
                timed::run(&job, silent, at_once)
            } else {
                raw::run(&job, silent, at_once)
            }
        };
        let started = thread::Builder::new().name(name.base().to_owned()).spawn_scoped(scope, work);
        let started = started.map_err(|error| Failure::system("start a thread", error))?;
        running.insert(name.as_str().to_owned(), started);
        Ok(())
    }

    /// Takes the results of recorders that have ended, or of all. Fails if a recording's file cannot be written.
    fn join(&mut self, running: &mut Running<'_>, all: bool) -> Result<(), Failure> {
        let mut result = Ok(());
        for (name, recorder) in running.extract_if(.., |_, recorder| all || recorder.is_finished()) {
            let channel = self.channels.entry(name.clone()).or_default();
            let ended = recorder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            channel.count();
            let failed = channel.failed.take();
            match ended {
                // It came again as a channel of the other kind.
                Ok(()) | Err(Failure::KindChanged(_)) => {}
                Err(failure @ (Failure::Record { .. } | Failure::Replaced(_) | Failure::System { .. })) => {
                    result = Err(failure);
                }
                Err(failure) => {
                    let message = failure.to_string();
                    if failed.is_none_or(|(_, before)| before != message) {
                        say(format_args!("channel {name} is not recorded: {message}"));
                    }
                    channel.failed = Some((Instant::now(), message));
                }
            }
        }
        result
    }

    fn recorded(&self) -> Vec<Recorded> {
        let of = |(name, channel): (&String, &Channel)| {
            let (bytes, losses) = channel.recorded();
            Recorded { name: name.clone(), bytes, losses }
        };
        self.channels.iter().map(of).collect()
    }
}

impl Channel {
    fn recorded(&self) -> (u64, Losses) {
        let (bytes, losses) = sum(&self.shown.lock().unwrap_or_else(PoisonError::into_inner));
        (self.before.0 + bytes, [self.before.1, losses].into_iter().sum())
    }

    /// Adds what a recorder that has ended recorded.
    fn count(&mut self) {
        self.before = self.recorded();
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
