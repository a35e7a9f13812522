//! What `/proc` says of a process: start, command, executable; and whether it is ending.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::process::killed::process_of;

/// Clock ticks of a second, as `/proc` counts them.
const TICKS: u64 = 100;

use relay::system::proc_stat::{number, read};

use super::killed::STAT_FLAGS;

/// Index of the start time among the words behind the command's name in `/proc/PID/stat`.
const STAT_START: usize = 19;
/// The kernel's flag of a thread that is ending.
const PF_EXITING: u64 = 4;
/// Most threads that are looked at to find one that is not ending.
const THREADS_MAX: usize = 64;

/// A process, as far as the daemon may look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot; 0 if unknown.
    pub(crate) start: u64,
    pub(crate) uid: u32,
    /// Its command's name, and the path of its executable; empty if unknown.
    pub(crate) command: String,
    pub(crate) executable: String,
}

impl Identity {
    /// Reads what `/proc` says of a process. The caller checks that the number still means this process.
    /// `declared` is the path of the executable that the process itself has given.
    pub(crate) fn read(pid: u32, uid: u32, declared: &[u8]) -> Identity {
        let start = read(pid, "stat").and_then(|stat| number(&stat, STAT_START)).unwrap_or(0);
        let mut command = read(pid, "comm").unwrap_or_default();
        command.truncate(command.strip_suffix('\n').unwrap_or(&command).len());
        let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
        let executable = executable.map(|path| path.to_string_lossy().into_owned());
        // A daemon of root gives up the right to look at executables. So it believes the process, as it believes what all
        // may see: the name that the process was started with.
        let executable = executable
            .or_else(|| (!declared.is_empty()).then(|| String::from_utf8_lossy(declared).into_owned()))
            .or_else(|| first_argument(pid))
            .unwrap_or_default();
        Identity { pid, start, uid, command, executable }
    }
}

/// A moment, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootTime(u64);

impl BootTime {
    pub(crate) fn now() -> BootTime {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        BootTime(now.as_secs() * TICKS + u64::from(now.subsec_millis()) * TICKS / 1000)
    }
}

/// Returns the process of a thread that ran at a moment, and its command. `None`: it has gone since, or is not visible.
///
/// `is_process`: the number is known to be a process's. One look then tells.
pub(crate) fn command_since(thread: u32, is_process: bool, since: BootTime) -> Option<(u32, String)> {
    if thread == 0 {
        return None;
    }
    let stat = fs::read(format!("/proc/{thread}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (name, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
    let started = rest.split(' ').nth(STAT_START)?.parse().ok()?;
    // The number may be another thread's by now.
    if BootTime(started) > since {
        return None;
    }
    let process = if is_process { thread } else { process_of(thread)? };
    if process == thread {
        return Some((process, name.to_owned()));
    }
    let command = fs::read(format!("/proc/{process}/comm")).ok()?;
    let command = command.strip_suffix(b"\n").unwrap_or(&command);
    Some((process, String::from_utf8_lossy(command).into_owned()))
}

/// Returns the name that a process was started with. The process can have changed it.
fn first_argument(pid: u32) -> Option<String> {
    Some(read(pid, "cmdline")?.split('\0').next()?.to_owned())
}

/// Returns whether a process has begun to end: it runs no instruction of its program any more.
///
/// Its descriptors are closed a moment before its end can be seen.
pub(crate) fn is_ending(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut threads = threads.take(THREADS_MAX).flatten().peekable();
    threads.peek().is_some()
        && threads.all(|thread| {
            // A thread that has gone since is ending too.
            let stat = read(pid, &format!("task/{}/stat", thread.file_name().display()));
            let flags = stat.and_then(|stat| number(&stat, STAT_FLAGS));
            flags.is_none_or(|flags: u64| flags & PF_EXITING != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_found_and_not_ending() {
        let own = Identity::read(std::process::id(), 7, b"/another");
        assert!(own.start > 0 && !own.command.is_empty(), "{own:?}");
        assert_eq!(own.executable, std::env::current_exe().unwrap().to_string_lossy());
        let unseen = Identity::read(u32::MAX, 7, b"/bin/\xff");
        assert_eq!((&*unseen.command, &*unseen.executable), ("", "/bin/\u{fffd}"));
        assert!(!is_ending(std::process::id()));
        assert!(!is_ending(0), "a process that cannot be seen");
        for is_process in [true, false] {
            let (found, command) = command_since(own.pid, is_process, BootTime::now()).unwrap();
            assert_eq!((found, &command), (own.pid, &own.command));
        }
        let thread = std::thread::spawn(|| {
            command_since(nix::unistd::gettid().as_raw().cast_unsigned(), false, BootTime::now())
        });
        assert_eq!(thread.join().unwrap(), Some((own.pid, own.command)));
        assert_eq!(command_since(own.pid, true, BootTime(0)), None, "its number was another process's then");
    }

    #[test]
    fn killed_process_is_ending_until_its_parent_asks() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_ending(child.id()) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_ending(child.id()), "there is no such process any more");
    }
}
