//! Reassembles messages longer than a frame from their pieces, in bounded memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use relay::cli::size::format_size;
use relay::layout::geometry::MESSAGE_MAX;
use relay::wire::frame::{FrameError, MESSAGE_PREFIX_LEN};
use thiserror::Error;

use crate::policy::quota::{Quota, Reservation};

/// Bytes of memory for incomplete messages of all connections.
const ASSEMBLY_MAX: usize = 64 << 20;

/// Bytes of memory for complete long messages that wait for room, of all connections.
pub(crate) const LONG_WAITING_MAX: usize = 256 << 20;

/// Longest time without a new piece.
///
/// After that, other connections may take the message's memory.
const STALL_MAX: Duration = Duration::from_secs(1);

/// The memory of incomplete messages.
///
/// A message whose producer sends no more keeps its memory only until another message needs it.
pub(crate) struct Budget {
    shares: Arc<Quota>,
    received: Mutex<Vec<Weak<Mutex<Received>>>>,
}

/// The received part of a message.
struct Received {
    bytes: Vec<u8>,
    /// `None`: the message was given up.
    claim: Option<Reservation>,
    /// When the last piece came.
    grown: Instant,
}

impl Budget {
    pub(crate) fn new() -> Arc<Budget> {
        Arc::new(Budget { shares: Quota::new(ASSEMBLY_MAX), received: Mutex::default() })
    }

    fn claim(&self, uid: u32, len: usize) -> Option<Reservation> {
        let claim = || self.shares.claim(uid, len).ok();
        claim().or_else(|| {
            self.give_up_stalled();
            claim()
        })
    }

    fn give_up_stalled(&self) {
        lock(&self.received).retain(|received| {
            let Some(received) = received.upgrade() else { return false };
            let mut received = lock(&received);
            if received.grown.elapsed() < STALL_MAX {
                return true;
            }
            (received.bytes, received.claim) = (Vec::new(), None);
            false
        });
    }

    fn keep(&self, received: &Arc<Mutex<Received>>) {
        let mut all = lock(&self.received);
        if all.len() == all.capacity() {
            all.retain(|received| received.strong_count() > 0);
        }
        all.push(Arc::downgrade(received));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a message cannot be reassembled.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum AssemblyError {
    /// The pieces do not match what the first piece announced.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The message is too long for any channel.
    #[error("message of {0} bytes is too long: messages have at most {max}", max = format_size(MESSAGE_MAX as u64))]
    TooLong(usize),
    /// The budget is used up.
    #[error("no memory for another message of more than one frame, the limit is {max} for all connections: try again", max = format_size(ASSEMBLY_MAX as u64))]
    NoMemory,
    /// Too many long messages wait for room already.
    #[error("no memory for another message of more than one frame that waits for room, the limit is {max} for all connections: try again", max = format_size(LONG_WAITING_MAX as u64))]
    NoMemoryToWait,
    /// No piece came for a while, and other messages needed the memory.
    #[error("the message stood still for {}s, and others needed its memory: send all of it at once", STALL_MAX.as_secs())]
    GivenUp,
}

/// An incomplete message.
pub(crate) struct Reassembly {
    len: usize,
    received: Arc<Mutex<Received>>,
}

impl Reassembly {
    /// Begins a user's message with its first piece, which starts with the message's length.
    pub(crate) fn begin(budget: &Budget, uid: u32, piece: &[u8]) -> Result<Reassembly, AssemblyError> {
        let (len, piece) = piece.split_first_chunk::<MESSAGE_PREFIX_LEN>().ok_or(malformed())?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MESSAGE_MAX {
            return Err(AssemblyError::TooLong(len));
        }
        if len == 0 {
            return Err(malformed().into());
        }
        let claim = budget.claim(uid, len).ok_or(AssemblyError::NoMemory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| AssemblyError::NoMemory)?;
        let received = Received { bytes, claim: Some(claim), grown: Instant::now() };
        let mut assembly = Reassembly { len, received: Arc::new(Mutex::new(received)) };
        assembly.add(piece)?;
        budget.keep(&assembly.received);
        Ok(assembly)
    }

    /// Adds the next piece.
    pub(crate) fn add(&mut self, piece: &[u8]) -> Result<(), AssemblyError> {
        let mut received = lock(&self.received);
        if received.claim.is_none() {
            return Err(AssemblyError::GivenUp);
        }
        if piece.len() > self.len - received.bytes.len() {
            return Err(malformed().into());
        }
        received.bytes.extend_from_slice(piece);
        received.grown = Instant::now();
        Ok(())
    }

    /// Returns the message, if it is complete.
    pub(crate) fn finish(self) -> Result<Vec<u8>, FrameError> {
        let bytes = std::mem::take(&mut lock(&self.received).bytes);
        if bytes.len() == self.len { Ok(bytes) } else { Err(malformed()) }
    }
}

fn malformed() -> FrameError {
    FrameError::Malformed("long write")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(len: usize, piece: &[u8]) -> Vec<u8> {
        [&(len as u32).to_le_bytes(), piece].concat()
    }

    #[test]
    fn pieces_become_the_message() {
        let budget = Budget::new();
        let mut assembly = Reassembly::begin(&budget, 0, &first(6, b"ab")).unwrap();
        assembly.add(b"cde").unwrap();
        assembly.add(b"").unwrap();
        assembly.add(b"f").unwrap();
        assert_eq!(assembly.finish().unwrap(), b"abcdef");
        assert!(budget.shares.claim(0, ASSEMBLY_MAX).is_ok(), "all of it is free");
    }

    #[test]
    fn missing_and_surplus_pieces_are_errors() {
        let budget = Budget::new();
        assert_eq!(Reassembly::begin(&budget, 0, b"\x06\0\0").err(), Some(malformed().into()));
        assert_eq!(Reassembly::begin(&budget, 0, &first(1, b"ab")).err(), Some(malformed().into()));
        let mut assembly = Reassembly::begin(&budget, 0, &first(3, b"ab")).unwrap();
        assert_eq!(assembly.add(b"cd"), Err(malformed().into()));
        assert_eq!(assembly.finish(), Err(malformed()));
    }

    #[test]
    fn memory_is_limited_and_dropped_messages_give_it_back() {
        let budget = Budget::new();
        let begin = |len| Reassembly::begin(&budget, 0, &first(len, b"x"));
        assert_eq!(begin(MESSAGE_MAX + 1).err(), Some(AssemblyError::TooLong(MESSAGE_MAX + 1)));
        let mut all: Vec<_> = (0..ASSEMBLY_MAX / MESSAGE_MAX).map(|_| begin(MESSAGE_MAX).unwrap()).collect();
        assert_eq!(begin(1).err(), Some(AssemblyError::NoMemory));
        all.pop();
        assert!(begin(MESSAGE_MAX).is_ok());
        assert!(begin(MESSAGE_MAX).is_ok());
    }

    #[test]
    fn stalled_message_is_given_up_when_others_need_its_memory() {
        let budget = Budget::new();
        let begin = |len| Reassembly::begin(&budget, 0, &first(len, b"x"));
        let mut all: Vec<_> = (0..ASSEMBLY_MAX / MESSAGE_MAX).map(|_| begin(MESSAGE_MAX).unwrap()).collect();
        assert_eq!(begin(1).err(), Some(AssemblyError::NoMemory));
        let long_ago = Instant::now() - STALL_MAX;
        all[1..].iter().for_each(|assembly| lock(&assembly.received).grown = long_ago);
        let mut next = begin(2).unwrap();
        assert_eq!(all[0].add(b"y"), Ok(()));
        assert_eq!(all[1].add(b"y"), Err(AssemblyError::GivenUp));
        next.add(b"y").unwrap();
        assert_eq!(next.finish().unwrap(), b"xy");
    }
}
