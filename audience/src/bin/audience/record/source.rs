//! The source of a CPU's bytes for a recording: the buffer's mapping, or else its file.
//!
//! Finished sub-buffers are recorded directly from the mapping, if there is one, and are given back once they are in
//! the recording. Unfinished data is read from the file.
//!
//! When a daemon dies, it may not have noted its last reply, or the last sub-buffers that were given back.
//! So the source counts the stream bytes that are recorded. If another daemon continues with the same buffers, the
//! source makes it begin behind them.
//!
//! A recording that another recorder continues reads only from the mapping, also in overwrite mode. What a killed
//! recorder has written and not given back comes again there, and its position shows that.

use std::io::{Error, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};

use audience::{BuffersId, Mode, ReadError, Reader, SubBuffer};

use relay::Geometry;
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
    /// Stream position of the first byte, if it is known.
    pub(crate) at: Option<u64>,
    /// The sub-buffer of the mapping that the bytes lie in.
    pub(crate) within: Option<SubBuffer<'a>>,
}

impl Bytes<'_> {
    /// Returns whether what was taken of the bytes before is right: no writer has begun to overwrite them.
    pub(crate) fn is_whole(&self) -> bool {
        self.within.is_none_or(|sub_buffer| sub_buffer.is_whole())
    }
}

/// A buffer from which blocks of bytes are taken, one after the other.
#[derive(Debug)]
pub(crate) struct Source {
    file: CpuFile,
    block: Block,
    /// The reader of the buffer's mapping.
    reader: Option<Reader>,
    /// Whether sub-buffers of the mapping can no longer be given back. The daemon is ending, and may still serve the
    /// file.
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
    /// Whether all comes from the mapping, if there is one.
    only_mapping: bool,
    /// Whether the next sub-buffers may be recorded already.
    may_come_again: bool,
    /// A copy of a sub-buffer that a writer may overwrite.
    copy: Vec<u8>,
}

/// What is known about the bytes that were recorded before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Before<'a> {
    /// How far the last daemon's buffer was recorded.
    Left(Option<&'a Left>),
    /// The position behind the last recorded byte of this stream. The next recorder will want to know it, too.
    Kept(Option<u64>),
}

/// How far a buffer was recorded when its daemon ended.
#[derive(Debug)]
pub(crate) struct Left {
    id: BuffersId,
    done: u64,
}

fn capacity(geometry: &Geometry) -> u64 {
    (geometry.subbuf_size() as u64).saturating_mul(geometry.n_subbufs() as u64)
}

impl Source {
    /// Opens the source for a buffer's file. Skips what is recorded already.
    ///
    /// `None` if the buffer cannot be identified, since the daemon of the file is about to end, and `is_patient`.
    pub(crate) fn open(
        place: &Place,
        mut file: CpuFile,
        before: Before<'_>,
        is_patient: bool,
    ) -> Option<Source> {
        let reader = Reader::open_cpu(&place.mount, place.channel.as_str(), file.cpu).ok();
        // The file may belong to a mount that is gone, and the mapping to the next mount.
        let reader = reader.filter(|_| !file.identity().was_replaced());
        let (left, kept, only_mapping) = match before {
            Before::Left(left) => (left, None, false),
            Before::Kept(position) => (None, position, true),
        };
        if reader.is_none() && is_patient && (left.is_some() || only_mapping) {
            return None;
        }
        let consumed = reader.as_ref().and_then(|reader| reader.consumed_bytes(file.cpu));
        let mut done = consumed.unwrap_or(0);
        // A position beyond the ring is not true, and would pass over all that comes.
        let ring = reader.as_ref().map_or(u64::MAX, |reader| capacity(reader.geometry()));
        let kept = kept.filter(|kept| consumed.is_none_or(|consumed| *kept <= consumed.saturating_add(ring)));
        let left = left.filter(|left| reader.as_ref().is_some_and(|reader| *reader.buffers_id() == left.id));
        let mut is_behind = false;
        if let Some(recorded) = left.map(|left| left.done).or(kept).filter(|recorded| *recorded > done) {
            // A read from that position skips what is before it. If seeking fails, some bytes are recorded twice.
            is_behind = file.file.seek(SeekFrom::Start(recorded)).is_ok();
            done = recorded;
        }
        Some(Source {
            file,
            block: Block::default(),
            reader,
            is_cut_off: false,
            done,
            is_behind,
            from_mapping: false,
            only_mapping,
            may_come_again: only_mapping,
            copy: Vec::new(),
        })
    }

    /// What the source for the next daemon needs to know.
    pub(crate) fn leave(self) -> Option<Left> {
        self.reader.map(|reader| Left { id: reader.buffers_id().clone(), done: self.done })
    }

    /// Whether unfinished sub-buffers must be finished before they can be recorded.
    pub(crate) fn needs_flushes(&self) -> bool {
        self.only_mapping && self.reader.is_some()
    }

    /// Most bytes that the next call of [`Source::next`] consumes. Room for them must exist before that call.
    pub(crate) fn consumes(&mut self) -> usize {
        if self.needs_flushes() {
            self.from_mapping = true;
            return 0;
        }
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
            record(Bytes {
                bytes: bytes.into(),
                whole: all,
                all,
                consumed: true,
                at: Some(self.done),
                within: None,
            })?;
            // The bytes began at `done`, or behind it.
            self.done = self.done.saturating_add(len);
        } else if !was_behind {
            return Ok(false);
        }
        let cpu = self.file.cpu;
        match self.mapping().map(|reader| reader.rewind_to_consumed(cpu)) {
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
        let overwrites = reader.geometry().mode() == Mode::Overwrite;
        let Some(sub_buffer) = reader.next_finished(cpu) else { return Ok(false) };
        let (all, begin) = (sub_buffer.is_last, sub_buffer.begin);
        let end = begin.saturating_add(sub_buffer.len() as u64);
        let skip = if self.may_come_again { self.done.saturating_sub(begin) } else { 0 };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(sub_buffer.len());
        let mut bytes = sub_buffer.lend().map(|bytes| bytes.skip(skip)).filter(|bytes| !bytes.is_empty());
        // A recorder that is killed while it writes leaves what it has written to the next one, and cannot take it back.
        let needs_copy = overwrites || self.only_mapping;
        if let Some(lent) = bytes.filter(|_| needs_copy) {
            self.copy.clear();
            let is_copied = lent.copy_to(&mut self.copy) && sub_buffer.is_whole();
            // What a writer overwrites meanwhile counts as overwritten.
            bytes = is_copied.then(|| Lent::from(&self.copy[..]));
        }
        if let Some(bytes) = bytes {
            let at = Some(begin.saturating_add(skip as u64));
            // In no-overwrite mode a writer has it again after a reset, or if another reader has read it.
            let within = Some(sub_buffer).filter(|_| !needs_copy);
            record(Bytes { bytes, whole: true, all, consumed: false, at, within })?;
        }
        self.may_come_again &= end <= self.done;
        self.done = self.done.max(end);
        if self.only_mapping && self.is_cut_off {
            // The next daemon gets it back.
            return Ok(true);
        }
        match reader.release(cpu) {
            // Another reader has read the sub-buffer too: both have it.
            Ok(()) | Err(ReadError::Stale) => Ok(true),
            // The file, if it is still served, skips what is recorded and returns the rest.
            Err(ReadError::Gone) => {
                self.is_cut_off = true;
                self.is_behind =
                    !self.only_mapping && self.file.file.seek(SeekFrom::Start(self.done)).is_ok();
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
