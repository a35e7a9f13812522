//! The records in a sub-buffer of a timed channel: where each one ends, and how many there are.

use super::Buffer;
use crate::layout::geometry::RECORD_OVERHEAD;
use crate::layout::position::Position;

/// Where the payload's length lies in a record, in bytes.
const LEN_AT: usize = 14;

impl Buffer {
    /// Returns the offset behind the record at offset `at` of the sub-buffer at `begin`.
    /// `None`: no record can lie there.
    pub(crate) fn record_end(&self, begin: Position, at: usize) -> Option<usize> {
        let size = self.geometry().subbuf_size();
        if at + RECORD_OVERHEAD > size {
            return None;
        }
        let payload = self.data().u16_at(self.ring_offset(begin) + at + LEN_AT)?;
        Some(at + RECORD_OVERHEAD + usize::from(payload)).filter(|end| *end <= size)
    }

    /// Counts the records of the sub-buffer at `begin` from offset `at` up to `end`.
    /// Returns the number, and the offset behind the last of them. Damaged bytes end the count.
    pub(crate) fn count_records(&self, begin: Position, mut at: usize, end: usize) -> (u64, usize) {
        let mut n = 0;
        while let Some(next) = self.record_end(begin, at).filter(|next| *next <= end) {
            (n, at) = (n + 1, next);
        }
        (n, at)
    }
}
