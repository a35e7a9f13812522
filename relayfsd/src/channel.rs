//! A channel: its files, its buffers with their readers, and the open copies of its buffers.
//!
//! `registry` makes channels and hands out [`ChannelRef`]s, which keep a channel. `writers`, `tree` and `socket` use
//! them. `poll.rs` has the waiters of a buffer, `stats.rs` the counters, `integrity.rs` what the daemon does about
//! damage, `timed.rs` what timed channels have besides. Where a reader makes room for a batch that waits, the call
//! returns true, and its caller tells the writers. The room uses `policy`, and `process` for what it asks of the system.
//! It may not know the registry, the writers, the tree, the socket or the state. The lock order is in `registry.rs`.

pub(crate) mod clients;
pub(crate) mod files;
pub(crate) mod give_back;
pub(crate) mod integrity;
pub(crate) mod open_copy;
pub(crate) mod recent;
pub(crate) mod snapshot;
pub(crate) mod stats;
pub(crate) mod take;
pub(crate) mod timed;

mod channel_ref;
mod delivered;
mod poll;
mod write_side;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use relay::clock::{Clock, realtime_tick};
use relay::layout::abi;
use relay::layout::levels::LEVELS_LEN;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::writer::AnyExecutor;
use relay::{ChannelName, Geometry};

pub(crate) use self::channel_ref::{ChannelRef, Release};
pub(crate) use self::poll::{PollState, TimerRequest, Wake};
use crate::channel::clients::Clients;
use crate::channel::files::{Files, FindError, NewFiles};
use crate::channel::integrity::{Damage, ReadGuard};
use crate::channel::recent::Recent;
use crate::channel::snapshot::SnapshotSlot;
use crate::channel::take::TakeSlot;
use crate::channel::timed::Timed;
pub(crate) use crate::channel::write_side::Turn;
use crate::channel::write_side::{DirectWriters, WriteSide};
use crate::process::free_later;

/// A channel, with everything the daemon knows about it.
pub(crate) struct Channel {
    id: u32,
    name: ChannelName,
    geometry: Geometry,
    permanent: AtomicBool,
    maker: Option<u32>,
    buffers: Vec<ChannelBuffer>,
    timed: Option<Timed>,
    clients: Arc<Clients>,
    /// The open text of all buffers, if there is one.
    trace: SnapshotSlot,
    /// Size of the channel's files, in bytes.
    memory: u64,
    created: SystemTime,
    /// Set when the daemon ends cleanly: pollers get an error, unread data stays readable.
    closed: AtomicBool,
    /// Number of [`ChannelRef`]s.
    holders: AtomicUsize,
    /// `None` when the channel has ended: the next daemon may own the directory from then on.
    files: Mutex<Option<Files>>,
    direct: DirectWriters,
    /// Whether orphaned producers may be left.
    ///
    /// They have the files from an earlier daemon, and have not reconnected.
    inherited: AtomicBool,
    /// The daemon's epoch. It marks the producers that got the files from this daemon.
    epoch: u32,
    damage: Damage,
    /// Set by a thread that stored a waiter; see [`TimerRequest`].
    polled: AtomicBool,
    flush_request: OnceLock<Arc<TimerRequest>>,
}

/// A channel's number, name and geometry.
pub(crate) struct Named {
    pub(crate) id: u32,
    pub(crate) name: ChannelName,
    pub(crate) geometry: Geometry,
    /// See [`Channel::permanent`].
    pub(crate) permanent: bool,
    /// See [`Channel::maker`].
    pub(crate) maker: Option<u32>,
}

struct ChannelBuffer {
    buffer: Buffer,
    read_side: Mutex<ReadSide>,
    write_side: WriteSide,
    /// The buffer's open snapshot, if there is one.
    snapshot: SnapshotSlot,
    /// The open copies of the buffer's unread data.
    take: TakeSlot,
    /// Waiters for the next sub-buffer switch: an open file's number, and how to wake its poller.
    waiters: Mutex<Vec<(u64, Wake)>>,
}

impl ChannelBuffer {
    fn new(reader: Reader) -> ChannelBuffer {
        let buffer = reader.buffer().clone();
        let (grown, corrected_told) = ((0, SystemTime::now()), reader.corrected());
        let recent = Recent::default();
        let read_side = Mutex::new(ReadSide {
            reader,
            parked: false,
            grown,
            corrected_told,
            recent,
            dropped_seen: (0, 0),
        });
        ChannelBuffer {
            buffer,
            read_side,
            write_side: WriteSide::default(),
            snapshot: SnapshotSlot::default(),
            take: TakeSlot::default(),
            waiters: Mutex::new(Vec::new()),
        }
    }
}

/// State of a buffer that its one lock protects.
///
/// A reader's thread holds the lock while it replies. So no thread sees bytes that are replied but not consumed.
pub(crate) struct ReadSide {
    pub(crate) reader: Reader,
    /// Set by the buffer's writer when a batch waits for room. The thread that makes room clears it and tells the writer.
    pub(crate) parked: bool,
    /// The size at the last look, and when a look first found that size.
    grown: (u64, SystemTime),
    /// Corrections that the daemon has logged.
    pub(crate) corrected_told: u64,
    /// Earlier looks at the counters.
    pub(crate) recent: Recent,
    /// The dropped messages at the last look, and when that was.
    pub(crate) dropped_seen: (u64, u64),
}

impl Channel {
    /// Creates a channel: its files below `state_dir`, allocated and mapped.
    pub(crate) fn create(state_dir: &Path, epoch: u32, named: Named, n_bufs: usize) -> io::Result<Channel> {
        let made = NewFiles::new(Files::of(state_dir, named.id, n_bufs, named.geometry.timed()));
        let files = made.files();
        let mut header = abi::control_header(&named.geometry, n_bufs);
        if named.geometry.timed() {
            let clock = Clock::choose();
            header = header.with_clock(clock, clock.ticks_per_second());
        }
        let control = Arc::new(files::create(files.control(), header.control_len())?);
        control.put_header(header);
        let mut buffers = Vec::with_capacity(n_bufs);
        for (index, path) in files.data().iter().enumerate() {
            let data = files::create(path, abi::data_len(&named.geometry))?;
            let buffer = Buffer::new(control.clone(), Arc::new(data), named.geometry, &header, index)
                .expect("files were just made as long as the geometry says");
            buffer.init(0);
            buffers.push(ChannelBuffer::new(Reader::new(buffer)));
        }
        let timed = Timed::create(files, &buffers[0].buffer)?;
        Ok(Channel::new(epoch, named, buffers, timed, made.keep()))
    }

    /// Takes over a channel that an earlier daemon left, and continues where that daemon stopped.
    ///
    /// Producers may write to the channel meanwhile. An error says what is wrong with the channel, and changes nothing.
    pub(crate) fn adopt(
        state_dir: &Path,
        epoch: u32,
        named: Named,
        n_bufs: usize,
    ) -> Result<Channel, FindError> {
        let files = Files::of(state_dir, named.id, n_bufs, named.geometry.timed());
        let expected = abi::control_header(&named.geometry, n_bufs);
        let control = Arc::new(files::find(files.control(), expected.control_len())?);
        let wrong = |reason: &dyn std::fmt::Display| {
            FindError::Unsound(format!("{}: {reason}", files.control().display()))
        };
        let header = control.header().ok_or_else(|| wrong(&"it has no header"))?;
        header.check(&named.geometry, n_bufs, expected.control_len()).map_err(|reason| wrong(&reason))?;
        let mut buffers = Vec::with_capacity(n_bufs);
        for (index, path) in files.data().iter().enumerate() {
            let data = Arc::new(files::find(path, abi::data_len(&named.geometry))?);
            let buffer = Buffer::new(control.clone(), data, named.geometry, &header, index)
                .ok_or_else(|| wrong(&format_args!("buffer {index}: its part is missing")))?;
            let reader = Reader::resume(buffer)
                .map_err(|unsound| wrong(&format_args!("buffer {index}: {unsound}")))?;
            buffers.push(ChannelBuffer::new(reader));
        }
        let timed = Timed::adopt(&files, &buffers[0].buffer)?;
        for ChannelBuffer { buffer, .. } in &buffers {
            buffer.reopen();
        }
        let channel = Channel::new(epoch, named, buffers, timed, files);
        channel.inherited.store(true, Ordering::Relaxed);
        // Producers of the last daemon may have the files, and ring the doorbells of that daemon.
        channel.direct.note_shared();
        Ok(channel)
    }

    fn new(
        epoch: u32,
        named: Named,
        buffers: Vec<ChannelBuffer>,
        timed: Option<Timed>,
        files: Files,
    ) -> Channel {
        let Named { id, name, geometry, permanent, maker } = named;
        Channel {
            id,
            name,
            geometry,
            permanent: AtomicBool::new(permanent),
            maker,
            memory: Channel::memory_needed(&geometry, buffers.len()),
            buffers,
            timed,
            clients: Arc::default(),
            trace: SnapshotSlot::default(),
            // By the clock that stamps losses: none seems to be older than the channel.
            created: UNIX_EPOCH + Duration::from_nanos(realtime_tick()),
            closed: AtomicBool::new(false),
            holders: AtomicUsize::new(0),
            files: Mutex::new(Some(files)),
            direct: DirectWriters::default(),
            inherited: AtomicBool::new(false),
            epoch,
            damage: Damage::default(),
            polled: AtomicBool::new(false),
            flush_request: OnceLock::new(),
        }
    }

    /// Returns the size of the files of a channel with this geometry, in bytes.
    pub(crate) fn memory_needed(geometry: &Geometry, n_bufs: usize) -> u64 {
        let levels = if geometry.timed() { LEVELS_LEN } else { 0 };
        abi::control_header(geometry, n_bufs).control_len() + n_bufs as u64 * abi::data_len(geometry) + levels
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn name(&self) -> &ChannelName {
        &self.name
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Returns whether the channel lives without a holder: as long as the daemon, or until it is removed.
    pub(crate) fn permanent(&self) -> bool {
        // Relaxed: the flag is set while the daemon starts.
        self.permanent.load(Ordering::Relaxed)
    }

    /// Returns the user that created the channel, by a connection or by mkdir(2), if this daemon knows.
    pub(crate) fn maker(&self) -> Option<u32> {
        self.maker
    }

    /// Makes the channel live as long as the daemon.
    pub(crate) fn make_permanent(&self) {
        self.permanent.store(true, Ordering::Relaxed);
    }

    /// Returns whether orphaned producers may be left, which may reconnect.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited.load(Ordering::Relaxed)
    }

    /// Returns whether this daemon's threads may write the buffers.
    ///
    /// Without restartable sequences they may write only while no producer does. Producers of an earlier daemon may be
    /// left.
    pub(crate) fn may_be_written(&self) -> bool {
        AnyExecutor::can_share() || !self.is_inherited() || !self.has_orphans()
    }

    /// Returns whether producers of an earlier daemon are left.
    ///
    /// If a look at the file fails, the answer is yes.
    fn has_orphans(&self) -> bool {
        let files = self.lock_files();
        let Some(files) = files.as_ref() else { return false };
        let found = files::has_earlier_marks(files.control(), self.epoch);
        found.unwrap_or_else(|error| error.kind() != io::ErrorKind::NotFound)
    }

    /// Checks whether producers of an earlier daemon are left.
    ///
    /// Returns whether all of them are gone.
    pub(crate) fn check_orphans(&self) -> bool {
        let left = self.has_orphans();
        if !left {
            self.inherited.store(false, Ordering::Relaxed);
        }
        !left
    }

    /// Returns whether a live producer has the files, from this daemon or an earlier one.
    ///
    /// If a look fails: yes.
    pub(crate) fn has_producers(&self) -> bool {
        let later = self.epoch.saturating_add(1);
        let files = self.lock_files();
        files.as_ref().is_some_and(|files| files::has_earlier_marks(files.control(), later).unwrap_or(true))
    }

    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    pub(crate) fn created(&self) -> SystemTime {
        self.created
    }

    /// Returns the number of buffers: one for each CPU, or one for a global channel.
    pub(crate) fn n_bufs(&self) -> usize {
        self.buffers.len()
    }

    pub(crate) fn buffer(&self, cpu: usize) -> &Buffer {
        &self.buffers[cpu].buffer
    }

    /// Locks the buffer's read side for the caller.
    ///
    /// After a panic of a thread that had the lock, the lock is used all the same. The shared words show every change
    /// that such a thread has begun.
    pub(crate) fn read_side(&self, cpu: usize) -> ReadGuard<'_> {
        let side = self.buffers[cpu].read_side.lock().unwrap_or_else(PoisonError::into_inner);
        ReadGuard::new(self, cpu, side)
    }

    /// Returns the processes that use the channel.
    pub(crate) fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    pub(crate) fn damage(&self) -> &Damage {
        &self.damage
    }

    /// Returns the slot of a buffer's open snapshot.
    pub(crate) fn snapshot_slot(&self, cpu: usize) -> &SnapshotSlot {
        &self.buffers[cpu].snapshot
    }

    /// Returns the slot of the open text of all buffers.
    pub(crate) fn trace_slot(&self) -> &SnapshotSlot {
        &self.trace
    }

    /// Returns the slot of the open copies of a buffer's unread data.
    pub(crate) fn take_slot(&self, cpu: usize) -> &TakeSlot {
        &self.buffers[cpu].take
    }

    /// Opens a buffer's data file for reading, or without `cpu` the control file.
    pub(crate) fn open_file(&self, cpu: Option<usize>) -> io::Result<File> {
        let files = self.lock_files();
        let path = files.as_ref().and_then(|files| files.mapped().get(cpu.map_or(0, |cpu| cpu + 1)));
        File::open(path.ok_or(io::ErrorKind::NotFound)?)
    }

    /// Returns the size of a buffer's file, and when a look first found that size.
    ///
    /// The size is the number of bytes written to the buffer since the channel was created.
    pub(crate) fn size_and_mtime(&self, cpu: usize) -> (u64, SystemTime) {
        let mut side = self.read_side(cpu);
        let size = side.reader.size();
        if size != side.grown.0 {
            side.grown = (size, SystemTime::now());
        }
        side.grown
    }

    /// Opens the channel's files for another process: the control file, then the data files.
    ///
    /// With `to_write` the process may write the files, and the channel counts as shared from then on.
    pub(crate) fn share(&self, to_write: bool) -> io::Result<Vec<File>> {
        if to_write {
            self.direct.note_shared();
            self.listen_for_activity();
        }
        // Each look clears a false mark that the buffer is closed. With it, the producer would ask for the files
        // without end.
        (0..self.n_bufs()).for_each(|cpu| drop(self.read_side(cpu)));
        let files = self.lock_files();
        let paths = files.as_ref().ok_or(io::ErrorKind::NotFound)?.mapped();
        let open = |path| OpenOptions::new().read(true).write(to_write).open(path);
        let opened: Vec<File> = paths.iter().map(open).collect::<io::Result<_>>()?;
        if let Some(control) = opened.first().filter(|_| to_write)
            && let Err(errno) = files::mark(control, self.epoch)
        {
            // A peer has a lock there. The next daemon will not know of this producer; the producer notices that by
            // itself.
            self.direct.note_unmarked();
            log::debug!("channel {}: cannot mark the control file: {}", self.name, errno.desc());
        }
        Ok(opened)
    }

    /// Opens a timed channel's file of levels for another process, which may only read it.
    pub(crate) fn share_levels(&self) -> io::Result<File> {
        let files = self.lock_files();
        let [_, _, levels] = files.as_ref().and_then(Files::names).ok_or(io::ErrorKind::NotFound)?;
        File::open(levels)
    }

    /// Closes the channel for readers and wakes its pollers. Unread data stays readable.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        (0..self.n_bufs()).for_each(|cpu| self.wake(cpu));
    }

    /// Waits for reads in flight, and lets no other begin.
    ///
    /// Returns the number of bytes that are unread then.
    pub(crate) fn freeze(&self) -> u64 {
        (0..self.n_bufs()).fold(0, |sum, cpu| {
            let side = self.read_side(cpu);
            let unread = side.reader.unread_data();
            std::mem::forget(side);
            sum.saturating_add(unread)
        })
    }

    /// Returns the paths of the channel's files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.lock_files().as_ref().map_or_else(Vec::new, |files| files.all().cloned().collect())
    }

    /// Returns the paths of the files that processes map: the control file, then the data files.
    fn mapped_paths(&self) -> Vec<PathBuf> {
        self.lock_files().as_ref().map_or_else(Vec::new, |files| files.mapped().to_vec())
    }

    /// Returns whether the channel has files, so that the next daemon can take it over.
    pub(crate) fn has_files(&self) -> bool {
        self.lock_files().is_some()
    }

    /// Removes the channel's files.
    pub(crate) fn remove_files(&self) {
        self.retire_levels();
        if let Some(files) = self.take_files() {
            files.remove();
        }
    }

    /// Gives up the channel's files, and returns them.
    ///
    /// Files of these names may be another daemon's from now on.
    pub(crate) fn take_files(&self) -> Option<Files> {
        self.lock_files().take()
    }

    /// Returns the number of unread bytes in all buffers.
    pub(crate) fn unread(&self) -> u64 {
        // Saturating: a peer can write any numbers there, and an overflow must not end the daemon.
        let unread = |cpu| self.read_side(cpu).reader.unread_data();
        (0..self.n_bufs()).fold(0, |sum, cpu| sum.saturating_add(unread(cpu)))
    }

    fn lock_files(&self) -> MutexGuard<'_, Option<Files>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Channel {
    /// Frees the buffers on another thread.
    ///
    /// That takes long, and this thread may serve the socket or files.
    fn drop(&mut self) {
        free_later::elsewhere((std::mem::take(&mut self.buffers), self.timed.take()), self.memory);
    }
}
