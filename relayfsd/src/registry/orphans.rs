//! Orphaned producers, which have files from an earlier daemon; and writing the state file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use crossbeam_channel::bounded;
use relay::layout::state_file::{ChannelEntry, STATE_FILE, StateFile};
use relay::ring::writer::AnyExecutor;
use relay::{ChannelName, GeometrySpec};

use super::ending::CLOSE_MAX;
use super::gone::GoneByName;
use super::{Channels, Create, OpenError, Registry};
use crate::channel::stats::Counts;
use crate::channel::{Channel, ChannelRef};
use crate::kill_point;
use crate::writers::{self, Job};

impl Registry {
    /// Opens a channel of the command line.
    ///
    /// A channel that an earlier daemon left continues if it has that geometry, or as long as it has unread data.
    pub(crate) fn open_permanent(
        self: &Arc<Self>,
        name: &ChannelName,
        spec: GeometrySpec,
    ) -> Result<(), OpenError> {
        if let Some(left) = self.attach(name)? {
            let wanted = spec.or(&self.defaults).build();
            let wanted = wanted.map_err(|source| OpenError::Geometry { name: name.clone(), source })?;
            if *left.geometry() == wanted || left.unread() > 0 {
                if *left.geometry() != wanted {
                    log::warn!(
                        "channel {name}: continues as {}, since it has unread data; once that is read, the next start makes it {wanted}",
                        left.geometry()
                    );
                }
                left.make_permanent();
                return Ok(());
            }
            // Producers that still write to the old channel notice the end, and reconnect to the new one.
            writers::close_all(&self.writers, &left, CLOSE_MAX);
            let mut channels = self.lock();
            channels.remove(&left);
            channels.gone.add(&left.total());
            self.forget(&channels, &left);
        }
        self.open(name, spec, Create::Permanent).map(drop)
    }

    /// Takes a removed channel out of the state file, and then removes its files.
    ///
    /// If there is no room for the state file, removing the files makes some, and it is saved then.
    pub(super) fn forget(&self, channels: &Channels, channel: &Channel) {
        let is_named = self.save(channels).is_err();
        kill_point!("remove-unnamed");
        channel.remove_files();
        if is_named && let Err(error) = self.save(channels) {
            log::warn!("channel {}: removed, but still in the state file: {error}", channel.name());
        }
    }

    /// Writes the first state file of this daemon.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.save(&self.lock())
    }

    /// Removes the channels that only an earlier daemon had a reason to keep.
    ///
    /// Called when the command line's channels are open.
    pub(crate) fn settle(self: &Arc<Self>) -> io::Result<()> {
        self.check_orphans();
        for channel in self.all() {
            self.let_go(&channel);
        }
        self.save(&self.lock())
    }

    /// Returns whether a channel may have orphaned producers.
    pub(crate) fn has_orphans(&self) -> bool {
        self.lock().by_name.values().any(|channel| channel.is_inherited())
    }

    /// Does what the doorbells of orphaned producers are for, which no daemon hears: wakes pollers, asks for anchors.
    pub(crate) fn wake_for_orphans(&self) {
        for channel in self.all().iter().filter(|channel| channel.is_inherited()) {
            channel.wake_readable();
            channel.note_orphans_activity();
        }
    }

    /// Checks every channel for orphaned producers. Those may have reconnected or ended.
    pub(crate) fn check_orphans(self: &Arc<Self>) {
        for channel in self.all().iter().filter(|channel| channel.is_inherited()) {
            if channel.check_orphans() {
                channel.wake_readable(); // for the last data they wrote
                self.hold_id(channel.id()).iter().for_each(|held| self.write_from_now_on(held));
                self.let_go(channel);
            }
        }
    }

    /// Does what had to wait while orphaned producers wrote, see [`Channel::may_be_written`].
    fn write_from_now_on(self: &Arc<Self>, channel: &ChannelRef) {
        if AnyExecutor::can_share() {
            return;
        }
        log::info!("channel {}: its earlier producers are gone, messages are written again", channel.name());
        self.finish_resets(channel);
        for cpu in 0..channel.n_bufs() {
            self.writers.make_room(channel, cpu);
        }
    }

    /// Finishes resets that an earlier daemon began before it died.
    pub(super) fn finish_resets(self: &Arc<Self>, channel: &ChannelRef) {
        for cpu in (0..channel.n_bufs()).filter(|cpu| channel.read_side(*cpu).reader.is_half_reset()) {
            let (sender, receiver) = bounded(1);
            let done = Box::new(move |done| sender.send(done).unwrap_or_default());
            self.writers.submit_now(Job::Reset { channel: channel.clone(), cpu, done });
            match receiver.recv_timeout(CLOSE_MAX) {
                Ok(Ok(())) => log::info!("channel {}: finished the reset of buffer {cpu}", channel.name()),
                Ok(Err(unavailable)) => {
                    log::warn!(
                        "channel {}: a reset was begun and cannot be finished: {unavailable}",
                        channel.name()
                    );
                }
                Err(_) => {
                    log::warn!("channel {}: buffer {cpu}: finishing its reset takes long", channel.name())
                }
            }
        }
    }

    /// Writes the state file, so that the next daemon finds these channels.
    pub(super) fn save(&self, channels: &Channels) -> io::Result<()> {
        self.save_state(channels, false)
    }

    /// Writes the state file with a note that the daemon ended cleanly.
    pub(super) fn save_ended(&self, channels: &Channels) -> io::Result<()> {
        self.save_state(channels, true)
    }

    fn save_state(&self, channels: &Channels, ended: bool) -> io::Result<()> {
        let entry = |channel: &Arc<Channel>| ChannelEntry {
            id: channel.id(),
            permanent: channel.permanent(),
            geometry: *channel.geometry(),
            n_bufs: channel.n_bufs(),
            name: channel.name().clone(),
        };
        // A broken channel that could not be recreated has no files.
        let kept = channels.by_name.values().filter(|channel| channel.has_files());
        let gone = channels.gone.named().filter(|(_, value)| *value != 0);
        let gone = gone.map(|(name, value)| (name.to_owned(), value));
        let state = StateFile {
            last_id: channels.last_id,
            ended,
            channels: kept.map(entry).collect(),
            gone: gone.chain(channels.gone_by_name.lines()).collect(),
            ..self.state.clone()
        };
        let (new, path) = (self.state_dir.join(format!("{STATE_FILE}.new")), self.state_dir.join(STATE_FILE));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(state.to_text().as_bytes())?;
        kill_point!("save-written");
        fs::rename(new, path)
    }
}

/// Returns the counters of removed channels from a state file: of all together, and by name.
///
/// It ignores names of other releases.
pub(super) fn gone(state: &StateFile) -> (Counts, GoneByName) {
    let (mut counts, mut by_name) = (Counts::default(), GoneByName::default());
    for (name, value) in &state.gone {
        if !by_name.add_line(name, *value) {
            counts.set(name, *value);
        }
    }
    (counts, by_name)
}
