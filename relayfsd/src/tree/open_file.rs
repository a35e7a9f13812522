//! Open files: what read, write and poll do with them. FUSE comes in as closures only.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use relay::memory::lent::Lent;

use crate::channel::snapshot::Snapshot;
use crate::channel::take::Take;
use crate::channel::{ChannelRef, PollState, Wake};
use crate::policy::quota::{Quota, Reservation};
use crate::tree::buffer_file::OpenBuffer;
use crate::tree::consumed_file::consume;
use crate::tree::inode::{ControlFile, Node, PerCpu};
use crate::tree::msg_file;
use crate::tree::{Tree, VERSION_TEXT, consumed_text};
use crate::writers::{Unavailable, flush_all, reset_all};

/// How much all open files together keep, in bytes. Where there is no more, files keep less, and nothing else changes.
const KEEP_ALL_MAX: usize = 64 << 20;
/// Files that may be open at once.
const OPEN_MAX: usize = 8192;

/// Most bytes of a channel's own file that are read at a time.
const OWN_READ_MAX: usize = 1 << 20;

/// An open file.
pub(crate) enum OpenFile {
    /// A buffer's file.
    Buffer(OpenBuffer),
    /// A text, as it was when the file was opened.
    Text(Vec<u8>),
    /// A control file that is written to.
    Control { channel: ChannelRef, file: ControlFile },
    /// Where sub-buffers are given back, and the number that was next when it was opened.
    Consumed { channel: ChannelRef, cpu: usize, text: Vec<u8> },
    /// One of the channel's own files: the positions, or a ring.
    Own { file: File, channel: ChannelRef },
    /// A frozen copy of a buffer.
    Snapshot { snapshot: Arc<Snapshot>, is_new: bool, _channel: ChannelRef },
    /// A copy of what was unread.
    Take(Arc<Take>),
}

/// Where the kernel gets the bytes of an open file from.
pub(crate) enum Source {
    /// From us, each time.
    Us,
    /// From the daemon each time; the kernel refuses mappings where it can.
    UsUnmapped,
    /// From the daemon each time, and for mappings from a file.
    UsAndFile(io::Result<File>),
    /// From us once: they do not change. The flag says that what it has of an earlier copy is none.
    Cache { is_new: bool },
    /// From us each time, and for mappings from a file. We are told when a process closes it.
    UntilClosed(io::Result<File>),
}

/// The result of a write(2), told when it is known: an errno, or nothing.
pub(crate) type Written = Box<dyn FnOnce(Result<(), i32>) + Send>;

impl OpenFile {
    /// Opens a node; the kernel checked its mode. `readable`: not write-only. `room` is for what the file keeps. ESTALE: it has
    /// gone since its name was looked up, and the kernel looks that up again.
    fn open(tree: &Tree, node: Node, readable: bool, room: Reservation) -> Result<OpenFile, i32> {
        let text = |text: String| Ok(OpenFile::Text(text.into_bytes()));
        match node {
            Node::Version => text(VERSION_TEXT.to_owned()),
            Node::Stats => text(tree.registry().stats()),
            Node::Buffer { channel, cpu } => {
                let channel = tree.hold_buffer(channel, cpu).ok_or(libc::ESTALE)?;
                let cpu = cpu as usize;
                whole(&channel, Some(cpu))?;
                Ok(OpenFile::Buffer(OpenBuffer::new(channel, cpu, readable, room)))
            }
            Node::PerCpu { channel, dir, cpu } => {
                let channel = tree.hold_buffer(channel, cpu).ok_or(libc::ESTALE)?;
                let cpu = cpu as usize;
                whole(&channel, Some(cpu))?;
                match dir {
                    PerCpu::Consumed => {
                        let text = consumed_text(&channel, cpu).into_bytes();
                        Ok(OpenFile::Consumed { channel, cpu, text })
                    }
                    PerCpu::Snapshot => {
                        let (snapshot, is_new) = Snapshot::take(tree.registry().memory(), &channel, cpu)?;
                        Ok(OpenFile::Snapshot { snapshot, is_new, _channel: channel })
                    }
                    PerCpu::Map => OpenFile::open_own(channel, Some(cpu)),
                    PerCpu::Take => Err(libc::ESTALE), // its files are those below
                }
            }
            Node::Take { channel, cpu, copy } => {
                let channel = tree.hold_buffer(channel, cpu).ok_or(libc::ESTALE)?;
                whole(&channel, Some(cpu as usize))?;
                Ok(OpenFile::Take(Take::open(tree.registry().memory(), &channel, cpu as usize, copy)?))
            }
            Node::Control { channel, file } => {
                let channel = tree.hold(channel).ok_or(libc::ESTALE)?;
                if !matches!(
                    file,
                    ControlFile::Reset | ControlFile::SubbufSize | ControlFile::NSubbufs | ControlFile::Mode
                ) {
                    whole(&channel, None)?;
                }
                match file {
                    ControlFile::Msg | ControlFile::Flush | ControlFile::Reset => {
                        Ok(OpenFile::Control { channel, file })
                    }
                    ControlFile::Positions => OpenFile::open_own(channel, None),
                    ControlFile::Stats | ControlFile::Dropped => {
                        let numbers = file.text(&channel);
                        if channel.is_broken() { Err(libc::EIO) } else { text(numbers) }
                    }
                    _ => text(file.text(&channel)),
                }
            }
            Node::Dir(_)
            | Node::Relay
            | Node::ChannelsDir(_)
            | Node::ChannelDir(_)
            | Node::PerCpuDir { .. } => Err(libc::EISDIR),
            Node::Socket => Err(libc::ELOOP),
        }
    }

    /// Opens the file of a buffer, or the control file, as it is on tmpfs.
    fn open_own(channel: ChannelRef, cpu: Option<usize>) -> Result<OpenFile, i32> {
        let file = channel.open_file(cpu).map_err(errno_of)?;
        Ok(OpenFile::Own { file, channel })
    }

    /// Where the kernel is to get its bytes from.
    fn source(&self) -> Source {
        match self {
            OpenFile::Buffer(_) => Source::UsUnmapped,
            OpenFile::Own { file, .. } => Source::UsAndFile(file.try_clone()),
            OpenFile::Snapshot { is_new, .. } => Source::Cache { is_new: *is_new },
            OpenFile::Take(take) => Source::UntilClosed(take.file()),
            OpenFile::Text(_) | OpenFile::Control { .. } | OpenFile::Consumed { .. } => Source::Us,
        }
    }

    /// Told when the kernel was refused bytes for its cache.
    pub(crate) fn refuse_fill(&self) {
        if let OpenFile::Buffer(buffer) = self {
            buffer.refuse_fill();
        }
    }

    /// Whether the kernel may read it for its cache.
    pub(crate) fn is_cached(&self) -> bool {
        matches!(self, OpenFile::Snapshot { .. })
    }

    /// read(2) by a process, of open file number `number`: passes the bytes, or an errno, to `reply`, once.
    pub(crate) fn read(
        &self,
        tree: &Tree,
        number: u64,
        process: u64,
        at: u64,
        count: usize,
        reply: impl FnOnce(Result<Lent<'_>, i32>),
    ) {
        match self {
            OpenFile::Take(take) => take.read(number, process, at, count, reply),
            OpenFile::Buffer(buffer) => buffer.read(tree.writers(), at, count, reply),
            OpenFile::Text(text) | OpenFile::Consumed { text, .. } => reply(Ok(part(text, at, count).into())),
            OpenFile::Snapshot { snapshot, .. } => reply(Ok(part(snapshot.bytes(), at, count).into())),
            OpenFile::Own { channel, .. } if channel.is_broken() => reply(Err(libc::EIO)),
            OpenFile::Own { file, .. } => {
                // Asked for more than there is, it takes no memory for that.
                let left = file.metadata().map_or(0, |status| status.len().saturating_sub(at));
                let mut bytes = vec![0; count.min(OWN_READ_MAX).min(left as usize)];
                reply(match file.read_at(&mut bytes, at) {
                    Ok(n) => Ok(Lent::from(&bytes[..n])),
                    Err(error) => Err(errno_of(error)),
                });
            }
            OpenFile::Control { .. } => reply(Ok(Lent::from(&[]))),
        }
    }

    /// write(2) by a thread: `written` is told the result, perhaps later and on another thread.
    pub(crate) fn write(&self, tree: &Tree, bytes: &[u8], by: u32, written: Written) {
        match self {
            OpenFile::Control { channel, file: ControlFile::Msg } => {
                msg_file::write(tree.writers(), channel, bytes, by, written)
            }
            OpenFile::Control { channel, file } => {
                if bytes.strip_suffix(b"\n").unwrap_or(bytes) != b"1" {
                    return written(Err(libc::EINVAL));
                }
                if *file == ControlFile::Reset && channel.is_found_broken() {
                    return tree.registry().recreate(channel, move |renewed| {
                        written(renewed.map_err(|error| {
                            log::error!("{error}");
                            error.errno()
                        }));
                    });
                }
                let (writers, name, what) = (tree.writers(), channel.name().clone(), file.name());
                let done = move |failed: Vec<Unavailable>| {
                    for unavailable in &failed {
                        log::warn!("channel {name}: {what}: {unavailable}");
                    }
                    written(failed.first().map_or(Ok(()), |unavailable| Err(unavailable.errno())));
                };
                if *file == ControlFile::Flush {
                    flush_all(writers, channel, done);
                } else {
                    reset_all(writers, channel, done);
                }
            }
            OpenFile::Consumed { channel, cpu, .. } => written(consume(tree.writers(), channel, *cpu, bytes)),
            OpenFile::Buffer(_)
            | OpenFile::Text(_)
            | OpenFile::Own { .. }
            | OpenFile::Snapshot { .. }
            | OpenFile::Take(_) => written(Err(libc::EINVAL)),
        }
    }

    /// poll(2) of the open file number `number`, see [`crate::channel::Channel::poll`]. `None`: it is always ready.
    pub(crate) fn poll(&self, number: u64, wake: Option<Wake>) -> Option<PollState> {
        match self {
            OpenFile::Buffer(buffer) if buffer.readable => {
                Some(buffer.channel.poll(buffer.cpu, number, wake))
            }
            OpenFile::Buffer(_) => Some(PollState::Idle),
            _ => None,
        }
    }

    /// Told when a thread closes a descriptor of open file number `number` in its process, or ends.
    pub(crate) fn flush(&self, tree: &Tree, number: u64, process: u64, thread: u32) {
        if let OpenFile::Take(take) = self
            && take.flush(number, process, thread)
        {
            let (channel, cpu) = take.buffer();
            tree.writers().make_room(channel, cpu);
        }
    }

    /// Told when the file is closed.
    pub(crate) fn release(&self, number: u64) {
        match self {
            OpenFile::Buffer(buffer) => buffer.channel.forget_waiter(buffer.cpu, number),
            OpenFile::Take(take) => take.release(number),
            _ => {}
        }
    }
}

/// That nobody has damaged a channel's control file, and the data file of `cpu`, or all.
fn whole(channel: &ChannelRef, cpu: Option<usize>) -> Result<(), i32> {
    if channel.is_broken_or_cut(cpu) { Err(libc::EIO) } else { Ok(()) }
}

/// Up to `count` bytes from `at`.
fn part(bytes: &[u8], at: u64, count: usize) -> &[u8] {
    let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[start..start.saturating_add(count).min(bytes.len())]
}

fn errno_of(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The open files by number.
pub(crate) struct OpenFiles {
    files: RwLock<HashMap<u64, (Arc<OpenFile>, Reservation)>>,
    last: AtomicU64,
    /// Files that may be open, and what they keep.
    places: Arc<Quota>,
    kept: Arc<Quota>,
}

impl OpenFiles {
    pub(crate) fn new() -> OpenFiles {
        OpenFiles {
            files: RwLock::default(),
            last: AtomicU64::new(0),
            places: Quota::new(OPEN_MAX),
            kept: Quota::new(KEEP_ALL_MAX),
        }
    }

    /// Opens a node for a user, see [`OpenFile::open`].
    pub(crate) fn open(
        &self,
        tree: &Tree,
        node: Node,
        readable: bool,
        uid: u32,
    ) -> Result<(u64, Source), i32> {
        let place = self.places.claim(uid, 1).map_err(|_| {
            log::debug!("uid {uid} has as many files open as are left for others, of {OPEN_MAX}");
            libc::ENFILE
        })?;
        let file = OpenFile::open(tree, node, readable, self.kept.begin(uid))?;
        let source = file.source();
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(number, (Arc::new(file), place));
        Ok((number, source))
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&number).map(|(file, _)| file.clone())
    }

    pub(crate) fn remove(&self, number: u64) {
        let file = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some((file, _)) = file {
            file.release(number);
        }
    }
}
