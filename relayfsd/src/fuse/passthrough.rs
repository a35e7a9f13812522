//! Backing files of inodes, which the kernel maps without the daemon.
//!
//! The daemon registers an inode's backing file once, for all open files of that inode, until the last of them is
//! closed. A `B` is the kernel's handle of a backing file. This file does not name FUSE.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A regular file that no kernel maps, and that always exists and can be opened for writing.
///
/// It is one of the process's namespaces.
const UNMAPPABLE: &str = "/proc/self/ns/uts";

/// Opens the backing file for files that must not be mapped.
///
/// With it, mmap(2) of those files fails with ENODEV, shared or private. Without a backing file the kernel grants
/// private mappings, whose pages raise SIGBUS.
pub(crate) fn unmappable() -> Option<File> {
    File::open(UNMAPPABLE).map_err(|error| log::debug!("{UNMAPPABLE}: {error}")).ok()
}

/// The backing files of open inodes.
pub(crate) struct Backings<B>(Mutex<Table<B>>);

struct Table<B> {
    by_inode: HashMap<u64, Weak<B>>,
    by_open_file: HashMap<u64, (u64, Arc<B>)>,
}

impl<B> Default for Backings<B> {
    fn default() -> Backings<B> {
        Backings(Mutex::new(Table { by_inode: HashMap::new(), by_open_file: HashMap::new() }))
    }
}

impl<B> Backings<B> {
    /// Returns the backing of an inode that a process opens as open file number `file`.
    ///
    /// `register` gives the file to the kernel, if no other open file has the inode.
    pub(crate) fn open(
        &self,
        inode: u64,
        file: u64,
        register: impl FnOnce() -> io::Result<B>,
    ) -> io::Result<Arc<B>> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let backing = match table.by_inode.get(&inode).and_then(Weak::upgrade) {
            Some(backing) => backing,
            None => Arc::new(register()?),
        };
        table.by_inode.insert(inode, Arc::downgrade(&backing));
        table.by_open_file.insert(file, (inode, backing.clone()));
        Ok(backing)
    }

    /// Forgets open file number `file`, which has been closed.
    pub(crate) fn close(&self, file: u64) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((inode, backing)) = table.by_open_file.remove(&file) else { return };
        drop(backing);
        if table.by_inode.get(&inode).is_some_and(|backing| backing.strong_count() == 0) {
            table.by_inode.remove(&inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_of_an_inode_share_its_backing_until_the_last_close() {
        let backings = Backings::<u32>::default();
        assert_eq!(*backings.open(7, 1, || Ok(10)).unwrap(), 10);
        assert_eq!(*backings.open(7, 2, || panic!("it has one")).unwrap(), 10);
        assert_eq!(*backings.open(8, 3, || Ok(11)).unwrap(), 11);
        backings.close(1);
        assert_eq!(*backings.open(7, 4, || panic!("it has one")).unwrap(), 10);
        backings.close(2);
        backings.close(4);
        backings.close(4);
        assert!(backings.open(7, 5, || Err(io::ErrorKind::PermissionDenied.into())).is_err());
        assert_eq!(*backings.open(7, 6, || Ok(12)).unwrap(), 12);
        assert_eq!(backings.0.lock().unwrap().by_inode.len(), 2);
    }
}
