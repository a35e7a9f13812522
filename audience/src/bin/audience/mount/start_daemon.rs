//! Runs relayfsd, which mounts, and fusermount3, which unmounts, to their ends.
//!
//! The command and the library in `preload/` both contain this file.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use relay::system::descriptor::away_from_stdio;

/// The daemon that mounts.
pub(crate) const DAEMON: &str = "relayfsd";
/// The set-user-ID helper that unmounts for users that may not.
pub(crate) const FUSERMOUNT: &str = "fusermount3";
/// Longest wait for a daemon of another process.
///
/// That daemon was started at the same time as ours, and came first.
const OTHERS_START_MAX: Duration = Duration::from_millis(250);
/// Time between two checks of that daemon.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Most bytes that are read of a program's standard error.
const SAID_MAX: u64 = 64 << 10;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if unknown: this process ignores SIGCHLD, or another part of it reaped the child.
    pub(crate) status: Option<ExitStatus>,
    /// The lines of its standard error, without relayfsd's name.
    pub(crate) said: Vec<String>,
}

impl Ended {
    /// Why it failed, in one line.
    pub(crate) fn reason(&self) -> String {
        match self.status {
            _ if !self.said.is_empty() => self.said.join("; "),
            Some(status) => status.to_string(),
            None => "its exit status is unknown: this program ignores or reaps its children".to_owned(),
        }
    }
}

/// Runs a program to its end. Does not wait for processes that the program leaves running.
pub(crate) fn run(command: &mut Command) -> io::Result<Ended> {
    // Its messages go into a file. A pipe may fill up, and has no end while a process that was left running holds it
    // open. The program that contains this library may have closed its standard streams.
    let (mut stderr, mut child) = away_from_stdio(|| {
        let stderr = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC)?);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
        io::Result::Ok((stderr, command.spawn()?))
    })?;
    let status = match child.wait() {
        Err(error) if error.raw_os_error() == Some(Errno::ECHILD as i32) => None,
        status => Some(status?),
    };
    let mut text = Vec::new();
    stderr.rewind()?;
    stderr.take(SAID_MAX).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = lines.map(|line| line.strip_prefix("relayfsd: ").unwrap_or(line).to_owned()).collect();
    Ok(Ended { status, said })
}

/// Whether another process's mount becomes usable within a short time.
pub(crate) fn appears(mut is_usable: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + OTHERS_START_MAX;
    while !is_usable() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK_AGAIN);
    }
    true
}
