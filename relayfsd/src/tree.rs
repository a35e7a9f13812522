//! The mounted tree without FUSE: what is where, and what stat(2) and directories tell of it.
//!
//! ```text
//! /            cpu0 ... cpuN-1    app/log0 ... app/logN-1
//! /.relay/     socket  version  stats  channels/
//! /.relay/channels/app/log/    stats subbuf_size n_subbufs mode dropped msg flush reset control consumed/ snapshot/ map/ take/
//! /.relay/channels/app/log/snapshot/    cpu0 ... cpuN-1
//! ```
//!
//! `fuse` calls it for every request. It finds channels in `registry`, and hands to `writers` what has to be written.
//! This room may not know FUSE or the socket.

mod buffer_file;

pub(crate) mod consumed_file;
pub(crate) mod endless_copy;
pub(crate) mod inode;
pub(crate) mod listing;
pub(crate) mod msg_file;
pub(crate) mod open_file;
pub(crate) mod read_history;

use std::sync::Arc;
use std::time::SystemTime;

use relay::layout::abi;

use crate::channel::{Channel, ChannelRef};
use crate::registry::Registry;
use crate::tree::inode::{Class, ControlFile, Node, PerCpu};
use crate::writers::Writers;

/// What stat(2) tells of a node.
pub(crate) struct NodeStat {
    pub(crate) class: Class,
    pub(crate) size: u64,
    pub(crate) mtime: SystemTime,
    pub(crate) ctime: SystemTime,
}

/// The tree of one daemon.
pub(crate) struct Tree {
    registry: Arc<Registry>,
    writers: Arc<Writers>,
    /// Where `.relay/socket` points.
    socket: String,
    started: SystemTime,
}

impl Tree {
    pub(crate) fn new(registry: Arc<Registry>, writers: Arc<Writers>, socket: String) -> Tree {
        Tree { registry, writers, socket, started: SystemTime::now() }
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The threads that write for others.
    pub(crate) fn writers(&self) -> &Writers {
        &self.writers
    }

    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// The node of a name in a directory.
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
                let dir = PerCpu::ALL.into_iter().find(|dir| dir.name() == name);
                file.map(|file| Node::Control { channel, file })
                    .or_else(|| Some(Node::PerCpuDir { channel, dir: dir? }))
            }
            Node::PerCpuDir { channel, dir } => {
                let cpu = canonical_number(name.strip_prefix("cpu")?)?;
                self.hold_buffer(channel, cpu).map(|held| per_cpu_file(&held, dir, cpu))
            }
            _ => None,
        }
    }

    /// The buffer whose file has this path: a channel's name, then a number.
    fn lookup_buffer(&self, path: &str) -> Option<Node> {
        let n_digits = path.bytes().rev().take_while(u8::is_ascii_digit).count();
        // Which of the digits belong to the name, only the channels know; they cannot be ambiguous.
        (path.len() - n_digits..path.len()).find_map(|split| {
            let (name, number) = path.split_at(split);
            let cpu = canonical_number(number)?;
            let held = self.registry.hold(name).filter(|held| (cpu as usize) < held.n_bufs())?;
            Some(Node::Buffer { channel: held.id(), cpu })
        })
    }

    /// What stat(2) tells; `None` if the node is gone.
    pub(crate) fn stat(&self, node: Node) -> Option<NodeStat> {
        let fixed = |class, size, time| NodeStat { class, size, mtime: time, ctime: time };
        Some(match node {
            Node::Dir(id) | Node::ChannelsDir(id) => {
                self.dir_path(id)?;
                fixed(Class::Dir, 0, self.started)
            }
            Node::Relay => fixed(Class::Dir, 0, self.started),
            Node::Socket => fixed(Class::Link, self.socket.len() as u64, self.started),
            Node::Version => fixed(Class::Public, VERSION_TEXT.len() as u64, self.started),
            Node::Stats => fixed(Class::Private, self.registry.stats().len() as u64, SystemTime::now()),
            Node::ChannelDir(id) => fixed(Class::Dir, 0, self.hold(id)?.created()),
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
                // What it would be if it were taken now.
                let size = open.unwrap_or_else(|| held.read_side(cpu as usize).reader.snapshot_len());
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
                    // What it would be if it were opened now.
                    None if slot.is_current(copy) => {
                        let size = held.read_side(cpu as usize).reader.take_len();
                        (size, held.size_and_mtime(cpu as usize).1)
                    }
                    None => return None,
                };
                NodeStat { class: Class::Private, size, mtime, ctime: mtime }
            }
            // Its files are those above.
            Node::PerCpu { dir: PerCpu::Take, .. } => return None,
            Node::Control { channel, file: ControlFile::Positions } => {
                let held = self.hold(channel)?;
                let header = abi::control_header(held.geometry(), held.n_bufs());
                fixed(Class::Private, header.control_len(), held.created())
            }
            Node::Control { channel, file } => {
                let held = self.hold(channel)?;
                let class = match file {
                    ControlFile::Stats | ControlFile::Dropped | ControlFile::Positions => Class::Private,
                    ControlFile::SubbufSize | ControlFile::NSubbufs | ControlFile::Mode => Class::Public,
                    ControlFile::Msg => Class::Message,
                    ControlFile::Flush | ControlFile::Reset => Class::Owner,
                };
                // Some programs read no further than the size they are told: it must be the real one.
                fixed(class, file.text(&held).len() as u64, held.created())
            }
        })
    }

    /// The node that a name means for a thread, where it is not the same for all.
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

    /// Keeps the channel of an id.
    pub(crate) fn hold(&self, channel: u32) -> Option<ChannelRef> {
        self.registry.hold_id(channel)
    }

    /// The same, if it has a buffer of that number.
    pub(crate) fn hold_buffer(&self, channel: u32, cpu: u32) -> Option<ChannelRef> {
        self.hold(channel).filter(|held| (cpu as usize) < held.n_bufs())
    }

    pub(crate) fn dir_path(&self, id: u32) -> Option<String> {
        if id == 0 { Some(String::new()) } else { self.registry.dir_path(id) }
    }
}

/// The text of `.relay/version`.
pub(crate) const VERSION_TEXT: &str = concat!("relayfs ", env!("CARGO_PKG_VERSION"), "\n");

/// What `consumed/cpuN` says: the number of the next sub-buffer.
pub(crate) fn consumed_text(channel: &Channel, cpu: usize) -> String {
    format!("{}\n", channel.read_side(cpu).reader.next_number())
}

/// The file of a CPU in a directory that has one for each.
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

/// A number without leading zeros.
fn canonical_number(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| canonical)
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}
