//! The channels there are, by name and by number, and the directories their names begin with.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use relay::ChannelName;

use crate::channel::Channel;
use crate::counts::Counts;

/// All channels, and the directories that come of their names.
#[derive(Default)]
pub(super) struct Channels {
    pub(super) by_name: BTreeMap<ChannelName, Arc<Channel>>,
    pub(super) by_id: HashMap<u32, Arc<Channel>>,
    /// Directories that channels' names begin with, and their ids.
    pub(super) dirs: BTreeMap<String, u32>,
    /// Never reused, so that an inode number means one channel or directory for ever.
    pub(super) last_id: u32,
    pub(super) memory: u64,
    /// What channels that are gone had counted.
    pub(super) gone: Counts,
    pub(super) closed: bool,
}

impl Channels {
    pub(super) fn add(&mut self, channel: Arc<Channel>) {
        self.memory += channel.memory();
        self.last_id = self.last_id.max(channel.id());
        self.by_name.insert(channel.name().clone(), channel.clone());
        self.add_dirs(channel.name());
        self.by_id.insert(channel.id(), channel);
    }

    pub(super) fn remove(&mut self, channel: &Channel) -> bool {
        let was_there = self.by_id.remove(&channel.id()).is_some();
        if was_there {
            self.by_name.remove(channel.name());
            self.remove_dirs(channel.name());
            self.memory -= channel.memory();
        }
        was_there
    }

    /// Adds a channel, in the place of another one of that name, if there is one: the directories stay the same.
    pub(super) fn replace(&mut self, old: Option<&Arc<Channel>>, new: Arc<Channel>) {
        if let Some(old) = old {
            self.by_id.remove(&old.id());
            self.memory -= old.memory();
        }
        self.add(new);
    }

    fn add_dirs(&mut self, name: &ChannelName) {
        for dir in dirs_of(name) {
            if !self.dirs.contains_key(dir) {
                self.last_id += 1;
                self.dirs.insert(dir.to_owned(), self.last_id);
            }
        }
    }

    fn remove_dirs(&mut self, name: &ChannelName) {
        for dir in dirs_of(name) {
            if !self.by_name.keys().any(|other| dirs_of(other).any(|used| used == dir)) {
                self.dirs.remove(dir);
            }
        }
    }
}

/// The directories of a channel's files: `app/web/log` gives `app` and `app/web`.
fn dirs_of(name: &ChannelName) -> impl Iterator<Item = &str> {
    let name = name.as_str();
    name.match_indices('/').map(|(slash, _)| &name[..slash])
}
