//! Reads packets from a file or a pipe.

use std::io::{self, Read};

use crate::trace::packet::{HEADER_LEN, PacketError, PacketHeader};

/// Why a packet could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are no packet.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// Reads one packet after the other from a stream of them.
///
/// The memory for a packet grows with the bytes that arrive, not with the length that a header claims.
#[derive(Debug)]
pub struct PacketReader<R> {
    stream: R,
    at: u64,
}

impl<R: Read> PacketReader<R> {
    /// Reads from the start of a stream.
    pub fn new(stream: R) -> PacketReader<R> {
        PacketReader { stream, at: 0 }
    }

    /// Reads the next packet into `bytes`, with its header. Returns `None` at the end of the stream.
    pub fn read(&mut self, bytes: &mut Vec<u8>) -> Result<Option<PacketHeader>, ReadError> {
        bytes.clear();
        (&mut self.stream).take(HEADER_LEN as u64).read_to_end(bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let header =
            bytes.first_chunk::<HEADER_LEN>().ok_or_else(|| PacketError::of_start(bytes, self.at))?;
        let header = PacketHeader::decode(header, self.at)?;
        let rest = header.packet_len() - HEADER_LEN as u64;
        let got = (&mut self.stream).take(rest).read_to_end(bytes)? as u64;
        if got < rest {
            return Err(PacketError::Torn { at: self.at, bytes: bytes.len() as u64 }.into());
        }
        self.at += bytes.len() as u64;
        Ok(Some(header))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::packet::{Packet, Packets};

    /// Gives a stream a few bytes at a time.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let len = out.len().min(7);
            self.0.read(&mut out[..len])
        }
    }

    proptest! {
        #[test]
        fn a_stream_is_read_as_it_lies_in_memory(packets in proptest::collection::vec((0u64..100, 0u64..9), 0..4), cut: usize, flip: usize) {
            let mut stream = Vec::new();
            for (number, (records_len, padding)) in (1..).zip(&packets) {
                let (records_len, padding) = (*records_len, *padding);
                let header = PacketHeader { cpu: 1, begin: 2, end: 3, records_len, padding, number, discarded: 0 };
                stream.extend_from_slice(&header.encode());
                stream.resize(stream.len() + (records_len + padding) as usize, 0xc1);
            }
            stream.truncate(cut % (2 * stream.len() + 1));
            let len = stream.len();
            if let Some(byte) = stream.get_mut(flip % (2 * len + 1)) {
                *byte ^= 1;
            }
            let mut reader = PacketReader::new(Dribble(&stream));
            let mut bytes = Vec::new();
            let mut packets = Packets::new(&stream);
            loop {
                match (packets.next(), reader.read(&mut bytes)) {
                    (None, Ok(None)) => break,
                    (Some(Ok(packet)), Ok(Some(header))) => {
                        prop_assert_eq!(header, packet.header);
                        prop_assert_eq!(Packet::of(&bytes), Some(packet));
                    }
                    (Some(Err(error)), Err(ReadError::Packet(other))) => {
                        prop_assert_eq!(error, other);
                        break;
                    }
                    (memory, file) => prop_assert!(false, "{memory:?} and {file:?}"),
                }
            }
        }
    }

    #[test]
    fn a_header_that_claims_much_takes_no_memory() {
        let (records_len, padding) = (1 << 50, 0);
        let header = PacketHeader { cpu: 1, begin: 2, end: 3, records_len, padding, number: 0, discarded: 0 };
        let mut bytes = Vec::new();
        let torn = PacketReader::new(&header.encode()[..]).read(&mut bytes);
        assert!(matches!(torn, Err(ReadError::Packet(PacketError::Torn { at: 0, bytes: 64 }))), "{torn:?}");
        assert!(bytes.capacity() < 1 << 20);
    }
}
