//! Unbuffered standard output.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::Failure;

/// Checks whether standard output can be written, as far as that can be known in advance.
pub fn check() -> Result<(), Failure> {
    relay_stdio::output()?;
    let out = standard_output()?;
    let is_device = out.metadata().is_ok_and(|found| found.file_type().is_char_device());
    // /dev/full refuses even an empty write. Pipes and files accept it always, and a socket would send an empty
    // message.
    if is_device {
        (&out).write(&[]).map(drop).map_err(|source| Failure::Output { source, lost: 0 })
    } else {
        Ok(())
    }
}

/// Standard output as a file: the standard library's handle buffers lines and copies.
fn standard_output() -> Result<File, Failure> {
    let out = io::stdout().as_fd().try_clone_to_owned();
    out.map(File::from).map_err(|source| Failure::Output { source, lost: 0 })
}

/// Standard output.
#[derive(Debug)]
pub struct Output(File);

impl Output {
    /// Opens standard output, which [`check`] found usable.
    pub fn new() -> Result<Output, Failure> {
        standard_output().map(Output)
    }

    /// Returns the descriptor, to poll for errors.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Writes all of the bytes. A failure loses nothing, since the bytes are also elsewhere.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.write_consumed(bytes).map_err(|failure| match failure {
            Failure::Output { source, .. } => Failure::Output { source, lost: 0 },
            other => other,
        })
    }

    /// Writes all bytes, as `Write::write_all`, but also waits for a non-blocking descriptor.
    ///
    /// The bytes are consumed already, so an early end would lose them. A failure says how many were not written.
    pub fn write_consumed(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        let failed = |source: io::Error, rest: &[u8]| Failure::Output { source, lost: rest.len() };
        while !bytes.is_empty() {
            match self.0.write(bytes) {
                Ok(0) => return Err(failed(ErrorKind::WriteZero.into(), bytes)),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(failed(errno.into(), bytes)),
                    }
                }
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(Failure::OutputClosed),
                Err(error) => return Err(failed(error, bytes)),
            }
        }
        Ok(())
    }
}
