//! The daemon's channels by name: opens, creates, recreates and removes them.
//!
//! `socket` and `tree` look channels up here, `daemon` creates the registry and ends the channels.
//! A [`ChannelRef`] keeps a channel. The drop of the last one calls [`Release::release`], and the registry removes the
//! channel. The room gives jobs to `writers`, limits memory with `policy`, and keeps the state file of `state`.
//! This room may not know the tree, FUSE, the socket or the mount.
//!
//! Lock order of the daemon. A thread that has a lock takes only locks to the right of that lock:
//!
//! ```text
//! Registry: creating --> channels --+
//! OpenBuffer: history --------------+--> read_side, a buffer's --+--> waiters, the buffer's
//!                                                                 +--> Channel: files; Damage: told
//!                                                                 +--> WorkerQueue: idle
//! ```
//!
//! With one of the rightmost locks, the slot of a snapshot or of takes, a copy's uses, a quota's table, or `spin` of a
//! buffer's file, a thread takes no other lock. Dropping the last [`ChannelRef`] takes `channels`. So a thread that drops one has at most `creating` of
//! these locks.

pub(crate) mod anchor_timer;
pub(crate) mod create_queue;
pub(crate) mod flush_timer;

mod directories;
mod ending;
mod error;
mod gone;
mod index;
mod orphans;
mod recreate;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use relay::layout::channel_name::COMPONENTS_MAX;
use relay::layout::state_file::StateFile;
use relay::{ChannelName, Geometry, GeometrySpec};

pub(crate) use self::error::OpenError;
use self::index::Channels;
use crate::channel::stats::Counts;
use crate::channel::{Channel, ChannelRef, Named, Release, TimerRequest};
use crate::kill_point;
use crate::policy::fair_queue::Turns;
use crate::policy::quota::{self, Quota, QuotaExceeded, Reservation};
use crate::state::recovery::Recovered;
use crate::writers::Writers;

/// Number of channel names that an error message lists before it only counts the rest.
const NAMES_LISTED: usize = 20;

/// How to create a channel whose name does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Create {
    /// Create a channel for this user. It lives while it has a holder or unread data.
    ForHolders(u32),
    /// Create a channel for this user. It lives until it is removed, or the daemon ends.
    UntilRemoved(u32),
    /// Create a channel that lives as long as the daemon.
    Permanent,
}

/// Limits of all channels together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Memory of buffers, in bytes.
    pub(crate) memory: u64,
    /// Number of channels at a time.
    pub(crate) channels: usize,
}

/// All channels of the daemon.
pub(crate) struct Registry {
    state_dir: PathBuf,
    n_cpus: usize,
    channels_max: usize,
    /// Memory of the channels' files and of copies of buffers, in bytes.
    memory: Arc<Quota>,
    defaults: GeometrySpec,
    /// The state file's values besides the channels.
    state: StateFile,
    channels: Mutex<Channels>,
    /// Held while a thread creates a channel, which takes long for a large one.
    ///
    /// `channels` is not held meanwhile.
    creating: Mutex<()>,
    writers: Arc<Writers>,
    creator: Turns,
    copier: Turns,
    flush_request: Arc<TimerRequest>,
    anchor_request: Arc<TimerRequest>,
    /// Quota of connections, once the socket is served.
    connections: OnceLock<Arc<Quota>>,
}

impl Registry {
    /// Creates the registry, with the channels that an earlier daemon left.
    ///
    /// Buffers are files in `state_dir`. `limits` bound new channels together with the existing ones. `defaults` fills
    /// in what a geometry leaves out. `writers` flush, reset and close buffers for the registry.
    pub(crate) fn new(
        state_dir: PathBuf,
        n_cpus: usize,
        limits: Limits,
        defaults: GeometrySpec,
        recovered: Recovered,
        writers: Arc<Writers>,
    ) -> io::Result<Arc<Registry>> {
        let mut channels = Channels { last_id: recovered.state.last_id, ..Channels::default() };
        (channels.gone, channels.gone_by_name) = orphans::gone(&recovered.state);
        let memory = Quota::new(limits.memory as usize);
        for channel in recovered.channels {
            let (name, unread) = (channel.name(), channel.unread());
            if unread == 0 || recovered.state.ended {
                log::info!("channel {name}: continues with {unread} bytes unread");
            } else {
                log::warn!(
                    "channel {name}: continues with {unread} bytes unread, since the last relayfsd was killed or crashed"
                );
            }
            let reserved = memory.claim_anyway(0, channel.memory() as usize);
            channels.add(Arc::new(channel), reserved);
        }
        let registry = Arc::new(Registry {
            state_dir,
            n_cpus,
            channels_max: limits.channels,
            memory,
            defaults,
            state: recovered.state,
            channels: Mutex::new(channels),
            creating: Mutex::default(),
            writers,
            creator: Turns::start("creator")?,
            copier: Turns::start("copier")?,
            flush_request: TimerRequest::new(),
            anchor_request: TimerRequest::new(),
            connections: OnceLock::new(),
        });
        for channel in registry.all() {
            registry.watch(&channel);
            if let Some(held) = registry.hold_id(channel.id()) {
                registry.finish_resets(&held);
                registry.writers.take_anchor(&held);
            }
            if !channel.may_be_written() {
                log::warn!(
                    "channel {}: producers of an earlier relayfsd write it directly, and this one has no restartable sequences \
                     (rseq): messages by the socket are refused until those producers are gone",
                    channel.name()
                );
            }
        }
        Ok(registry)
    }

    /// Returns the number of configured CPUs.
    pub(crate) fn n_cpus(&self) -> usize {
        self.n_cpus
    }

    /// Returns the salt of the inode numbers of channels' files.
    pub(crate) fn salt(&self) -> u32 {
        self.state.salt
    }

    /// Returns the thread that makes copies of buffers.
    pub(crate) fn copier(&self) -> &Turns {
        &self.copier
    }

    /// Returns the quota of memory for channels and copies of buffers, in bytes.
    pub(crate) fn memory(&self) -> &Arc<Quota> {
        &self.memory
    }

    /// Attaches to the channel of a name, or creates it.
    ///
    /// The flag says whether the channel is new.
    ///
    /// An existing channel keeps its geometry. Creating one takes long for large buffers.
    pub(crate) fn open(
        self: &Arc<Self>,
        name: &ChannelName,
        spec: GeometrySpec,
        create: Create,
    ) -> Result<(ChannelRef, bool), OpenError> {
        if let Some(held) = self.attach(name)? {
            return Ok((held, false));
        }
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = self.attach(name)? {
            return Ok((held, false)); // another thread was faster
        }
        self.make(name, spec, create, None).map(|held| (held, true))
    }

    /// Creates a channel, perhaps in the place of `old`, which has the same name.
    ///
    /// Other threads find `old` until the new channel is complete. The caller has `creating`.
    fn make(
        self: &Arc<Self>,
        name: &ChannelName,
        spec: GeometrySpec,
        create: Create,
        old: Option<&Arc<Channel>>,
    ) -> Result<ChannelRef, OpenError> {
        let geometry = spec.or(&self.defaults).build();
        let geometry = geometry.map_err(|source| OpenError::Geometry { name: name.clone(), source })?;
        let n_bufs = if geometry.global() { 1 } else { self.n_cpus };
        let maker = match create {
            Create::ForHolders(uid) | Create::UntilRemoved(uid) => Some(uid),
            Create::Permanent => None,
        };
        let (id, memory) = self.admit(name, &geometry, n_bufs, maker, old)?;
        let permanent = !matches!(create, Create::ForHolders(_));
        let named = Named { id, name: name.clone(), geometry, permanent, maker };
        let failed = |source| OpenError::Allocate { name: name.clone(), dir: self.state_dir.clone(), source };
        let channel = Channel::create(&self.state_dir, self.state.epoch, named, n_bufs).map_err(failed)?;
        let channel = Arc::new(channel);
        if let Some(old) = old {
            channel.tell_no_sooner_than(old);
            channel.take_levels(old);
        }
        self.watch(&channel);
        kill_point!("open-made");
        let mut channels = self.lock();
        if channels.closed {
            channel.remove_files();
            return Err(OpenError::Closed);
        }
        let before = channels.replace(old, channel.clone(), memory);
        let mut saved = self.save(&channels);
        if let Some(old) = old {
            // If there was no room for the state file, removing the old files makes some.
            old.remove_files();
            saved = saved.or_else(|_| self.save(&channels));
        }
        if let Err(error) = saved {
            match old.zip(before) {
                // The old channel has no files any more, but users can write to its `reset` to try again.
                Some((old, memory)) => drop(channels.replace(Some(&channel), old.clone(), memory)),
                None => drop(channels.remove(&channel)),
            }
            channel.remove_files();
            return Err(failed(error));
        }
        kill_point!("open-named");
        log::info!("channel {name}: created, {geometry}, {n_bufs} buffers");
        Ok(self.hold_channel(&channel))
    }

    /// Returns the channel of a name, held.
    pub(crate) fn hold(self: &Arc<Self>, name: &str) -> Option<ChannelRef> {
        let name = name.parse().ok()?;
        let channels = self.lock();
        channels.by_name.get(&name).map(|channel| self.hold_channel(channel))
    }

    /// Begins to hold a channel. The caller has the lock of `channels`.
    fn hold_channel(self: &Arc<Self>, channel: &Arc<Channel>) -> ChannelRef {
        let registry = Arc::downgrade(self);
        ChannelRef::new(channel.clone(), registry)
    }

    /// Returns the channel of an id, held.
    pub(crate) fn hold_id(self: &Arc<Self>, id: u32) -> Option<ChannelRef> {
        let channels = self.lock();
        channels.by_id.get(&id).map(|(channel, _)| self.hold_channel(channel))
    }

    /// Returns the id of a directory that channels' names begin with.
    pub(crate) fn dir_id(&self, path: &str) -> Option<u32> {
        self.lock().dirs.get(path).map(|dir| dir.id)
    }

    /// Returns the path of the directory with an id.
    pub(crate) fn dir_path(&self, id: u32) -> Option<String> {
        self.lock().dirs_by_id.get(&id).cloned()
    }

    /// Passes the directories directly below `path` (empty: root) to `visit`, until it breaks.
    ///
    /// They come in the order of their ids, from `from` on, each with its last component. The registry is locked
    /// meanwhile.
    pub(crate) fn visit_dirs(
        &self,
        path: &str,
        from: u32,
        mut visit: impl FnMut(u32, &str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let channels = self.lock();
        let split = |(id, dir)| (id, str::rsplit_once(dir, '/').unwrap_or(("", dir)));
        let mut children = channels.dirs_from(from).map(split).filter(|(_, (parent, _))| *parent == path);
        children.try_for_each(|(id, (_, last))| visit(id, last))
    }

    /// Passes the channels with base filenames in `path` to `visit`, like [`Self::visit_dirs`].
    pub(crate) fn visit_channels(
        &self,
        path: &str,
        from: u32,
        visit: impl FnMut(&Arc<Channel>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let channels = self.lock();
        channels.channels_from(from).filter(|channel| channel.name().dir() == path).try_for_each(visit)
    }

    /// Returns every channel, in the order of names.
    pub(crate) fn all(&self) -> Vec<Arc<Channel>> {
        self.lock().by_name.values().cloned().collect()
    }

    /// Returns the text of `.relay/stats`: channels, memory, the counters of removed channels.
    pub(crate) fn stats(&self) -> String {
        let channels = self.lock();
        let (n_channels, gone) = (channels.by_name.len(), channels.gone);
        drop(channels);
        let (memory, max) = (self.memory.used(), self.memory.max());
        let mut text = format!("channels {n_channels}\nmemory_bytes {memory}\nmemory_max_bytes {max}\n");
        gone.write_to("gone", &mut text);
        text
    }

    /// Returns the counters of channels that are gone, by name and buffer.
    pub(crate) fn gone_by_name(&self) -> BTreeMap<ChannelName, BTreeMap<u32, Counts>> {
        self.lock().gone_by_name.all()
    }

    /// Returns the number of daemons so far that used the state directory.
    pub(crate) fn epoch(&self) -> u32 {
        self.state.epoch
    }

    /// Sets the quota of connections.
    pub(crate) fn set_connections(&self, connections: Arc<Quota>) {
        // Set once, when the socket is served.
        let _ = self.connections.set(connections);
    }

    /// Returns the number of connections, and the most that there may be.
    pub(crate) fn connections(&self) -> (usize, usize) {
        self.connections.get().map_or((0, 0), |quota| (quota.used(), quota.max()))
    }

    /// Returns where threads with new waiters ask for a flush.
    pub(crate) fn flush_request(&self) -> &Arc<TimerRequest> {
        &self.flush_request
    }

    /// Returns where threads that use timed channels ask for anchors.
    pub(crate) fn anchor_request(&self) -> &Arc<TimerRequest> {
        &self.anchor_request
    }

    /// Attaches to the channel of a name, if there is one.
    pub(crate) fn attach(self: &Arc<Self>, name: &ChannelName) -> Result<Option<ChannelRef>, OpenError> {
        let channels = self.lock();
        if channels.closed {
            return Err(OpenError::Closed);
        }
        let held = channels.by_name.get(name).map(|channel| self.hold_channel(channel));
        drop(channels);
        if let Some(held) = &held
            && held.is_broken_or_cut(None)
        {
            let why = held.broken_reason().unwrap_or_default().to_owned();
            return Err(OpenError::Broken { name: name.clone(), why });
        }
        Ok(held)
    }

    /// Checks the limits for a new channel, perhaps in the place of `old`.
    ///
    /// Returns its id and its memory.
    fn admit(
        &self,
        name: &ChannelName,
        geometry: &Geometry,
        n_bufs: usize,
        maker: Option<u32>,
        old: Option<&Arc<Channel>>,
    ) -> Result<(u32, Reservation), OpenError> {
        let mut channels = self.lock();
        if let Some(why) = channels.by_name.keys().find_map(|other| name.conflict_with(other)) {
            return Err(OpenError::Conflict { name: name.clone(), why });
        }
        // Channels without a known user count as root's, and root may have all.
        let uid = maker.unwrap_or(0);
        let of_user = channels.by_name.values().filter(|channel| maker.is_some() && channel.maker() == maker);
        let (used, max) = (channels.by_name.len() - usize::from(old.is_some()), self.channels_max);
        quota::admits(uid, of_user.count() as u64, used as u64, max as u64, 1).map_err(|why| match why {
            QuotaExceeded::All => OpenError::TooMany { name: name.clone(), max },
            QuotaExceeded::Yours => OpenError::TooManyOfUser { name: name.clone(), uid, max },
        })?;
        let needed = Channel::memory_needed(geometry, n_bufs);
        let max = self.memory.max() as u64;
        let freed = old.map_or(0, |old| old.memory() as usize);
        let memory = self.memory.claim_replacing(uid, needed as usize, freed).map_err(|why| match why {
            QuotaExceeded::All => {
                let used = self.memory.used().saturating_sub(freed) as u64;
                let (name, geometry) = (name.clone(), *geometry);
                OpenError::Memory { name, geometry, n_bufs, needed, used, max }
            }
            QuotaExceeded::Yours => OpenError::MemoryOfUser { name: name.clone(), uid, needed, max },
        })?;
        if channels.last_id > u32::MAX - 2 * COMPONENTS_MAX as u32 {
            return Err(OpenError::NoIds { name: name.clone() });
        }
        channels.last_id += 1;
        Ok((channels.last_id, memory))
    }

    /// Makes the error for a name that no channel has.
    ///
    /// It lists other channels, so make it only to send it.
    pub(crate) fn unknown(&self, name: ChannelName) -> OpenError {
        let channels = self.lock();
        // A channel of that name may have been created meanwhile.
        let others = || channels.by_name.keys().filter(|other| **other != name);
        let more = others().count().saturating_sub(NAMES_LISTED);
        let names: Vec<ChannelName> = others().take(NAMES_LISTED).cloned().collect();
        drop(channels);
        OpenError::unknown(name, &names, more)
    }

    /// Removes a channel without holders, unless it has to stay or has unread data.
    fn let_go(&self, channel: &Arc<Channel>) {
        let mut channels = self.lock();
        let has_unread = || channel.unread() > 0 && !channel.is_broken();
        if channel.is_held()
            || channel.permanent()
            || channel.is_inherited()
            || channels.ending
            || has_unread()
        {
            return;
        }
        self.remove_locked(&mut channels, channel);
    }

    /// Number of channels that listings have looked at.
    #[cfg(test)]
    pub(crate) fn looked_at(&self) -> usize {
        self.lock().looked_at.get()
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Release for Registry {
    fn release(&self, channel: &Arc<Channel>) {
        // Checked without the lock: a permanent channel stays permanent.
        if !channel.permanent() {
            self.let_go(channel);
        }
    }
}
