//! Where a CPU's bytes come from when they are recorded.

use std::os::fd::{AsFd, BorrowedFd};

use crate::block::Block;
use crate::channel::CpuFile;
use crate::failure::Failure;

/// One buffer, from which blocks of bytes are taken, one after the other.
pub(crate) trait Source: Send {
    /// Most bytes that the next block has, if looking at it consumes it, so that there must be a place for it before.
    /// 0 where the bytes stay in the buffer until they are said to be written.
    fn consumes(&self) -> usize;

    /// The next block, or `None` if there is nothing at the moment.
    fn next(&mut self) -> Result<Option<Bytes<'_>>, Failure>;

    /// The last block is recorded, and not needed any more.
    fn written(&mut self) -> Result<(), Failure>;

    /// What polls as readable when there is something to record, and as broken when there will be no more.
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// A block.
#[derive(Debug)]
pub(crate) struct Bytes<'a> {
    /// As they are to be recorded.
    pub(crate) bytes: &'a [u8],
    /// Whether that was all there was: then it ends with a whole message, and whoever comes back at once finds little.
    pub(crate) all: bool,
}

/// A buffer's file.
#[derive(Debug)]
pub(crate) struct Reading {
    file: CpuFile,
    block: Block,
}

impl Reading {
    pub(crate) fn new(file: CpuFile) -> Reading {
        Reading { file, block: Block::default() }
    }
}

impl Source for Reading {
    fn consumes(&self) -> usize {
        Block::len(&self.file)
    }

    fn next(&mut self) -> Result<Option<Bytes<'_>>, Failure> {
        let asked = Block::len(&self.file);
        let bytes = self.block.read(&mut self.file)?;
        Ok((!bytes.is_empty()).then_some(Bytes { bytes, all: bytes.len() < asked }))
    }

    fn written(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.file.as_fd()
    }
}
