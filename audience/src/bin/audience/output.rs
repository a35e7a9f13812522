//! Standard output for the bytes of files, and messages on standard error.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use audience_common::output;
use relay::cli::one_line::one_line;

use crate::channel_files::CpuFile;
use crate::error::Failure;
use crate::read_buffer::Block;

/// Checks whether standard output can be written, as far as that can be known in advance.
pub(crate) fn check() -> Result<(), Failure> {
    Ok(output::check()?)
}

/// Copies bytes from files to standard output.
pub(crate) struct Output {
    out: output::Output,
    block: Block,
}

impl Output {
    /// Opens standard output, which [`check`] found usable.
    pub(crate) fn new() -> Result<Output, Failure> {
        Ok(Output { out: output::Output::new()?, block: Block::default() })
    }

    /// The descriptor, to poll for errors.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// Standard output for what comes from elsewhere.
    pub(crate) fn plain(&mut self) -> &mut output::Output {
        &mut self.out
    }

    /// Writes all of the bytes. A failure loses nothing, since the bytes are also elsewhere.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.out.write(bytes)?)
    }

    /// Reads once from the file and writes all of it. Returns the number of bytes; 0 if there was nothing to read.
    pub(crate) fn copy_some(&mut self, from: &mut CpuFile) -> Result<usize, Failure> {
        let got = self.block.read(from)?;
        self.out.write_consumed(got)?;
        Ok(got.len())
    }
}

/// Prints one line on standard error. A failure is ignored: no other place is left to report it.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(io::stderr(), "audience: {}", one_line(&message.to_string()));
}
