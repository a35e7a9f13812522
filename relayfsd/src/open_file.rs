//! Open files: what read, write and poll do with them. FUSE comes in as closures only.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nix::sched::sched_getcpu;
use relay::geometry::MESSAGE_MAX;
use relay::writer::Placed;

use crate::channel::{PollState, Wake};
use crate::registry::Held;
use crate::tree::{ControlFile, Node, Tree};
use crate::writers::{Job, Unavailable, flush_all, reset_all};

/// How much of the last reply a file keeps for a reader that seeks back, in bytes. Programs that read ahead and seek
/// back to where they stopped (head, grep -m, the shell's read, stdio at exit) read less than this at a time.
const KEEP_MAX: usize = 128 << 10;

/// An open file.
pub(crate) enum OpenFile {
    /// A buffer's file.
    Buffer(OpenBuffer),
    /// A text, as it was when the file was opened.
    Text(Vec<u8>),
    /// A control file that is written to.
    Control { channel: Held, file: ControlFile },
}

/// A buffer's open file.
pub(crate) struct OpenBuffer {
    pub(crate) channel: Held,
    pub(crate) cpu: usize,
    /// Whether it was opened for reading.
    readable: bool,
    last: Mutex<LastReply>,
}

/// The end of the last reply to an open file, and the file offset it was given at.
#[derive(Default)]
struct LastReply {
    at: u64,
    bytes: Vec<u8>,
}

thread_local! {
    /// Where replies are gathered that do not lie in one piece in the ring.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The result of a write(2), told when it is known: an errno, or nothing.
pub(crate) type Written = Box<dyn FnOnce(Result<(), i32>) + Send>;

impl OpenFile {
    /// Opens a node; the kernel checked its mode. `readable`: not write-only.
    pub(crate) fn open(tree: &Tree, node: Node, readable: bool) -> Result<OpenFile, i32> {
        let text = |text: String| Ok(OpenFile::Text(text.into_bytes()));
        match node {
            Node::Version => text(crate::tree::VERSION_TEXT.to_owned()),
            Node::Stats => text(tree.registry().stats()),
            Node::Buffer { channel, cpu } => {
                let channel = tree.hold(channel).ok_or(libc::ENOENT)?;
                let cpu = Some(cpu as usize).filter(|cpu| *cpu < channel.n_bufs()).ok_or(libc::ENOENT)?;
                Ok(OpenFile::Buffer(OpenBuffer { channel, cpu, readable, last: Mutex::default() }))
            }
            Node::Control { channel, file } => {
                let channel = tree.hold(channel).ok_or(libc::ENOENT)?;
                match file {
                    ControlFile::Msg | ControlFile::Flush | ControlFile::Reset => {
                        Ok(OpenFile::Control { channel, file })
                    }
                    _ => text(file.text(&channel)),
                }
            }
            Node::Dir(_) | Node::Relay | Node::ChannelsDir(_) | Node::ChannelDir(_) => Err(libc::EISDIR),
            Node::Socket => Err(libc::ELOOP),
        }
    }

    /// read(2): passes the bytes to `reply`, once.
    pub(crate) fn read(&self, at: u64, count: usize, reply: impl FnOnce(&[u8])) {
        match self {
            OpenFile::Buffer(buffer) => buffer.read(at, count, reply),
            OpenFile::Text(text) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(text.len());
                reply(&text[start..(start.saturating_add(count)).min(text.len())]);
            }
            OpenFile::Control { .. } => reply(&[]),
        }
    }

    /// write(2): `written` is told the result, perhaps later and on another thread.
    pub(crate) fn write(&self, bytes: &[u8], written: Written) {
        match self {
            OpenFile::Control { channel, file: ControlFile::Msg } => write_message(channel, bytes, written),
            OpenFile::Control { channel, file } => {
                if bytes.strip_suffix(b"\n").unwrap_or(bytes) != b"1" {
                    return written(Err(libc::EINVAL));
                }
                let (channel, what) = (channel.clone(), file.name());
                let (writers, name) = (channel.writers(), channel.name().clone());
                let done = move |failed: Vec<Unavailable>| {
                    for unavailable in &failed {
                        log::warn!("channel {name}: {what}: {unavailable}");
                    }
                    written(failed.first().map_or(Ok(()), |unavailable| Err(unavailable.errno())));
                };
                if *file == ControlFile::Flush {
                    flush_all(writers, &channel, done);
                } else {
                    reset_all(writers, &channel, done);
                }
            }
            OpenFile::Buffer(_) | OpenFile::Text(_) => written(Err(libc::EINVAL)),
        }
    }

    /// poll(2) of the open file number `number`, see [`crate::channel::Channel::poll`]. `None`: it is always ready.
    pub(crate) fn poll(&self, number: u64, wake: Option<Wake>) -> Option<PollState> {
        match self {
            OpenFile::Buffer(buffer) if buffer.readable => {
                Some(buffer.channel.poll(buffer.cpu, number, wake))
            }
            OpenFile::Buffer(_) => Some(PollState::Idle),
            OpenFile::Text(_) | OpenFile::Control { .. } => None,
        }
    }

    /// Told when the file is closed.
    pub(crate) fn release(&self, number: u64) {
        if let OpenFile::Buffer(buffer) = self {
            buffer.channel.forget_waiter(buffer.cpu, number);
        }
    }
}

impl OpenBuffer {
    fn read(&self, at: u64, count: usize, reply: impl FnOnce(&[u8])) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(again) = last.from(at, count) {
            return reply(again);
        }
        let room = SCRATCH.with_borrow_mut(|scratch| {
            let mut side = self.channel.read_side(self.cpu);
            let freed = side.reader.read(at, count, scratch, |bytes| {
                reply(bytes);
                last.keep(at, bytes);
            });
            freed && std::mem::take(&mut side.parked)
        });
        if room {
            self.channel.writers().submit_now(Job::Room { channel: self.channel.clone(), cpu: self.cpu });
        }
    }
}

impl LastReply {
    /// What a reader gets again that has sought back into the last reply.
    fn from(&self, at: u64, count: usize) -> Option<&[u8]> {
        let start = usize::try_from(at.checked_sub(self.at)?).ok()?;
        let rest = self.bytes.get(start..).filter(|rest| !rest.is_empty())?;
        Some(&rest[..rest.len().min(count)])
    }

    fn keep(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let dropped = bytes.len().saturating_sub(KEEP_MAX);
        self.at = at + dropped as u64;
        self.bytes.clear();
        self.bytes.extend_from_slice(&bytes[dropped..]);
    }
}

fn write_message(channel: &Held, bytes: &[u8], written: Written) {
    // The kernel cuts longer writes into pieces of this size, which would arrive as messages of their own.
    if bytes.len() >= MESSAGE_MAX {
        return written(Err(libc::EMSGSIZE));
    }
    let here = sched_getcpu().unwrap_or(0);
    let cpu = if channel.geometry().global() { 0 } else { here };
    if cpu >= channel.n_bufs() {
        return written(Err(libc::ENXIO));
    }
    let done = Box::new(move |placed: Result<Placed, Unavailable>| {
        written(match placed {
            Ok(Placed::Written) => Ok(()),
            Ok(Placed::Full) => Err(libc::ENOSPC),
            Ok(Placed::TooBig) => Err(libc::EMSGSIZE),
            Ok(Placed::Closed) => Err(libc::ENODEV),
            Err(unavailable) => Err(unavailable.errno()),
        });
    });
    let job = Job::Message { channel: channel.clone(), cpu, bytes: bytes.to_vec(), done };
    channel.writers().submit_now(job);
}

/// The open files by number.
#[derive(Default)]
pub(crate) struct OpenFiles {
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    last: AtomicU64,
}

impl OpenFiles {
    pub(crate) fn insert(&self, file: OpenFile) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(file));
        number
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<OpenFile>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(crate) fn remove(&self, number: u64) {
        let file = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(file) = file {
            file.release(number);
        }
    }
}
