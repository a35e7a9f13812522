//! Standard output, unbuffered, and what we say on standard error.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::channel::CpuFile;
use crate::failure::Failure;

/// Least bytes asked for in one read. It is the most that FUSE gives.
const READ_MIN: usize = 1 << 20;
/// Most bytes asked for in one read, whatever a file calls its block size.
const READ_MAX: usize = 16 << 20;
/// Of which a page's size is a divisor, everywhere.
const ALIGNMENT: usize = 64 << 10;

/// Copies bytes from files to standard output.
pub(crate) struct Output {
    out: File,
    /// Has room for one read after its first aligned byte.
    buffer: Vec<u8>,
}

impl Output {
    /// Standard output as a file: the standard library's own handle looks for line ends, and copies.
    pub(crate) fn new() -> Result<Output, Failure> {
        let out = io::stdout().as_fd().try_clone_to_owned().map_err(Failure::Output)?;
        Ok(Output { out: out.into(), buffer: Vec::new() })
    }

    /// The descriptor, to poll for errors.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// One read from the file, of `block_size` bytes or what we find better, and all of it onto standard
    /// output. Returns how many bytes; 0 if there was nothing to read.
    pub(crate) fn copy_some(&mut self, from: &mut CpuFile, block_size: u64) -> Result<usize, Failure> {
        let len = usize::try_from(block_size).unwrap_or(READ_MAX).clamp(READ_MIN, READ_MAX);
        if self.buffer.len() < len + ALIGNMENT {
            self.buffer.resize(len + ALIGNMENT, 0);
        }
        // A buffer that begins within a page touches one page more, and FUSE would cut a read of 1 MiB in
        // two.
        let start = self.buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let buffer = &mut self.buffer[start..start + len];
        let got = loop {
            match from.file.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::read(&from.path, error)),
                Ok(got) => break got,
            }
        };
        write_all(&mut self.out, &buffer[..got])?;
        Ok(got)
    }
}

/// As `Write::write_all`, and patient with a descriptor that somebody made non-blocking: what was read is
/// gone from the relay, so giving up would lose it.
fn write_all(out: &mut File, mut bytes: &[u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(Failure::Output(ErrorKind::WriteZero.into())),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(Failure::Output(errno.into())),
                }
            }
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(Failure::OutputClosed),
            Err(error) => return Err(Failure::Output(error)),
        }
    }
    Ok(())
}

/// One line on standard error. If that fails there is nobody left to tell.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(io::stderr(), "audience: {message}");
}
