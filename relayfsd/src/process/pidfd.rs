//! Descriptors of processes: how a peer's process ended.
//!
//! With `unsafe`: one ioctl(2) that no crate has.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use relay::system::proc_stat::{number, read};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Number of the ioctl(2) PIDFD_GET_INFO, and of its group.
const GET_INFO: u8 = 11;
const GROUP: u8 = 0xff;
/// Bit of [`Info::mask`]: how the process ended. Linux 6.15 and later know it.
const INFO_EXIT: u64 = 1 << 3;
/// Index of the status among the words behind the command's name in `/proc/PID/stat`.
const STAT_STATUS: usize = 49;

/// The kernel's `struct pidfd_info`, in its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    status: i32,
}

mod call {
    nix::ioctl_readwrite!(get_info, super::GROUP, super::GET_INFO, super::Info);
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It exited with this status.
    Exit(u32),
    /// This signal ended it.
    Signal(u32),
    /// The kernel does not tell.
    Unknown,
}

impl End {
    /// Reads a status as wait(2) gives it.
    fn of_status(status: i32) -> End {
        match status & 0x7f {
            0 => End::Exit((status >> 8 & 0xff).cast_unsigned()),
            signal => End::Signal(signal.cast_unsigned()),
        }
    }
}

/// Returns whether this kernel tells how a process ended, once the parent has asked. Tries it with a child.
pub(crate) fn kernel_tells() -> io::Result<bool> {
    let mut child = Command::new("/proc/self/exe");
    child.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.spawn()?;
    let followed = Followed::child(&child);
    child.wait()?;
    Ok(followed?.info().is_ok_and(|info| info.mask & INFO_EXIT != 0))
}

/// A process that another one may follow to its end.
pub(crate) struct Followed {
    pidfd: OwnedFd,
    pid: u32,
}

impl Followed {
    /// Follows the process at the other end of a socket: the one that connected.
    ///
    /// `None`: that process is gone, or the kernel gives no descriptor of it.
    pub(crate) fn peer(socket: &impl AsFd) -> Option<Followed> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials).ok()?;
        let pid = Pid::from_raw(credentials.pid())?;
        // Before Linux 6.5 the number has to do. The caller compares what it reads of the process with the descriptor.
        let pidfd = getsockopt(socket, sockopt::PeerPidfd).ok();
        let pidfd = pidfd.or_else(|| pidfd_open(pid, PidfdFlags::empty()).ok())?;
        Some(Followed { pidfd, pid: credentials.pid().cast_unsigned() })
    }

    /// Follows a child that nothing has waited for.
    fn child(child: &Child) -> io::Result<Followed> {
        let pid = child.id();
        let raw = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Followed { pidfd: pidfd_open(raw, PidfdFlags::empty())?, pid })
    }

    /// Returns the process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns whether the process runs, so that its number means this process.
    pub(crate) fn runs(&self) -> bool {
        self.events().is_some_and(|events| events.is_empty())
    }

    /// Returns how the process ended, or `None` if it runs or the kernel will say more.
    ///
    /// The kernel tells once the process's parent has asked. Until then only `/proc` has the status, and shows it to
    /// privileged readers.
    pub(crate) fn end(&self) -> Option<End> {
        let events = self.events()?;
        if events.is_empty() {
            return None;
        }
        let mut asked = self.info();
        if asked == Err(Errno::ESRCH) {
            // The parent asked while the kernel collected the information. Now the kernel has the end.
            asked = self.info();
        }
        match asked {
            Ok(info) if info.mask & INFO_EXIT != 0 => Some(End::of_status(info.status)),
            // The process is gone.
            _ if events.contains(PollFlags::POLLHUP) => Some(End::Unknown),
            Ok(_) => self.status().map(End::of_status),
            // This kernel never tells.
            Err(_) => Some(self.status().map_or(End::Unknown, End::of_status)),
        }
    }

    /// Asks the kernel how the process ended.
    fn info(&self) -> nix::Result<Info> {
        let mut info = Info { mask: INFO_EXIT, ..Info::default() };
        // SAFETY: the descriptor is open, and the kernel reads and writes no more than the structure, whose size is a part
        // of the request's number.
        unsafe { call::get_info(self.pidfd.as_raw_fd(), &raw mut info) }.map(|_| info)
    }

    /// Returns the status in `/proc`, if the daemon may see it.
    fn status(&self) -> Option<i32> {
        let status = number(&read(self.pid, "stat")?, STAT_STATUS)?;
        // The kernel shows 0 to a process that may not look. It refuses such a process the link to the executable, which
        // an ended process does not have.
        let link = fs::read_link(format!("/proc/{}/exe", self.pid));
        let may_look = link.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        // Otherwise the number may be another process's by now.
        let is_there = !self.events()?.contains(PollFlags::POLLHUP);
        (is_there && may_look).then_some(status)
    }

    fn events(&self) -> Option<PollFlags> {
        let mut polled = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).ok()?;
        polled[0].revents()
    }
}

impl AsFd for Followed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn ended(followed: &Followed) -> End {
        let mut polled = [PollFd::new(followed.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::from(10_000u16)).unwrap(), 1);
        followed.end().unwrap()
    }

    #[test]
    fn status_is_known_before_and_after_the_parent_has_asked() {
        for (script, end) in [("read x; exit 7", End::Exit(7)), ("read x; kill -11 $$", End::Signal(11))] {
            let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
            let followed = Followed::child(&child).unwrap();
            assert!(followed.runs() && followed.end().is_none());
            drop(child.stdin.take());
            assert_eq!(ended(&followed), end, "the parent has not asked");
            let status = child.wait().unwrap();
            assert_eq!(End::of_status(status.into_raw()), end);
            assert_eq!(ended(&followed), end, "the parent has asked");
        }
    }
}
