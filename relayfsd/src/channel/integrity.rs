//! Channels whose files somebody has damaged who was trusted with them.
//!
//! What can be corrected is, by the reader, and told once a second at most. Where files were truncated, or words say where
//! nobody can be, nothing that is found there is anybody's message any more: the channel is *broken*. It stays where it is,
//! so that people see why, but is neither read nor written, until somebody has it made anew.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use relay::layout::abi;
use relay::memory::mapping::truncations_met;

use crate::channel::{Channel, ReadSide};

/// At most as often it is told that something of a channel was corrected.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a channel's damage.
#[derive(Default)]
pub(crate) struct Damage {
    /// Why the channel is broken, if it is.
    broken: OnceLock<String>,
    /// Called when that becomes known.
    on_broken: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Truncations met by the daemon, here or elsewhere, when it was last looked whether any was here.
    truncations_seen: AtomicUsize,
    /// The daemon closes the channel's buffers, or gives them up.
    ending: AtomicBool,
    /// When corrections were last told.
    told: Mutex<Option<Instant>>,
}

/// A buffer's reading side, with the one lock it has.
pub(crate) struct ReadGuard<'a> {
    channel: &'a Channel,
    cpu: usize,
    /// Only gone while it is dropped.
    side: Option<MutexGuard<'a, ReadSide>>,
}

impl<'a> ReadGuard<'a> {
    /// What the lock of a buffer's reading side protects, looked at before anybody goes by it.
    pub(crate) fn new(channel: &'a Channel, cpu: usize, side: MutexGuard<'a, ReadSide>) -> ReadGuard<'a> {
        if channel.damage().broken.get().is_none()
            && let Err(unsound) = side.reader.check_words()
        {
            channel.set_broken(format!("buffer {cpu}: {unsound}"));
        }
        // Only the daemon closes a channel, and it says so before.
        if !channel.damage().ending.load(Ordering::Acquire) {
            side.reader.deny_closed();
        }
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
        // What was met while the lock was held is known from then on.
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
    /// Sets what is called once when the channel is found broken, by whoever finds it, with a buffer locked.
    pub(crate) fn on_broken(&self, call: Box<dyn Fn() + Send + Sync>) {
        // Set once, when it is made.
        let _ = self.damage().on_broken.set(call);
    }

    /// Whether the channel is broken, as far as anybody who looked at its memory could know.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken_reason().is_some()
    }

    /// Why it is, if it is.
    pub(crate) fn broken_reason(&self) -> Option<&str> {
        let damage = self.damage();
        let met = truncations_met();
        // Acquire, with the Release below: who need not look, sees what was found.
        if damage.truncations_seen.load(Ordering::Acquire) != met {
            if (0..self.n_bufs()).any(|cpu| self.buffer(cpu).is_torn()) {
                self.measure(None);
                self.set_broken("its files were truncated".to_owned());
            }
            damage.truncations_seen.store(met, Ordering::Release);
        }
        damage.broken.get().map(String::as_str)
    }

    /// The same after a look at the length of the control file and of the data file of `cpu`, or of all: for who begins to use
    /// the channel.
    pub(crate) fn is_broken_or_cut(&self, cpu: Option<usize>) -> bool {
        if !self.is_broken() {
            self.measure(cpu);
        }
        self.is_broken()
    }

    /// The same after a look at all buffers' words: a reset that only found the damage would leave the channel broken.
    pub(crate) fn is_found_broken(&self) -> bool {
        (0..self.n_bufs()).for_each(|cpu| drop(self.read_side(cpu)));
        self.is_broken_or_cut(None)
    }

    fn measure(&self, cpu: Option<usize>) {
        let len = |index| match index {
            0 => abi::control_header(self.geometry(), self.n_bufs()).control_len(),
            _ => abi::data_len(self.geometry()),
        };
        let paths = self.paths();
        let wanted = |index| index == 0 || cpu.is_none_or(|cpu| index == cpu + 1);
        for (index, path) in paths.iter().enumerate().filter(|(index, _)| wanted(*index)) {
            // One that cannot be found may be used by who has it.
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

    /// Nothing of it is believed any more.
    fn set_broken(&self, why: String) {
        if self.damage().broken.set(why).is_err() {
            return;
        }
        let (name, why) = (self.name(), self.damage().broken.get().map_or("", String::as_str));
        log::error!("channel {name}: broken, and not used any more: {why}; {}", remedy(name));
        self.set_ending();
        (0..self.n_bufs()).for_each(|cpu| self.buffer(cpu).condemn());
        (0..self.n_bufs()).for_each(|cpu| self.wake(cpu));
        if let Some(call) = self.damage().on_broken.get() {
            call();
        }
    }

    /// From now on the buffers may be closed.
    pub(crate) fn set_ending(&self) {
        self.damage().ending.store(true, Ordering::Release);
    }

    /// It takes the place of a channel of which something may just have been told.
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

/// What people can do about a broken channel.
pub(crate) fn remedy(name: &relay::ChannelName) -> String {
    format!("write 1 to .relay/channels/{name}/reset to recreate it")
}
