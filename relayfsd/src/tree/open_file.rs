//! Open files: what read, write and poll do with them. FUSE comes in as closures only.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use relay::memory::lent::Lent;
use relay::trace::directives::DirectivesError;

use crate::channel::clients::{Presence, Use};
use crate::channel::open_copy::CopyUse;
use crate::channel::snapshot::Snapshot;
use crate::channel::take::Take;
use crate::channel::{ChannelRef, PollState, Wake};
use crate::hold_point;
use crate::policy::quota::{Quota, Reservation};
use crate::tree::buffer_file::OpenBuffer;
use crate::tree::consumed_file::consume;
use crate::tree::inode::{ControlFile, Node, PerCpu};
use crate::tree::msg_file;
use crate::tree::{Tree, VERSION_TEXT, Written, consumed_text};
use crate::writers::{Unavailable, flush_all, reset_all};

/// Most bytes that all open files together keep of what they have read.
///
/// Beyond that, files keep less.
const KEEP_ALL_MAX: usize = 64 << 20;
/// Most files that may be open at once.
pub(crate) const OPEN_MAX: usize = 8192;

/// Most bytes that a read of a channel's own file gets.
const OWN_READ_MAX: usize = 1 << 20;

/// An open file.
pub(crate) enum OpenFile {
    /// A buffer's file.
    Buffer(OpenBuffer),
    /// A text from the time of the open.
    Text(Vec<u8>),
    /// A long text from the time of the open, with the memory for it.
    Names { text: Vec<u8>, _memory: Reservation },
    /// A control file that takes writes.
    Control { channel: ChannelRef, file: ControlFile },
    /// Which messages programs write; its text is that from the time of the open.
    Level { channel: ChannelRef, text: Vec<u8> },
    /// A file that takes back sub-buffers; its text is the next number at the time of the open.
    Consumed { channel: ChannelRef, cpu: usize, text: Vec<u8> },
    /// One of the channel's own files: the positions, or a ring.
    Own { file: File, channel: ChannelRef },
    /// A frozen copy of a buffer, or the text of all.
    Snapshot { snapshot: CopyUse<Snapshot>, is_new: bool, _channel: ChannelRef },
    /// A copy of unread data.
    Take(CopyUse<Take>),
}

/// Where the kernel gets the bytes of an open file.
pub(crate) enum Source {
    /// From the daemon each time.
    Us,
    /// From the daemon each time; the kernel refuses mappings where it can.
    UsUnmapped,
    /// From the daemon each time, and for mappings from a file.
    UsAndFile(io::Result<File>),
    /// From the daemon once, since the bytes do not change.
    ///
    /// `is_new`: the kernel drops its cache of an earlier copy. It reports each close by a process.
    Cache { is_new: bool },
    /// From the daemon each time, and for mappings from a file.
    ///
    /// The kernel reports each close by a process.
    UntilClosed(io::Result<File>),
}

impl OpenFile {
    /// Opens a node, whose mode the kernel has checked. Fails with an errno.
    ///
    /// `readable`: the open is not write-only. `room` is the memory for what the file keeps. `thread` opens it. ESTALE: the
    /// node has gone since its name was looked up, and the kernel looks the name up again.
    fn open(
        tree: &Tree,
        node: Node,
        readable: bool,
        room: Reservation,
        thread: u32,
    ) -> Result<OpenFile, i32> {
        let text = |text: String| Ok(OpenFile::Text(text.into_bytes()));
        match node {
            Node::Version => text(VERSION_TEXT.to_owned()),
            Node::Stats => text(tree.registry().stats()),
            Node::Status | Node::Metrics => OpenFile::long_text(tree, tree.text_for_open(node)),
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
                        tree.writers().take_anchor(&channel);
                        let (snapshot, is_new) =
                            Snapshot::take(tree.registry().memory(), &channel, cpu, thread)?;
                        Ok(OpenFile::Snapshot { snapshot, is_new, _channel: channel })
                    }
                    PerCpu::Map => OpenFile::open_own(channel, Some(cpu)),
                    PerCpu::Take => Err(libc::ESTALE), // the files in `take` are `Node::Take`, below
                }
            }
            Node::Take { channel, cpu, copy } => {
                let channel = tree.hold_buffer(channel, cpu).ok_or(libc::ESTALE)?;
                whole(&channel, Some(cpu as usize))?;
                tree.writers().take_anchor(&channel);
                Ok(OpenFile::Take(Take::open(
                    tree.registry().memory(),
                    &channel,
                    cpu as usize,
                    copy,
                    thread,
                )?))
            }
            Node::SnapshotMetadata { channel } => {
                let channel = tree.hold(channel).ok_or(libc::ESTALE)?;
                whole(&channel, None)?;
                OpenFile::open_names(tree, &channel, ControlFile::Metadata)
            }
            Node::Control { channel, file } => {
                let channel = tree.hold(channel).ok_or(libc::ESTALE)?;
                if !matches!(
                    file,
                    ControlFile::Reset
                        | ControlFile::SubbufSize
                        | ControlFile::NSubbufs
                        | ControlFile::Mode
                        | ControlFile::Status
                ) {
                    whole(&channel, None)?;
                }
                match file {
                    ControlFile::Msg | ControlFile::Flush | ControlFile::Reset => {
                        Ok(OpenFile::Control { channel, file })
                    }
                    ControlFile::Positions => OpenFile::open_own(channel, None),
                    ControlFile::Level => {
                        let text = file.text(&channel).into_bytes();
                        Ok(OpenFile::Level { channel, text })
                    }
                    ControlFile::Clock | ControlFile::Metadata | ControlFile::Processes => {
                        OpenFile::open_names(tree, &channel, file)
                    }
                    ControlFile::Trace => {
                        tree.writers().take_anchor(&channel);
                        let (snapshot, is_new) = Snapshot::trace(tree.registry().memory(), &channel, thread)?;
                        Ok(OpenFile::Snapshot { snapshot, is_new, _channel: channel })
                    }
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

    /// Opens a text of a timed channel, whose length only programs bound.
    fn open_names(tree: &Tree, channel: &ChannelRef, file: ControlFile) -> Result<OpenFile, i32> {
        if file != ControlFile::Processes {
            tree.writers().take_anchor(channel);
        }
        OpenFile::long_text(tree, file.text(channel))
    }

    /// Opens a text that may be long.
    fn long_text(tree: &Tree, text: String) -> Result<OpenFile, i32> {
        let memory = tree.registry().memory().claim(0, text.len()).map_err(|_| libc::ENOMEM)?;
        Ok(OpenFile::Names { text: text.into_bytes(), _memory: memory })
    }

    /// Enters an open file that consumes among its channel's clients. `thread` and `uid` opened it.
    fn enter(&self, thread: u32, uid: u32) -> Option<Presence> {
        match self {
            OpenFile::Buffer(buffer) if buffer.readable => {
                Some(buffer.channel.clients().enter(thread, uid, Use::Read(buffer.cpu)))
            }
            OpenFile::Take(take) => {
                let (channel, cpu) = take.buffer();
                Some(channel.clients().enter(thread, uid, Use::Take(cpu)))
            }
            _ => None,
        }
    }

    /// Opens a buffer's data file, or the control file, as it is on tmpfs.
    fn open_own(channel: ChannelRef, cpu: Option<usize>) -> Result<OpenFile, i32> {
        let file = channel.open_file(cpu).map_err(errno_of)?;
        Ok(OpenFile::Own { file, channel })
    }

    /// Returns where the kernel gets the file's bytes.
    fn source(&self) -> Source {
        match self {
            OpenFile::Buffer(_) => Source::UsUnmapped,
            OpenFile::Own { file, .. } => Source::UsAndFile(file.try_clone()),
            OpenFile::Snapshot { is_new, .. } => Source::Cache { is_new: *is_new },
            OpenFile::Take(take) => Source::UntilClosed(take.file()),
            OpenFile::Text(_)
            | OpenFile::Names { .. }
            | OpenFile::Control { .. }
            | OpenFile::Level { .. }
            | OpenFile::Consumed { .. } => Source::Us,
        }
    }

    /// Called when the daemon has refused the kernel bytes for its cache.
    pub(crate) fn refuse_fill(&self) {
        if let OpenFile::Buffer(buffer) = self {
            buffer.refuse_fill();
        }
    }

    /// Returns whether the kernel may read the file for its cache.
    pub(crate) fn is_cached(&self) -> bool {
        // Readers of CTF may map the files of a trace.
        matches!(self, OpenFile::Snapshot { .. } | OpenFile::Names { .. })
    }

    /// Serves read(2) of a process on open file number `number`.
    ///
    /// Passes bytes, or an errno, to `reply`, once.
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
            OpenFile::Text(text)
            | OpenFile::Names { text, .. }
            | OpenFile::Level { text, .. }
            | OpenFile::Consumed { text, .. } => reply(Ok(part(text, at, count).into())),
            OpenFile::Snapshot { snapshot, .. } => reply(Ok(part(snapshot.bytes(), at, count).into())),
            OpenFile::Own { channel, .. } if channel.is_broken() => reply(Err(libc::EIO)),
            OpenFile::Own { file, .. } => {
                // The file's length bounds the memory that a large request takes.
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

    /// Serves write(2) of a thread.
    ///
    /// Passes the result to `written`, perhaps later and on another thread.
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
            OpenFile::Level { channel, .. } => written(set_level(channel, bytes)),
            OpenFile::Consumed { channel, cpu, .. } => written(consume(tree.writers(), channel, *cpu, bytes)),
            OpenFile::Buffer(_)
            | OpenFile::Text(_)
            | OpenFile::Names { .. }
            | OpenFile::Own { .. }
            | OpenFile::Snapshot { .. }
            | OpenFile::Take(_) => written(Err(libc::EINVAL)),
        }
    }

    /// Serves poll(2) on open file number `number`, see [`crate::channel::Channel::poll`].
    ///
    /// `None`: always ready.
    pub(crate) fn poll(&self, number: u64, wake: Option<Wake>) -> Option<PollState> {
        match self {
            OpenFile::Buffer(buffer) if buffer.readable => {
                Some(buffer.channel.poll(buffer.cpu, number, wake))
            }
            OpenFile::Buffer(_) => Some(PollState::Idle),
            _ => None,
        }
    }

    /// Called when a thread closes a descriptor of open file number `number`, or ends.
    pub(crate) fn flush(&self, tree: &Tree, number: u64, process: u64, thread: u32) {
        match self {
            OpenFile::Take(take) => {
                if take.flush(number, process, thread) {
                    let (channel, cpu) = take.buffer();
                    tree.writers().make_room(channel, cpu);
                }
                if take.close(thread) {
                    take.renew_name();
                }
            }
            OpenFile::Snapshot { snapshot, .. } => {
                snapshot.close(thread);
            }
            _ => {}
        }
    }

    /// Called at the last close of the file.
    pub(crate) fn release(&self, number: u64) {
        match self {
            OpenFile::Buffer(buffer) => buffer.channel.forget_waiter(buffer.cpu, number),
            OpenFile::Take(take) => take.release(number),
            _ => {}
        }
    }
}

/// Sets which messages programs write. Fails with an errno, and then changes nothing.
fn set_level(channel: &ChannelRef, text: &[u8]) -> Result<(), i32> {
    let name = channel.name();
    match channel.timed().ok_or(libc::EINVAL)?.set_level(text) {
        Ok(directives) => {
            log::info!("channel {name}: level: {directives}");
            Ok(())
        }
        Err(error) => {
            log::warn!("channel {name}: level: {error}");
            Err(if error == DirectivesError::TooMany { libc::EMSGSIZE } else { libc::EINVAL })
        }
    }
}

/// Checks a channel's control file, and the data file of `cpu`, or all.
///
/// Fails with EIO if one is damaged.
fn whole(channel: &ChannelRef, cpu: Option<usize>) -> Result<(), i32> {
    if channel.is_broken_or_cut(cpu) { Err(libc::EIO) } else { Ok(()) }
}

/// Returns up to `count` bytes from `at` on.
fn part(bytes: &[u8], at: u64, count: usize) -> &[u8] {
    let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[start..start.saturating_add(count).min(bytes.len())]
}

fn errno_of(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// An open file with its place in the quota, and among the clients of its channel.
struct Opened {
    file: Arc<OpenFile>,
    _place: Reservation,
    _presence: Option<Presence>,
}

/// The open files by number.
pub(crate) struct OpenFiles {
    files: RwLock<HashMap<u64, Opened>>,
    last: AtomicU64,
    /// Quota of the bytes that open files keep.
    kept: Arc<Quota>,
}

impl OpenFiles {
    pub(crate) fn new() -> OpenFiles {
        OpenFiles { files: RwLock::default(), last: AtomicU64::new(0), kept: Quota::new(KEEP_ALL_MAX) }
    }

    /// Opens a node for a thread of a user, see [`OpenFile::open`].
    pub(crate) fn open(
        &self,
        tree: &Tree,
        node: Node,
        readable: bool,
        (thread, uid): (u32, u32),
    ) -> Result<(u64, Source), i32> {
        let place = tree.open_files().claim(uid, 1).map_err(|_| {
            log::debug!("uid {uid} has as many files open as are left for others, of {OPEN_MAX}");
            libc::ENFILE
        })?;
        let file = OpenFile::open(tree, node, readable, self.kept.begin(uid), thread)?;
        let (source, presence) = (file.source(), file.enter(thread, uid));
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(number, Opened { file: Arc::new(file), _place: place, _presence: presence });
        Ok((number, source))
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .map(|opened| opened.file.clone())
    }

    pub(crate) fn remove(&self, number: u64) {
        hold_point!("release");
        let file = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(Opened { file, .. }) = file {
            file.release(number);
        }
    }
}
