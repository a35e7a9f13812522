//! The source of a CPU's bytes for a recording: the buffer's mapping, or else its file.
//!
//! Finished sub-buffers are recorded directly from the mapping, if there is one, and are given back once they are in
//! the recording. Unfinished data is read from the file.
//!
//! When a daemon dies, it may not have noted its last reply, or the last sub-buffers that were given back.
//! So the source counts the stream bytes that are recorded. If another daemon continues with the same buffers, the
//! source makes it begin behind them. that.

use std::io::{Error, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};

use audience::{BuffersId, Mode, ReadError, Reader};

use relay::memory::lent::Lent;

use crate::channel_files::{CpuFile, Place};
use crate::error::Failure;
use crate::read_buffer::Block;

/// The function that records a block.
pub(crate) type RecordBlock<'r> = dyn FnMut(Bytes<'_>) -> Result<(), Failure> + 'r;

/// A block of bytes to record.
#[derive(Debug)]
pub(crate) struct Bytes<'a> {
    /// The bytes, which may be in shared memory.
    pub(crate) bytes: Lent<'a>,
    /// Whether the block ends with a whole message.
    pub(crate) whole: bool,
    /// Whether no more data is left for now, so that an immediate next look would find little.
    pub(crate) all: bool,
    /// Whether the block is consumed, so that no other copy of it exists.
    pub(crate) consumed: bool,
}

/// A buffer from which blocks of bytes are taken, one after the other.
#[derive(Debug)]
pub(crate) struct Source {
    file: CpuFile,
    block: Block,
    /// The reader of the buffer's mapping.
    reader: Option<Reader>,
    /// Whether sub-buffers of the mapping can no longer be given back. The daemon is ending, and may still serve the
    /// file. file.
    is_cut_off: bool,
    /// Stream position below which every byte was recorded, or consumed by other readers.
    done: u64,
    /// Whether the file has to be read next.
    ///
    /// The daemon may not yet have passed what is recorded.
    is_behind: bool,
    /// Whether the next block comes from the mapping. It stays in the buffer until it is recorded, so no room was
    /// reserved.
    from_mapping: bool,
}

/// How far a buffer was recorded when its daemon ended.
#[derive(Debug)]
pub(crate) struct Left {
    id: BuffersId,
    done: u64,
}

impl Source {
    /// Opens the source for a buffer's file. Skips what is recorded already if the buffer is the one in `left`.
    ///
    /// `None` if the buffer cannot be identified, since the daemon of the file is about to end.
    pub(crate) fn open(place: &Place, mut file: CpuFile, left: Option<&Left>) -> Option<Source> {
        let reader = Reader::open_cpu(&place.mount, place.channel.as_str(), file.cpu).ok();
        // The file may belong to a mount that is gone, and the mapping to the next mount.
        let reader = reader.filter(|_| !file.identity().was_replaced());
        if reader.is_none() && left.is_some() {
            return None;
        }
        let mut done = reader.as_ref().and_then(|reader| reader.consumed_bytes(file.cpu)).unwrap_or(0);
        let left = left.filter(|left| reader.as_ref().is_some_and(|reader| *reader.buffers_id() == left.id));
        let mut is_behind = false;
        if let Some(left) = left.filter(|left| left.done > done) {
            // A read from that position skips what is before it. If seeking fails, some bytes are recorded twice.
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

    /// What the source for the next daemon needs to know.
    pub(crate) fn leave(self) -> Option<Left> {
        self.reader.map(|reader| Left { id: reader.buffers_id().clone(), done: self.done })
    }

    /// Most bytes that the next call of [`Source::next`] consumes. Room for them must exist before that call.
    /// time.
    pub(crate) fn consumes(&mut self) -> usize {
        let cpu = self.file.cpu;
        self.from_mapping = !self.is_behind && self.mapping().is_some_and(|reader| reader.has_finished(cpu));
        if self.from_mapping { 0 } else { Block::len(&self.file) }
    }

    /// Passes the next block to `record`; returns false if there is no data now. Fails if `record` fails.
    pub(crate) fn next(&mut self, record: &mut RecordBlock<'_>) -> Result<bool, Failure> {
        if self.from_mapping { self.next_mapped(record) } else { self.next_read(record) }
    }

    /// A descriptor that polls as readable when there is data, and as broken when no more will come.
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
            // The bytes began at `done`, or behind it.
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
            // Another reader has read the sub-buffer too: both have it.
            Ok(()) | Err(ReadError::Stale) => Ok(true),
            // The file, if it is still served, skips what is recorded and returns the rest.
            Err(ReadError::Gone) => {
                self.is_cut_off = true;
                self.is_behind = self.file.file.seek(SeekFrom::Start(self.done)).is_ok();
                Ok(true)
            }
            Err(error) => Err(self.read_failure(error)),
        }
    }

    /// The mapping, if sub-buffers may be taken from it.
    ///
    /// In overwrite mode a sub-buffer may be overwritten while it is being recorded; a read() detects that.
    fn mapping(&mut self) -> Option<&mut Reader> {
        let reader = self.reader.as_mut().filter(|_| !self.is_cut_off);
        reader.filter(|reader| reader.geometry().mode() == Mode::NoOverwrite)
    }

    fn read_failure(&self, error: ReadError) -> Failure {
        Failure::read(&self.file.path, Error::other(error))
    }
}
