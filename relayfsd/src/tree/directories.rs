//! Directories that make channels: mkdir(2) and rmdir(2) in `.relay/channels`.

use std::sync::Arc;

use nix::libc;

use super::{NodeStat, Tree, join};
use crate::tree::inode::Node;

impl Tree {
    /// Makes the channel of a new directory for a user. `done` gets its node, or an errno.
    pub(crate) fn make_directory(
        self: &Arc<Self>,
        parent: Node,
        name: Option<&str>,
        uid: u32,
        done: impl FnOnce(Result<(Node, NodeStat), i32>) + Send + 'static,
    ) {
        let (path, inside) = match self.place_inside(parent) {
            Ok(place) => place,
            Err(errno) => return done(Err(errno)),
        };
        let Some(name) = name.and_then(|name| join(&path, name).parse().ok()) else {
            return done(Err(libc::EINVAL));
        };
        let tree = Arc::clone(self);
        self.registry.make_directory(name, inside, uid, move |made| {
            let node = made.map(Node::ChannelDir);
            done(node.and_then(|node| Ok((node, tree.stat(node).ok_or(libc::ENOENT)?))));
        });
    }

    /// Returns the path in which mkdir(2) makes a channel, and the channel whose directory that is.
    fn place_inside(&self, parent: Node) -> Result<(String, Option<u32>), i32> {
        match parent {
            Node::ChannelsDir(dir) => Ok((self.dir_path(dir).ok_or(libc::ENOENT)?, None)),
            Node::ChannelDir(id) => {
                let held = self.hold(id).ok_or(libc::ENOENT)?;
                Ok((held.name().to_string(), Some(id)))
            }
            _ => Err(libc::EACCES),
        }
    }

    /// Removes the channel of a directory for a user. An error is an errno.
    pub(crate) fn remove_directory(&self, parent: Node, name: Option<&str>, uid: u32) -> Result<(), i32> {
        if !matches!(parent, Node::ChannelsDir(_)) {
            return Err(libc::EPERM);
        }
        match name.and_then(|name| self.lookup(parent, name)).ok_or(libc::ENOENT)? {
            Node::ChannelDir(id) => self.registry.remove_directory(id, uid),
            Node::ChannelsDir(_) => Err(libc::ENOTEMPTY),
            _ => Err(libc::EPERM),
        }
    }

    /// Returns what a node is now: the directory of a channel may have become a part of longer names.
    pub(crate) fn present(&self, node: Node) -> Node {
        match node {
            Node::ChannelDir(id) if self.registry.dir_path(id).is_some() => Node::ChannelsDir(id),
            _ => node,
        }
    }
}
