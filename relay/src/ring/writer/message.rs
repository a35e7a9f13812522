//! What a writer writes: a bare message, or a record that it stamps.

use crate::layout::geometry::{Geometry, MESSAGE_MAX, RECORD_HEAD_LEN, RECORD_OVERHEAD, RECORD_PAYLOAD_MAX};

/// Where the payload's length lies in a record's head: the bits from here on.
const LEN_SHIFT: u32 = 48;
/// Head of a record whose bytes came without a head: id 1, `raw`, and no thread.
const RAW_HEAD: u64 = 1;

/// A message for a buffer.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// The bytes of a raw channel's message, or none.
    Bare(&'a [u8]),
    /// A timed channel's record, which gets its stamp in the ring.
    Record {
        /// Id, thread and length of the payload.
        head: u64,
        /// Bytes behind the head.
        payload: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// Returns the record with this payload. The length in `head` is replaced by the payload's.
    pub fn record(head: u64, payload: &'a [u8]) -> Message<'a> {
        Message::Record { head: with_len(head, payload.len()), payload }
    }

    /// Returns the message in the bytes of a WRITE: for a timed channel, its head comes first.
    ///
    /// No bytes are no record, but the wait for room. Fewer bytes than a head become a record `raw`: callers check the
    /// head before, and no byte gets lost here.
    pub fn of_wire(geometry: &Geometry, bytes: &'a [u8]) -> Message<'a> {
        if !geometry.timed() || bytes.is_empty() {
            return Message::Bare(bytes);
        }
        match bytes.split_first_chunk::<RECORD_HEAD_LEN>() {
            Some((head, payload)) => Message::record(u64::from_le_bytes(*head), payload),
            None => Message::record(RAW_HEAD, bytes),
        }
    }

    /// Returns the number of bytes that the message takes in the ring.
    pub fn len_in_ring(self) -> usize {
        match self {
            Message::Bare(bytes) => bytes.len(),
            Message::Record { payload, .. } => payload.len().saturating_add(RECORD_OVERHEAD),
        }
    }

    /// Returns whether the message is longer than a sub-buffer or than messages may be (W2.a).
    pub(crate) fn is_too_big(self, geometry: &Geometry) -> bool {
        let is_too_long = match self {
            Message::Bare(bytes) => bytes.len() > MESSAGE_MAX,
            Message::Record { payload, .. } => payload.len() > RECORD_PAYLOAD_MAX,
        };
        is_too_long || self.len_in_ring() > geometry.subbuf_size()
    }

    /// Returns whether the message puts nothing into the ring.
    pub(crate) fn is_nothing(self) -> bool {
        self.len_in_ring() == 0
    }
}

/// Returns a head with the length of its payload; the bits above a length's are lost.
#[inline(always)]
pub(super) fn with_len(head: u64, len: usize) -> u64 {
    head & ((1 << LEN_SHIFT) - 1) | (len as u64) << LEN_SHIFT
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::GeometrySpec;

    fn geometry(text: &str) -> Geometry {
        text.parse::<GeometrySpec>().unwrap().build().unwrap()
    }

    #[test]
    fn bytes_of_a_write_are_head_and_payload_on_timed_channels_alone() {
        let (raw, timed) = (geometry(""), geometry("timed"));
        let bytes = b"\x06\x01\x07\0\0\0\xff\xffpayload";
        assert!(matches!(Message::of_wire(&raw, bytes), Message::Bare(all) if all == bytes));
        let Message::Record { head, payload } = Message::of_wire(&timed, bytes) else { panic!("no record") };
        // The length is that of the payload, whatever the head says.
        assert_eq!((head, payload), (0x106 | 7 << 16 | 7 << 48, &b"payload"[..]));
        assert!(matches!(Message::of_wire(&timed, b""), Message::Bare(b"")));
        let Message::Record { head, payload } = Message::of_wire(&timed, b"short") else {
            panic!("no record")
        };
        assert_eq!((head, payload), (1 | 5 << 48, &b"short"[..]));
    }

    #[test]
    fn record_too_long_for_its_length_or_the_sub_buffer_is_too_big() {
        let (small, large) = (geometry("timed:subbuf-size=64"), geometry("timed:subbuf-size=1M"));
        let bytes = vec![0; 65_536];
        for (geometry, max) in [(&small, 48), (&large, 65_535)] {
            assert_eq!(geometry.payload_max(), max);
            assert!(!Message::record(0, &bytes[..max]).is_too_big(geometry));
            assert!(Message::record(0, &bytes[..max + 1]).is_too_big(geometry));
        }
        assert_eq!(Message::record(0, &bytes[..48]).len_in_ring(), 64);
        assert!(Message::Bare(b"").is_nothing() && !Message::record(0, b"").is_nothing());
    }
}
