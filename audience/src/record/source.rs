//! Where a CPU's bytes come from when they are recorded.

use std::io::Error;
use std::os::fd::{AsFd, BorrowedFd};

use audience::{Mode, ReadError, Reader};

use crate::block::Block;
use crate::channel::{CpuFile, Place};
use crate::failure::Failure;

/// One buffer, from which blocks of bytes are taken, one after the other.
pub(crate) trait Source: Send {
    /// Most bytes that looking for the next block consumes, so that there must be a place for them before; asked each time.
    fn consumes(&mut self) -> usize;

    /// Hands the next block to `record`, unless there is nothing at the moment: false. If that fails, so does this.
    fn next(&mut self, record: &mut RecordBlock<'_>) -> Result<bool, Failure>;

    /// What polls as readable when there is something to record, and as broken when there will be no more.
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// Records a block.
pub(crate) type RecordBlock<'r> = dyn FnMut(Bytes<'_>) -> Result<(), Failure> + 'r;

/// A block.
#[derive(Debug)]
pub(crate) struct Bytes<'a> {
    /// As they are to be recorded. They may be in shared memory: only to be handed to the kernel.
    pub(crate) bytes: &'a [u8],
    /// Whether it ends with a whole message.
    pub(crate) whole: bool,
    /// Whether that was all there was: whoever comes back at once finds little.
    pub(crate) all: bool,
    /// Whether it is nowhere else any more.
    pub(crate) consumed: bool,
}

/// The source for a buffer's file: its mapping, if that is to be had, or the file.
pub(crate) fn of(place: &Place, file: CpuFile) -> Box<dyn Source> {
    let cpu = file.cpu;
    let reading = Reading { file, block: Block::default() };
    match Reader::open_cpu(&place.mount, place.channel.as_str(), cpu) {
        // In overwrite mode, what is looked at may be overwritten before it is written down; a read() checks that.
        Ok(reader) if reader.geometry().mode() == Mode::NoOverwrite => {
            Box::new(Mapped { reader, cpu, reading, from_mapping: false })
        }
        _ => Box::new(reading),
    }
}

/// A buffer's file.
#[derive(Debug)]
struct Reading {
    file: CpuFile,
    block: Block,
}

impl Source for Reading {
    fn consumes(&mut self) -> usize {
        Block::len(&self.file)
    }

    fn next(&mut self, record: &mut RecordBlock<'_>) -> Result<bool, Failure> {
        let asked = Block::len(&self.file);
        let bytes = self.block.read(&mut self.file)?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let all = bytes.len() < asked;
        record(Bytes { bytes, whole: all, all, consumed: true })?;
        Ok(true)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.file.as_fd()
    }
}

/// A buffer's mapping, from which finished sub-buffers go into the recording where they lie, and are given back when they
/// are there. What is not finished is read.
#[derive(Debug)]
struct Mapped {
    reader: Reader,
    cpu: usize,
    reading: Reading,
    /// Whether the next block is to be one of the mapping, for which no place was made: it stays where it is until it is
    /// recorded.
    from_mapping: bool,
}

impl Source for Mapped {
    fn consumes(&mut self) -> usize {
        self.from_mapping = self.reader.has_finished(self.cpu);
        if self.from_mapping { 0 } else { self.reading.consumes() }
    }

    fn next(&mut self, record: &mut RecordBlock<'_>) -> Result<bool, Failure> {
        if !self.from_mapping {
            let found = self.reading.next(record)?;
            if found {
                self.reader.go_back(self.cpu).map_err(|error| self.read_failure(error))?;
            }
            return Ok(found);
        }
        let Some(sub_buffer) = self.reader.next_finished(self.cpu) else { return Ok(false) };
        let all = sub_buffer.is_last;
        sub_buffer
            .lend(|bytes| record(Bytes { bytes, whole: true, all, consumed: false }))
            .unwrap_or(Ok(()))?;
        match self.reader.release(self.cpu) {
            // Somebody else has read the same: it is recorded, and they have it too.
            Ok(()) | Err(ReadError::Stale) => Ok(true),
            Err(error) => Err(self.read_failure(error)),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reading.as_fd()
    }
}

impl Mapped {
    fn read_failure(&self, error: ReadError) -> Failure {
        let error = match error {
            ReadError::Gone => Error::from_raw_os_error(nix::libc::ENODEV),
            error => Error::other(error),
        };
        Failure::read(&self.reading.file.path, error)
    }
}
