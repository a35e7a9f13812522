//! The nodes of the mounted tree: their kinds, names, texts, and inode numbers.

use relay::Geometry;

use crate::channel::Channel;
use crate::channel::take::N_COPIES;
use crate::channel::timed::{Timed, metadata};
use crate::monitor::status;

/// A node of the tree. It names its channel or directory by an id that is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory with buffers' files; 0 is the root.
    Dir(u32),
    /// `.relay`
    Relay,
    /// `.relay/socket`
    Socket,
    /// `.relay/version`
    Version,
    /// `.relay/stats`
    Stats,
    /// `.relay/status`
    Status,
    /// `.relay/metrics`
    Metrics,
    /// `.relay/channels`, with id 0, and the directories in it that are not channels.
    ChannelsDir(u32),
    /// The directory of a channel's control files.
    ChannelDir(u32),
    /// A buffer's file.
    Buffer { channel: u32, cpu: u32 },
    /// A control file.
    Control { channel: u32, file: ControlFile },
    /// A directory with a file for each buffer, in the directory of the control files.
    PerCpuDir { channel: u32, dir: PerCpu },
    /// A file in such a directory.
    PerCpu { channel: u32, dir: PerCpu, cpu: u32 },
    /// `snapshot/metadata` of a timed channel.
    SnapshotMetadata { channel: u32 },
    /// A file in `take`, of the copy with number `copy`: another copy is another file.
    Take { channel: u32, cpu: u32, copy: u32 },
}

/// Directories that have a file for each buffer, besides the buffers' own files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PerCpu {
    /// Files where readers of mappings give sub-buffers back.
    Consumed,
    /// Frozen copies.
    Snapshot,
    /// The live rings, for mmap(2).
    Map,
    /// Copies of unread data, consumed when a program has read them.
    ///
    /// These files are [`Node::Take`].
    Take,
}

impl PerCpu {
    pub(crate) const ALL: [PerCpu; 4] = [PerCpu::Consumed, PerCpu::Snapshot, PerCpu::Map, PerCpu::Take];

    pub(crate) fn name(self) -> &'static str {
        match self {
            PerCpu::Consumed => "consumed",
            PerCpu::Snapshot => "snapshot",
            PerCpu::Map => "map",
            PerCpu::Take => "take",
        }
    }
}

/// The control files of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlFile {
    Stats,
    SubbufSize,
    NSubbufs,
    Mode,
    Dropped,
    Msg,
    Flush,
    Reset,
    /// The file with the positions, for readers of mappings.
    Positions,
    /// The anchors of a timed channel's clock.
    Clock,
    /// The CTF text of a timed channel.
    Metadata,
    /// The processes of a timed channel, and their threads.
    Processes,
    /// The records of all buffers of a timed channel, in one order, as text.
    Trace,
    /// Which messages programs write into a timed channel.
    Level,
    /// All that a look at the channel needs.
    Status,
}

impl ControlFile {
    pub(crate) const ALL: [ControlFile; 15] = [
        ControlFile::Stats,
        ControlFile::SubbufSize,
        ControlFile::NSubbufs,
        ControlFile::Mode,
        ControlFile::Dropped,
        ControlFile::Msg,
        ControlFile::Flush,
        ControlFile::Reset,
        ControlFile::Positions,
        ControlFile::Clock,
        ControlFile::Metadata,
        ControlFile::Processes,
        ControlFile::Trace,
        ControlFile::Level,
        ControlFile::Status,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            ControlFile::Stats => "stats",
            ControlFile::SubbufSize => "subbuf_size",
            ControlFile::NSubbufs => "n_subbufs",
            ControlFile::Mode => "mode",
            ControlFile::Dropped => "dropped",
            ControlFile::Msg => "msg",
            ControlFile::Flush => "flush",
            ControlFile::Reset => "reset",
            ControlFile::Positions => "control",
            ControlFile::Clock => "clock",
            ControlFile::Metadata => "metadata",
            ControlFile::Processes => "processes",
            ControlFile::Trace => "trace",
            ControlFile::Level => "level",
            ControlFile::Status => "status",
        }
    }

    /// Returns whether a channel of this geometry has the file.
    pub(crate) fn is_of(self, geometry: &Geometry) -> bool {
        geometry.timed()
            || !matches!(
                self,
                ControlFile::Clock
                    | ControlFile::Metadata
                    | ControlFile::Processes
                    | ControlFile::Trace
                    | ControlFile::Level
            )
    }

    /// Returns the file's text at an open.
    ///
    /// Files that take writes are empty, except `level`; the positions are no text, and `trace` is a copy.
    pub(crate) fn text(self, channel: &Channel) -> String {
        match self {
            ControlFile::Stats => channel.stats(),
            ControlFile::Status => status::of_channel(channel),
            ControlFile::SubbufSize => format!("{}\n", channel.geometry().subbuf_size()),
            ControlFile::NSubbufs => format!("{}\n", channel.geometry().n_subbufs()),
            ControlFile::Mode => {
                let timed = if channel.geometry().timed() { " timed" } else { "" };
                format!("{}{timed}\n", channel.geometry().mode())
            }
            ControlFile::Dropped => format!("{}\n", channel.total().dropped),
            ControlFile::Clock => channel.timed().map(Timed::clock_text).unwrap_or_default(),
            ControlFile::Metadata => metadata::text(channel),
            ControlFile::Processes => channel.timed().map(Timed::processes_text).unwrap_or_default(),
            ControlFile::Level => channel.timed().map(Timed::level_text).unwrap_or_default(),
            ControlFile::Msg
            | ControlFile::Flush
            | ControlFile::Reset
            | ControlFile::Positions
            | ControlFile::Trace => String::new(),
        }
    }
}

/// A node's permissions, before the access options change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Dir,
    /// A directory in which the users that may create channels may make directories.
    ChannelsDir,
    Link,
    /// Shows messages: readable for the owner, and for the group if there is one.
    Private,
    /// Shows counts, and which processes use a channel: for the owner, and for the groups that may see that.
    Stats,
    /// Lets readers give back sub-buffers: for the owner, and for the group if there is one.
    Reader,
    /// Shows the geometry only: readable for all users.
    Public,
    /// Takes messages: writable for the owner, and for the group if there is one.
    Message,
    /// Changes what other processes read: writable for the owner.
    Owner,
    /// Changes what other processes write: as [`Class::Private`], and writable for the owner.
    Setting,
}

impl Class {
    /// Returns the permission bits.
    ///
    /// `group_reads`: the group has what the owner has. `makers`: write bits of those that may make channels.
    pub(crate) fn permissions(self, group_reads: bool, makers: u16) -> u16 {
        let group_bits = |bits: u16| if group_reads { bits >> 3 } else { 0 };
        match self {
            Class::Dir => 0o755,
            Class::ChannelsDir => 0o755 | makers,
            Class::Link => 0o777,
            Class::Private | Class::Stats => 0o400 | group_bits(0o400),
            Class::Reader => 0o600 | group_bits(0o600),
            Class::Public => 0o444,
            Class::Message => 0o200 | group_bits(0o200),
            Class::Owner => 0o200,
            Class::Setting => 0o600 | group_bits(0o400),
        }
    }
}

const FILE_BITS: u32 = 24;
const ID_BITS: u32 = 32;
/// Bits of a file's number for the CPU. The remaining bits are for the number of a copy.
const CPU_BITS: u32 = 14;
const _: () = assert!(N_COPIES == 1 << (FILE_BITS - CPU_BITS));
/// Number of `metadata` among the files in `snapshot`: no CPU has it.
const METADATA: u32 = (1 << FILE_BITS) - 1;
/// Kind of the first of the [`PerCpu`] files.
const PER_CPU: u64 = 7;

impl Node {
    /// Returns the inode number: kind, id, and the file's number.
    ///
    /// The root's is 1, as FUSE requires.
    ///
    /// The ids of a channel's nodes are mixed with `salt`, so that the files of two state directories have different
    /// numbers.
    pub(crate) fn ino(self, salt: u32) -> u64 {
        let (kind, id, file) = match self {
            Node::Dir(id) => (0, id, 1),
            Node::Relay => (1, 0, 0),
            Node::Socket => (1, 0, 1),
            Node::Version => (1, 0, 2),
            Node::Stats => (1, 0, 3),
            Node::Status => (1, 0, 4),
            Node::Metrics => (1, 0, 5),
            Node::ChannelsDir(id) => (2, id, 0),
            Node::ChannelDir(id) => (3, id ^ salt, 0),
            Node::Buffer { channel, cpu } => (4, channel ^ salt, cpu),
            Node::Control { channel, file } => (5, channel ^ salt, file as u32),
            Node::PerCpuDir { channel, dir } => (6, channel ^ salt, dir as u32),
            Node::PerCpu { channel, dir, cpu } => (PER_CPU + dir as u64, channel ^ salt, cpu),
            Node::SnapshotMetadata { channel } => {
                (PER_CPU + PerCpu::Snapshot as u64, channel ^ salt, METADATA)
            }
            Node::Take { channel, cpu, copy } => {
                (PER_CPU + PerCpu::Take as u64, channel ^ salt, cpu | copy << CPU_BITS)
            }
        };
        kind << (FILE_BITS + ID_BITS) | u64::from(id) << FILE_BITS | u64::from(file)
    }

    /// Returns whether the node is a directory.
    pub(crate) fn is_dir(self) -> bool {
        match self {
            Node::Dir(_)
            | Node::Relay
            | Node::ChannelsDir(_)
            | Node::ChannelDir(_)
            | Node::PerCpuDir { .. } => true,
            Node::Socket
            | Node::Version
            | Node::Stats
            | Node::Status
            | Node::Metrics
            | Node::Buffer { .. }
            | Node::Control { .. }
            | Node::PerCpu { .. }
            | Node::SnapshotMetadata { .. }
            | Node::Take { .. } => false,
        }
    }

    /// Returns whether the node takes writes.
    pub(crate) fn takes_writes(self) -> bool {
        match self {
            Node::Control { file, .. } => {
                matches!(
                    file,
                    ControlFile::Msg | ControlFile::Flush | ControlFile::Reset | ControlFile::Level
                )
            }
            Node::PerCpu { dir, .. } => dir == PerCpu::Consumed,
            _ => false,
        }
    }

    /// Returns whether the node shows messages or what they mean, so that `-o mode=` is for it.
    pub(crate) fn shows_messages(self) -> bool {
        match self {
            Node::Buffer { .. } | Node::SnapshotMetadata { .. } | Node::Take { .. } => true,
            Node::PerCpu { dir, .. } => matches!(dir, PerCpu::Snapshot | PerCpu::Map),
            Node::Control { file, .. } => matches!(
                file,
                ControlFile::Clock | ControlFile::Metadata | ControlFile::Processes | ControlFile::Trace
            ),
            _ => false,
        }
    }

    /// Returns whether an open copies a buffer.
    ///
    /// The threads that serve files must not wait for that.
    pub(crate) fn is_copied_at_open(self) -> bool {
        matches!(
            self,
            Node::PerCpu { dir: PerCpu::Snapshot, .. }
                | Node::Control { file: ControlFile::Trace, .. }
                | Node::Take { .. }
        )
    }

    /// Returns the node of an inode number. The node may be gone by now.
    pub(crate) fn from_ino(ino: u64, salt: u32) -> Option<Node> {
        let kind = ino >> (FILE_BITS + ID_BITS);
        let id = (ino >> FILE_BITS) as u32 ^ if kind < 3 { 0 } else { salt };
        let file = (ino & ((1 << FILE_BITS) - 1)) as u32;
        Some(match (kind, id, file) {
            (0, id, 1) => Node::Dir(id),
            (1, 0, 0) => Node::Relay,
            (1, 0, 1) => Node::Socket,
            (1, 0, 2) => Node::Version,
            (1, 0, 3) => Node::Stats,
            (1, 0, 4) => Node::Status,
            (1, 0, 5) => Node::Metrics,
            (2, id, 0) => Node::ChannelsDir(id),
            (3, id, 0) => Node::ChannelDir(id),
            (4, channel, cpu) => Node::Buffer { channel, cpu },
            (5, channel, file) => Node::Control { channel, file: *ControlFile::ALL.get(file as usize)? },
            (6, channel, dir) => Node::PerCpuDir { channel, dir: *PerCpu::ALL.get(dir as usize)? },
            (kind @ PER_CPU.., channel, cpu) => match *PerCpu::ALL.get((kind - PER_CPU) as usize)? {
                PerCpu::Snapshot if cpu == METADATA => Node::SnapshotMetadata { channel },
                PerCpu::Take => {
                    Node::Take { channel, cpu: cpu & ((1 << CPU_BITS) - 1), copy: cpu >> CPU_BITS }
                }
                dir => Node::PerCpu { channel, dir, cpu },
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn inode_numbers_lead_back_to_nodes_and_the_root_is_1() {
        assert_eq!(Node::Dir(0).ino(77), 1);
        let channel = u32::MAX;
        let control = ControlFile::ALL.map(|file| Node::Control { channel, file });
        let nodes = [
            Node::Dir(0),
            Node::Dir(7),
            Node::Relay,
            Node::Socket,
            Node::Version,
            Node::Stats,
            Node::Status,
            Node::Metrics,
            Node::ChannelsDir(0),
            Node::ChannelsDir(9),
            Node::ChannelDir(3),
            Node::Buffer { channel, cpu: 4095 },
            Node::SnapshotMetadata { channel },
            Node::Take { channel, cpu: 8191, copy: 0 },
            Node::Take { channel, cpu: 8191, copy: N_COPIES - 1 },
        ];
        let per_cpu = PerCpu::ALL.into_iter().flat_map(|dir| {
            let file = Node::PerCpu { channel, dir, cpu: 4095 };
            [Some(Node::PerCpuDir { channel, dir }), (dir != PerCpu::Take).then_some(file)]
        });
        let mut seen = HashSet::new();
        for node in nodes.into_iter().chain(control).chain(per_cpu.flatten()) {
            for salt in [0, 1, 0x89ab_cdef, u32::MAX] {
                let ino = node.ino(salt);
                assert_eq!(Node::from_ino(ino, salt), Some(node));
                let of_channel = !matches!(
                    node,
                    Node::Dir(_)
                        | Node::Relay
                        | Node::Socket
                        | Node::Version
                        | Node::Stats
                        | Node::Status
                        | Node::Metrics
                        | Node::ChannelsDir(_)
                );
                assert_eq!(seen.insert(ino), of_channel || salt == 0, "{node:?} with {salt}");
            }
        }
        assert_eq!(Node::from_ino(0, 77), None);
        assert_eq!(Node::from_ino(u64::MAX, 77), None);
    }
}
