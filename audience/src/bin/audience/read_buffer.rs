//! The memory for one read(2), aligned so that FUSE does not divide the read.

use std::io::{ErrorKind, Read};

use crate::channel_files::CpuFile;
use crate::error::Failure;

/// Least bytes asked for in one read: the most that FUSE returns.
const READ_MIN: usize = 1 << 20;
/// Most bytes asked for in one read, for any block size of a file.
const READ_MAX: usize = 16 << 20;
/// A multiple of every machine's page size.
const ALIGNMENT: usize = 64 << 10;

/// Memory for one read, reused for the next.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// Has room for one read after its first aligned byte.
    bytes: Vec<u8>,
}

impl Block {
    /// Bytes that one read of a file asks for: the file's block size, within our limits.
    pub(crate) fn len(file: &CpuFile) -> usize {
        usize::try_from(file.block_size).unwrap_or(READ_MAX).clamp(READ_MIN, READ_MAX)
    }

    /// Reads once from the file. The result is empty if there was nothing to read.
    pub(crate) fn read(&mut self, from: &mut CpuFile) -> Result<&[u8], Failure> {
        let len = Block::len(from);
        if self.bytes.len() < len + ALIGNMENT {
            self.bytes.resize(len + ALIGNMENT, 0);
        }
        // A buffer that begins inside a page touches one page more, and FUSE would divide a read of 1 MiB.
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
