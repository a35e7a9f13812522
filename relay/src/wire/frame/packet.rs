//! A frame as a packet: its header, and its body as bytes.

use thiserror::Error;

use super::fields::{Fields, Number};
use super::{FRAME_MAX, REPLY_BIT};

/// The type of a frame.
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
    /// Asks for a ring of the bell once a buffer has finished sub-buffers.
    Watch = 7,
    /// Gives sub-buffers back that were read in a mapping.
    Consume = 8,
    /// Attaches a process to a timed channel.
    Attach = 9,
    /// Defines an event of a timed channel.
    Define = 10,
    /// Asks for a timed channel's file of levels.
    Levels = 11,
    /// A refusal; the only type without [`REPLY_BIT`] that the daemon sends.
    Error = 0x7fff,
}

impl FrameType {
    fn from_wire(raw: u16) -> Option<FrameType> {
        use FrameType::{
            Attach, Close, Consume, Define, Error, Flush, Hello, Levels, Open, Share, Watch, Write,
        };
        [Hello, Open, Write, Flush, Close, Share, Watch, Consume, Attach, Define, Levels, Error]
            .into_iter()
            .find(|t| *t as u16 == raw)
    }
}

/// The error for a packet that is not a frame, or a body that does not fit its type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The packet is shorter than a header.
    #[error("packet of {0} bytes is shorter than a frame header")]
    Short(usize),
    /// The length in the header exceeds the limit, or is not the packet's.
    #[error("frame says {said} bytes, the packet has {got}")]
    Length {
        /// Length in the header.
        said: usize,
        /// Length of the packet.
        got: usize,
    },
    /// This side does not know the type.
    #[error("unknown frame type {0:#x}")]
    UnknownType(u16),
    /// The body does not have the form of its type.
    #[error("malformed {0} frame")]
    Malformed(&'static str),
}

/// A received frame; its body is not decoded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type.
    pub kind: FrameType,
    /// Whether it answers a request.
    pub reply: bool,
    /// Flags, whose meaning depends on the type.
    pub flags: u16,
    /// Chosen by the sender of the request; the reply repeats it.
    pub id: u32,
    /// The bytes behind the header.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits a packet. The error has the frame's id, so that a refusal can answer it.
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

/// Starts a frame in `out`, which is emptied first; [`finish`] completes it.
pub fn begin(out: &mut Vec<u8>, kind: FrameType, reply: bool, flags: u16, id: u32) {
    out.clear();
    0u32.put(out);
    (kind as u16 | if reply { REPLY_BIT } else { 0 }).put(out);
    flags.put(out);
    id.put(out);
}

/// Completes a frame started by [`begin`]: fills in its length.
pub fn finish(out: &mut [u8]) {
    let len = (out.len() as u32).to_le_bytes();
    out[..4].copy_from_slice(&len);
}
