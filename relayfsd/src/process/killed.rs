//! Finds out whether a process that is closing its files was killed by a signal.

use relay::system::proc_stat::{number, read};

/// Index of the kernel's flags among the words behind the name in `/proc/ID/stat`.
pub(super) const STAT_FLAGS: usize = 6;
/// The kernel's mark of a thread that a signal has ended, in its flags.
const PF_SIGNALED: u64 = 0x400;

/// Returns whether a signal has killed the process of a thread that is closing its files.
///
/// The kernel marks a thread that dies of a signal, and each thread that another thread's exit(2) ends. The first
/// thread is not marked if it, or the closing thread, called exit. A process whose marks cannot be read counts as not
/// killed.
pub(crate) fn is_killed(thread: u32) -> bool {
    let stat = |id| read(id, "stat");
    let is_marked =
        |stat: String| number(&stat, STAT_FLAGS).is_some_and(|flags: u64| flags & PF_SIGNALED != 0);
    if !stat(thread).is_some_and(is_marked) {
        return false;
    }
    let first = process_of(thread).filter(|process| *process != thread).and_then(stat);
    first.is_none_or(is_marked)
}

/// Returns the number of a thread's process.
pub(crate) fn process_of(thread: u32) -> Option<u32> {
    read(thread, "status")?.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_process_is_not_killed() {
        let process = std::process::id();
        assert!(!is_killed(process));
        assert_eq!(process_of(process), Some(process));
        let thread = std::thread::spawn(|| process_of(nix::unistd::gettid().as_raw().cast_unsigned()));
        assert_eq!(thread.join().unwrap(), Some(process));
        assert!(!is_killed(0), "a process that cannot be seen");
    }
}
