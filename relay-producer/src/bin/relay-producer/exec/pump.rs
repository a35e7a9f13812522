//! Passing a stream of the program on, and keeping its lines.
//!
//! Each stream has a thread: a reader that takes one of them slowly must not hold up the other. Bytes are recorded
//! before they are passed on, since recording never waits.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay_producer::Stream;

use super::recorder::{Recorder, line_max};
use crate::pieces::Lines;
use crate::say;

/// Bytes of one read: as many as a pipe holds.
const READ_SIZE: usize = 64 << 10;

/// One stream of the program, between its pipe and this command's own stream.
#[derive(Debug)]
pub(crate) struct Pump {
    stream: Stream,
    /// `None` at the end.
    from: Option<PipeReader>,
    lines: Lines,
    /// Whether an error of the own stream was reported.
    complained: bool,
}

impl Pump {
    pub(crate) fn new(stream: Stream, from: PipeReader) -> Pump {
        Pump { stream, from: Some(from), lines: Lines::new(usize::MAX), complained: false }
    }

    /// Returns whether the stream may still bring bytes.
    pub(crate) fn is_open(&self) -> bool {
        self.from.is_some()
    }

    /// Passes on until the end of the stream.
    /// Once `stop` is readable, it passes on only what may have come by then: as much as the pipe holds. Another process
    /// may write for ever.
    pub(crate) fn run(&mut self, recorder: &Recorder<'_>, stop: Option<BorrowedFd<'_>>) {
        let mut buffer = vec![0; READ_SIZE];
        let mut left = None;
        while let Some(from) = &mut self.from {
            if left.is_none() && is_set(stop) {
                left = Some(pipe_size(from));
            }
            if left == Some(0) || is_readable(from, stop) == Some(false) {
                return;
            }
            let most = left.unwrap_or(READ_SIZE).min(READ_SIZE);
            match from.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => self.end(recorder),
                Ok(len) => {
                    left = left.map(|left| left - len);
                    self.pass(recorder, &buffer[..len]);
                }
            }
        }
    }

    fn pass(&mut self, recorder: &Recorder<'_>, bytes: &[u8]) {
        match recorder.channel_now() {
            Some(channel) => {
                self.lines.set_limit(line_max(channel));
                self.lines.take(bytes, |line| recorder.keep(channel, self.stream, line));
            }
            None => recorder.miss(bytes),
        }
        let passed = match self.stream {
            Stream::Stdout => write_all(&io::stdout(), bytes),
            Stream::Stderr => write_all(&io::stderr(), bytes),
        };
        match passed {
            Ok(()) => {}
            // The program learns it from its own pipe, as it would without this command.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.end(recorder),
            Err(error) if !self.complained => {
                self.complained = true;
                say(&format!("cannot pass on the program's {}: {error}; its lines are kept", self.stream));
            }
            Err(_) => {}
        }
    }

    /// Ends the stream: the program's further output there fails.
    pub(crate) fn end(&mut self, recorder: &Recorder<'_>) {
        if self.lines.is_inside()
            && let Some(channel) = recorder.channel_now()
        {
            self.lines.end(|line| recorder.keep(channel, self.stream, line));
        }
        self.from = None;
    }
}

/// Waits for bytes, or the end of the stream. Some(false): there are none, and `stop` is readable.
/// `None`: an error, which the next read reports.
fn is_readable(from: &PipeReader, stop: Option<BorrowedFd<'_>>) -> Option<bool> {
    let from = PollFd::new(from.as_fd(), PollFlags::POLLIN);
    let mut fds = match stop {
        Some(stop) => vec![from, PollFd::new(stop, PollFlags::POLLIN)],
        None => vec![from],
    };
    poll(&mut fds, PollTimeout::NONE).ok()?;
    Some(fds[0].any()? || stop.is_none())
}

fn is_set(stop: Option<BorrowedFd<'_>>) -> bool {
    let Some(stop) = stop else { return false };
    poll(&mut [PollFd::new(stop, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// Returns how much a pipe can hold, in bytes.
fn pipe_size(pipe: &PipeReader) -> usize {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).ok().and_then(|len| usize::try_from(len).ok()).unwrap_or(READ_SIZE)
}

/// Writes all bytes, also to a file that does not wait.
fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = &bytes[len..],
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) => {
                poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
