//! Detects channels whose shared files a trusted process has corrupted.
//!
//! The reader corrects what it can, and the daemon logs that once a second at most. Truncated files and impossible
//! positions cannot be corrected: no message there can be trusted, and the channel is *broken*. The daemon keeps a
//! broken channel in the tree, so that people see why. It neither reads nor writes the channel, until a user has it
//! recreated.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use relay::layout::abi;
use relay::memory::mapping::truncations_met;

use crate::channel::{Channel, ReadSide};

/// Shortest time between two log lines about corrections in a channel.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// What the daemon knows about a channel's damage.
#[derive(Default)]
pub(crate) struct Damage {
    /// Why the channel is broken, if it is.
    broken: OnceLock<String>,
    /// Called once, when the daemon finds the channel broken.
    on_broken: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Truncations that the daemon had met, in any channel, at the last check of this channel.
    truncations_seen: AtomicUsize,
    /// The daemon closes the channel's buffers, or gives them up.
    ending: AtomicBool,
    /// When corrections were last logged.
    told: Mutex<Option<Instant>>,
}

/// A buffer's read side, with its lock.
pub(crate) struct ReadGuard<'a> {
    channel: &'a Channel,
    cpu: usize,
    /// `None` only while the guard is dropped.
    side: Option<MutexGuard<'a, ReadSide>>,
}

impl<'a> ReadGuard<'a> {
    /// Checks a locked read side before the caller trusts it.
    pub(crate) fn new(channel: &'a Channel, cpu: usize, side: MutexGuard<'a, ReadSide>) -> ReadGuard<'a> {
        if channel.damage().broken.get().is_none()
            && let Err(unsound) = side.reader.check_words()
        {
            channel.set_broken(format!("buffer {cpu}: {unsound}"));
        }
        // Only the daemon closes a channel, and it sets `ending` first.
        side.reader.deny_closed(|| channel.is_ending());
        ReadGuard { channel, cpu, side: Some(side) }
    }
}

impl Deref for ReadGuard<'_> {
    type Target = ReadSide;

    fn deref(&self) -> &ReadSide {
        self.side.as_ref().expect("only drop takes it")
    }
}

impl DerefMut for ReadGuard<'_> {
    fn deref_mut(&mut self) -> &mut ReadSide {
        self.side.as_mut().expect("only drop takes it")
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        let Some(mut side) = self.side.take() else { return };
        let corrected = side.reader.corrected();
        // This also checks for truncations that the daemon met while this guard had the lock.
        let broken = self.channel.is_broken();
        if corrected != side.corrected_told && !broken && self.channel.may_tell() {
            let new = corrected.wrapping_sub(side.corrected_told);
            side.corrected_told = corrected;
            drop(side);
            log::warn!(
                "channel {}: buffer {}: corrected {new} numbers that no producer or reader of ours writes there: a process that has its files damages them; --shared says which get them",
                self.channel.name(),
                self.cpu
            );
        }
    }
}

impl Channel {
    /// Sets the callback for a channel that is found broken.
    ///
    /// The thread that finds it calls with a buffer locked.
    pub(crate) fn on_broken(&self, call: Box<dyn Fn() + Send + Sync>) {
        // Set once, when the channel is created.
        let _ = self.damage().on_broken.set(call);
    }

    /// Returns whether the channel is broken, as far as looks at its memory have shown.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken_reason().is_some()
    }

    /// Returns why the channel is broken, if it is.
    pub(crate) fn broken_reason(&self) -> Option<&str> {
        let damage = self.damage();
        let met = truncations_met();
        // Acquire, with the Release below: a thread that need not check sees what the check found.
        if damage.truncations_seen.load(Ordering::Acquire) != met {
            if (0..self.n_bufs()).any(|cpu| self.buffer(cpu).is_torn()) {
                self.measure(None);
                self.set_broken("its files were truncated".to_owned());
            }
            damage.truncations_seen.store(met, Ordering::Release);
        }
        damage.broken.get().map(String::as_str)
    }

    /// Checks the files' lengths, and returns whether the channel is broken.
    ///
    /// The check covers the control file and the data file of `cpu`, or all. Callers that begin to use the channel need
    /// it.
    pub(crate) fn is_broken_or_cut(&self, cpu: Option<usize>) -> bool {
        if !self.is_broken() {
            self.measure(cpu);
        }
        self.is_broken()
    }

    /// Checks all buffers' words and the files' lengths. Returns whether the channel is broken.
    ///
    /// A reset needs this: a reset that only found the damage would leave the channel broken.
    pub(crate) fn is_found_broken(&self) -> bool {
        (0..self.n_bufs()).for_each(|cpu| drop(self.read_side(cpu)));
        self.is_broken_or_cut(None)
    }

    fn measure(&self, cpu: Option<usize>) {
        let len = |index| match index {
            0 => abi::control_header(self.geometry(), self.n_bufs()).control_len(),
            _ => abi::data_len(self.geometry()),
        };
        let paths = self.mapped_paths();
        let wanted = |index| index == 0 || cpu.is_none_or(|cpu| index == cpu + 1);
        for (index, path) in paths.iter().enumerate().filter(|(index, _)| wanted(*index)) {
            // A file that was removed can still be used by processes that have it open.
            let found = fs::symlink_metadata(path).map_or(u64::MAX, |status| status.len());
            if found < len(index) {
                let path = path.display();
                self.set_broken(format!(
                    "{path} was truncated: it has {found} bytes instead of {}",
                    len(index)
                ));
                return;
            }
        }
    }

    /// Marks the channel as broken: ends its buffers, wakes its pollers, calls the callback.
    fn set_broken(&self, why: String) {
        if self.damage().broken.set(why).is_err() {
            return;
        }
        let (name, why) = (self.name(), self.damage().broken.get().map_or("", String::as_str));
        log::error!("channel {name}: broken, and not used any more: {why}; {}", remedy(name));
        self.give_up_buffers();
        (0..self.n_bufs()).for_each(|cpu| self.wake(cpu));
        if let Some(call) = self.damage().on_broken.get() {
            call();
        }
    }

    /// Ends the buffers, from any thread: producers that map them notice at their next switch.
    ///
    /// The caller has the writers close the buffers, see [`close_all`] and [`Writers::give_up`]. What a producer writes
    /// until then may be lost. On a CPU that the daemon cannot use there is no other end.
    ///
    /// [`close_all`]: crate::writers::close_all
    /// [`Writers::give_up`]: crate::writers::Writers::give_up
    pub(crate) fn give_up_buffers(&self) {
        self.damage().ending.store(true, Ordering::Release);
        (0..self.n_bufs()).for_each(|cpu| self.buffer(cpu).announce_end());
    }

    /// Returns whether the buffers are closed, or will be.
    pub(crate) fn is_ending(&self) -> bool {
        self.damage().ending.load(Ordering::Acquire)
    }

    /// Takes over from `before`, which this channel replaces, when corrections were last logged.
    pub(crate) fn tell_no_sooner_than(&self, before: &Channel) {
        let told = *before.damage().told.lock().unwrap_or_else(PoisonError::into_inner);
        *self.damage().told.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    fn may_tell(&self) -> bool {
        let mut told = self.damage().told.lock().unwrap_or_else(PoisonError::into_inner);
        let may = told.is_none_or(|at| at.elapsed() >= TELL_INTERVAL);
        if may {
            *told = Some(Instant::now());
        }
        may
    }
}

/// Says what people can do about a broken channel.
pub(crate) fn remedy(name: &relay::ChannelName) -> String {
    format!("write 1 to .relay/channels/{name}/reset to recreate it")
}
