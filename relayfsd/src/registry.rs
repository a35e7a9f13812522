//! The daemon's channels by name: opening, creating, and when they go.

pub(crate) mod create_queue;

mod ending;
mod error;
mod held;
mod index;
mod orphans;
mod recreate;

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use relay::layout::channel_name::COMPONENTS_MAX;
use relay::layout::state_file::StateFile;
use relay::{ChannelName, Geometry, GeometrySpec};

pub(crate) use self::error::OpenError;
pub(crate) use self::held::{ChannelRef, MemoryReservation};
use self::index::Channels;
use crate::channel::flush_timer::Looks;
use crate::channel::{Channel, Named};
use crate::kill_point;
use crate::policy::fair_queue::Turns;
use crate::policy::quota::{self, QuotaExceeded};
use crate::state::recovery::Recovered;
use crate::writers::{Job, Unavailable, Writers};

/// Names an error message lists before it says how many more there are.
const NAMES_LISTED: usize = 20;

/// What to do when there is no channel of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Create {
    /// Create one for this user, that lives while somebody holds it or it has unread data.
    ForHolders(u32),
    /// Create one that lives as long as the daemon.
    Permanent,
}

/// What the channels may take together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of buffers.
    pub(crate) memory: u64,
    /// Most channels at a time.
    pub(crate) channels: usize,
}

/// All channels of the daemon.
pub(crate) struct Registry {
    state_dir: PathBuf,
    n_cpus: usize,
    limits: Limits,
    defaults: GeometrySpec,
    /// What the state file says besides the channels.
    state: StateFile,
    channels: Mutex<Channels>,
    /// Held while a channel is being made, which takes as long as its memory; `channels` is not.
    creating: Mutex<()>,
    writers: Writers,
    creator: Turns,
    copier: Turns,
    looks: Arc<Looks>,
}

impl Registry {
    /// The channels that a daemon before this one has left, if any. Buffers are files in `state_dir`; `limits` bound new
    /// channels together with all that are there; `defaults` fills what a geometry leaves out.
    pub(crate) fn new(
        state_dir: PathBuf,
        n_cpus: usize,
        limits: Limits,
        defaults: GeometrySpec,
        recovered: Recovered,
    ) -> io::Result<Arc<Registry>> {
        let mut channels = Channels {
            last_id: recovered.state.last_id,
            gone: orphans::gone(&recovered.state),
            ..Channels::default()
        };
        for channel in recovered.channels {
            let (name, unread) = (channel.name(), channel.unread());
            if unread == 0 || recovered.state.ended {
                log::info!("channel {name}: continues with {unread} bytes unread");
            } else {
                log::warn!(
                    "channel {name}: continues with {unread} bytes unread, since the last relayfsd was killed or crashed"
                );
            }
            channels.add(Arc::new(channel));
        }
        let registry = Arc::new(Registry {
            state_dir,
            n_cpus,
            limits,
            defaults,
            state: recovered.state,
            channels: Mutex::new(channels),
            creating: Mutex::default(),
            writers: Writers::new(n_cpus),
            creator: Turns::start("creator")?,
            copier: Turns::start("copier")?,
            looks: Looks::new(),
        });
        for channel in registry.all() {
            registry.watch(&channel);
            registry.hold_id(channel.id()).iter().for_each(|held| registry.finish_resets(held));
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

    /// Number of configured CPUs.
    pub(crate) fn n_cpus(&self) -> usize {
        self.n_cpus
    }

    /// What the inode numbers of channels' files are mixed with.
    pub(crate) fn salt(&self) -> u32 {
        self.state.salt
    }

    /// The threads that write for others.
    pub(crate) fn writers(&self) -> &Writers {
        &self.writers
    }

    /// The thread that makes channels.
    pub(crate) fn creator(&self) -> &Turns {
        &self.creator
    }

    /// The thread that takes copies of buffers.
    pub(crate) fn copier(&self) -> &Turns {
        &self.copier
    }

    /// Bytes that all channels together may take.
    pub(crate) fn memory_max(&self) -> u64 {
        self.limits.memory
    }

    /// Bytes that all channels together take now.
    pub(crate) fn memory(&self) -> u64 {
        self.lock().memory
    }

    /// Sets memory aside that is not a channel's, if there is as much.
    pub(crate) fn claim(self: &Arc<Self>, bytes: u64) -> Option<MemoryReservation> {
        let mut channels = self.lock();
        if bytes > self.limits.memory.saturating_sub(channels.memory) {
            return None;
        }
        channels.memory += bytes;
        Some(MemoryReservation { registry: self.clone(), bytes })
    }

    /// Attaches to the channel of a name, whose geometry then stays as it is, or creates it, which takes its time. The flag says
    /// which.
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
            return Ok((held, false)); // somebody was faster
        }
        self.make(name, spec, create, None).map(|held| (held, true))
    }

    /// Makes a channel, also in the place of another one of that name. Whoever looks finds that until the new one is there.
    /// The caller has `creating`.
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
        let maker = if let Create::ForHolders(uid) = create { Some(uid) } else { None };
        let id = self.admit(name, &geometry, n_bufs, maker, old)?;
        let permanent = create == Create::Permanent;
        let named = Named { id, name: name.clone(), geometry, permanent, maker };
        let failed = |source| OpenError::Allocate { name: name.clone(), dir: self.state_dir.clone(), source };
        let channel = Channel::create(&self.state_dir, self.state.epoch, named, n_bufs).map_err(failed)?;
        let channel = Arc::new(channel);
        self.watch(&channel);
        kill_point!("open-made");
        let mut channels = self.lock();
        if channels.closed {
            channel.remove_files();
            return Err(OpenError::Closed);
        }
        channels.replace(old, channel.clone());
        let mut saved = self.save(&channels);
        if let Some(old) = old {
            // Where there is no room to say so, its files make some.
            old.remove_files();
            saved = saved.or_else(|_| self.save(&channels));
        }
        if let Err(error) = saved {
            match old {
                // Without files, but with a `reset` to try again.
                Some(old) => channels.replace(Some(&channel), old.clone()),
                None => drop(channels.remove(&channel)),
            }
            channel.remove_files();
            return Err(failed(error));
        }
        kill_point!("open-named");
        log::info!("channel {name}: created, {geometry}, {n_bufs} buffers");
        Ok(ChannelRef::new(self, channel))
    }

    /// The channel of a name, for a look at it.
    pub(crate) fn hold(self: &Arc<Self>, name: &str) -> Option<ChannelRef> {
        let name = name.parse().ok()?;
        let channels = self.lock();
        channels.by_name.get(&name).map(|channel| ChannelRef::new(self, channel.clone()))
    }

    /// The channel of an id, for a look at it.
    pub(crate) fn hold_id(self: &Arc<Self>, id: u32) -> Option<ChannelRef> {
        let channels = self.lock();
        channels.by_id.get(&id).map(|channel| ChannelRef::new(self, channel.clone()))
    }

    /// The id of a directory that channels' names begin with.
    pub(crate) fn dir_id(&self, path: &str) -> Option<u32> {
        self.lock().dirs.get(path).map(|dir| dir.id)
    }

    /// The directory of an id.
    pub(crate) fn dir_path(&self, id: u32) -> Option<String> {
        self.lock().dirs_by_id.get(&id).cloned()
    }

    /// Passes the directories directly below `path` (the root's is empty) to `visit`: ids from `from` on, in their order, with
    /// last components. Ends when `visit` breaks. The registry is locked meanwhile.
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

    /// The same for the channels whose base filenames are in the directory `path`.
    pub(crate) fn visit_channels(
        &self,
        path: &str,
        from: u32,
        visit: impl FnMut(&Arc<Channel>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let channels = self.lock();
        channels.channels_from(from).filter(|channel| channel.name().dir() == path).try_for_each(visit)
    }

    /// Every channel, in order of the names.
    pub(crate) fn all(&self) -> Vec<Arc<Channel>> {
        self.lock().by_name.values().cloned().collect()
    }

    /// The text of the daemon's own `stats`: what is there, and what went with channels that are gone.
    pub(crate) fn stats(&self) -> String {
        let channels = self.lock();
        let (n_channels, memory, gone) = (channels.by_name.len(), channels.memory, channels.gone);
        drop(channels);
        let max = self.limits.memory;
        let mut text = format!("channels {n_channels}\nmemory_bytes {memory}\nmemory_max_bytes {max}\n");
        gone.write_to("gone", &mut text);
        text
    }

    /// Finishes the current sub-buffers whose unread data a process waits for.
    pub(crate) fn finish_polled(self: &Arc<Self>) {
        for channel in self.all().iter().filter(|channel| !channel.is_broken()) {
            for cpu in channel.polled_unfinished() {
                let Some(held) = self.hold_id(channel.id()) else { break };
                let name = channel.name().clone();
                let done = Box::new(move |done: Result<(), Unavailable>| {
                    if let Err(unavailable) = done {
                        log::debug!("channel {name}: flush: {unavailable}");
                    }
                });
                self.writers.submit_now(Job::FlushUnread { channel: held, cpu, done });
            }
        }
    }

    /// Where threads with new waiters ask for looks.
    pub(crate) fn looks(&self) -> &Arc<Looks> {
        &self.looks
    }

    /// Attaches to the channel of a name, if there is one.
    pub(crate) fn attach(self: &Arc<Self>, name: &ChannelName) -> Result<Option<ChannelRef>, OpenError> {
        let channels = self.lock();
        if channels.closed {
            return Err(OpenError::Closed);
        }
        let held = channels.by_name.get(name).map(|channel| ChannelRef::new(self, channel.clone()));
        drop(channels);
        if let Some(held) = &held
            && held.is_broken_or_cut(None)
        {
            let why = held.broken_reason().unwrap_or_default().to_owned();
            return Err(OpenError::Broken { name: name.clone(), why });
        }
        Ok(held)
    }

    /// Whether a new channel may be made, perhaps in the place of `old`, and its id. Holding `creating`, the answer stays true.
    fn admit(
        &self,
        name: &ChannelName,
        geometry: &Geometry,
        n_bufs: usize,
        maker: Option<u32>,
        old: Option<&Arc<Channel>>,
    ) -> Result<u32, OpenError> {
        let mut channels = self.lock();
        if let Some(why) = channels.by_name.keys().find_map(|other| name.conflict_with(other)) {
            return Err(OpenError::Conflict { name: name.clone(), why });
        }
        // Root is whoever has it all.
        let uid = maker.unwrap_or(0);
        let of_user =
            || channels.by_name.values().filter(|channel| maker.is_some() && channel.maker() == maker);
        let (used, max) = (channels.by_name.len() - usize::from(old.is_some()), self.limits.channels);
        quota::admits(uid, of_user().count() as u64, used as u64, max as u64, 1).map_err(
            |why| match why {
                QuotaExceeded::All => OpenError::TooMany { name: name.clone(), max },
                QuotaExceeded::Yours => OpenError::TooManyOfUser { name: name.clone(), uid, max },
            },
        )?;
        let needed = Channel::memory_needed(geometry, n_bufs);
        let own = of_user().map(|channel| channel.memory()).sum();
        let (used, max) = (channels.memory - old.map_or(0, |old| old.memory()), self.limits.memory);
        quota::admits(uid, own, used, max, needed).map_err(|why| match why {
            QuotaExceeded::All => {
                let (name, geometry) = (name.clone(), *geometry);
                OpenError::Memory { name, geometry, n_bufs, needed, used, max }
            }
            QuotaExceeded::Yours => OpenError::MemoryOfUser { name: name.clone(), uid, needed, max },
        })?;
        if channels.last_id > u32::MAX - 2 * COMPONENTS_MAX as u32 {
            return Err(OpenError::NoIds { name: name.clone() });
        }
        channels.last_id += 1;
        Ok(channels.last_id)
    }

    /// Makes the error for a name that no channel has. It lists the other channels, so it is made only when it is sent.
    pub(crate) fn unknown(&self, name: ChannelName) -> OpenError {
        let channels = self.lock();
        // One of that name may have been made meanwhile.
        let others = || channels.by_name.keys().filter(|other| **other != name);
        let more = others().count().saturating_sub(NAMES_LISTED);
        let names: Vec<ChannelName> = others().take(NAMES_LISTED).cloned().collect();
        drop(channels);
        OpenError::unknown(name, &names, more)
    }

    /// Removes a channel that nobody holds any more, unless it is to stay or has something unread.
    fn let_go(&self, channel: &Arc<Channel>) {
        let mut channels = self.lock();
        // Looked at under the lock, which whoever begins to hold a channel has too.
        // Acquire, with the Release of those who left before: what they wrote is seen.
        let held = channel.holders.load(Ordering::Acquire) > 0;
        let has_unread = || channel.unread() > 0 && !channel.is_broken();
        if held || channel.permanent() || channel.is_inherited() || channels.ending || has_unread() {
            return;
        }
        if channels.remove(channel) {
            let total = channel.total();
            if !channel.is_broken() {
                channels.gone.add(&total);
            }
            self.forget(&channels, channel);
            log::info!(
                "channel {}: gone; {} dropped, {} too big",
                channel.name(),
                total.dropped,
                total.too_big
            );
        }
    }

    /// How many channels listings have looked at.
    #[cfg(test)]
    pub(crate) fn looked_at(&self) -> usize {
        self.lock().looked_at.get()
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
