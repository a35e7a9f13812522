//! Messages longer than a frame: put together from their pieces, in bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use relay::frame::{FrameError, MESSAGE_PREFIX_LEN};
use relay::geometry::MESSAGE_MAX;
use relay::size::format_size;
use thiserror::Error;

/// Memory for messages that are not complete yet, over all connections, in bytes.
const ASSEMBLY_MAX: usize = 64 << 20;

/// How much of [`ASSEMBLY_MAX`] is in use.
#[derive(Default)]
pub(crate) struct Budget {
    used: AtomicUsize,
}

/// A part of the budget, given back when dropped.
struct Claim {
    budget: Arc<Budget>,
    len: usize,
}

impl Claim {
    fn new(budget: &Arc<Budget>, len: usize) -> Option<Claim> {
        let before = budget.used.fetch_add(len, Ordering::Relaxed);
        let claim = Claim { budget: Arc::clone(budget), len };
        (before + len <= ASSEMBLY_MAX).then_some(claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// Why a message cannot be put together.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum AssemblyError {
    /// The pieces are not what the first one announced.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No channel takes such a message.
    #[error("message of {0} bytes is too long: messages have at most {max}", max = format_size(MESSAGE_MAX as u64))]
    TooLong(usize),
    /// The budget is used up.
    #[error("no memory for another message of more than one frame, the limit is {max} for all connections: try again", max = format_size(ASSEMBLY_MAX as u64))]
    NoMemory,
}

/// A message, as far as it has come.
pub(crate) struct Assembly {
    len: usize,
    bytes: Vec<u8>,
    _claim: Claim,
}

impl Assembly {
    /// Begins with the first piece, which starts with the length of the whole message.
    pub(crate) fn begin(budget: &Arc<Budget>, piece: &[u8]) -> Result<Assembly, AssemblyError> {
        let (len, piece) = piece.split_first_chunk::<MESSAGE_PREFIX_LEN>().ok_or(malformed())?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MESSAGE_MAX {
            return Err(AssemblyError::TooLong(len));
        }
        if len == 0 {
            return Err(malformed().into());
        }
        let claim = Claim::new(budget, len).ok_or(AssemblyError::NoMemory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| AssemblyError::NoMemory)?;
        let mut assembly = Assembly { len, bytes, _claim: claim };
        assembly.add(piece)?;
        Ok(assembly)
    }

    /// Adds the next piece.
    pub(crate) fn add(&mut self, piece: &[u8]) -> Result<(), FrameError> {
        if piece.len() > self.len - self.bytes.len() {
            return Err(malformed());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The message, if that was its last piece.
    pub(crate) fn finish(self) -> Result<Vec<u8>, FrameError> {
        if self.bytes.len() == self.len { Ok(self.bytes) } else { Err(malformed()) }
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
        let budget = Arc::default();
        let mut assembly = Assembly::begin(&budget, &first(6, b"ab")).unwrap();
        assembly.add(b"cde").unwrap();
        assembly.add(b"").unwrap();
        assembly.add(b"f").unwrap();
        assert_eq!(assembly.finish().unwrap(), b"abcdef");
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn pieces_that_are_missing_or_too_many_are_noticed() {
        let budget = Arc::default();
        assert_eq!(Assembly::begin(&budget, b"\x06\0\0").err(), Some(malformed().into()));
        assert_eq!(Assembly::begin(&budget, &first(1, b"ab")).err(), Some(malformed().into()));
        let mut assembly = Assembly::begin(&budget, &first(3, b"ab")).unwrap();
        assert_eq!(assembly.add(b"cd"), Err(malformed()));
        assert_eq!(assembly.finish(), Err(malformed()));
    }

    #[test]
    fn the_limits_hold_and_what_is_dropped_is_given_back() {
        let budget = Arc::default();
        let begin = |len| Assembly::begin(&budget, &first(len, b"x"));
        assert_eq!(begin(MESSAGE_MAX + 1).err(), Some(AssemblyError::TooLong(MESSAGE_MAX + 1)));
        let mut all: Vec<_> = (0..ASSEMBLY_MAX / MESSAGE_MAX).map(|_| begin(MESSAGE_MAX).unwrap()).collect();
        assert_eq!(begin(1).err(), Some(AssemblyError::NoMemory));
        all.pop();
        assert!(begin(MESSAGE_MAX).is_ok());
        assert!(begin(MESSAGE_MAX).is_ok());
    }
}
