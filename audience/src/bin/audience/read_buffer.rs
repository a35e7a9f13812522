//! What one read(2) brings.

use std::io::{ErrorKind, Read};

use crate::channel_files::CpuFile;
use crate::error::Failure;

/// Least bytes asked for in one read. It is the most that FUSE gives.
const READ_MIN: usize = 1 << 20;
/// Most bytes asked for in one read, whatever a file calls its block size.
const READ_MAX: usize = 16 << 20;
/// Of which a page's size is a divisor, everywhere.
const ALIGNMENT: usize = 64 << 10;

/// Memory for one read, used again and again.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// Has room for one read after its first aligned byte.
    bytes: Vec<u8>,
}

impl Block {
    /// How many bytes one read of a file asks for: what the file would like, or what we find better.
    pub(crate) fn len(file: &CpuFile) -> usize {
        usize::try_from(file.block_size).unwrap_or(READ_MAX).clamp(READ_MIN, READ_MAX)
    }

    /// One read from the file; empty if there was nothing to read.
    pub(crate) fn read(&mut self, from: &mut CpuFile) -> Result<&[u8], Failure> {
        let len = Block::len(from);
        if self.bytes.len() < len + ALIGNMENT {
            self.bytes.resize(len + ALIGNMENT, 0);
        }
        // A buffer that begins within a page touches one page more, and FUSE would cut a read of 1 MiB in
        // two.
        let start = self.bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        loop {
            match from.file.read(&mut self.bytes[start..start + len]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::read(&from.path, error)),
                Ok(got) => return Ok(&self.bytes[start..start + got]),
            }
        }
    }
}
