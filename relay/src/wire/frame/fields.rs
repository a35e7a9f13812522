//! Encoding and decoding of bodies, field by field.

use super::{FrameError, FrameType, MAGIC, begin, finish};

/// A frame body that can be encoded and decoded.
pub trait Body<'a>: Sized {
    /// The type of the frames with this body.
    const KIND: FrameType;
    /// Whether it is the body of a reply.
    const REPLY: bool;
    /// Appends the body to a frame.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads the body of a frame.
    fn decode(body: &'a [u8]) -> Result<Self, FrameError>;

    /// Returns a whole frame with this body.
    fn frame(&self, flags: u16, id: u32) -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out, Self::KIND, Self::REPLY, flags, id);
        self.encode(&mut out);
        finish(&mut out);
        out
    }
}

/// The rest of a frame that is still to be read.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn number<N: Number>(&mut self) -> Option<N> {
        N::take(self)
    }

    pub(super) fn magic(&mut self) -> Option<()> {
        (self.array()? == MAGIC).then_some(())
    }

    /// Returns all bytes that are left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Decodes a whole body of the type `what`. Bytes behind it are as wrong as missing ones.
    pub(super) fn all<T>(
        body: &'a [u8],
        what: &'static str,
        read: impl FnOnce(&mut Fields<'a>) -> Option<T>,
    ) -> Result<T, FrameError> {
        let mut fields = Fields(body);
        read(&mut fields).filter(|_| fields.0.is_empty()).ok_or(FrameError::Malformed(what))
    }
}

/// A little-endian number in a body.
pub(super) trait Number: Sized {
    /// Appends the number to a frame.
    fn put(self, out: &mut Vec<u8>);
    /// Reads the next number of a frame.
    fn take(fields: &mut Fields<'_>) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Number for $number {
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn take(fields: &mut Fields<'_>) -> Option<$number> {
                fields.array().map(<$number>::from_le_bytes)
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i32);
