//! Finds out whether a process that is closing its files was killed by a signal.

use std::fs;

/// Returns whether a signal has killed the process of a thread that is closing its files.
///
/// The kernel marks a thread that dies of a signal, and each thread that another thread's exit(2) ends. The first
/// thread is not marked if it, or the closing thread, called exit. A process whose marks cannot be read counts as not
/// killed.
pub(crate) fn is_killed(thread: u32) -> bool {
    let is_marked = |status: String| flags(&status).is_some_and(|flags| flags & PF_SIGNALED != 0);
    let read = |id: u32| fs::read_to_string(format!("/proc/{id}/stat")).ok();
    let Some(status) = read(thread) else { return false };
    if !is_marked(status) {
        return false;
    }
    let first = process_of(thread).filter(|process| *process != thread).and_then(read);
    first.is_none_or(is_marked)
}

/// The kernel's mark of a thread that a signal has ended, in its flags.
const PF_SIGNALED: u64 = 0x400;

/// Returns the kernel's flags of a thread, from its `/proc/ID/stat`.
///
/// Its name comes before them, in parentheses.
fn flags(status: &str) -> Option<u64> {
    status.rsplit_once(") ")?.1.split(' ').nth(6)?.parse().ok()
}

/// Returns the number of a thread's process.
pub(crate) fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_behind_a_name_of_any_characters() {
        let status = "4711 (a) b (c) ) R 1 4711 1 0 -1 4195328 100 0 0 0";
        assert_eq!(flags(status), Some(4195328));
        assert_eq!((flags("4711 (a"), flags("4711 (a) R 1")), (None, None));
    }

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
