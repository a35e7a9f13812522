//! WRITE and its messages.

use super::fields::{Fields, Number};
use super::{Body, FrameError, FrameType};

/// Messages for one buffer. [`Messages`] checks the field `messages` while walking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// The channel's number from [`OpenReply`](super::OpenReply).
    pub channel: u32,
    /// The CPU of the buffer; ignored by global channels.
    pub cpu: u32,
    /// Time to wait for room, in milliseconds.
    /// 0: no waiting. [`WAIT_FOREVER`](super::WAIT_FOREVER): no limit.
    pub wait_ms: u32,
    /// Messages that the producer dropped since its last frame because the socket was full.
    pub lost: u32,
    /// Messages, each with its length before it; or a piece of one, see [`WRITE_MORE`](super::WRITE_MORE).
    pub messages: &'a [u8],
}

impl<'a> Body<'a> for Write<'a> {
    const KIND: FrameType = FrameType::Write;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        [self.channel, self.cpu, self.wait_ms, self.lost].into_iter().for_each(|number| number.put(out));
        out.extend_from_slice(self.messages);
    }

    fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        Fields::all(body, "write", |f| {
            let (channel, cpu, wait_ms, lost) = (f.number()?, f.number()?, f.number()?, f.number()?);
            Some(Write { channel, cpu, wait_ms, lost, messages: f.rest() })
        })
    }
}

/// Walks the messages of a `WRITE`.
/// A length that exceeds the rest ends the walk with an error.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<&'a [u8], FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut fields = Fields(self.0);
        let message = fields.number().and_then(|len: u32| fields.bytes(len as usize));
        self.0 = if message.is_some() { fields.rest() } else { &[] };
        Some(message.ok_or(FrameError::Malformed("write")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_length_ends_the_walk() {
        let mut walk = Messages(b"\x01\0\0\0a\0\0\0\0\x02\0\0\0bc");
        for message in [&b"a"[..], b"", b"bc"] {
            assert_eq!(walk.next(), Some(Ok(message)));
        }
        assert_eq!(walk.next(), None);
        let mut walk = Messages(b"\x09\0\0\0a");
        assert_eq!(walk.next(), Some(Err(FrameError::Malformed("write"))));
        assert_eq!(walk.next(), None);
    }
}
