//! Ends the channels with the daemon: some stay for the next daemon, the others are removed.
//!
//! ```text
//! begin_end   connections that are cut let go of no channel, since their producers may write on
//! close_all   no channel can be opened any more, pollers wake; with --discard every channel ends here
//!   ...       readers read their open files on, until they close them or the time is over
//! finish      no read is in flight any more; channels with unread data or a live producer stay
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::{Channels, Registry};
use crate::channel::Channel;
use crate::config::options::Keep;
use crate::kill_point;
use crate::state::end_report::Left;
use crate::writers;

/// Longest time that the writers have to close a channel's buffers.
pub(super) const CLOSE_MAX: Duration = Duration::from_millis(500);

impl Registry {
    /// Keeps every channel until [`Self::finish`] decides.
    ///
    /// The caller cuts the connections afterwards. A channel that only they held may have a live producer, whose
    /// messages would be lost.
    pub(crate) fn begin_end(&self) {
        self.lock().ending = true;
    }

    /// Stops opening, and wakes pollers.
    ///
    /// With [`Keep::Nothing`], ends the channels and returns what they had unread. Otherwise producers write on, and
    /// [`Self::finish`] decides which channels stay.
    pub(crate) fn close_all(self: &Arc<Self>, keep: Keep) -> Vec<Left> {
        self.lock().closed = true;
        // Waits for a thread that is creating a channel. It sees `closed`, or is done.
        drop(self.creating.lock());
        let mut discarded = Vec::new();
        for channel in self.all() {
            channel.close();
            if keep == Keep::Nothing {
                // Direct producers first: after that no more data comes, and the count below is final.
                self.close_buffers(&channel);
                discarded.push(left(&channel, channel.unread()));
                channel.retire_levels();
                channel.take_files();
            }
        }
        if keep == Keep::Nothing {
            // In case the rest of the end is cut short: the next daemon takes none of these channels over.
            let channels = Channels { last_id: self.lock().last_id, ..Channels::default() };
            if let Err(error) = self.save(&channels) {
                log::warn!("{error}");
            }
        }
        kill_point!("end-closed");
        discarded
    }

    /// Returns whether a channel would stay if the daemon ended now. Readers may read on.
    pub(crate) fn has_left(&self, keep: Keep) -> bool {
        self.all().iter().any(|channel| channel.has_files() && left(channel, channel.unread()).stays(keep))
    }

    /// Decides which channels stay, as the daemon's last step, and returns those.
    ///
    /// Waits for reads in flight and lets no other begin, so that the channels that stay record exactly what was read.
    /// Removes the files of the other channels. If no channel stays, it leaves them: the caller removes the whole
    /// directory.
    pub(crate) fn finish(self: &Arc<Self>, keep: Keep) -> Vec<Left> {
        let all: Vec<Arc<Channel>> = self.all().into_iter().filter(|channel| channel.has_files()).collect();
        for channel in all.iter().filter(|channel| !left(channel, channel.unread()).stays(keep)) {
            self.close_buffers(channel);
        }
        let (mut stay, mut gone) = (Vec::new(), Vec::new());
        for channel in all {
            let counts = channel.all_counts();
            let left = left(&channel, channel.freeze());
            if left.stays(keep) {
                stay.push(left);
            } else {
                // The state file must lose the channel's name before the files are removed.
                channel.retire_levels();
                let name = channel.name().clone();
                gone.extend(channel.take_files().map(|files| (files, name, counts)));
            }
        }
        kill_point!("end-frozen");
        let mut channels = self.lock();
        gone.iter().for_each(|(_, name, counts)| channels.add_gone(name, counts));
        let mut saved = self.save_ended(&channels);
        kill_point!("end-saved");
        if !stay.is_empty() {
            gone.iter().for_each(|(files, ..)| files.remove());
            // If there was no room for the state file, removing these files makes some.
            saved = saved.or_else(|_| self.save_ended(&channels));
        }
        if let Err(error) = saved {
            log::warn!("the state file does not say that this is a clean end: {error}");
        }
        stay
    }

    /// Ends all channels and keeps none.
    ///
    /// Readers read open files on; the directory may be another daemon's.
    pub(crate) fn abandon(self: &Arc<Self>) {
        for channel in self.all() {
            self.close_buffers(&channel);
            channel.take_files();
        }
    }

    /// Closes the channel's buffers, if direct producers may write them.
    fn close_buffers(self: &Arc<Self>, channel: &Channel) {
        if channel.is_shared()
            && let Some(held) = self.hold_id(channel.id())
        {
            writers::close_all(&self.writers, &held, CLOSE_MAX);
        }
    }
}

fn left(channel: &Channel, unread: u64) -> Left {
    let is_broken = channel.is_broken();
    Left {
        name: channel.name().clone(),
        unread: if is_broken { 0 } else { unread },
        has_producers: channel.has_producers(),
        is_broken,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::Ordering;

    use crossbeam_channel::bounded;
    use relay::GeometrySpec;
    use relay::system::cpus;

    use super::*;
    use crate::channel::ChannelRef;
    use crate::registry::{Create, Limits};
    use crate::state::recovery::Recovered;
    use crate::writers::{Writers, reset_all};

    /// A channel with a buffer for each CPU of the machine, and with one more.
    fn channel(dir: &Path) -> (Arc<Registry>, ChannelRef) {
        let n_cpus = cpus::count() + 1;
        let limits = Limits { memory: 1 << 30, channels: 4 };
        let spec = GeometrySpec { subbuf_size: Some(4096), n_subbufs: Some(4), ..GeometrySpec::default() };
        let writers = Arc::new(Writers::new(n_cpus));
        let recovered = Recovered::default();
        let registry = Registry::new(dir.to_owned(), n_cpus, limits, spec, recovered, writers).unwrap();
        let (channel, _) = registry.open(&"cpu".parse().unwrap(), spec, Create::Permanent).unwrap();
        assert_eq!(channel.n_bufs(), n_cpus);
        (registry, channel)
    }

    /// Producers on a CPU that the daemon may not use find the end as well.
    #[test]
    fn buffer_of_a_cpu_that_the_daemon_cannot_use_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, channel) = channel(dir.path());
        writers::close_all(&registry.writers, &channel, Duration::from_secs(60));
        let closed = |cpu| channel.buffer(cpu).block().closed.load(Ordering::Relaxed);
        assert!((0..channel.n_bufs()).all(|cpu| closed(cpu) == 1));
    }

    /// An append does not look whether the buffer is closed: only a blocked one refuses it.
    #[test]
    fn buffer_that_was_closed_is_not_reset() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, channel) = channel(dir.path());
        writers::close_all(&registry.writers, &channel, Duration::from_secs(60));
        let states = || {
            let words = (0..channel.n_bufs()).map(|cpu| &channel.buffer(cpu).block().state);
            words.map(|state| state.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        let before = states();
        let (sender, receiver) = bounded(1);
        reset_all(&registry.writers, &channel, move |failed| sender.send(failed).unwrap());
        let failed = receiver.recv().unwrap();
        assert_eq!(states(), before);
        let refused = "cannot be reset: the channel has ended";
        assert!(failed.iter().any(|why| why.to_string().ends_with(refused)));
    }
}
