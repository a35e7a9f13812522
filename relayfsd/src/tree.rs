//! The mounted tree without FUSE: its nodes, stat(2) values, listings, and open files.
//!
//! ```text
//! /            cpu0 ... cpuN-1    app/log0 ... app/logN-1
//! /.relay/     socket  version  stats  status  metrics  channels/
//! /.relay/channels/app/log/    stats status subbuf_size n_subbufs mode dropped msg flush reset control consumed/ snapshot/
//! map/ take/ /.relay/channels/app/log/snapshot/    cpu0 ... cpuN-1
//! /.relay/channels/app/log/    of a timed channel: clock metadata processes trace level snapshot/metadata
//! ```
//!
//! `fuse` calls this room for every request, and `daemon` creates the tree. The room finds channels in `registry`,
//! hands jobs to `writers`, and limits open files with `policy`. This room may not know FUSE, the socket or the state.

mod buffer_file;
mod directories;

pub(crate) mod consumed_file;
pub(crate) mod endless_copy;
pub(crate) mod inode;
pub(crate) mod listing;
pub(crate) mod msg_file;
pub(crate) mod open_file;
pub(crate) mod read_history;

mod texts;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use relay::layout::abi;
use relay::trace::packet::HEADER_LEN;

use crate::channel::timed::metadata;
use crate::channel::{Channel, ChannelRef};
use crate::monitor::{Daemon, metrics, status};
use crate::policy::quota::Quota;
use crate::registry::Registry;
use crate::tree::inode::{Class, ControlFile, Node, PerCpu};
use crate::tree::open_file::OPEN_MAX;
use crate::tree::texts::Texts;
use crate::writers::Writers;

/// A node's values for stat(2).
pub(crate) struct NodeStat {
    pub(crate) class: Class,
    pub(crate) size: u64,
    pub(crate) mtime: SystemTime,
    pub(crate) ctime: SystemTime,
}

/// Called with the result of a write(2) when that is known: an errno, or nothing.
pub(crate) type Written = Box<dyn FnOnce(Result<(), i32>) + Send>;

/// The tree of one daemon.
pub(crate) struct Tree {
    registry: Arc<Registry>,
    writers: Arc<Writers>,
    /// The target of the link `.relay/socket`.
    socket: String,
    started: SystemTime,
    since: Instant,
    /// Quota of open files.
    open_files: Arc<Quota>,
    texts: Texts,
}

impl Tree {
    pub(crate) fn new(registry: Arc<Registry>, writers: Arc<Writers>, socket: String) -> Tree {
        let open_files = Quota::new(OPEN_MAX);
        let (started, since) = (SystemTime::now(), Instant::now());
        Tree { registry, writers, socket, started, since, open_files, texts: Texts::default() }
    }

    /// Returns the quota of open files.
    pub(crate) fn open_files(&self) -> &Arc<Quota> {
        &self.open_files
    }

    /// Returns the text of `status` or `metrics` for an open.
    pub(crate) fn text_for_open(&self, node: Node) -> String {
        self.texts.take(node).unwrap_or_else(|| self.text(node))
    }

    /// Makes the text of `status` or `metrics`.
    fn text(&self, node: Node) -> String {
        let (uptime, open_files) = (self.since.elapsed(), self.open_files.used());
        let daemon = Daemon { started: self.started, uptime, open_files };
        match node {
            Node::Metrics => metrics::text(&self.registry, &daemon),
            _ => status::of_all(&self.registry, &daemon),
        }
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Returns the threads that write for other processes.
    pub(crate) fn writers(&self) -> &Writers {
        &self.writers
    }

    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// Finds the node of a name in a directory.
    pub(crate) fn lookup(&self, parent: Node, name: &str) -> Option<Node> {
        match parent {
            Node::Dir(0) if name == ".relay" => Some(Node::Relay),
            Node::Dir(dir) => {
                let path = join(&self.dir_path(dir)?, name);
                let subdir = self.registry.dir_id(&path).map(Node::Dir);
                subdir.or_else(|| self.lookup_buffer(&path))
            }
            Node::Relay => match name {
                "socket" => Some(Node::Socket),
                "version" => Some(Node::Version),
                "stats" => Some(Node::Stats),
                "status" => Some(Node::Status),
                "metrics" => Some(Node::Metrics),
                "channels" => Some(Node::ChannelsDir(0)),
                _ => None,
            },
            Node::ChannelsDir(dir) => {
                let path = join(&self.dir_path(dir)?, name);
                let subdir = self.registry.dir_id(&path).map(Node::ChannelsDir);
                subdir.or_else(|| Some(Node::ChannelDir(self.registry.hold(&path)?.id())))
            }
            Node::ChannelDir(channel) => {
                let file = ControlFile::ALL.into_iter().find(|file| file.name() == name);
                let is_there =
                    |file: &ControlFile| self.hold(channel).is_some_and(|held| file.is_of(held.geometry()));
                let file = file.filter(is_there);
                let dir = PerCpu::ALL.into_iter().find(|dir| dir.name() == name);
                file.map(|file| Node::Control { channel, file })
                    .or_else(|| Some(Node::PerCpuDir { channel, dir: dir? }))
            }
            Node::PerCpuDir { channel, dir: PerCpu::Snapshot } if name == "metadata" => {
                self.hold(channel)?.timed().map(|_| Node::SnapshotMetadata { channel })
            }
            Node::PerCpuDir { channel, dir } => {
                let cpu = canonical_number(name.strip_prefix("cpu")?)?;
                self.hold_buffer(channel, cpu).map(|held| per_cpu_file(&held, dir, cpu))
            }
            _ => None,
        }
    }

    /// Finds the buffer whose file has this path: a channel's name, then a number.
    fn lookup_buffer(&self, path: &str) -> Option<Node> {
        let n_digits = path.bytes().rev().take_while(u8::is_ascii_digit).count();
        // Some of the digits may belong to the name. The registry refuses names that would make this ambiguous.
        (path.len() - n_digits..path.len()).find_map(|split| {
            let (name, number) = path.split_at(split);
            let cpu = canonical_number(number)?;
            let held = self.registry.hold(name).filter(|held| (cpu as usize) < held.n_bufs())?;
            Some(Node::Buffer { channel: held.id(), cpu })
        })
    }

    /// Returns a node's values for stat(2), or `None` if the node is gone.
    pub(crate) fn stat(&self, node: Node) -> Option<NodeStat> {
        let fixed = |class, size, time| NodeStat { class, size, mtime: time, ctime: time };
        Some(match node {
            Node::Dir(id) => {
                self.dir_path(id)?;
                fixed(Class::Dir, 0, self.started)
            }
            Node::ChannelsDir(id) => {
                self.dir_path(id)?;
                fixed(Class::ChannelsDir, 0, self.started)
            }
            Node::Relay => fixed(Class::Dir, 0, self.started),
            Node::Socket => fixed(Class::Link, self.socket.len() as u64, self.started),
            Node::Version => fixed(Class::Public, VERSION_TEXT.len() as u64, self.started),
            Node::Stats => fixed(Class::Stats, self.registry.stats().len() as u64, SystemTime::now()),
            Node::Status | Node::Metrics => {
                fixed(Class::Stats, self.texts.look(node, || self.text(node)), SystemTime::now())
            }
            Node::ChannelDir(id) => fixed(Class::ChannelsDir, 0, self.hold(id)?.created()),
            Node::Buffer { channel, cpu } => {
                let (size, mtime) = self.hold_buffer(channel, cpu)?.size_and_mtime(cpu as usize);
                NodeStat { class: Class::Private, size, mtime, ctime: mtime }
            }
            Node::PerCpuDir { channel, .. } => fixed(Class::Dir, 0, self.hold(channel)?.created()),
            Node::PerCpu { channel, dir: PerCpu::Consumed, cpu } => {
                let held = self.hold_buffer(channel, cpu)?;
                let text = consumed_text(&held, cpu as usize);
                fixed(Class::Reader, text.len() as u64, held.created())
            }
            Node::PerCpu { channel, dir: PerCpu::Snapshot, cpu } => {
                let held = self.hold_buffer(channel, cpu)?;
                let open = held.snapshot_slot(cpu as usize).len();
                // The size of a copy that would be made now.
                let size = open.unwrap_or_else(|| {
                    let side = held.read_side(cpu as usize);
                    let packets = held.timed().map_or(0, |_| side.reader.snapshot_packets());
                    side.reader.snapshot_len() + packets * HEADER_LEN as u64
                });
                let mtime = held.size_and_mtime(cpu as usize).1;
                NodeStat { class: Class::Private, size, mtime, ctime: mtime }
            }
            Node::PerCpu { channel, dir: PerCpu::Map, cpu } => {
                let held = self.hold_buffer(channel, cpu)?;
                fixed(Class::Private, abi::data_len(held.geometry()), held.created())
            }
            Node::Take { channel, cpu, copy } => {
                let held = self.hold_buffer(channel, cpu)?;
                let slot = held.take_slot(cpu as usize);
                let (size, mtime) = match slot.stat(copy) {
                    Some(open) => open,
                    // The size of a copy that an open would make now.
                    None if slot.is_current(copy) => {
                        let side = held.read_side(cpu as usize);
                        let packets = held.timed().map_or(0, |_| side.reader.take_packets());
                        let size = side.reader.take_len() + packets * HEADER_LEN as u64;
                        drop(side);
                        (size, held.size_and_mtime(cpu as usize).1)
                    }
                    None => return None,
                };
                NodeStat { class: Class::Private, size, mtime, ctime: mtime }
            }
            // The files in `take` are `Node::Take`, above.
            Node::PerCpu { dir: PerCpu::Take, .. } => return None,
            Node::SnapshotMetadata { channel } => {
                let held = self.hold(channel)?;
                let size = metadata::len(&held);
                NodeStat { class: Class::Private, size, mtime: SystemTime::now(), ctime: held.created() }
            }
            Node::Control { channel, file: ControlFile::Trace } => {
                let held = self.hold(channel)?;
                let mtime = (0..held.n_bufs()).map(|cpu| held.size_and_mtime(cpu).1).max()?;
                NodeStat { class: Class::Private, size: held.trace_len(), mtime, ctime: mtime }
            }
            Node::Control { channel, file: ControlFile::Positions } => {
                let held = self.hold(channel)?;
                let header = abi::control_header(held.geometry(), held.n_bufs());
                fixed(Class::Private, header.control_len(), held.created())
            }
            Node::Control { channel, file } => {
                let held = self.hold(channel)?;
                let class = match file {
                    ControlFile::Stats | ControlFile::Dropped | ControlFile::Status => Class::Stats,
                    ControlFile::Positions
                    | ControlFile::Clock
                    | ControlFile::Metadata
                    | ControlFile::Processes
                    | ControlFile::Trace => Class::Private,
                    ControlFile::SubbufSize | ControlFile::NSubbufs | ControlFile::Mode => Class::Public,
                    ControlFile::Msg => Class::Message,
                    ControlFile::Flush | ControlFile::Reset => Class::Owner,
                    ControlFile::Level => Class::Setting,
                };
                // Some programs read no further than this size, so it must be the real one.
                let size = match file {
                    ControlFile::Metadata => metadata::len(&held),
                    file => file.text(&held).len() as u64,
                };
                fixed(class, size, held.created())
            }
        })
    }

    /// Returns what a node shows, as far as that decides about its list of groups; `None` for most nodes.
    pub(crate) fn class(&self, node: Node) -> Option<Class> {
        let shows_counts = match node {
            Node::Stats | Node::Status | Node::Metrics => true,
            Node::Control { file, .. } => {
                matches!(file, ControlFile::Stats | ControlFile::Dropped | ControlFile::Status)
            }
            _ => false,
        };
        shows_counts.then_some(Class::Stats)
    }

    /// Returns the node that a name means for a thread: names in `take` differ among processes.
    pub(crate) fn as_seen_by(&self, node: Node, thread: u32) -> Node {
        match node {
            Node::Take { channel, cpu, .. } => {
                let held = self.hold_buffer(channel, cpu);
                let copy = held.and_then(|held| held.take_slot(cpu as usize).consumed_by(thread));
                copy.map_or(node, |copy| Node::Take { channel, cpu, copy })
            }
            _ => node,
        }
    }

    /// Returns the channel of an id, held.
    pub(crate) fn hold(&self, channel: u32) -> Option<ChannelRef> {
        self.registry.hold_id(channel)
    }

    /// Returns the channel of an id, held, if it has a buffer of that number.
    pub(crate) fn hold_buffer(&self, channel: u32, cpu: u32) -> Option<ChannelRef> {
        self.hold(channel).filter(|held| (cpu as usize) < held.n_bufs())
    }

    pub(crate) fn dir_path(&self, id: u32) -> Option<String> {
        if id == 0 { Some(String::new()) } else { self.registry.dir_path(id) }
    }
}

/// The text of `.relay/version`.
pub(crate) const VERSION_TEXT: &str = concat!("relayfs ", env!("CARGO_PKG_VERSION"), "\n");

/// Returns the text of `consumed/cpuN`: the number of the next sub-buffer.
pub(crate) fn consumed_text(channel: &Channel, cpu: usize) -> String {
    format!("{}\n", channel.read_side(cpu).reader.next_number())
}

/// Returns a CPU's file in a directory that has a file for each CPU.
pub(crate) fn per_cpu_file(channel: &Channel, dir: PerCpu, cpu: u32) -> Node {
    let id = channel.id();
    match dir {
        PerCpu::Take => {
            let read_to = channel.read_side(cpu as usize).reader.position();
            Node::Take { channel: id, cpu, copy: channel.take_slot(cpu as usize).current(read_to) }
        }
        _ => Node::PerCpu { channel: id, dir, cpu },
    }
}

/// Parses a number without leading zeros.
fn canonical_number(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| canonical)
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}
