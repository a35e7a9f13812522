//! `--follow` of a timed channel: merges live, within a window.
//!
//! ```text
//!   note the clock --> take what is unread of each CPU --> print what is older than the note and the window --> poll
//! ```
//!
//! What appears behind the note is younger than the note. So an idle CPU holds nothing up. A record that a writer
//! stamped, and committed later than the window, is printed when it appears, and marked `late`.
//!
//! A copy is consumed as soon as it is here, so that its room is free while it is printed.
//!
//! With `-n` the records that were written before the start are old: the last of them are printed, and then all that
//! comes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use audience_common::signals::Stop;
use nix::errno::Errno;
use relay::trace::merge::Merge;

use super::meaning::Meaning;
use super::print::Printer;
use super::streams::{Live, SharedLive, Stream};
use super::unread::Unread;
use crate::channel_files::{CpuFile, Identity, Place};
use crate::error::Failure;
use crate::losses::{self, Counters, Tally};
use crate::options::Options;
use crate::output::{self, Output};
use crate::unread;
use crate::wait_for_channel::{LOOK_AGAIN, Mounts, Over, Polled, if_there, missing, wait_for_files};
use audience_common::note::note;

/// Least time between two reads of the counters, and of the channel's clock and names.
const COUNT_AGAIN: Duration = Duration::from_secs(1);
/// Most rounds in a row in which files are ready and give nothing, before a pause.
const FUTILE_MAX: usize = 50;
/// What a stamp may be inverted by, between two CPUs.
const INVERSION: Duration = Duration::from_micros(1);

/// Follows the channel until a signal or the end of the output.
///
/// `at_once`: the channel was there when the program started.
pub(crate) fn run(options: &Options, stop: Stop, at_once: bool) -> Result<(), Failure> {
    let mut output = Output::new()?;
    let out = output.as_fd().try_clone_to_owned().map_err(|source| Failure::Output { source, lost: 0 })?;
    let mut follower = Follower {
        options,
        place: options.what.place(),
        stop,
        lives: BTreeMap::new(),
        merge: Merge::new(),
        old_until: None,
        tally: Tally::default(),
        out,
    };
    let result = follower.run(&mut output, at_once);
    if !matches!(result, Err(Failure::OutputClosed)) {
        follower.tally.tell(options.what.cpu);
    }
    result
}

struct Follower<'a> {
    options: &'a Options,
    place: Place,
    stop: Stop,
    lives: BTreeMap<usize, SharedLive>,
    merge: Merge<Stream>,
    /// Stamp of the youngest record that is old, until the last of those are printed.
    old_until: Option<u64>,
    tally: Tally,
    /// Standard output, to poll for errors.
    out: std::os::fd::OwnedFd,
}

impl Follower<'_> {
    fn run(&mut self, output: &mut Output, mut first: bool) -> Result<(), Failure> {
        let mounts = Mounts::watch()?;
        let mut printer: Option<Printer<'_>> = None;
        let mut output = Some(output);
        let mut waiting_told = false;
        loop {
            let opened = if_there(self.place.open_of_kind(self.options.what.cpu))?;
            if let Some((files, is_timed)) = opened {
                if !is_timed {
                    return Err(Failure::KindChanged(self.place.channel.clone()));
                }
                if let Some(meaning) = if_there(Meaning::of_channel(&self.place))? {
                    match &mut printer {
                        Some(printer) => printer.take_meaning(meaning),
                        none => {
                            let Some(output) = output.take() else { return Ok(()) };
                            let old_until = note(&meaning.timeline);
                            let printer = none.insert(Printer::new(&self.options.show, meaning, output)?);
                            // In a channel that comes later, nothing is old.
                            if first && self.options.show.lines.is_some() {
                                self.old_until = Some(old_until);
                            } else {
                                printer.print_all()?;
                            }
                        }
                    }
                    let Some(printer) = &mut printer else { return Ok(()) };
                    self.begin(&files, first);
                    let over = self.follow(&files, printer, &mut waiting_told);
                    // Before the files are closed: they may be all that keeps the channel.
                    self.tally.add(&self.place.stats_path());
                    // What is here is consumed.
                    let rest = self.print(printer, u64::MAX, u64::MAX);
                    if over? == Over::Stopped {
                        return rest;
                    }
                    rest?;
                }
            } else if !std::mem::replace(&mut waiting_told, true) {
                output::say(missing(&self.place));
            }
            // The counters of a channel that comes later begin at zero, while we run.
            first = false;
            self.poll(&[], Some(&mounts), LOOK_AGAIN)?;
            if self.stop.caught().is_some() {
                return Ok(());
            }
        }
    }

    fn begin(&mut self, files: &[CpuFile], first: bool) {
        let stats = self.place.stats_path();
        if first {
            self.tally.begin(&stats);
        }
        let (before, now) = (losses::before(&stats), losses::now(&stats));
        for file in files {
            let of = |counters: &Counters| counters.get(&file.cpu).copied().unwrap_or_default();
            let (before, now) = (of(&before), of(&now));
            let live = self.lives.entry(file.cpu).or_insert_with(|| Rc::new(Live::new(&before).into()));
            let mut live = live.borrow_mut();
            live.accounts.go_on(&before, &now);
            live.seen.may_come_again(false);
        }
    }

    /// Takes and prints until a signal comes or the channel has gone.
    fn follow(
        &mut self,
        files: &[CpuFile],
        printer: &mut Printer<'_>,
        waiting_told: &mut bool,
    ) -> Result<Over, Failure> {
        let first = files.first().map(CpuFile::identity);
        let (mut counted, mut looked) = (Instant::now(), Instant::now());
        let (mut ready, mut gone, mut futile) = (false, false, 0);
        loop {
            // Checked before the round, so that the last round reads all that was written before the signal.
            let stopping = self.stop.caught().is_some();
            let begun = Instant::now();
            let note = note(printer.lines().timeline());
            // Copies of what is empty would keep the daemon busy. What the counters do not show yet is younger than the
            // note.
            let stats = fs::read_to_string(self.place.stats_path()).unwrap_or_default();
            let (counters, unread) = (losses::of_text(&stats), unread::by_cpu(&stats));
            let mut got = 0;
            for file in files.iter().filter(|file| unread.get(&file.cpu).is_some_and(|bytes| *bytes > 0)) {
                match self.take(file.cpu, &counters) {
                    Ok(bytes) => got += bytes,
                    Err(failure) if failure.means_gone() => gone = true,
                    Err(failure) => return Err(failure),
                }
            }
            let may_refresh = got > 0 || counted.elapsed() >= COUNT_AGAIN;
            if may_refresh && !gone {
                if counted.elapsed() >= COUNT_AGAIN {
                    self.tell_rest(printer, &counters)?;
                    self.tally.add(&self.place.stats_path());
                    counted = Instant::now();
                }
                // Behind the copies, so that it has the events and threads of all their records.
                if let Some(meaning) = if_there(Meaning::of_channel(&self.place))? {
                    printer.take_meaning(meaning);
                }
            }
            let before_note = |time: Duration, printer: &mut Printer<'_>| {
                if stopping || gone { u64::MAX } else { note.saturating_sub(ticks(printer, time)) }
            };
            let known = before_note(INVERSION, printer);
            let until = before_note(self.options.window().max(INVERSION), printer);
            self.print(printer, known, until)?;
            if stopping {
                self.tell_rest(printer, &losses::now(&self.place.stats_path()))?;
                printer.flush()?;
                return Ok(Over::Stopped);
            }
            *waiting_told &= got == 0;
            if gone {
                return Ok(Over::Gone);
            }
            futile = if ready && got == 0 { futile + 1 } else { 0 };
            // Counted from the beginning of the round, so that no message waits longer than the interval.
            let rest = self.pause(got).saturating_sub(begun.elapsed());
            let (files, rest) =
                if futile < FUTILE_MAX { (files, rest) } else { (&[][..], rest.min(LOOK_AGAIN)) };
            Polled { ready, gone } = self.poll(files, None, rest)?;
            if looked.elapsed() >= LOOK_AGAIN {
                gone |= first.as_ref().is_some_and(Identity::was_replaced);
                looked = Instant::now();
            }
            // A channel that is closing can still be opened, but goes at once.
            *waiting_told &= gone;
        }
    }

    /// How long to wait for the next round: the interval, or the window if something waits for that.
    fn pause(&self, got: u64) -> Duration {
        let interval = self.options.interval;
        if got > 0 { interval.min(self.options.window().max(Duration::from_millis(1))) } else { interval }
    }

    /// Takes what is unread of a CPU. Returns the number of bytes.
    fn take(&mut self, cpu: usize, counters: &Counters) -> Result<u64, Failure> {
        let path = self.place.control_path(&format!("take/cpu{cpu}"));
        let losses = counters.get(&cpu).copied().unwrap_or_default();
        let mut take = Unread::take(&self.place, cpu, &losses)?;
        let len = take.len();
        if len == 0 {
            return Ok(0);
        }
        let mut bytes = Vec::new();
        let room = usize::try_from(len).ok().and_then(|len| bytes.try_reserve_exact(len).ok());
        room.ok_or_else(|| Failure::read(&path, Errno::ENOMEM.into()))?;
        take.look()?.read_to_end(&mut bytes).map_err(|error| Failure::read(&path, error))?;
        take.consume()?;
        let live = self.lives.entry(cpu).or_default();
        live.borrow_mut().counters = losses;
        self.merge.push(cpu as u32, Stream::new(Cursor::new(bytes), Some(Rc::clone(live))));
        Ok(len)
    }

    /// Prints what is here up to a stamp. All records up to `known` are here that their writers have committed.
    fn print(&mut self, printer: &mut Printer<'_>, known: u64, until: u64) -> Result<(), Failure> {
        if let Some(old) = self.old_until {
            if known < old {
                return Ok(());
            }
            self.print_up_to(printer, old)?;
            self.old_until = None;
            printer.print_all()?;
        }
        self.print_up_to(printer, until)?;
        printer.flush()
    }

    fn print_up_to(&mut self, printer: &mut Printer<'_>, until: u64) -> Result<(), Failure> {
        self.merge.set_horizon(until);
        while let Some(entry) = self.merge.next() {
            printer.entry(&entry)?;
        }
        Ok(())
    }

    /// Prints losses behind the last packets.
    fn tell_rest(&mut self, printer: &mut Printer<'_>, counters: &Counters) -> Result<(), Failure> {
        for (cpu, live) in &self.lives {
            let Some(now) = counters.get(cpu) else { continue };
            printer.losses(*cpu, live.borrow_mut().accounts.rest(now))?;
        }
        Ok(())
    }

    /// Waits until a file is ready, something has been mounted, a signal comes, or the time is over.
    fn poll(&self, files: &[CpuFile], mounts: Option<&Mounts>, time: Duration) -> Result<Polled, Failure> {
        wait_for_files(self.stop.as_fd(), self.out.as_fd(), files, mounts, time)
    }
}

/// A time in ticks of the channel's clock.
fn ticks(printer: &mut Printer<'_>, time: Duration) -> u64 {
    printer.lines().timeline().ticks_of(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
