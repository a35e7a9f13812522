//! Records as they lie in a sub-buffer, and their iteration.

/// Bytes of a record's head: id, thread and length.
pub const HEAD_LEN: usize = 8;
/// Bytes of a record in front of its payload: the stamp and the head.
pub const RECORD_OVERHEAD: usize = 16;
/// The longest payload that a head can say, in bytes.
pub const PAYLOAD_MAX: usize = u16::MAX as usize;

/// Returns the longest payload that a sub-buffer of this size can hold, in bytes.
pub fn payload_max(subbuf_size: usize) -> usize {
    subbuf_size.saturating_sub(RECORD_OVERHEAD).min(PAYLOAD_MAX)
}

/// What a producer says about a record, apart from its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Id of the event.
    pub id: u16,
    /// Thread that wrote the record.
    pub tid: u32,
    /// Length of the payload in bytes.
    pub len: u16,
}

impl Head {
    /// Returns the head in this word.
    pub fn of_word(word: u64) -> Head {
        // Truncation picks the field.
        Head { id: word as u16, tid: (word >> 16) as u32, len: (word >> 48) as u16 }
    }

    /// Returns the head as the word that lies behind a record's stamp.
    pub fn to_word(self) -> u64 {
        u64::from(self.id) | u64::from(self.tid) << 16 | u64::from(self.len) << 48
    }
}

/// A record in a sub-buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Ticks of the channel's clock.
    pub stamp: u64,
    /// Id of the event.
    pub id: u16,
    /// Thread that wrote the record.
    pub tid: u32,
    /// What follows the head.
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// Returns the record's length in a sub-buffer, in bytes.
    pub fn encoded_len(&self) -> usize {
        RECORD_OVERHEAD + self.payload.len()
    }

    /// Appends the record as it lies in a sub-buffer. A payload of more than [`PAYLOAD_MAX`] bytes is cut there.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let payload = &self.payload[..self.payload.len().min(PAYLOAD_MAX)];
        let head = Head { id: self.id, tid: self.tid, len: payload.len() as u16 };
        out.extend_from_slice(&self.stamp.to_le_bytes());
        out.extend_from_slice(&head.to_word().to_le_bytes());
        out.extend_from_slice(payload);
    }
}

/// The rest of a sub-buffer that cannot be records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Where the rest begins, in bytes from the start.
    pub at: usize,
    /// How many bytes it has.
    pub bytes: usize,
}

/// Iterates over the records in a sub-buffer's bytes, without copying them.
///
/// A record that leads out of the bytes yields one [`Damaged`], and the iteration ends.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// Begins at the start of `bytes`, which is the start of a record.
    pub fn new(bytes: &'a [u8]) -> Records<'a> {
        Records { bytes, at: 0 }
    }

    /// Returns where the next record begins, in bytes from the start.
    pub fn at(&self) -> usize {
        self.at
    }
}

/// Returns the record at the start of `bytes`; `None` if it leads out of them.
#[inline]
pub fn first(bytes: &[u8]) -> Option<Record<'_>> {
    let (stamp, rest) = bytes.split_first_chunk::<8>()?;
    let (head, rest) = rest.split_first_chunk::<HEAD_LEN>()?;
    let head = Head::of_word(u64::from_le_bytes(*head));
    let payload = rest.get(..usize::from(head.len))?;
    Some(Record { stamp: u64::from_le_bytes(*stamp), id: head.id, tid: head.tid, payload })
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Damaged>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return None;
        }
        match first(rest) {
            Some(record) => {
                self.at += RECORD_OVERHEAD + record.payload.len();
                Some(Ok(record))
            }
            None => {
                let damaged = Damaged { at: self.at, bytes: rest.len() };
                self.at = self.bytes.len();
                Some(Err(damaged))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_is_one_word() {
        let head = Head { id: 0x0102, tid: 0x0304_0506, len: 0x0708 };
        assert_eq!(head.to_word(), 0x0708_0304_0506_0102);
        assert_eq!(head.to_word().to_le_bytes(), [2, 1, 6, 5, 4, 3, 8, 7]);
    }

    #[test]
    fn a_record_lies_as_the_document_says() {
        let mut bytes = Vec::new();
        Record { stamp: 1, id: 2, tid: 3, payload: b"x" }.encode_into(&mut bytes);
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 1, 0, b'x']);
    }

    #[test]
    fn a_length_that_leads_out_ends_the_iteration() {
        let mut bytes = Vec::new();
        Record { stamp: 1, id: 0, tid: 3, payload: b"whole" }.encode_into(&mut bytes);
        let whole = bytes.len();
        Record { stamp: 2, id: 0, tid: 3, payload: b"cut" }.encode_into(&mut bytes);
        for cut in whole + 1..bytes.len() {
            let mut records = Records::new(&bytes[..cut]);
            assert_eq!(records.next().unwrap().unwrap().payload, b"whole");
            assert_eq!(records.next(), Some(Err(Damaged { at: whole, bytes: cut - whole })));
            assert_eq!(records.next(), None);
        }
    }

    #[test]
    fn the_longest_payload_depends_on_the_sub_buffer() {
        assert_eq!(payload_max(0), 0);
        assert_eq!(payload_max(64), 48);
        assert_eq!(payload_max(1 << 20), PAYLOAD_MAX);
    }

    proptest! {
        #[test]
        fn any_word_is_a_head(word: u64) {
            prop_assert_eq!(Head::of_word(word).to_word(), word);
        }

        #[test]
        fn any_bytes_are_records_and_one_damaged_rest(bytes: Vec<u8>) {
            let mut again = Vec::new();
            let mut rest = 0;
            for record in Records::new(&bytes) {
                prop_assert_eq!(rest, 0);
                match record {
                    Ok(record) => record.encode_into(&mut again),
                    Err(damaged) => rest = damaged.bytes,
                }
            }
            prop_assert_eq!(&again[..], &bytes[..bytes.len() - rest]);
        }
    }
}
