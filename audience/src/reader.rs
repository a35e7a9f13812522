//! The reader: maps buffers, takes finished sub-buffers, gives them back, and waits for more.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay::Geometry;
use relay::layout::abi::LAYOUT_VERSION;
use relay::layout::channel_files::{Control, FileError};
use relay::memory::mapping::Mapping;
use relay::ring::mapped_reader::{MappedReader, SubBuffer};
use relay::system::descriptor::HeldFd;
use relay::wire::frame::{Consume, SHARE_FIRST_EXTRA, ShareReply, Watch};

use crate::connection::{Connection, ReadError};

/// A channel, mapped for reading.
///
/// One thread at a time uses a reader. Threads that share the work open a reader each, for instance for a CPU each by
/// [`Reader::open_cpu`].
///
/// A process that may write the buffers' files can also truncate them. Access to the mappings then raises SIGBUS. Only
/// the program can handle that signal; a library cannot.
///
/// A reader's descriptors are 3 or above. If the program closes them, calls return [`ReadError::Gone`]. A file that has
/// got their numbers since is neither read nor written nor closed.
///
/// When the daemon has gone, calls that need it return [`ReadError::Gone`]. Finished sub-buffers can still be taken.
/// [`Reader::reopen`] continues with the next daemon.
#[derive(Debug)]
pub struct Reader {
    place: Place,
    connection: Connection,
    /// An eventfd that the daemon signals.
    bell: HeldFd,
    buffers: Buffers,
}

/// What the caller asked to open.
#[derive(Debug)]
struct Place {
    mount: PathBuf,
    channel: String,
    only: Option<usize>,
}

/// The channel's files.
#[derive(Debug)]
struct Buffers {
    id: BuffersId,
    /// By CPU; `None` for a CPU that is not read.
    views: Vec<Option<MappedReader>>,
}

/// Identifies buffers, for comparison: a daemon that takes over keeps the same buffers.
#[derive(Clone, Debug)]
pub struct BuffersId {
    /// Device and inode number of the control file. No other file gets them while the file is held open here.
    numbers: (u64, u64),
    _control: Arc<HeldFd>,
}

impl PartialEq for BuffersId {
    fn eq(&self, other: &BuffersId) -> bool {
        self.numbers == other.numbers
    }
}

impl Eq for BuffersId {}

impl Reader {
    /// Maps all buffers of an existing channel.
    ///
    /// `mount` is a mount point or a socket. The caller needs the right to read the buffers' files there.
    pub fn open(mount: impl AsRef<Path>, channel: &str) -> Result<Reader, ReadError> {
        Reader::open_some(mount.as_ref(), channel, None)
    }

    /// Maps one CPU's buffer of an existing channel; otherwise as [`Reader::open`].
    pub fn open_cpu(mount: impl AsRef<Path>, channel: &str, cpu: usize) -> Result<Reader, ReadError> {
        Reader::open_some(mount.as_ref(), channel, Some(cpu))
    }

    fn open_some(mount: &Path, channel: &str, only: Option<usize>) -> Result<Reader, ReadError> {
        let place = Place { mount: mount.to_owned(), channel: channel.to_owned(), only };
        let (connection, bell, buffers) = connect(&place, None)?;
        let buffers = buffers.ok_or_else(|| files_error("no control file came"))?;
        Ok(Reader { place, connection, bell, buffers })
    }

    /// Connects again, to the daemon that runs now.
    ///
    /// Returns true if that daemon has kept the buffers. The reader then continues behind the sub-buffers it took last,
    /// and gives the ones not yet given back to the new daemon. Returns false if the buffers are new: the reader starts
    /// at their beginning. An error changes nothing: the daemon or the channel is not there yet, so the caller tries
    /// again.
    pub fn reopen(&mut self) -> Result<bool, ReadError> {
        let (connection, bell, buffers) = connect(&self.place, Some(&self.buffers.id))?;
        (self.connection, self.bell) = (connection, bell);
        match buffers {
            Some(buffers) => {
                self.buffers = buffers;
                Ok(false)
            }
            None => {
                self.buffers.views.iter_mut().flatten().for_each(MappedReader::attach_next_daemon);
                Ok(true)
            }
        }
    }

    /// Identifies the buffers that are read.
    pub fn buffers_id(&self) -> &BuffersId {
        &self.buffers.id
    }

    /// Bytes of a CPU's buffer that were read or lost since the channel was created.
    ///
    /// It counts what the daemon has published so far.
    ///
    /// `None` if the CPU is not read. In overwrite mode also if the writer has overwritten the record that holds the
    /// number.
    pub fn consumed_bytes(&self, cpu: usize) -> Option<u64> {
        self.buffers.views.get(cpu)?.as_ref()?.consumed_bytes()
    }

    /// Number of the channel's buffers: the number of CPUs, or 1.
    pub fn n_bufs(&self) -> usize {
        self.buffers.views.len()
    }

    /// The channel's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.connection.geometry
    }

    /// Takes the next finished sub-buffer of a CPU.
    ///
    /// `None` if there is none yet, or the CPU is not read.
    ///
    /// A sub-buffer that was partly read begins where that read ended; what is read of it later, both have. In overwrite
    /// mode sub-buffers may have been skipped: compare their numbers. A sub-buffer that was taken may be overwritten any
    /// time, in no-overwrite mode after a reset or if another reader has read it: see [`SubBuffer::is_whole`].
    pub fn next_finished(&mut self, cpu: usize) -> Option<SubBuffer<'_>> {
        self.buffers.views.get_mut(cpu)?.as_mut()?.next_finished()
    }

    /// Whether a CPU has a finished sub-buffer that was not taken yet.
    pub fn has_finished(&self, cpu: usize) -> bool {
        self.buffers.views.get(cpu).and_then(Option::as_ref).is_some_and(MappedReader::has_finished)
    }

    /// Gives back all sub-buffers of a CPU that were taken since the last call.
    ///
    /// [`ReadError::Stale`] if another reader gave them back before. Then nothing was given back, and
    /// [`Reader::next_finished`] continues with unread data. [`ReadError::Gone`] if the daemon has gone. It may or may
    /// not have received them; [`Reader::reopen`] finds out.
    pub fn release(&mut self, cpu: usize) -> Result<(), ReadError> {
        self.give_back(cpu, MappedReader::give_back_range)
    }

    /// Gives back the taken sub-buffers of a CPU up to this number, and keeps those behind it; otherwise as
    /// [`Reader::release`].
    ///
    /// After [`ReadError::Stale`] none is kept: [`Reader::next_finished`] may return some of those behind it again.
    pub fn release_until(&mut self, cpu: usize, number: u64) -> Result<(), ReadError> {
        self.give_back(cpu, |view| view.give_back_until(number))
    }

    fn give_back(
        &mut self,
        cpu: usize,
        range: impl FnOnce(&mut MappedReader) -> Option<(u64, u64)>,
    ) -> Result<(), ReadError> {
        let Some(view) = self.buffers.views.get_mut(cpu).and_then(Option::as_mut) else { return Ok(()) };
        let Some((from, count)) = range(view) else { return Ok(()) };
        let consume = Consume { channel: self.connection.channel, cpu: cpu as u32, from, count };
        match self.connection.request(&consume) {
            Err(ReadError::Refused(refused)) if refused.errno == libc_errno(Errno::ESTALE) => {
                view.rewind_to_consumed();
                Err(ReadError::Stale)
            }
            Err(ReadError::Gone) => {
                view.restore_taken((from, count));
                Err(ReadError::Gone)
            }
            result => result,
        }
    }

    /// Forgets a CPU's taken sub-buffers without giving them back, and continues with unread data.
    ///
    /// A caller that has read the CPU's file in between needs this call.
    pub fn rewind_to_consumed(&mut self, cpu: usize) -> Result<(), ReadError> {
        let Some(view) = self.buffers.views.get_mut(cpu).and_then(Option::as_mut) else { return Ok(()) };
        // The daemon publishes a read() as consumed shortly after it replies. Any answer to this request comes later
        // than that.
        match self.connection.request(&Watch { channel: self.connection.channel, cpu: cpu as u32 }) {
            Ok(()) | Err(ReadError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        view.rewind_to_consumed();
        Ok(())
    }

    /// Forgets a CPU's taken sub-buffers without giving them back: [`Reader::next_finished`] returns them again.
    ///
    /// It asks the daemon nothing, so it also works after the daemon's end. What another reader has read a moment ago may
    /// be returned once more, and [`Reader::release`] then fails with [`ReadError::Stale`].
    pub fn take_again(&mut self, cpu: usize) {
        if let Some(view) = self.buffers.views.get_mut(cpu).and_then(Option::as_mut) {
            view.rewind_to_consumed();
        }
    }

    /// Waits for a finished sub-buffer that was not taken yet; returns false when `deadline` has come.
    ///
    /// [`ReadError::Gone`] if the channel or the daemon has gone. Finished sub-buffers can still be taken.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool, ReadError> {
        loop {
            self.drain_bell();
            if self.watch()? {
                return Ok(true);
            }
            let timeout = deadline.map_or(PollTimeout::NONE, |at| {
                let left = at.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
            });
            let Some(bell) = self.bell.get() else { return Err(ReadError::Gone) };
            let mut fds = [
                PollFd::new(bell, PollFlags::POLLIN),
                PollFd::new(self.connection.as_fd(), PollFlags::empty()),
            ];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(ReadError::Io { doing: "wait", source: errno.into() }),
            }
            if self.has_any_finished() {
                return Ok(true);
            }
            if self.connection.is_over() {
                return Err(ReadError::Gone);
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(false);
            }
        }
    }

    /// Asks the daemon to signal the next finished sub-buffer of every CPU. Returns true if there is one already.
    fn watch(&mut self) -> Result<bool, ReadError> {
        for (cpu, view) in self.buffers.views.iter().enumerate() {
            let Some(view) = view else { continue };
            if view.has_finished() {
                return Ok(true);
            }
            let watch = Watch { channel: self.connection.channel, cpu: cpu as u32 };
            match self.connection.request(&watch) {
                Err(ReadError::Refused(refused)) if refused.errno == libc_errno(Errno::ENODEV) => {
                    return if self.has_any_finished() { Ok(true) } else { Err(ReadError::Gone) };
                }
                result => result?,
            }
        }
        Ok(self.has_any_finished())
    }

    fn has_any_finished(&self) -> bool {
        self.buffers.views.iter().flatten().any(MappedReader::has_finished)
    }

    fn drain_bell(&self) {
        if let Some(bell) = self.bell.get() {
            // Non-blocking: an error only says that there was no signal.
            let _ = nix::unistd::read(bell, &mut [0; 8]);
        }
    }
}

/// The eventfd that becomes readable when [`Reader::wait`], called before, would return. For programs with an event
/// loop.
impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

fn libc_errno(errno: Errno) -> i32 {
    errno as i32
}

fn files_error(why: impl Into<String>) -> ReadError {
    ReadError::Files(why.into())
}

fn check(reply: &ShareReply, descriptors: Vec<OwnedFd>, is_first: bool) -> Result<Vec<OwnedFd>, ReadError> {
    if reply.layout_version != LAYOUT_VERSION {
        let theirs = reply.layout_version;
        return Err(files_error(format!("their layout is {theirs}, this release reads {LAYOUT_VERSION}")));
    }
    let expected = reply.count as usize + if is_first { SHARE_FIRST_EXTRA } else { 0 };
    if descriptors.len() != expected {
        let n = descriptors.len();
        return Err(files_error(format!("{n} of {expected} came: perhaps too few may be open (ulimit -n)")));
    }
    Ok(descriptors)
}

/// Opens the channel, and receives its eventfd and, unless `known`, its buffers.
fn connect(
    place: &Place,
    known: Option<&BuffersId>,
) -> Result<(Connection, HeldFd, Option<Buffers>), ReadError> {
    let mut connection = Connection::open(&place.mount, &place.channel)?;
    let (geometry, n_bufs) = (connection.geometry, connection.n_bufs);
    if let Some(cpu) = place.only.filter(|cpu| *cpu >= n_bufs) {
        return Err(ReadError::NoSuchCpu { cpu, n_bufs });
    }
    let mut first = None;
    let mut views = Vec::new();
    connection.share(|reply, descriptors| {
        let mut files = check(&reply, descriptors, first.is_none())?.into_iter();
        if first.is_none()
            && let (Some(file), Some(bell)) = (files.next(), files.next())
        {
            let said = |error: FileError| files_error(format!("the control file: {error}"));
            let bell = HeldFd::new(bell).map_err(|error| files_error(format!("the bell: {error}")))?;
            let file = File::from(file);
            let numbers = identify(&file).map_err(|error| said(error.into()))?;
            let is_known = known.is_some_and(|known| known.numbers == numbers);
            let map = || Control::map(&file, Mapping::read_only, geometry, n_bufs);
            let control = (!is_known).then(map).transpose().map_err(said)?;
            let held = HeldFd::new(file.into()).map_err(|error| said(error.into()))?;
            first = Some((BuffersId { numbers, _control: Arc::new(held) }, bell, control));
        }
        let Some((_, _, Some(control))) = &first else { return Ok(()) };
        for file in files {
            let cpu = views.len();
            let wanted = place.only.is_none_or(|only| only == cpu);
            let map = || control.buffer(&file.into(), cpu).map(MappedReader::new);
            let said = |error: FileError| files_error(format!("the file of buffer {cpu}: {error}"));
            views.push(wanted.then(map).transpose().map_err(said)?);
        }
        Ok(())
    })?;
    let (id, bell, control) = first.ok_or_else(|| files_error("no control file came"))?;
    Ok((connection, bell, control.map(|_| Buffers { id, views })))
}

fn identify(control: &File) -> io::Result<(u64, u64)> {
    let found = control.metadata()?;
    Ok((found.dev(), found.ino()))
}
