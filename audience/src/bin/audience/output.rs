//! Unbuffered standard output, and messages on standard error.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::channel_files::CpuFile;
use crate::error::Failure;
use crate::read_buffer::Block;

/// Checks whether standard output can be written, as far as that can be known in advance.
pub(crate) fn check() -> Result<(), Failure> {
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

/// Copies bytes from files to standard output.
pub(crate) struct Output {
    out: File,
    block: Block,
}

impl Output {
    /// Opens standard output, which [`check`] found usable.
    pub(crate) fn new() -> Result<Output, Failure> {
        Ok(Output { out: standard_output()?, block: Block::default() })
    }

    /// The descriptor, to poll for errors.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// Writes all of the bytes. A failure loses nothing, since the bytes are also elsewhere.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        write_all(&mut self.out, bytes).map_err(Failure::without_loss)
    }

    /// Reads once from the file and writes all of it. Returns the number of bytes; 0 if there was nothing to read.
    pub(crate) fn copy_some(&mut self, from: &mut CpuFile) -> Result<usize, Failure> {
        let got = self.block.read(from)?;
        write_all(&mut self.out, got)?;
        Ok(got.len())
    }
}

/// Writes all bytes, as `Write::write_all`, but also waits for a non-blocking descriptor.
///
/// The bytes are consumed already, so an early end would lose them.
fn write_all(out: &mut File, mut bytes: &[u8]) -> Result<(), Failure> {
    let failed = |source: io::Error, rest: &[u8]| Failure::Output { source, lost: rest.len() };
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(failed(ErrorKind::WriteZero.into(), bytes)),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
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

/// Prints one line on standard error. A failure is ignored: no other place is left to report it.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(io::stderr(), "audience: {message}");
}
