//! Requests that change something and bring nothing back, FLUSH, CLOSE, WATCH and CONSUME, and what they are answered.

use super::fields::Fields;
use super::{Body, ERROR_TEXT_MAX, FrameError, FrameType, begin, finish};

/// Asks to finish current sub-buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// The channel's number.
    pub channel: u32,
    /// The CPU whose buffer is meant, or [`ALL_CPUS`](super::ALL_CPUS).
    pub cpu: u32,
}

impl Body<'_> for Flush {
    const KIND: FrameType = FrameType::Flush;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.channel.to_le_bytes());
        out.extend_from_slice(&self.cpu.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "flush", |f| Some(Flush { channel: f.u32()?, cpu: f.u32()? }))
    }
}

/// Gives a channel back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// The channel's number.
    pub channel: u32,
}

impl Body<'_> for Close {
    const KIND: FrameType = FrameType::Close;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.channel.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "close", |f| Some(Close { channel: f.u32()? }))
    }
}

/// Asks for one ring of the bell when a buffer has something finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The channel's number.
    pub channel: u32,
    /// Whose buffer.
    pub cpu: u32,
}

impl Body<'_> for Watch {
    const KIND: FrameType = FrameType::Watch;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.channel.to_le_bytes());
        out.extend_from_slice(&self.cpu.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "watch", |f| Some(Watch { channel: f.u32()?, cpu: f.u32()? }))
    }
}

/// Gives sub-buffers back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consume {
    /// The channel's number.
    pub channel: u32,
    /// Whose buffer.
    pub cpu: u32,
    /// Number of the first of them since the channel was created.
    pub from: u64,
    /// How many.
    pub count: u64,
}

impl Body<'_> for Consume {
    const KIND: FrameType = FrameType::Consume;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.channel.to_le_bytes());
        out.extend_from_slice(&self.cpu.to_le_bytes());
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "consume", |f| {
            Some(Consume { channel: f.u32()?, cpu: f.u32()?, from: f.u64()?, count: f.u64()? })
        })
    }
}

/// A whole reply that says nothing but "done", for `FLUSH`, `CLOSE`, `WATCH` and `CONSUME`.
pub fn done(kind: FrameType, id: u32) -> Vec<u8> {
    let mut out = Vec::new();
    begin(&mut out, kind, true, 0, id);
    finish(&mut out);
    out
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// An errno.
    pub errno: i32,
    /// For people: what, on what, why, what to do.
    pub text: String,
}

impl Body<'_> for Refusal {
    const KIND: FrameType = FrameType::Error;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.errno.to_le_bytes());
        let end = self.text.floor_char_boundary(ERROR_TEXT_MAX);
        out.extend_from_slice(&self.text.as_bytes()[..end]);
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "error", |f| {
            let errno = f.u32()?.cast_signed();
            let text = f.rest();
            Some(Refusal { errno, text: String::from_utf8_lossy(text).into_owned() })
        })
    }
}
