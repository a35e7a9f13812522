//! The kernel's table of file locks, `/proc/locks` (proc_locks(5)).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};

/// Returns the process that holds the lock on a file, if this process may see it.
///
/// The lock is not tried, not even for a moment: a daemon that starts in that moment would give up.
pub fn lock_holder(lock: &Path) -> Option<u32> {
    let found = fs::symlink_metadata(lock).ok()?;
    let id = format!("{:02x}:{:02x}:{}", major(found.dev()), minor(found.dev()), found.ino());
    holder(&fs::read_to_string("/proc/locks").ok()?, &id)
}

/// Finds the holder in lines such as `12: FLOCK  ADVISORY  WRITE 4711 00:1a:1234 0 EOF`.
fn holder(locks: &str, id: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = words.as_slice() else { return None };
        (*file == id).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_holder_of_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 8 00:1a:77 0 EOF\n2: FLOCK  ADVISORY  READ 9 00:1a:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 10 00:1a:77 0 EOF\n4: FLOCK  ADVISORY  WRITE 4711 00:1a:77 0 EOF\n";
        assert_eq!(holder(locks, "00:1a:77"), Some(4711));
        assert_eq!(holder(locks, "00:1a:7"), None);
    }
}
