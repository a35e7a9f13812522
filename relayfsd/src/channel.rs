//! One channel: its files and its buffers with their readers. `poll.rs` has who waits for them, `stats.rs` their numbers.

pub(crate) mod files;
pub(crate) mod flush_timer;
pub(crate) mod integrity;
pub(crate) mod stats;

mod poll;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use relay::layout::abi;
use relay::ring::buffer::Buffer;
use relay::ring::reader::Reader;
use relay::ring::writer::AnyExecutor;
use relay::{ChannelName, Geometry};

pub(crate) use self::poll::{PollState, Wake};
use crate::channel::files::{Files, FindError, Made};
use crate::channel::flush_timer::Looks;
use crate::channel::integrity::{Damage, ReadGuard};
use crate::process::free_later;
use crate::tree::snapshot::SnapshotSlot;
use crate::tree::take::TakeSlot;

/// A channel, with everything the daemon knows of it.
pub(crate) struct Channel {
    id: u32,
    name: ChannelName,
    geometry: Geometry,
    permanent: AtomicBool,
    maker: Option<u32>,
    buffers: Vec<ChannelBuffer>,
    /// Bytes of its files.
    memory: u64,
    created: SystemTime,
    /// Set at the daemon's clean end: pollers get an error, what is unread stays readable.
    closed: AtomicBool,
    /// See [`crate::registry::ChannelRef`].
    pub(crate) holders: AtomicUsize,
    /// `None` when the channel has ended: after that the directory may be a successor's.
    files: Mutex<Option<Files>>,
    /// Whether its files have been given to a producer.
    shared: AtomicBool,
    /// Whether there may be producers that have its files from an earlier daemon, and have not come back yet.
    inherited: AtomicBool,
    /// The daemon's, to tell apart who got the files from whom.
    epoch: u32,
    damage: Damage,
    /// Set by a thread that stored a waiter; see [`crate::channel::flush_timer`].
    polled: AtomicBool,
    looks: OnceLock<Arc<Looks>>,
}

/// What a channel is called, and its shape.
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
    /// The copy of it that is open, if one is.
    snapshot: SnapshotSlot,
    /// The copies of what was unread that are open.
    take: TakeSlot,
    /// Who wants to know of the next switch, by open file: the file's number, and how to wake it.
    waiters: Mutex<Vec<(u64, Wake)>>,
}

impl ChannelBuffer {
    fn new(reader: Reader) -> ChannelBuffer {
        let buffer = reader.buffer().clone();
        let (grown, corrected_told) = ((0, SystemTime::now()), reader.corrected());
        let read_side = Mutex::new(ReadSide { reader, parked: false, grown, corrected_told });
        ChannelBuffer {
            buffer,
            read_side,
            snapshot: SnapshotSlot::default(),
            take: TakeSlot::default(),
            waiters: Mutex::new(Vec::new()),
        }
    }
}

/// What the one lock of a buffer protects. It is held while a reply is written, so that nobody sees a buffer whose
/// bytes are replied but not consumed.
pub(crate) struct ReadSide {
    pub(crate) reader: Reader,
    /// Set by the buffer's writer when a batch waits for room; whoever makes room tells it, and clears this.
    pub(crate) parked: bool,
    /// Size when it was last looked at, and when it was first seen to be that.
    grown: (u64, SystemTime),
    /// Corrections that were told.
    pub(crate) corrected_told: u64,
}

impl Channel {
    /// Creates a channel: its files below `state_dir`, allocated and mapped.
    pub(crate) fn create(state_dir: &Path, epoch: u32, named: Named, n_bufs: usize) -> io::Result<Channel> {
        let made = Made::new(Files::of(state_dir, named.id, n_bufs));
        let files = made.files();
        let header = abi::control_header(&named.geometry, n_bufs);
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
        Ok(Channel::new(epoch, named, buffers, made.keep()))
    }

    /// Takes over a channel that a daemon before this one has left, to go on where it stopped. Producers may be writing to it
    /// all the while. An error says what is wrong with it; nothing has been changed then.
    pub(crate) fn adopt(
        state_dir: &Path,
        epoch: u32,
        named: Named,
        n_bufs: usize,
    ) -> Result<Channel, FindError> {
        let files = Files::of(state_dir, named.id, n_bufs);
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
        for ChannelBuffer { buffer, .. } in &buffers {
            buffer.reopen();
        }
        let channel = Channel::new(epoch, named, buffers, files);
        channel.inherited.store(true, Ordering::Relaxed);
        // Producers of the last daemon still ring its bells.
        channel.shared.store(true, Ordering::Relaxed);
        Ok(channel)
    }

    fn new(epoch: u32, named: Named, buffers: Vec<ChannelBuffer>, files: Files) -> Channel {
        let Named { id, name, geometry, permanent, maker } = named;
        Channel {
            id,
            name,
            geometry,
            permanent: AtomicBool::new(permanent),
            maker,
            memory: Channel::memory_needed(&geometry, buffers.len()),
            buffers,
            created: SystemTime::now(),
            closed: AtomicBool::new(false),
            holders: AtomicUsize::new(0),
            files: Mutex::new(Some(files)),
            shared: AtomicBool::new(false),
            inherited: AtomicBool::new(false),
            epoch,
            damage: Damage::default(),
            polled: AtomicBool::new(false),
            looks: OnceLock::new(),
        }
    }

    /// Bytes of the files of a channel of this geometry.
    pub(crate) fn memory_needed(geometry: &Geometry, n_bufs: usize) -> u64 {
        abi::control_header(geometry, n_bufs).control_len() + n_bufs as u64 * abi::data_len(geometry)
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

    /// Whether it lives as long as the daemon.
    pub(crate) fn permanent(&self) -> bool {
        // Relaxed: it is set while the daemon starts.
        self.permanent.load(Ordering::Relaxed)
    }

    /// The user whose connection made it, if this daemon knows.
    pub(crate) fn maker(&self) -> Option<u32> {
        self.maker
    }

    /// From now on it lives as long as the daemon.
    pub(crate) fn make_permanent(&self) {
        self.permanent.store(true, Ordering::Relaxed);
    }

    /// Whether producers have its files from an earlier daemon, and may come back.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited.load(Ordering::Relaxed)
    }

    /// Whether this daemon's threads may write the buffers. Without restartable sequences they may only while no producer does,
    /// and producers of an earlier daemon may be left.
    pub(crate) fn may_be_written(&self) -> bool {
        AnyExecutor::can_share() || !self.is_inherited() || !self.has_orphans()
    }

    /// Whether producers of an earlier daemon are left. Where that cannot be found out, they are.
    fn has_orphans(&self) -> bool {
        let files = self.lock_files();
        let Some(files) = files.as_ref() else { return false };
        let found = files::has_earlier_marks(files.control(), self.epoch);
        found.unwrap_or_else(|error| error.kind() != io::ErrorKind::NotFound)
    }

    /// Looks whether producers of an earlier daemon are left. Returns whether that has changed.
    pub(crate) fn check_orphans(&self) -> bool {
        let left = self.has_orphans();
        if !left {
            self.inherited.store(false, Ordering::Relaxed);
        }
        !left
    }

    /// Whether a live producer has its files, from this daemon or an earlier one. Where that cannot be found out, one may.
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

    /// Number of buffers: one a CPU, or one.
    pub(crate) fn n_bufs(&self) -> usize {
        self.buffers.len()
    }

    pub(crate) fn buffer(&self, cpu: usize) -> &Buffer {
        &self.buffers[cpu].buffer
    }

    /// The buffer's reader, for this caller alone. A thread that panicked with it left no half-done change behind that
    /// the shared words do not show, so its lock is taken over.
    pub(crate) fn read_side(&self, cpu: usize) -> ReadGuard<'_> {
        let side = self.buffers[cpu].read_side.lock().unwrap_or_else(PoisonError::into_inner);
        ReadGuard::new(self, cpu, side)
    }

    pub(crate) fn damage(&self) -> &Damage {
        &self.damage
    }

    /// Where the open copy of a buffer is found.
    pub(crate) fn snapshot_slot(&self, cpu: usize) -> &SnapshotSlot {
        &self.buffers[cpu].snapshot
    }

    /// Where the open copies of what was unread are found.
    pub(crate) fn take_slot(&self, cpu: usize) -> &TakeSlot {
        &self.buffers[cpu].take
    }

    /// Opens one of the channel's files to be looked at: that of a buffer, or without one the control file.
    pub(crate) fn open_file(&self, cpu: Option<usize>) -> io::Result<File> {
        let files = self.lock_files();
        let path = files.as_ref().and_then(|files| files.all().get(cpu.map_or(0, |cpu| cpu + 1)));
        File::open(path.ok_or(io::ErrorKind::NotFound)?)
    }

    /// Size of a buffer's file, the bytes written to it since creation, and when it was first seen to be that.
    pub(crate) fn size_and_mtime(&self, cpu: usize) -> (u64, SystemTime) {
        let mut side = self.read_side(cpu);
        let size = side.reader.size();
        if size != side.grown.0 {
            side.grown = (size, SystemTime::now());
        }
        side.grown
    }

    /// Opens the channel's files for somebody else: the control file, then the data files. If it is to write them, the
    /// channel is shared from then on.
    pub(crate) fn share(&self, to_write: bool) -> io::Result<Vec<File>> {
        if to_write {
            self.shared.store(true, Ordering::Relaxed);
        }
        // Who finds a buffer closed that is not, would come back for the files again and again.
        (0..self.n_bufs()).for_each(|cpu| drop(self.read_side(cpu)));
        let files = self.lock_files();
        let paths = files.as_ref().ok_or(io::ErrorKind::NotFound)?.all();
        let open = |path| OpenOptions::new().read(true).write(to_write).open(path);
        let opened: Vec<File> = paths.iter().map(open).collect::<io::Result<_>>()?;
        if let Some(control) = opened.first().filter(|_| to_write)
            && let Err(errno) = files::mark(control, self.epoch)
        {
            // A peer has a lock there. The next daemon will not know of this producer, which finds out by itself.
            log::debug!("channel {}: cannot mark the control file: {}", self.name, errno.desc());
        }
        Ok(opened)
    }

    /// Whether producers write it by themselves.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    /// Ends the channel for readers: pollers wake. What is unread can be read as before.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        (0..self.n_bufs()).for_each(|cpu| self.wake(cpu));
    }

    /// Waits for reads that are under way, and lets no other begin. Returns the bytes that are unread then.
    pub(crate) fn freeze(&self) -> u64 {
        (0..self.n_bufs()).fold(0, |sum, cpu| {
            let side = self.read_side(cpu);
            let unread = side.reader.unread_data();
            std::mem::forget(side);
            sum.saturating_add(unread)
        })
    }

    /// The paths of its files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.lock_files().as_ref().map_or_else(Vec::new, |files| files.all().to_vec())
    }

    /// Whether there are files of it that could be gone on with.
    pub(crate) fn has_files(&self) -> bool {
        self.lock_files().is_some()
    }

    /// Removes its files.
    pub(crate) fn remove_files(&self) {
        if let Some(files) = self.take_files() {
            files.remove();
        }
    }

    /// Lets go of its files: whatever has their names from now on is another daemon's.
    pub(crate) fn take_files(&self) -> Option<Files> {
        self.lock_files().take()
    }

    /// Bytes that somebody wrote and nobody has read yet, in all buffers.
    pub(crate) fn unread(&self) -> u64 {
        // What a peer has made of its numbers is not to end the daemon.
        let unread = |cpu| self.read_side(cpu).reader.unread_data();
        (0..self.n_bufs()).fold(0, |sum, cpu| sum.saturating_add(unread(cpu)))
    }

    fn lock_files(&self) -> MutexGuard<'_, Option<Files>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Channel {
    /// Freeing large buffers takes long, and this may be the socket's thread, or one that serves files.
    fn drop(&mut self) {
        free_later::elsewhere(std::mem::take(&mut self.buffers), self.memory);
    }
}
