//! One channel: its buffers with their readers, who waits for them, and its counters as text.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use relay::buffer::Buffer;
use relay::reader::Reader;
use relay::shm::Mapping;
use relay::{ChannelName, Geometry, abi};

use crate::snapshot::SnapshotSlot;

/// Wakes somebody who polls.
pub(crate) type Wake = Box<dyn FnOnce() + Send>;

/// A channel, with everything the daemon knows of it.
pub(crate) struct Channel {
    id: u32,
    name: ChannelName,
    geometry: Geometry,
    permanent: bool,
    buffers: Vec<ChannelBuffer>,
    /// Bytes of its files.
    memory: u64,
    created: SystemTime,
    /// Set at the daemon's clean end: pollers get an error, what is unread stays readable.
    closed: AtomicBool,
    /// See [`crate::registry::Held`].
    pub(crate) holders: AtomicUsize,
    /// Removed when the channel ends: after that the directory may be a successor's.
    files: Mutex<Files>,
    /// Whether its files have been given to a producer.
    shared: AtomicBool,
}

struct ChannelBuffer {
    buffer: Buffer,
    read_side: Mutex<ReadSide>,
    /// The copy of it that is open, if one is.
    snapshot: SnapshotSlot,
    /// Who wants to know of the next switch, by open file: the file's number, and how to wake it.
    waiters: Mutex<Vec<(u64, Wake)>>,
}

/// What the one lock of a buffer protects. It is held while a reply is written, so that nobody sees a buffer whose
/// bytes are replied but not consumed.
pub(crate) struct ReadSide {
    pub(crate) reader: Reader,
    /// Set by the buffer's writer when a batch waits for room; whoever makes room tells it, and clears this.
    pub(crate) parked: bool,
    /// Size when it was last looked at, and when it was first seen to be that.
    grown: (u64, SystemTime),
}

/// What poll(2) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollState {
    /// Nothing is finished.
    Idle,
    /// A finished sub-buffer waits.
    Readable,
    /// The channel is closed.
    Closed,
}

/// The numbers of one buffer, or of all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) produced: u64,
    pub(crate) consumed: u64,
    pub(crate) bytes: u64,
    pub(crate) written: u64,
    pub(crate) dropped: u64,
    pub(crate) too_big: u64,
    pub(crate) contended: u64,
    pub(crate) read_bytes: u64,
    pub(crate) read_subbufs: u64,
    pub(crate) overwritten_bytes: u64,
    pub(crate) overwritten_subbufs: u64,
    pub(crate) discarded_bytes: u64,
    pub(crate) discarded_subbufs: u64,
    pub(crate) high_water: u64,
}

impl Counts {
    /// Names and values, in the order of the file. Names are never removed or given another meaning.
    fn named(&self) -> [(&'static str, u64); 14] {
        [
            ("produced", self.produced),
            ("consumed", self.consumed),
            ("bytes", self.bytes),
            ("written", self.written),
            ("dropped", self.dropped),
            ("too_big", self.too_big),
            ("contended", self.contended),
            ("read_bytes", self.read_bytes),
            ("read_subbufs", self.read_subbufs),
            ("overwritten_bytes", self.overwritten_bytes),
            ("overwritten_subbufs", self.overwritten_subbufs),
            ("discarded_bytes", self.discarded_bytes),
            ("discarded_subbufs", self.discarded_subbufs),
            ("high_water", self.high_water),
        ]
    }

    /// Adds another's numbers, which peers have a hand in; of high-water marks the highest counts.
    pub(crate) fn add(&mut self, other: &Counts) {
        self.produced = self.produced.wrapping_add(other.produced);
        self.consumed = self.consumed.wrapping_add(other.consumed);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.written = self.written.wrapping_add(other.written);
        self.dropped = self.dropped.wrapping_add(other.dropped);
        self.too_big = self.too_big.wrapping_add(other.too_big);
        self.contended = self.contended.wrapping_add(other.contended);
        self.read_bytes = self.read_bytes.wrapping_add(other.read_bytes);
        self.read_subbufs = self.read_subbufs.wrapping_add(other.read_subbufs);
        self.overwritten_bytes = self.overwritten_bytes.wrapping_add(other.overwritten_bytes);
        self.overwritten_subbufs = self.overwritten_subbufs.wrapping_add(other.overwritten_subbufs);
        self.discarded_bytes = self.discarded_bytes.wrapping_add(other.discarded_bytes);
        self.discarded_subbufs = self.discarded_subbufs.wrapping_add(other.discarded_subbufs);
        self.high_water = self.high_water.max(other.high_water);
    }

    /// One line a number: `prefix.name value`.
    pub(crate) fn write_to(&self, prefix: &str, text: &mut String) {
        for (name, value) in self.named() {
            writeln!(text, "{prefix}.{name} {value}").expect("writing to a string");
        }
    }
}

impl Channel {
    /// Creates a channel: its files below `state_dir`, allocated and mapped.
    pub(crate) fn create(
        state_dir: &Path,
        id: u32,
        name: ChannelName,
        geometry: Geometry,
        n_bufs: usize,
        permanent: bool,
    ) -> io::Result<Channel> {
        let mut files = Files::default();
        let header = abi::control_header(&geometry, n_bufs);
        let control = Arc::new(files.create(state_dir.join(format!("{id}.control")), header.control_len())?);
        control.put_header(header);
        let mut buffers = Vec::with_capacity(n_bufs);
        let now = SystemTime::now();
        for index in 0..n_bufs {
            let data = files.create(state_dir.join(format!("{id}.data{index}")), abi::data_len(&geometry))?;
            let buffer = Buffer::new(control.clone(), Arc::new(data), geometry, &header, index)
                .expect("files were just made as long as the geometry says");
            buffer.init(0);
            let reader = Reader::new(buffer.clone());
            let read_side = Mutex::new(ReadSide { reader, parked: false, grown: (0, now) });
            let (snapshot, waiters) = (SnapshotSlot::default(), Mutex::new(Vec::new()));
            buffers.push(ChannelBuffer { buffer, read_side, snapshot, waiters });
        }
        Ok(Channel {
            id,
            name,
            geometry,
            permanent,
            buffers,
            memory: Channel::memory_needed(&geometry, n_bufs),
            created: now,
            closed: AtomicBool::new(false),
            holders: AtomicUsize::new(0),
            files: Mutex::new(files),
            shared: AtomicBool::new(false),
        })
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
        self.permanent
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
    pub(crate) fn read_side(&self, cpu: usize) -> MutexGuard<'_, ReadSide> {
        self.buffers[cpu].read_side.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the open copy of a buffer is found.
    pub(crate) fn snapshot_slot(&self, cpu: usize) -> &SnapshotSlot {
        &self.buffers[cpu].snapshot
    }

    /// Whether something has been written to the buffer's current sub-buffer.
    pub(crate) fn has_unfinished(&self, cpu: usize) -> bool {
        self.read_side(cpu).reader.has_unfinished()
    }

    /// Opens one of the channel's files to be looked at: that of a buffer, or without one the control file.
    pub(crate) fn open_file(&self, cpu: Option<usize>) -> io::Result<File> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let path = files.0.get(cpu.map_or(0, |cpu| cpu + 1));
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

    /// What poll(2) says of a buffer. With `wake`, that is called once at its next switch or end; it is stored
    /// *before* the look, so that a switch in between is not missed.
    pub(crate) fn poll(&self, cpu: usize, file: u64, wake: Option<Wake>) -> PollState {
        if let Some(wake) = wake {
            let mut waiters = self.waiters(cpu);
            self.buffers[cpu].buffer.arm();
            match waiters.iter_mut().find(|(who, _)| *who == file) {
                Some(waiter) => waiter.1 = wake,
                None => waiters.push((file, wake)),
            }
        }
        if self.closed.load(Ordering::Acquire) {
            PollState::Closed
        } else if self.read_side(cpu).reader.has_finished() {
            PollState::Readable
        } else {
            PollState::Idle
        }
    }

    /// Forgets what an open file wanted to be told.
    pub(crate) fn forget_waiter(&self, cpu: usize, file: u64) {
        self.waiters(cpu).retain(|(who, _)| *who != file);
    }

    /// Tells everybody who polls a buffer to look again.
    pub(crate) fn wake(&self, cpu: usize) {
        let waiters = std::mem::take(&mut *self.waiters(cpu));
        for (_, wake) in waiters {
            wake();
        }
    }

    /// Tells those who poll, if there is something: a producer that writes by itself has rung, or has gone. Where a reader
    /// was faster and there is nothing any more, those who poll go on waiting, and producers have to ring again.
    pub(crate) fn wake_readable(&self) {
        for cpu in 0..self.n_bufs() {
            if self.waiters(cpu).is_empty() {
                continue;
            }
            let has_finished = || self.read_side(cpu).reader.has_finished();
            let readable = has_finished() || {
                self.buffers[cpu].buffer.arm();
                has_finished()
            };
            if readable {
                self.wake(cpu);
            }
        }
    }

    /// Opens the channel's files for somebody else: the control file, then the data files. If it is to write them, the
    /// channel is shared from then on.
    pub(crate) fn share(&self, to_write: bool) -> io::Result<Vec<File>> {
        if to_write {
            self.shared.store(true, Ordering::Relaxed);
        }
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.0.iter().map(|path| OpenOptions::new().read(true).write(to_write).open(path)).collect()
    }

    /// Whether producers write it by themselves.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    /// Ends the channel: those who poll are told, and its files go. What is unread can be read as before.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(std::mem::take(&mut *self.files.lock().unwrap_or_else(PoisonError::into_inner)));
        (0..self.n_bufs()).for_each(|cpu| self.wake(cpu));
    }

    /// Bytes that somebody wrote and nobody has read yet, in all buffers.
    pub(crate) fn unread(&self) -> u64 {
        // What a peer has made of its numbers is not to end the daemon.
        let unread = |cpu| self.read_side(cpu).reader.unread_data();
        (0..self.n_bufs()).fold(0, |sum, cpu| sum.saturating_add(unread(cpu)))
    }

    /// The numbers of one buffer.
    pub(crate) fn counts(&self, cpu: usize) -> Counts {
        let side = self.read_side(cpu);
        side.reader.note_high_water();
        let block = side.reader.buffer().block();
        // Relaxed: counters say nothing of other memory.
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let produced = side.reader.produced();
        Counts {
            produced,
            consumed: produced.saturating_sub(side.reader.n_finished()),
            bytes: side.reader.size(),
            written: get(&block.written),
            dropped: get(&block.dropped).wrapping_add(get(&block.dropped_elsewhere)),
            too_big: get(&block.too_big),
            contended: get(&block.contended),
            read_bytes: get(&block.read_bytes),
            read_subbufs: get(&block.read_subbufs),
            overwritten_bytes: get(&block.overwritten_bytes),
            overwritten_subbufs: get(&block.overwritten_subbufs),
            discarded_bytes: get(&block.discarded_bytes),
            discarded_subbufs: get(&block.discarded_subbufs),
            high_water: get(&block.high_water),
        }
    }

    /// The numbers of all buffers together.
    pub(crate) fn total(&self) -> Counts {
        let mut total = Counts::default();
        (0..self.n_bufs()).for_each(|cpu| total.add(&self.counts(cpu)));
        total
    }

    /// The text of the `stats` file. Buffers are called `cpuN` whatever the channel's base filename is.
    pub(crate) fn stats(&self) -> String {
        let mut text = String::new();
        for cpu in 0..self.n_bufs() {
            self.counts(cpu).write_to(&format!("cpu{cpu}"), &mut text);
        }
        self.total().write_to("total", &mut text);
        text
    }

    fn waiters(&self, cpu: usize) -> MutexGuard<'_, Vec<(u64, Wake)>> {
        self.buffers[cpu].waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of a channel, removed when it goes.
#[derive(Default)]
struct Files(Vec<PathBuf>);

impl Files {
    /// Creates and maps a file of `len` zero bytes, with all its memory allocated now: later there might be none.
    fn create(&mut self, path: PathBuf, len: u64) -> io::Result<Mapping> {
        let file: File =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        self.0.push(path);
        let len_signed = i64::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // tmpfs stops for a signal to whichever thread, and starts over.
        while let Err(errno) = fallocate(&file, FallocateFlags::empty(), 0, len_signed) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        Mapping::new(&file, len)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            // Whatever is wrong with the directory was said by who uses it; there is nobody to tell here.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use relay::GeometrySpec;
    use relay::writer::{Alone, Writer};

    use super::*;

    /// A producer rings for a sub-buffer that a reader has taken when the daemon comes to look: who polls must hear of the
    /// next one.
    #[test]
    fn a_ring_that_a_reader_was_faster_than_is_not_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = GeometrySpec::default().build().unwrap();
        let channel = Channel::create(dir.path(), 1, "cpu".parse().unwrap(), geometry, 1, true).unwrap();
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = Arc::clone(&woken);
        let told = move || {
            wake.fetch_add(1, Ordering::Relaxed);
        };
        assert!(matches!(channel.poll(0, 7, Some(Box::new(told))), PollState::Idle));
        let switch = || {
            Writer::new(channel.buffer(0), Alone).flush().unwrap();
            channel.buffer(0).wake_wanted().expect("somebody polls").rung();
        };
        switch();
        channel.read_side(0).reader.read(1, &mut Vec::new(), |_| {});
        channel.wake_readable();
        assert_eq!(woken.load(Ordering::Relaxed), 0, "there is nothing");
        switch();
        channel.wake_readable();
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    }
}
