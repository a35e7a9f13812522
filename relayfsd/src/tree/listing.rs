//! Lists directories for readdir(3), in a fixed order, so that it continues after any entry.
//!
//! Channels and directories come and go while a listing is read in pieces. Each entry therefore has its own cookie,
//! made of the number of its channel or directory, and entries come in the order of their cookies. Numbers are never
//! reused, and new numbers are the highest. So an entry that exists all the time is listed once. The daemon keeps
//! nothing between pieces.

use std::ops::ControlFlow;

use crate::tree::inode::{ControlFile, Node, PerCpu};
use crate::tree::{Tree, per_cpu_file};

/// Cookies of directories have this bit, and the directory's number.
const DIRS: u64 = 1 << 60;
/// Cookies of channels and buffers have this bit, the channel's number, and the buffer's.
const CHANNELS: u64 = 1 << 61;
/// Bits of a cookie for the buffer's number.
const CPU_BITS: u32 = 24;
/// The highest cookie of `.` and `..`, which [`Tree::list`] does not list.
pub(crate) const DOTS: u64 = 2;

/// An entry of a directory.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Names the entry when a listing continues after it; not 0.
    pub(crate) cookie: u64,
    pub(crate) name: &'a str,
    pub(crate) node: Node,
}

/// Where a listing continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// At this one of the fixed entries, counted from 0.
    Fixed(usize),
    /// At this number of a directory.
    Dir(u32),
    /// At this channel, and this buffer of the channel.
    Channel(u32, u32),
    /// Nowhere: there is no such cookie.
    End,
}

impl Start {
    fn after(cookie: u64) -> Start {
        if cookie >= CHANNELS {
            let (id, cpu) = ((cookie - CHANNELS) >> CPU_BITS, cookie & ((1 << CPU_BITS) - 1));
            u32::try_from(id).map_or(Start::End, |id| Start::Channel(id, cpu as u32 + 1))
        } else if cookie >= DIRS {
            u32::try_from(cookie - DIRS + 1).map_or(Start::Channel(0, 0), Start::Dir)
        } else {
            usize::try_from(cookie.saturating_sub(DOTS)).map_or(Start::End, Start::Fixed)
        }
    }
}

fn channel_cookie(channel: u32, cpu: u32) -> u64 {
    CHANNELS | u64::from(channel) << CPU_BITS | u64::from(cpu)
}

impl Tree {
    /// Passes the entries of a directory to `add`, until `add` breaks.
    ///
    /// `None`: there is no such directory.
    ///
    /// The first entry is the one after `cookie`; 0 means the first of the directory.
    pub(crate) fn list(
        &self,
        dir: Node,
        cookie: u64,
        mut add: impl FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Option<()> {
        let start = Start::after(cookie);
        if let Start::Fixed(first) = start
            && self.list_fixed(dir, first, &mut add)?.is_break()
        {
            return Some(());
        }
        match dir {
            Node::Dir(id) | Node::ChannelsDir(id) => {
                let path = self.dir_path(id)?;
                let _ = self.list_children(&path, matches!(dir, Node::ChannelsDir(_)), start, add);
            }
            _ => {}
        }
        Some(())
    }

    /// Lists the fixed entries of a directory, from number `first` on.
    fn list_fixed(
        &self,
        dir: Node,
        first: usize,
        mut add: impl FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Option<ControlFlow<()>> {
        let mut add = |i: usize, name: &str, node| add(Entry { cookie: i as u64 + DOTS + 1, name, node });
        let entries = match dir {
            Node::Dir(0) => vec![(".relay", Node::Relay)],
            Node::Dir(_) | Node::ChannelsDir(_) => Vec::new(),
            Node::Relay => vec![
                ("socket", Node::Socket),
                ("version", Node::Version),
                ("stats", Node::Stats),
                ("status", Node::Status),
                ("metrics", Node::Metrics),
                ("channels", Node::ChannelsDir(0)),
            ],
            Node::ChannelDir(channel) => {
                let held = self.hold(channel)?;
                let files = ControlFile::ALL.into_iter().filter(|file| file.is_of(held.geometry()));
                let files = files.map(|file| (file.name(), Node::Control { channel, file }));
                let dirs = PerCpu::ALL.map(|dir| (dir.name(), Node::PerCpuDir { channel, dir }));
                files.chain(dirs).collect()
            }
            Node::PerCpuDir { channel, dir } => {
                let held = self.hold(channel)?;
                let node = |cpu: usize| per_cpu_file(&held, dir, cpu as u32);
                let n_bufs = held.n_bufs();
                let flow = (first..n_bufs).try_for_each(|cpu| add(cpu, &format!("cpu{cpu}"), node(cpu)));
                let has_metadata = dir == PerCpu::Snapshot && held.timed().is_some() && first <= n_bufs;
                return Some(match flow {
                    ControlFlow::Continue(()) if has_metadata => {
                        add(n_bufs, "metadata", Node::SnapshotMetadata { channel })
                    }
                    flow => flow,
                });
            }
            _ => return None,
        };
        let mut rest = entries.into_iter().enumerate().skip(first);
        Some(rest.try_for_each(|(i, (name, node))| add(i, name, node)))
    }

    /// Lists the directories in a directory, and the buffers of its channels.
    ///
    /// With `control`, lists the channels' directories of control files in place of the buffers.
    fn list_children(
        &self,
        path: &str,
        control: bool,
        start: Start,
        mut add: impl FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let (dirs_from, (first, first_cpu)) = match start {
            Start::Fixed(_) => (Some(0), (0, 0)),
            Start::Dir(id) => (Some(id), (0, 0)),
            Start::Channel(id, cpu) => (None, (id, cpu)),
            Start::End => return ControlFlow::Break(()),
        };
        let dir = if control { Node::ChannelsDir } else { Node::Dir };
        if let Some(from) = dirs_from {
            self.registry().visit_dirs(path, from, |id, name| {
                add(Entry { cookie: DIRS | u64::from(id), name, node: dir(id) })
            })?;
        }
        self.registry().visit_channels(path, first, |channel| {
            let (id, base) = (channel.id(), channel.name().base());
            let from = if id == first { first_cpu } else { 0 };
            if control {
                let entry = Entry { cookie: channel_cookie(id, 0), name: base, node: Node::ChannelDir(id) };
                return if from == 0 { add(entry) } else { ControlFlow::Continue(()) };
            }
            (from..channel.n_bufs() as u32).try_for_each(|cpu| {
                let node = Node::Buffer { channel: id, cpu };
                add(Entry { cookie: channel_cookie(id, cpu), name: &format!("{base}{cpu}"), node })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use relay::GeometrySpec;

    use super::*;
    use crate::registry::{Create, Limits, Registry};
    use crate::state::recovery::Recovered;
    use crate::writers::Writers;

    fn names(tree: &Tree, dir: Node, cookie: u64, count: usize) -> Vec<(u64, String)> {
        let mut names = Vec::new();
        tree.list(dir, cookie, |entry| {
            if names.len() == count {
                return ControlFlow::Break(());
            }
            names.push((entry.cookie, entry.name.to_owned()));
            ControlFlow::Continue(())
        })
        .expect("a directory");
        names
    }

    /// A listing looks at each channel once, in however many pieces a program reads it.
    #[test]
    fn listing_in_pieces_looks_at_each_channel_once() {
        const CHANNELS: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { memory: 1 << 30, channels: CHANNELS };
        let spec = GeometrySpec {
            subbuf_size: Some(64),
            n_subbufs: Some(1),
            global: Some(true),
            ..Default::default()
        };
        let writers = Arc::new(Writers::new(2));
        let registry =
            Registry::new(dir.path().to_owned(), 2, limits, spec, Recovered::default(), writers.clone())
                .unwrap();
        let mut expected: Vec<String> = Vec::new();
        for i in 0..CHANNELS {
            registry.open(&format!("many/c{i}x").parse().unwrap(), spec, Create::Permanent).unwrap();
            expected.push(format!("c{i}x0"));
        }
        let tree = Tree::new(registry, writers, String::new());
        let many = tree.lookup(Node::Dir(0), "many").unwrap();
        let before = tree.registry().looked_at();
        let (mut found, mut cookie, mut pieces) = (Vec::new(), 0, 0);
        loop {
            let piece = names(&tree, many, cookie, 7);
            pieces += 1;
            let Some((last, _)) = piece.last() else { break };
            assert!(*last > cookie && piece.is_sorted());
            cookie = *last;
            found.extend(piece.into_iter().map(|(_, name)| name));
        }
        assert_eq!(found, expected);
        let looked_at = tree.registry().looked_at() - before;
        // Each piece looks at the last channel of the piece before, and at one that it has no room for.
        assert!(looked_at <= CHANNELS + 2 * pieces, "{looked_at} channels looked at in {pieces} pieces");
    }

    #[test]
    fn cookies_lead_to_the_next_entry() {
        for (id, cpu) in [(1, 0), (7, 4095), (u32::MAX, (1 << CPU_BITS) - 2)] {
            assert_eq!(Start::after(channel_cookie(id, cpu)), Start::Channel(id, cpu + 1));
            assert_eq!(
                Start::after(DIRS | u64::from(id)),
                id.checked_add(1).map_or(Start::Channel(0, 0), Start::Dir)
            );
        }
        assert_eq!([0, DOTS, DOTS + 3].map(Start::after), [0, 0, 3].map(Start::Fixed));
        assert_eq!(Start::after(u64::MAX), Start::End);
    }
}
