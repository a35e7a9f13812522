//! `--follow`: reads all CPUs' files until a signal comes or the reader of our output has gone.
//!
//! ```text
//!            .---- no such channel, or it has gone: every 0.2 s, ---.
//!            v          and when something has been mounted         |
//!   wait for the channel --> read all --> poll all, the interval at most
//!                               ^                  |
//!                               '------------------'
//! ```
//!
//! poll(2) reports finished sub-buffers only, but a read also returns the unfinished one. So every round reads every
//! file, whatever poll said. The time between two rounds bounds how late a message appears.
//!
//! No file is polled without a pause when its state will not change:
//!
//! - A file whose channel has gone reports POLLERR forever. It is read to its end and closed, and there is a pause
//!   before it is opened again.
//! - Files on a disk are always ready and give nothing at their end. After many such rounds, polling leaves the files
//!   out for a moment. Empty buffers that are flushed look alike, so this takes many rounds and lasts a short time.

use std::time::{Duration, Instant};

use audience_common::signals::{self, Stop};

use crate::channel_files::{CpuFile, Identity, Place};
use crate::error::Failure;
use crate::losses::Tally;
use crate::mount::is_mounted;
use crate::options::Options;
use crate::output::{self, Output};
use crate::timed;
use crate::wait_for_channel::{
    LOOK_AGAIN, Mounts, Over, Polled, if_there, missing, wait_for, wait_for_files,
};

/// Least time between two reads of the loss counters. Counts since the last read are lost when the channel goes with
/// its daemon.
const COUNT_AGAIN: Duration = Duration::from_secs(1);
/// Most bytes of one CPU in one round, for a writer that is faster than our output.
///
/// It is well above the usual capacity of a buffer: a stop before the end may be inside a message, which the next CPU's
/// messages would then follow.
const ROUND_MAX: usize = 64 << 20;
/// Most rounds in a row in which files are ready and give nothing, before a pause. A flush causes such a round if the
/// sub-buffer is empty or was read already.
const FUTILE_MAX: usize = 50;
/// Longest time for the last read after a signal, if writers are as fast as this reader.
const LAST_READ_MAX: Duration = Duration::from_secs(1);

/// Follows the channel until a signal or the end of the output.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    // Only for its errors: a path that is no directory will not become a mount point.
    is_mounted(&options.what.mount)?;
    let stop = signals::catch(Some(signals::END_MAX), || {})?;
    let place = options.what.place();
    let output = Output::new()?;
    let mut follower =
        Follower { options, place, stop, output, tally: Tally::default(), waiting_told: false };
    let rest = |mounts: &Mounts| {
        follower.poll(&[], Some(mounts), LOOK_AGAIN)?;
        Ok(follower.stop.caught().is_some())
    };
    let Some(found) = wait_for(&follower.place, options.what.cpu, output::say, rest)? else { return Ok(()) };
    if found.is_timed {
        return timed::follow::run(options, follower.stop, found.at_once);
    }
    if let Some(option) = options.given() {
        return Err(Failure::Raw { channel: follower.place.channel, option });
    }
    follower.waiting_told = !found.at_once;
    let result = follower.run(found.at_once);
    if !matches!(result, Err(Failure::OutputClosed)) {
        follower.tally.tell(options.what.cpu);
    }
    result
}

struct Follower<'a> {
    options: &'a Options,
    place: Place,
    stop: Stop,
    output: Output,
    tally: Tally,
    /// Whether the wait for a channel was announced. Reset when there is a channel.
    waiting_told: bool,
}

impl Follower<'_> {
    fn run(&mut self, mut first: bool) -> Result<(), Failure> {
        let mounts = Mounts::watch()?;
        loop {
            let opened = if_there(self.place.open_of_kind(self.options.what.cpu))?;
            if let Some((mut files, is_timed)) = opened {
                if is_timed {
                    return Err(Failure::KindChanged(self.place.channel.clone()));
                }
                if first {
                    self.tally.begin(&self.place.stats_path());
                }
                let over = self.follow(&mut files);
                // Before the files are closed: they may be all that keeps the channel.
                self.tally.add(&self.place.stats_path());
                if over? == Over::Stopped {
                    return Ok(());
                }
            } else if !std::mem::replace(&mut self.waiting_told, true) {
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

    /// Reads and polls until a signal comes or the channel has gone.
    fn follow(&mut self, files: &mut [CpuFile]) -> Result<Over, Failure> {
        let first = files.first().map(CpuFile::identity);
        let mut counted = Instant::now();
        let mut uncounted = 0;
        let mut looked = Instant::now();
        let mut polled = Polled::default();
        let mut futile = 0;
        loop {
            // Checked before the round, so that the last round reads all that was written before the signal.
            let stopping = self.stop.caught().is_some();
            let begun = Instant::now();
            let mut got = 0;
            for file in files.iter_mut() {
                match self.copy(file) {
                    Ok(bytes) => got += bytes,
                    Err(failure) if failure.means_gone() => polled.gone = true,
                    Err(failure) => return Err(failure),
                }
            }
            if stopping {
                return Ok(Over::Stopped);
            }
            self.waiting_told &= got == 0;
            if polled.gone {
                return Ok(Over::Gone);
            }
            uncounted += got;
            if uncounted > 0 && counted.elapsed() >= COUNT_AGAIN {
                self.tally.add(&self.place.stats_path());
                (counted, uncounted) = (Instant::now(), 0);
            }
            futile = if polled.ready && got == 0 { futile + 1 } else { 0 };
            // Counted from the beginning of the round, so that no message waits longer than the interval.
            let rest = self.options.interval.saturating_sub(begun.elapsed());
            polled = if futile < FUTILE_MAX {
                self.poll(files, None, rest)?
            } else {
                self.poll(&[], None, rest.min(LOOK_AGAIN))?
            };
            if looked.elapsed() >= LOOK_AGAIN {
                polled.gone |= first.as_ref().is_some_and(Identity::was_replaced);
                looked = Instant::now();
            }
            // A channel that is closing can still be opened, but goes at once.
            self.waiting_told &= polled.gone;
        }
    }

    /// Copies the present content of a file to standard output. Returns the number of bytes.
    fn copy(&mut self, file: &mut CpuFile) -> Result<usize, Failure> {
        let mut total = 0;
        while total < ROUND_MAX {
            // One block at least, however late this thread runs after the signal.
            if total > 0 && self.stop.caught().is_some_and(|(_, since)| since.elapsed() >= LAST_READ_MAX) {
                break;
            }
            match self.output.copy_some(file)? {
                0 => break,
                got => total += got,
            }
        }
        Ok(total)
    }

    /// Waits until a file is ready, something has been mounted, a signal comes, or the time is over.
    fn poll(&self, files: &[CpuFile], mounts: Option<&Mounts>, time: Duration) -> Result<Polled, Failure> {
        wait_for_files(self.stop.as_fd(), self.output.as_fd(), files, mounts, time)
    }
}
