//! Which files the kernel may map by itself: it is given a file that stands behind an inode, once for all who have that
//! inode open, and as long as anybody has. What the kernel knows of such a file is a `B`; FUSE does not come in here.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A regular file that no kernel maps, always there, and that may be opened to be written: one of the process's namespaces.
const UNMAPPABLE: &str = "/proc/self/ns/uts";

/// Opens the file to be put behind files that must not be mapped: mmap(2) of them then is ENODEV, shared or private.
///
/// Without a file behind them the kernel grants private mappings, whose pages are a SIGBUS.
pub(crate) fn unmappable() -> Option<File> {
    File::open(UNMAPPABLE).map_err(|error| log::debug!("{UNMAPPABLE}: {error}")).ok()
}

/// The files behind inodes that are open.
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
    /// What stands behind an inode that is being opened as open file number `file`; told to the kernel by `register` if
    /// nobody has it open.
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

    /// Open file number `file` has been closed.
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
    fn all_who_have_an_inode_open_share_one_and_the_last_takes_it_along() {
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
