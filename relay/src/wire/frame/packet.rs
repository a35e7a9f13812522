//! A frame as a packet: its header, and the body as bytes.

use thiserror::Error;

use super::fields::{Fields, Number};
use super::{FRAME_MAX, REPLY_BIT};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameType {
    /// First frame of a connection: versions and features.
    Hello = 1,
    /// Attaches to a channel, or creates it.
    Open = 2,
    /// Messages for one CPU's buffer.
    Write = 3,
    /// Finishes the current sub-buffers.
    Flush = 4,
    /// Gives a channel back.
    Close = 5,
    /// Asks for a channel's files.
    Share = 6,
    /// Asks to be told of a buffer's finished sub-buffers.
    Watch = 7,
    /// Gives sub-buffers back that were read in a mapping.
    Consume = 8,
    /// A refusal; the only type without [`REPLY_BIT`] that the daemon sends.
    Error = 0x7fff,
}

impl FrameType {
    fn from_wire(raw: u16) -> Option<FrameType> {
        use FrameType::{Close, Consume, Error, Flush, Hello, Open, Share, Watch, Write};
        [Hello, Open, Write, Flush, Close, Share, Watch, Consume, Error]
            .into_iter()
            .find(|t| *t as u16 == raw)
    }
}

/// Why a packet is no frame, or a body not what its type says.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Shorter than a header.
    #[error("packet of {0} bytes is shorter than a frame header")]
    Short(usize),
    /// The length in the header is not the packet's, or over the limit.
    #[error("frame says {said} bytes, the packet has {got}")]
    Length {
        /// Length in the header.
        said: usize,
        /// Length of the packet.
        got: usize,
    },
    /// A type this side does not know.
    #[error("unknown frame type {0:#x}")]
    UnknownType(u16),
    /// The body does not have the form of its type.
    #[error("malformed {0} frame")]
    Malformed(&'static str),
}

/// A received frame, its body still to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: FrameType,
    /// Whether it answers a request.
    pub reply: bool,
    /// Flags, by type.
    pub flags: u16,
    /// Chosen by whoever asks; a reply repeats it.
    pub id: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits a packet. An unknown type is reported with the frame's id, so that it can be answered.
    pub fn decode(packet: &'a [u8]) -> Result<Frame<'a>, (u32, FrameError)> {
        let mut fields = Fields(packet);
        let (Some(len), Some(kind), Some(flags), Some(id)): (Option<u32>, Option<u16>, _, _) =
            (fields.number(), fields.number(), fields.number(), fields.number())
        else {
            return Err((0, FrameError::Short(packet.len())));
        };
        if len as usize != packet.len() || packet.len() > FRAME_MAX {
            return Err((id, FrameError::Length { said: len as usize, got: packet.len() }));
        }
        let known = FrameType::from_wire(kind & !REPLY_BIT).ok_or((id, FrameError::UnknownType(kind)))?;
        Ok(Frame { kind: known, reply: kind & REPLY_BIT != 0, flags, id, body: fields.rest() })
    }
}

/// Starts a frame in `out`, which is emptied; [`finish`] completes it.
pub fn begin(out: &mut Vec<u8>, kind: FrameType, reply: bool, flags: u16, id: u32) {
    out.clear();
    0u32.put(out);
    (kind as u16 | if reply { REPLY_BIT } else { 0 }).put(out);
    flags.put(out);
    id.put(out);
}

/// Completes a frame begun with [`begin`]: fills in its length.
pub fn finish(out: &mut [u8]) {
    let len = (out.len() as u32).to_le_bytes();
    out[..4].copy_from_slice(&len);
}
