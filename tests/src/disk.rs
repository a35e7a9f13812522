//! A small file system, for tests of a full disk.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

/// A file system of a given size below a mount's directory, unmounted at the end of the test.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Creates a directory and mounts a file system on it.
    #[track_caller]
    pub fn new(path: PathBuf, size: &str) -> Disk {
        fs::create_dir(&path).expect("a directory to mount on");
        let options = format!("size={size}");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("this test takes root, to mount a small disk");
        Disk(path)
    }

    /// The path of its root.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Used space in bytes.
    #[track_caller]
    pub fn used(&self) -> u64 {
        let status = statvfs(&self.0).expect("a mounted disk");
        (status.blocks() - status.blocks_free()) * status.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
