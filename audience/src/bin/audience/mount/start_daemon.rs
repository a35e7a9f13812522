//! Running the system's programs to their end: relayfsd, which mounts, and fusermount3, which unmounts. The command and the
//! library in `preload/` both have this file.

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
/// The set-user-ID helper that unmounts for those who may not.
pub(crate) const FUSERMOUNT: &str = "fusermount3";
/// How long we give a daemon that was started at the same time as ours, and first, to become usable.
const OTHERS_START_MAX: Duration = Duration::from_millis(250);
/// Time between two looks at whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Most bytes of a complaint that are read.
const SAID_MAX: u64 = 64 << 10;

/// What a program came to.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None`: we have our children reaped by others, or by nobody, and cannot know.
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
            None => "it failed, and nobody waits for this program's children".to_owned(),
        }
    }
}

/// Runs a program to its end, and not for as long as what it has left running: that has inherited what we gave to it.
pub(crate) fn run(command: &mut Command) -> io::Result<Ended> {
    // What it says goes into a file: a pipe can be full, and has no end as long as somebody has it open.
    // The program that the library is in may have closed its standard streams.
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

/// Whether somebody else's mount becomes usable within a short time.
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
