//! The channels by name and by number, and the directories that their names begin with.

use std::collections::BTreeMap;
use std::sync::Arc;

use relay::ChannelName;

use crate::channel::Channel;
use crate::channel::stats::Counts;
use crate::policy::quota::Reservation;
use crate::registry::gone::GoneByName;

/// All channels, and the directories in their names.
#[derive(Default)]
pub(super) struct Channels {
    pub(super) by_name: BTreeMap<ChannelName, Arc<Channel>>,
    /// The channels by id, each with the reservation for its files.
    pub(super) by_id: BTreeMap<u32, (Arc<Channel>, Reservation)>,
    /// Directories that channels' names begin with.
    pub(super) dirs: BTreeMap<String, Dir>,
    /// The directories' paths by id.
    pub(super) dirs_by_id: BTreeMap<u32, String>,
    /// The last id given.
    ///
    /// Ids are never reused, so that an inode number means one channel or directory for ever.
    pub(super) last_id: u32,
    /// Sums of the counters of removed channels.
    pub(super) gone: Counts,
    /// The same by name and buffer.
    pub(super) gone_by_name: GoneByName,
    pub(super) closed: bool,
    /// The daemon ends: no channel goes before [`Registry::finish`](super::Registry::finish) has looked at it.
    pub(super) ending: bool,
    /// Number of channels that listings have looked at.
    #[cfg(test)]
    pub(super) looked_at: std::cell::Cell<usize>,
}

/// A directory that channels' names begin with.
pub(super) struct Dir {
    pub(super) id: u32,
    /// Number of channels whose names begin with the directory.
    n_channels: usize,
}

impl Channels {
    pub(super) fn add(&mut self, channel: Arc<Channel>, memory: Reservation) {
        self.last_id = self.last_id.max(channel.id());
        self.by_name.insert(channel.name().clone(), channel.clone());
        self.add_dirs(channel.name());
        self.by_id.insert(channel.id(), (channel, memory));
    }

    /// Adds the counters of a channel that goes to those of gone channels.
    pub(super) fn add_gone(&mut self, name: &ChannelName, by_cpu: &[Counts]) {
        for (cpu, counts) in by_cpu.iter().enumerate() {
            self.gone.add(counts);
            self.gone_by_name.add(name, cpu as u32, counts);
        }
    }

    pub(super) fn remove(&mut self, channel: &Channel) -> bool {
        let was_there = self.by_id.remove(&channel.id()).is_some();
        if was_there {
            self.by_name.remove(channel.name());
            self.remove_dirs(channel.name());
        }
        was_there
    }

    /// Adds a channel, perhaps in the place of `old`, and returns the reservation of `old`.
    ///
    /// Both have the same name, so the directories stay the same.
    pub(super) fn replace(
        &mut self,
        old: Option<&Arc<Channel>>,
        new: Arc<Channel>,
        memory: Reservation,
    ) -> Option<Reservation> {
        let freed = old.and_then(|old| self.by_id.remove(&old.id()));
        self.add(new, memory);
        if let Some(old) = old {
            self.remove_dirs(old.name());
        }
        freed.map(|(_, memory)| memory)
    }

    /// Returns the directories in the order of their ids, from `from` on.
    pub(super) fn dirs_from(&self, from: u32) -> impl Iterator<Item = (u32, &str)> {
        self.dirs_by_id.range(from..).map(|(id, path)| (*id, path.as_str()))
    }

    /// Returns the channels in the order of their ids, from `from` on.
    pub(super) fn channels_from(&self, from: u32) -> impl Iterator<Item = &Arc<Channel>> {
        let channels = self.by_id.range(from..).map(|(_, (channel, _))| channel);
        #[cfg(test)]
        let channels = channels.inspect(|_| self.looked_at.set(self.looked_at.get() + 1));
        channels
    }

    /// Adds a directory with this id, without a channel in it.
    pub(super) fn begin_dir(&mut self, path: &str, id: u32) {
        if !self.dirs.contains_key(path) {
            self.dirs.insert(path.to_owned(), Dir { id, n_channels: 0 });
            self.dirs_by_id.insert(id, path.to_owned());
        }
    }

    /// Removes a directory if no channel is in it.
    pub(super) fn end_dir(&mut self, path: &str) {
        if let Some(dir) = self.dirs.get(path).filter(|dir| dir.n_channels == 0) {
            self.dirs_by_id.remove(&dir.id);
            self.dirs.remove(path);
        }
    }

    fn add_dirs(&mut self, name: &ChannelName) {
        for dir in dirs_of(name) {
            if let Some(dir) = self.dirs.get_mut(dir) {
                dir.n_channels += 1;
                continue;
            }
            self.last_id += 1;
            self.dirs.insert(dir.to_owned(), Dir { id: self.last_id, n_channels: 1 });
            self.dirs_by_id.insert(self.last_id, dir.to_owned());
        }
    }

    fn remove_dirs(&mut self, name: &ChannelName) {
        for path in dirs_of(name) {
            let Some(dir) = self.dirs.get_mut(path) else { continue };
            dir.n_channels -= 1;
            self.end_dir(path);
        }
    }
}

/// Returns the directories of a channel's files: `app/web/log` gives `app` and `app/web`.
fn dirs_of(name: &ChannelName) -> impl Iterator<Item = &str> {
    let name = name.as_str();
    name.match_indices('/').map(|(slash, _)| &name[..slash])
}
