//! Packets: sub-buffers as CTF sees them, and their iteration.

mod lost;
mod make;
mod read;

pub use lost::{lost_of, put_lost};
pub use make::{Losses, Mended, PacketMaker, SubBuffer};
pub use read::{PacketReader, ReadError};

/// The first bytes of a packet, as a number.
pub const MAGIC: u32 = 0xC1FC_1FC1;
/// Length of a packet's header in bytes.
pub const HEADER_LEN: usize = 64;

/// What stands in front of a sub-buffer's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// CPU of the buffer.
    pub cpu: u32,
    /// Stamp of the first record; not below the end of the packet before.
    pub begin: u64,
    /// Stamp of the last record.
    pub end: u64,
    /// Bytes of records.
    pub records_len: u64,
    /// Bytes behind the records that mean nothing.
    pub padding: u64,
    /// Number of the sub-buffer.
    pub number: u64,
    /// Messages lost in this buffer up to the end of the packet.
    pub discarded: u64,
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The bytes do not begin with [`MAGIC`].
    #[error("no packet begins at byte {at}: the magic number is missing")]
    Magic {
        /// Where the bytes are, from the start of the stream.
        at: u64,
    },
    /// The sizes contradict each other, or the stream is another's.
    #[error("the packet at byte {at} has an impossible {what}")]
    Header {
        /// Where the packet is, from the start of the stream.
        at: u64,
        /// The wrong field.
        what: &'static str,
    },
    /// The stream ends within a packet.
    #[error("the packet at byte {at} is cut: {bytes} bytes of it are there")]
    Torn {
        /// Where the packet is, from the start of the stream.
        at: u64,
        /// How many bytes of the packet are there.
        bytes: u64,
    },
}

impl PacketError {
    /// Returns what is wrong with bytes that are fewer than a header: they are torn, or foreign.
    fn of_start(bytes: &[u8], at: u64) -> PacketError {
        let is_start = MAGIC.to_le_bytes().iter().zip(bytes).all(|(magic, byte)| magic == byte);
        if is_start { PacketError::Torn { at, bytes: bytes.len() as u64 } } else { PacketError::Magic { at } }
    }
}

impl PacketHeader {
    /// Returns the packet's length in bytes, with the header and what follows the records.
    pub fn packet_len(&self) -> u64 {
        (HEADER_LEN as u64).saturating_add(self.records_len).saturating_add(self.padding)
    }

    /// Returns the bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let content = 8 * (HEADER_LEN as u64 + self.records_len);
        let numbers =
            [self.begin, self.end, content, content + 8 * self.padding, self.number, self.discarded];
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.cpu.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.cpu.to_le_bytes());
        for (place, number) in bytes[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Returns the header in these bytes, which are `at` bytes from the start of the stream.
    pub fn decode(bytes: &[u8; HEADER_LEN], at: u64) -> Result<PacketHeader, PacketError> {
        let u32_at = |place: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[place + i]));
        let u64_at = |place: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[place + i]));
        if u32_at(0) != MAGIC {
            return Err(PacketError::Magic { at });
        }
        let wrong = |what| Err(PacketError::Header { at, what });
        if u32_at(4) != 0 {
            return wrong("stream id");
        }
        let (content, packet) = (u64_at(32), u64_at(40));
        if content % 8 != 0 || content < 8 * HEADER_LEN as u64 {
            return wrong("content size");
        }
        if packet % 8 != 0 || packet < content {
            return wrong("packet size");
        }
        Ok(PacketHeader {
            cpu: u32_at(12),
            begin: u64_at(16),
            end: u64_at(24),
            records_len: content / 8 - HEADER_LEN as u64,
            padding: (packet - content) / 8,
            number: u64_at(48),
            discarded: u64_at(56),
        })
    }
}

/// A packet in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What stands in front.
    pub header: PacketHeader,
    /// The records, as in a sub-buffer.
    pub records: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Returns the packet at the start of `bytes`, such as [`PacketReader::read`] has put there.
    pub fn of(bytes: &'a [u8]) -> Option<Packet<'a>> {
        Packets::new(bytes).next()?.ok()
    }
}

/// Iterates over the packets of a stream in memory. An error ends the iteration.
#[derive(Clone, Debug)]
pub struct Packets<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Packets<'a> {
    /// Begins at the start of a packet stream.
    pub fn new(bytes: &'a [u8]) -> Packets<'a> {
        Packets { bytes, at: 0 }
    }

    fn packet(&self) -> Result<Packet<'a>, PacketError> {
        let (at, rest) = (self.at as u64, &self.bytes[self.at..]);
        let torn = PacketError::Torn { at, bytes: rest.len() as u64 };
        let Some((header, behind)) = rest.split_first_chunk::<HEADER_LEN>() else {
            return Err(PacketError::of_start(rest, at));
        };
        let header = PacketHeader::decode(header, at)?;
        if header.packet_len() > rest.len() as u64 {
            return Err(torn);
        }
        // The check above shows that the lengths fit into the memory's.
        Ok(Packet { header, records: &behind[..header.records_len as usize] })
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, PacketError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.bytes.len() {
            return None;
        }
        let packet = self.packet();
        match packet {
            Ok(packet) => self.at += packet.header.packet_len() as usize,
            Err(_) => self.bytes = &self.bytes[..self.at],
        }
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> PacketHeader {
        PacketHeader { cpu: 3, begin: 10, end: 20, records_len: 5, padding: 2, number: 7, discarded: 9 }
    }

    #[test]
    fn a_header_lies_as_the_document_says() {
        let bytes = header().encode();
        assert_eq!(bytes[..16], [0xc1, 0x1f, 0xfc, 0xc1, 0, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!((bytes[16], bytes[24], bytes[48], bytes[56]), (10, 20, 7, 9));
        assert_eq!(bytes[32..34], (8u16 * 69).to_le_bytes());
        assert_eq!(bytes[40..42], (8u16 * 71).to_le_bytes());
        assert_eq!(PacketHeader::decode(&bytes, 0), Ok(header()));
    }

    #[test]
    fn a_torn_tail_and_foreign_bytes_are_told_apart() {
        let mut stream = header().encode().to_vec();
        stream.extend_from_slice(b"12345pp");
        let len = stream.len();
        stream.extend_from_within(..);
        for cut in len + 1..2 * len {
            let mut packets = Packets::new(&stream[..cut]);
            assert_eq!(packets.next().unwrap().unwrap().records, b"12345");
            let torn = PacketError::Torn { at: len as u64, bytes: (cut - len) as u64 };
            assert_eq!(packets.next(), Some(Err(torn)));
            assert_eq!(packets.next(), None);
        }
        assert_eq!(Packets::new(&stream).count(), 2);
        stream[len] = 0;
        let mut packets = Packets::new(&stream);
        assert_eq!(packets.nth(1), Some(Err(PacketError::Magic { at: len as u64 })));
        assert_eq!(packets.next(), None);
        assert_eq!(Packets::new(b"text").next(), Some(Err(PacketError::Magic { at: 0 })));
    }

    #[test]
    fn impossible_headers_are_refused() {
        let refused = |place: usize, byte: u8, what| {
            let mut bytes = header().encode();
            bytes[place] = byte;
            assert_eq!(PacketHeader::decode(&bytes, 1), Err(PacketError::Header { at: 1, what }));
        };
        refused(4, 1, "stream id");
        refused(32, 41, "content size");
        refused(33, 0, "content size");
        refused(40, 1, "packet size");
        refused(41, 0, "packet size");
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes: Vec<u8>, with_header: bool, sizes: (u64, u64)) {
            let mut stream = Vec::new();
            if with_header {
                stream.extend_from_slice(&header().encode());
                stream[32..40].copy_from_slice(&sizes.0.to_le_bytes());
                stream[40..48].copy_from_slice(&sizes.1.to_le_bytes());
            }
            stream.extend_from_slice(&bytes);
            let found: Vec<_> = Packets::new(&stream).collect();
            prop_assert!(found.iter().rev().skip(1).all(Result::is_ok));
        }
    }
}
