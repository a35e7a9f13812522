//! Directories and files of a relayfs by name: the meaning of `struct dentry *`.
//! They exist once a channel is in them.
//!
//! They are never freed: a program has few, and one that was removed can be used again without harm.

use std::collections::BTreeSet;

use nix::errno::Errno;
use relay::layout::channel_name::COMPONENT_LEN_MAX;
use relay::system::process_lock::ProcessLock;
use relay::{ChannelName, NameError};

/// All places, each once.
static PLACES: ProcessLock<BTreeSet<&'static Place>> = ProcessLock::new(BTreeSet::new(), BTreeSet::clone);

/// A path below a mount point.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(String);

impl Place {
    /// Returns the place `name` in `dir`, or in the root.
    pub(crate) fn new(name: &str, dir: Option<&Place>) -> Result<&'static Place, Errno> {
        let place = Place(checked(&join(dir, name))?.as_str().to_owned());
        let mut places = PLACES.write();
        if let Some(place) = places.get(&place) {
            return Ok(place);
        }
        let place: &'static Place = Box::leak(Box::new(place));
        places.insert(place);
        Ok(place)
    }

    /// Returns the place at an address, if there is one.
    pub(crate) fn at(address: usize) -> Option<&'static Place> {
        let places = PLACES.read();
        places.iter().copied().find(|place| std::ptr::from_ref(*place).addr() == address)
    }

    /// Returns its path below the mount point.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the path of a name in a directory, below the mount point.
pub(crate) fn join(dir: Option<&Place>, name: &str) -> String {
    dir.map_or_else(|| name.to_owned(), |dir| format!("{}/{name}", dir.0))
}

/// Checks that a channel can have this name.
pub(crate) fn checked(name: &str) -> Result<ChannelName, Errno> {
    name.parse().map_err(|_: NameError| {
        let is_long = name.split('/').any(|part| part.len() > COMPONENT_LEN_MAX);
        if is_long { Errno::ENAMETOOLONG } else { Errno::EINVAL }
    })
}
