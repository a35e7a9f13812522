//! Goes into the background, and reports the result of the start to the starting process.
//!
//! The process that the shell started waits for its child, the daemon. Over a pipe, the daemon reports that the mount
//! is usable, or why it is not. The starting process then ends with the matching exit status.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::STDERR_FILENO;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, close, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};
use relay::cli::one_line::one_line;

/// Longest time that the start may take.
const START_MAX: Duration = Duration::from_secs(30);
/// The report that the mount is usable. Any other report is an error message.
const READY: &[u8] = b"\0";

/// The way to report to the starting process.
pub(crate) enum Starter {
    /// In the foreground: errors go to standard error.
    Foreground,
    /// In the background, and the starting process waits for the report.
    Waiting(PipeWriter),
    /// In the background, after the report.
    Gone,
}

/// The process that returns from [`into_background`].
pub(crate) enum Side {
    /// The starting process, with the daemon's report: `Ok`, or why the start failed.
    Parent(Result<(), String>),
    /// The new daemon.
    Daemon(Starter),
}

/// Forks. In the parent, returns when the child has reported, or after [`START_MAX`].
pub(crate) fn into_background() -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    match fork_alone()? {
        ForkResult::Parent { child } => {
            drop(writer);
            Ok(Side::Parent(wait_for(child, reader)))
        }
        ForkResult::Child => {
            drop(reader);
            setsid()?;
            close_all_but(&writer)?;
            Ok(Side::Daemon(Starter::Waiting(writer)))
        }
    }
}

fn fork_alone() -> io::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other("there are threads already"));
    }
    // SAFETY: fork's demand is that a child of several threads calls nothing but async-signal-safe functions.
    // The kernel has just counted one thread, and that one is here and starts no other in between.
    #[allow(unsafe_code)]
    let side = unsafe { fork() };
    Ok(side?)
}

/// Closes all inherited descriptors except standard input, output and error.
///
/// With the starting process's pipes open, the daemon would keep their readers waiting. With a file of an old mount
/// open, it would keep the old daemon alive.
fn close_all_but(pipe: &PipeWriter) -> io::Result<()> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let open: Vec<RawFd> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > STDERR_FILENO && *fd != pipe.as_raw_fd()) {
        // None is needed: this process has opened only the pipe. The descriptor of the listing is closed already.
        let _ = close(fd);
    }
    Ok(())
}

/// Waits for the child's report.
fn wait_for(child: Pid, mut reader: PipeReader) -> Result<(), String> {
    let mut report = Vec::new();
    match read_to_end(&mut reader, &mut report) {
        Ok(()) if report == READY => Ok(()),
        Ok(()) if report.is_empty() => Err(died(child)),
        Ok(()) => Err(String::from_utf8_lossy(&report).into_owned()),
        Err(error) => {
            let _ = kill(child, Signal::SIGTERM);
            Err(format!("{error}; gave up"))
        }
    }
}

/// Reads until the daemon closes its end, at most [`START_MAX`].
fn read_to_end(reader: &mut PipeReader, report: &mut Vec<u8>) -> io::Result<()> {
    let deadline = Instant::now() + START_MAX;
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time_out = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, time_out) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Err(io::Error::other(format!("not mounted after {} s", START_MAX.as_secs()))),
            Ok(_) => {}
        }
        match reader.read(&mut chunk)? {
            0 => return Ok(()),
            len => report.extend_from_slice(&chunk[..len]),
        }
    }
}

fn died(child: Pid) -> String {
    match waitpid(child, None) {
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            format!("the daemon was killed by {signal} before it had mounted")
        }
        _ => "the daemon ended before it had mounted".into(),
    }
}

impl Starter {
    /// Detaches from the terminal, then reports that the mount is usable.
    ///
    /// An error says what failed.
    pub(crate) fn ready(&mut self) -> io::Result<()> {
        if let Starter::Waiting(pipe) = self {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null");
            let null = null.map_err(|error| in_words("cannot open /dev/null", &error))?;
            detach_from(&null).map_err(|error| in_words("cannot let go of the terminal", &error))?;
            pipe.write_all(READY).map_err(|error| in_words("the starting process has gone", &error))?;
            *self = Starter::Gone;
        }
        Ok(())
    }

    /// Reports why the daemon ends: to the starting process, to the terminal, or into the log.
    pub(crate) fn failed(&mut self, message: &str) {
        match self {
            Starter::Foreground => complain(message),
            Starter::Waiting(pipe) => {
                let _ = pipe.write_all(message.as_bytes());
            }
            Starter::Gone => log::error!("{message}"),
        }
    }
}

fn in_words(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}

fn detach_from(null: &File) -> io::Result<()> {
    std::env::set_current_dir("/")?;
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    dup2_stderr(null)?;
    Ok(())
}

/// Prints a line on standard error.
///
/// Unlike `eprintln!`, it does not panic when no process reads it.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "relayfsd: {}", one_line(message));
}
