//! Where a CPU's bytes come from when they are recorded: whole finished sub-buffers from the buffer's mapping, if that is to
//! be had, go into the recording where they lie, and are given back when they are there. What is not finished is read.
//!
//! A daemon that dies takes with it whether it has noted what it had replied last, or was given back. So we count what
//! is recorded, in bytes of the stream, and when another daemon goes on with the same buffers, have it begin behind that.

use std::io::{Error, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};

use audience::{BuffersId, Mode, ReadError, Reader};

use relay::memory::lent::Lent;

use crate::channel_files::{CpuFile, Place};
use crate::error::Failure;
use crate::read_buffer::Block;

/// Records a block.
pub(crate) type RecordBlock<'r> = dyn FnMut(Bytes<'_>) -> Result<(), Failure> + 'r;

/// A block.
#[derive(Debug)]
pub(crate) struct Bytes<'a> {
    /// As they are recorded. They may be in shared memory.
    pub(crate) bytes: Lent<'a>,
    /// Whether it ends with a whole message.
    pub(crate) whole: bool,
    /// Whether that was all there was: whoever comes back at once finds little.
    pub(crate) all: bool,
    /// Whether it is nowhere else any more.
    pub(crate) consumed: bool,
}

/// One buffer, from which blocks of bytes are taken, one after the other.
#[derive(Debug)]
pub(crate) struct Source {
    file: CpuFile,
    block: Block,
    /// Its mapping.
    reader: Option<Reader>,
    /// Whether nothing can be given back by means of the mapping any more: the daemon is ending, and may yet serve the file.
    is_cut_off: bool,
    /// How far it is recorded: at least so many bytes of the stream were recorded, or were others' before.
    done: u64,
    /// Whether the file has to be read before anything else, because the daemon may be behind that.
    is_behind: bool,
    /// Whether the next block is to be one of the mapping, for which no place was made: it stays where it is until it is
    /// recorded.
    from_mapping: bool,
}

/// How far a buffer was recorded when its daemon went.
#[derive(Debug)]
pub(crate) struct Left {
    id: BuffersId,
    done: u64,
}

impl Source {
    /// The source for a buffer's file. If it is the one that was `left`, what is recorded of it is not recorded again. `None` if
    /// that cannot be found out, since the daemon of the file is about to go.
    pub(crate) fn open(place: &Place, mut file: CpuFile, left: Option<&Left>) -> Option<Source> {
        let reader = Reader::open_cpu(&place.mount, place.channel.as_str(), file.cpu).ok();
        // The file may be of a mount that is gone, and the mapping of the next one.
        let reader = reader.filter(|_| !file.identity().was_replaced());
        if reader.is_none() && left.is_some() {
            return None;
        }
        let mut done = reader.as_ref().and_then(|reader| reader.consumed_bytes(file.cpu)).unwrap_or(0);
        let left = left.filter(|left| reader.as_ref().is_some_and(|reader| *reader.buffers_id() == left.id));
        let mut is_behind = false;
        if let Some(left) = left.filter(|left| left.done > done) {
            // Reading from there on passes over what is before. If that cannot be, some of it is recorded twice.
            is_behind = file.file.seek(SeekFrom::Start(left.done)).is_ok();
            done = left.done;
        }
        let is_cut_off = false;
        Some(Source {
            file,
            block: Block::default(),
            reader,
            is_cut_off,
            done,
            is_behind,
            from_mapping: false,
        })
    }

    /// What the next daemon's source has to know.
    pub(crate) fn leave(self) -> Option<Left> {
        self.reader.map(|reader| Left { id: reader.buffers_id().clone(), done: self.done })
    }

    /// Most bytes that looking for the next block consumes, so that there must be a place for them before; asked each time.
    pub(crate) fn consumes(&mut self) -> usize {
        let cpu = self.file.cpu;
        self.from_mapping = !self.is_behind && self.mapping().is_some_and(|reader| reader.has_finished(cpu));
        if self.from_mapping { 0 } else { Block::len(&self.file) }
    }

    /// Hands the next block to `record`, unless there is nothing at the moment: false. If that fails, so does this.
    pub(crate) fn next(&mut self, record: &mut RecordBlock<'_>) -> Result<bool, Failure> {
        if self.from_mapping { self.next_mapped(record) } else { self.next_read(record) }
    }

    /// What polls as readable when there is something to record, and as broken when there will be no more.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.file.as_fd()
    }

    fn next_read(&mut self, record: &mut RecordBlock<'_>) -> Result<bool, Failure> {
        let asked = Block::len(&self.file);
        let bytes = self.block.read(&mut self.file)?;
        let was_behind = std::mem::take(&mut self.is_behind);
        let (len, all) = (bytes.len() as u64, bytes.len() < asked);
        let found = len > 0;
        if found {
            record(Bytes { bytes: bytes.into(), whole: all, all, consumed: true })?;
            // They began there, or further on.
            self.done = self.done.saturating_add(len);
        } else if !was_behind {
            return Ok(false);
        }
        let cpu = self.file.cpu;
        match self.mapping().map(|reader| reader.go_back(cpu)) {
            Some(Err(ReadError::Gone)) => self.is_cut_off = true,
            Some(Err(error)) => return Err(self.read_failure(error)),
            None | Some(Ok(())) => {}
        }
        if let Some(consumed) = self.reader.as_ref().and_then(|reader| reader.consumed_bytes(cpu)) {
            self.done = self.done.max(consumed);
        }
        Ok(found)
    }

    fn next_mapped(&mut self, record: &mut RecordBlock<'_>) -> Result<bool, Failure> {
        let cpu = self.file.cpu;
        let Some(reader) = &mut self.reader else { return Ok(false) };
        let Some(sub_buffer) = reader.next_finished(cpu) else { return Ok(false) };
        let (all, end) = (sub_buffer.is_last, sub_buffer.begin.saturating_add(sub_buffer.len() as u64));
        if let Some(bytes) = sub_buffer.lend() {
            record(Bytes { bytes, whole: true, all, consumed: false })?;
        }
        self.done = self.done.max(end);
        match reader.release(cpu) {
            // Somebody else has read the same: it is recorded, and they have it too.
            Ok(()) | Err(ReadError::Stale) => Ok(true),
            // The file, if it is still served, passes over it, and has the rest.
            Err(ReadError::Gone) => {
                self.is_cut_off = true;
                self.is_behind = self.file.file.seek(SeekFrom::Start(self.done)).is_ok();
                Ok(true)
            }
            Err(error) => Err(self.read_failure(error)),
        }
    }

    /// The mapping, if sub-buffers may be taken from it: in overwrite mode, what is looked at may be overwritten before it is
    /// written down; a read() checks that.
    fn mapping(&mut self) -> Option<&mut Reader> {
        let reader = self.reader.as_mut().filter(|_| !self.is_cut_off);
        reader.filter(|reader| reader.geometry().mode() == Mode::NoOverwrite)
    }

    fn read_failure(&self, error: ReadError) -> Failure {
        Failure::read(&self.file.path, Error::other(error))
    }
}
