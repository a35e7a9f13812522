//! Backing files of inodes, which the kernel maps without the daemon.
//!
//! The daemon registers an inode's backing file once, for all open files of that inode, until the last of them is
//! closed. A `B` is the kernel's handle of a backing file. This file does not name FUSE.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::tree::open_file::Source;

/// Stands for the inodes of all files that must not be mapped: no node has it.
const ALL_UNMAPPED: u64 = 0;

/// A regular file that no kernel maps, and that always exists and can be opened for writing.
///
/// It is one of the process's namespaces.
const UNMAPPABLE: &str = "/proc/self/ns/uts";

/// Opens the backing file for files that must not be mapped.
///
/// With it, mmap(2) of those files fails with ENODEV, shared or private. Without a backing file the kernel grants
/// private mappings, whose pages raise SIGBUS.
fn unmappable() -> Option<File> {
    File::open(UNMAPPABLE).map_err(|error| log::debug!("{UNMAPPABLE}: {error}")).ok()
}

/// The files that the kernel maps in place of the tree's.
pub(crate) struct Behind<B> {
    /// Whether the kernel can map files without the daemon.
    passthrough: bool,
    /// The file behind those that must not be mapped.
    unmappable: Option<File>,
    backings: Backings<B>,
}

impl<B> Default for Behind<B> {
    fn default() -> Behind<B> {
        Behind { passthrough: false, unmappable: None, backings: Backings::default() }
    }
}

impl<B> Behind<B> {
    pub(crate) fn new(passthrough: bool) -> Behind<B> {
        Behind { passthrough, unmappable: unmappable(), backings: Backings::default() }
    }

    /// Returns the backing of an open file, if it has one.
    ///
    /// `register` takes CAP_SYS_ADMIN. Without a backing, programs can still read the file.
    pub(crate) fn of_source(
        &self,
        inode: u64,
        file: u64,
        source: Source,
        register: impl FnOnce(&File) -> io::Result<B>,
    ) -> Option<io::Result<Arc<B>>> {
        match source {
            _ if !self.passthrough => None,
            Source::Us | Source::Cache { .. } => None,
            Source::UsUnmapped => {
                let behind = self.unmappable.as_ref()?;
                Some(self.backings.open(ALL_UNMAPPED, file, || register(behind)))
            }
            Source::UsAndFile(behind) | Source::UntilClosed(behind) => {
                Some(self.backings.open(inode, file, || register(&behind?)))
            }
        }
    }

    /// Forgets open file number `file`, which has been closed.
    pub(crate) fn close(&self, file: u64) {
        self.backings.close(file);
    }
}

/// The backing files of open inodes.
struct Backings<B>(Mutex<Table<B>>);

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
    fn open(&self, inode: u64, file: u64, register: impl FnOnce() -> io::Result<B>) -> io::Result<Arc<B>> {
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
    fn close(&self, file: u64) {
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
