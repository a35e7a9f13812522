//! What a stress writer has done so far, in a file that it maps: that is still there when it has been killed.
//!
//! Each stream of messages, of a thread or of its signal handler, has words of its own, which nobody else writes. A stream
//! says what it is about to write before it calls, and what came of it after. So when it is killed, everything is known
//! but what became of one message.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use relay::memory::mapping::{Mapping, Shared};

use crate::known::NUMBERED_MIN;

/// Threads of a writer.
pub const THREADS: usize = 4;
/// Streams of a writer: of each thread the messages that it writes, and those that its signal handler writes.
pub const STREAMS: usize = 2 * THREADS;

/// What all streams of a writer have in common.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Common {
    /// Set by whoever wants the writer to end.
    pub stop: AtomicU64,
    /// Changes of a thread's CPUs, by itself or by another thread.
    pub moves: AtomicU64,
}

/// What one stream of messages has done.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Stream {
    /// Writes begun.
    pub attempts: AtomicU64,
    /// Length of the message that is being written, or 0.
    pub in_flight: AtomicU64,
    /// Numbered messages written; also the next one's number.
    pub numbered: AtomicU64,
    /// Messages written that are too short to be numbered, by length.
    pub short: [AtomicU64; NUMBERED_MIN],
    /// Bytes written.
    pub bytes: AtomicU64,
    /// Signals that the stream was interrupted by, or is made of.
    pub signals: AtomicU64,
    /// How often the thread found itself on another CPU than the last time.
    pub migrations: AtomicU64,
}

// SAFETY: only atomics, which have no invalid bit patterns.
unsafe impl Shared for Common {}
// SAFETY: as above.
unsafe impl Shared for Stream {}

/// The file of one writer.
#[derive(Debug)]
pub struct Progress(Mapping);

impl Progress {
    /// A new file, with nothing done yet.
    pub fn create(path: &Path) -> io::Result<Progress> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(Self::LEN as u64)?;
        Ok(Progress(Mapping::new(&file, Self::LEN as u64)?))
    }

    /// A file that somebody else has made.
    pub fn open(path: &Path) -> io::Result<Progress> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Progress(Mapping::new(&file, Self::LEN as u64)?))
    }

    const LEN: usize = size_of::<Common>() + STREAMS * size_of::<Stream>();

    /// What all streams have in common.
    pub fn common(&self) -> &Common {
        self.0.get(0).expect("as long as the file")
    }

    /// One stream; less than [`STREAMS`].
    pub fn stream(&self, index: usize) -> &Stream {
        assert!(index < STREAMS);
        self.0.get(size_of::<Common>() + index * size_of::<Stream>()).expect("as long as the file")
    }

    /// All streams.
    pub fn streams(&self) -> impl Iterator<Item = &Stream> {
        (0..STREAMS).map(|index| self.stream(index))
    }
}

impl Stream {
    /// To be called before a message of `len` bytes is written.
    pub fn begin(&self, len: usize) {
        raise(&self.in_flight, len as u64);
        raise(&self.attempts, 1);
    }

    /// To be called when it has been written, or not.
    pub fn end(&self, len: usize, written: bool) {
        if written {
            raise(self.short.get(len).unwrap_or(&self.numbered), 1);
            raise(&self.bytes, len as u64);
        }
        // Release: a compiler must not move it before the others.
        self.in_flight.store(0, Ordering::Release);
    }

    /// Messages written, of any length.
    pub fn written(&self) -> u64 {
        get(&self.numbered) + self.short.iter().map(get).sum::<u64>()
    }
}

/// Adds to a word that only the caller writes.
pub fn raise(word: &AtomicU64, n: u64) {
    word.store(get(word) + n, Ordering::Release);
}

/// A word as it is now.
pub fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}
