//! The reader: maps a channel's buffers, takes finished sub-buffers from them, gives them back, and waits for more.

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
/// One thread at a time uses it; threads that share the work open one each, for instance for a CPU each by
/// [`Reader::open_cpu`].
///
/// Whom the daemon lets write the buffers' files can truncate them, and then a look into the maps is SIGBUS, which only a
/// program can deal with, not a library.
///
/// Its descriptors are 3 or above. If the program closes them, that is [`ReadError::Gone`], too: what has their numbers then is
/// neither read nor written nor closed.
///
/// When the daemon has gone, what needs it is [`ReadError::Gone`]; what is finished can be taken all the same. If another
/// one takes over, [`Reader::reopen`] goes on with it.
#[derive(Debug)]
pub struct Reader {
    place: Place,
    connection: Connection,
    /// The daemon rings it.
    bell: HeldFd,
    buffers: Buffers,
}

/// What is opened.
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
    /// By CPU; of those that are not read, none.
    views: Vec<Option<MappedReader>>,
}

/// Which buffers they are, to compare: a daemon that takes over goes on with the same ones.
#[derive(Clone, Debug)]
pub struct BuffersId {
    /// Device and inode number of the control file, which is nobody else's as long as somebody has it.
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
    /// Maps all buffers of an existing channel. `mount` is a mount point or a socket; it takes the right to read the
    /// buffers' files there.
    pub fn open(mount: impl AsRef<Path>, channel: &str) -> Result<Reader, ReadError> {
        Reader::open_some(mount.as_ref(), channel, None)
    }

    /// The same for one CPU's buffer only.
    pub fn open_cpu(mount: impl AsRef<Path>, channel: &str, cpu: usize) -> Result<Reader, ReadError> {
        Reader::open_some(mount.as_ref(), channel, Some(cpu))
    }

    fn open_some(mount: &Path, channel: &str, only: Option<usize>) -> Result<Reader, ReadError> {
        let place = Place { mount: mount.to_owned(), channel: channel.to_owned(), only };
        let (connection, bell, buffers) = connect(&place, None)?;
        let buffers = buffers.ok_or_else(|| files_error("no control file came"))?;
        Ok(Reader { place, connection, bell, buffers })
    }

    /// Connects again, to the daemon that there is now. True: it goes on with the same buffers, and so does this reader,
    /// behind what it took last; what it took and has not given back, it gives back to that daemon. False: they are new ones,
    /// from their beginning. An error changes nothing: the daemon is not there yet, or the channel is not; try again.
    pub fn reopen(&mut self) -> Result<bool, ReadError> {
        let (connection, bell, buffers) = connect(&self.place, Some(&self.buffers.id))?;
        (self.connection, self.bell) = (connection, bell);
        match buffers {
            Some(buffers) => {
                self.buffers = buffers;
                Ok(false)
            }
            None => {
                self.buffers.views.iter_mut().flatten().for_each(MappedReader::settle);
                Ok(true)
            }
        }
    }

    /// Which buffers these are.
    pub fn buffers_id(&self) -> &BuffersId {
        &self.buffers.id
    }

    /// Bytes of a CPU's buffer that were read or lost since the channel was created, as far as the daemon has said so. `None`
    /// if the CPU is not read; in overwrite mode also where the writer has overwritten what tells it.
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

    /// The next finished sub-buffer of a CPU; `None` if there is none yet, or the CPU is not read. What is partly read goes
    /// on where that ended. In overwrite mode some may have been passed over, see their numbers, and one that was taken may
    /// be overwritten any time: [`SubBuffer::is_whole`] says so.
    pub fn next_finished(&mut self, cpu: usize) -> Option<SubBuffer<'_>> {
        self.buffers.views.get_mut(cpu)?.as_mut()?.next_finished()
    }

    /// Whether a CPU has a finished sub-buffer that was not taken yet.
    pub fn has_finished(&self, cpu: usize) -> bool {
        self.buffers.views.get(cpu).and_then(Option::as_ref).is_some_and(MappedReader::has_finished)
    }

    /// Gives back all sub-buffers of a CPU that were taken since the last time. [`ReadError::Stale`] if others did before;
    /// then nothing was given back, and [`Reader::next_finished`] goes on with what is unread. [`ReadError::Gone`] if the
    /// daemon has gone: it may have had them, or not, which [`Reader::reopen`] finds out.
    pub fn release(&mut self, cpu: usize) -> Result<(), ReadError> {
        let Some(view) = self.buffers.views.get_mut(cpu).and_then(Option::as_mut) else { return Ok(()) };
        let Some((from, count)) = view.take_back() else { return Ok(()) };
        let consume = Consume { channel: self.connection.channel, cpu: cpu as u32, from, count };
        match self.connection.request(&consume) {
            Err(ReadError::Refused(refused)) if refused.errno == libc_errno(Errno::ESTALE) => {
                view.go_back();
                Err(ReadError::Stale)
            }
            Err(ReadError::Gone) => {
                view.keep_taken((from, count));
                Err(ReadError::Gone)
            }
            result => result,
        }
    }

    /// Forgets what was taken of a CPU without giving it back, and goes on with what is unread: who has read the file in
    /// between calls this.
    pub fn go_back(&mut self, cpu: usize) -> Result<(), ReadError> {
        let Some(view) = self.buffers.views.get_mut(cpu).and_then(Option::as_mut) else { return Ok(()) };
        // What a read() has brought is told as consumed a moment after it. The answer to this, whatever it is, comes later.
        match self.connection.request(&Watch { channel: self.connection.channel, cpu: cpu as u32 }) {
            Ok(()) | Err(ReadError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        view.go_back();
        Ok(())
    }

    /// Waits until a sub-buffer is finished that was not taken yet, or `deadline` has come: false. [`ReadError::Gone`] if
    /// the channel, or the daemon, has gone; what is finished can be taken all the same.
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

    /// Asks for a ring from every buffer that is read. Whether it is not necessary: there is something.
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
            // Non-blocking; that it was not rung is no error.
            let _ = nix::unistd::read(bell, &mut [0; 8]);
        }
    }
}

/// The bell: readable when [`Reader::wait`] would return, once it has been called. For programs with an event loop of their
/// own.
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
        return Err(files_error(format!("they have layout {theirs}, this release knows {LAYOUT_VERSION}")));
    }
    let expected = reply.count as usize + if is_first { SHARE_FIRST_EXTRA } else { 0 };
    if descriptors.len() != expected {
        let n = descriptors.len();
        return Err(files_error(format!("{n} of {expected} came: perhaps too few may be open (ulimit -n)")));
    }
    Ok(descriptors)
}

/// Opens the channel and has its files sent: the connection, its bell, and the buffers, unless they are `known`.
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
