//! The progress of a stress writer, in a mapped file that survives its death.
//!
//! Each stream of messages, of a thread or of its signal handler, has separate words, and only the stream writes them.
//! It notes each message before the call, and the result after it. So after a kill everything is known except the
//! fate of one message.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use relay::memory::mapping::{Mapping, Shared};

use crate::known::NUMBERED_MIN;

/// Threads of a writer.
pub const THREADS: usize = 4;
/// Streams of a writer: for each thread its own messages, and those of its signal handler.
pub const STREAMS: usize = 2 * THREADS;

/// The words that all streams of a writer share.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Common {
    /// Set by the test to end the writer.
    pub stop: AtomicU64,
    /// How often a thread's CPUs were changed, by itself or by another thread.
    pub moves: AtomicU64,
}

/// The counts of one stream of messages.
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
    /// Signals that interrupted the stream; for a handler's stream, its runs.
    pub signals: AtomicU64,
    /// How often the thread ran on another CPU than at the message before.
    pub migrations: AtomicU64,
}

// SAFETY: only atomics, which have no invalid bit patterns.
unsafe impl Shared for Common {}
// SAFETY: as above.
unsafe impl Shared for Stream {}

/// The mapped file of one writer.
#[derive(Debug)]
pub struct Progress(Mapping);

impl Progress {
    /// Creates a file in which all counts are zero.
    pub fn create(path: &Path) -> io::Result<Progress> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(Self::LEN as u64)?;
        Ok(Progress(Mapping::new(&file, Self::LEN as u64)?))
    }

    /// Opens a file that another process has created.
    pub fn open(path: &Path) -> io::Result<Progress> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Progress(Mapping::new(&file, Self::LEN as u64)?))
    }

    const LEN: usize = size_of::<Common>() + STREAMS * size_of::<Stream>();

    /// The words that all streams share.
    pub fn common(&self) -> &Common {
        self.0.get(0).expect("as long as the file")
    }

    /// One stream; `index` is less than [`STREAMS`].
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
    /// Notes a message of `len` bytes before it is written.
    pub fn begin(&self, len: usize) {
        raise(&self.in_flight, len as u64);
        raise(&self.attempts, 1);
    }

    /// Notes whether the message was written, after the call.
    pub fn end(&self, len: usize, written: bool) {
        if written {
            raise(self.short.get(len).unwrap_or(&self.numbered), 1);
            raise(&self.bytes, len as u64);
        }
        // Release: a compiler must not move this store before the others.
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

/// The present value of a word.
pub fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}
