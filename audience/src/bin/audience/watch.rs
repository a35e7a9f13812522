//! `audience watch`: saves the last seconds of a timed channel when something happens.
//!
//! ```text
//!   wait for the channel --> note what is there
//!            ^                    |
//!            | it has gone        v
//!            '-------- poll: a sub-buffer was finished, or the interval is over <--.
//!                                 v                                                |
//!                   a copy of each buffer --> new records --> does one meet a condition?
//!                                                                 v
//!                                      the copies' last seconds become a trace directory
//! ```
//!
//! It looks at copies, and consumes nothing. The trace is made of the same copies in which the record was found: a
//! moment later it might be overwritten.

mod kept;
mod look;
mod save;
mod trigger;
mod wait;

use std::time::Instant;

use audience_common::signals;

use self::kept::Kept;
use self::look::Looker;
use self::trigger::{Hit, Triggers};
use self::wait::Waiter;
use crate::channel_files::{CpuFile, Identity, Place};
use crate::error::Failure;
use crate::options::Watch;
use crate::output::{self, Output, say};
use crate::timed::meaning::Meaning;
use crate::wait_for_channel::{LOOK_AGAIN, Mounts, if_there, missing};

/// Watches until a signal.
pub(crate) fn run(options: &Watch) -> Result<(), Failure> {
    output::check()?;
    // Only for its errors: a path that is no directory will not become a mount point.
    crate::mount::is_mounted(&options.mount)?;
    let stop = signals::catch(Some(signals::END_MAX), || {})?;
    let place = Place { mount: options.mount.clone(), channel: options.channel.clone() };
    let kept = Kept::open(&options.output, &place, options.keep.get())?;
    let looker = Looker::new(place.clone());
    let (triggers, output) = (Triggers::new(&options.on), Output::new()?);
    let mut watcher = Watcher { options, place, looker, triggers, kept, output, saved: None, left_out: 0 };
    let result = watcher.run(&stop);
    watcher.tell_left_out();
    result
}

/// Why the watch of a channel's files ended.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    /// A signal came.
    Stopped,
    /// The channel, or the whole mount, has gone.
    Gone,
}

struct Watcher<'a> {
    options: &'a Watch,
    place: Place,
    looker: Looker,
    triggers: Triggers,
    kept: Kept,
    output: Output,
    /// When the last trace was saved.
    saved: Option<Instant>,
    /// Looks with hits since then, for which none was saved.
    left_out: u64,
}

impl Watcher<'_> {
    fn run(&mut self, stop: &signals::Stop) -> Result<(), Failure> {
        let mounts = Mounts::watch()?;
        let (mut first, mut waiting_told) = (true, false);
        loop {
            if let Some((files, is_timed)) = if_there(self.place.open_of_kind(None))? {
                if !is_timed {
                    return Err(Failure::Raw {
                        channel: self.place.channel.clone(),
                        option: "audience watch",
                    });
                }
                if self.watch(&files, first, stop)? == Over::Stopped {
                    return Ok(());
                }
                waiting_told = false;
            } else if !std::mem::replace(&mut waiting_told, true) {
                say(missing(&self.place));
            }
            // A channel that comes later has only news.
            first = false;
            if stop.caught().is_some() {
                return Ok(());
            }
            wait::rest(stop, Some(&mounts), LOOK_AGAIN)?;
            if stop.caught().is_some() {
                return Ok(());
            }
        }
    }

    /// Watches these files until a signal, or until the channel has gone.
    ///
    /// `first`: what is there already is no news.
    fn watch(&mut self, files: &[CpuFile], first: bool, stop: &signals::Stop) -> Result<Over, Failure> {
        let waiter = Waiter::new(files, stop, &self.output)?;
        let identity = files.first().map(CpuFile::identity);
        let Some(meaning) = if_there(Meaning::of_channel(&self.place))? else { return Ok(Over::Gone) };
        self.triggers.take_meaning(meaning);
        self.looker.begin();
        if first && if_there(self.looker.skip(files))?.is_none() {
            return Ok(Over::Gone);
        }
        if !self.place.overwrites() {
            let channel = &self.place.channel;
            say(format_args!(
                "channel '{channel}' does not overwrite: when it is full, it holds the oldest messages, not the last"
            ));
        }
        say(format_args!("watching channel '{}' in {}", self.place.channel, self.place.mount.display()));
        let (mut gone, mut replaced_looked) = (false, Instant::now());
        loop {
            // Checked before the look, so that the last look has all that was written before.
            let stopping = stop.caught().is_some();
            let begun = Instant::now();
            match self.look(files) {
                Err(failure) if failure.means_gone() => gone = true,
                looked => looked?,
            }
            if stopping {
                return Ok(Over::Stopped);
            }
            if gone {
                return Ok(Over::Gone);
            }
            gone = waiter.wait(begun, self.options.interval)?;
            if replaced_looked.elapsed() >= LOOK_AGAIN {
                gone |= identity.as_ref().is_some_and(Identity::was_replaced);
                replaced_looked = Instant::now();
            }
        }
    }

    /// Looks for a record that meets a condition among those that are new, and saves a trace if there is one.
    fn look(&mut self, files: &[CpuFile]) -> Result<(), Failure> {
        let copies = match self.looker.look(files) {
            // Another look will do.
            Err(failure) if failure.is_out_of_memory() => {
                self.looker.tell_once(&failure);
                return Ok(());
            }
            looked => looked?,
        };
        if copies.is_empty() {
            return Ok(());
        }
        let (mut hit, mut is_refreshed): (Option<Hit>, bool) = (None, false);
        let place = &self.place;
        self.looker.news(&copies, |record| {
            // The channel's texts are younger than all copies, so once is enough.
            if !is_refreshed && self.triggers.lacks(record) {
                self.triggers.take_meaning(Meaning::of_channel(place)?);
                is_refreshed = true;
            }
            if let Some(found) = self.triggers.hit(record)
                && hit.as_ref().is_none_or(|hit| found.stamp < hit.stamp)
            {
                hit = Some(found);
            }
            Ok(())
        })?;
        let Some(hit) = hit else { return Ok(()) };
        if self.saved.is_some_and(|saved| saved.elapsed() < self.options.every) {
            self.left_out += 1;
            return Ok(());
        }
        self.tell_left_out();
        self.saved = Some(Instant::now());
        let copies = self.looker.complete(files, copies)?;
        match save::save(&self.place, &self.kept, &hit, self.options.last, &copies) {
            Ok(path) => {
                self.output.write(format!("{}\n", path.display()).as_bytes())?;
                self.kept.trim(&path);
            }
            Err(failure) if failure.means_gone() => return Err(failure),
            // A full disk may have room again.
            Err(failure) => say(failure),
        }
        Ok(())
    }

    /// Reports how often a trace would have been saved, if not for `--every`.
    fn tell_left_out(&mut self) {
        match std::mem::take(&mut self.left_out) {
            0 => {}
            n => {
                say(format_args!("the condition was met {n} times more since the last trace, within --every"))
            }
        }
    }
}
