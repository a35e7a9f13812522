//! OPEN, which attaches to a channel or creates it, and its reply.

use super::fields::Fields;
use super::{Body, FrameError, FrameType};

/// Asks for a channel. A zero (for `header`, [`HEADER_DEFAULT`](super::HEADER_DEFAULT)) leaves a value to the daemon;
/// the geometry counts only if the channel is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open<'a> {
    /// Size of a sub-buffer in bytes.
    pub subbuf_size: u32,
    /// Number of sub-buffers.
    pub n_subbufs: u32,
    /// Zeroed bytes at the start of each sub-buffer.
    pub header: u32,
    /// 1 no-overwrite, 2 overwrite.
    pub mode: u8,
    /// 1 one buffer a CPU, 2 global.
    pub scope: u8,
    /// The channel's name, unchecked.
    pub name: &'a [u8],
}

impl<'a> Body<'a> for Open<'a> {
    const KIND: FrameType = FrameType::Open;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        for value in [self.subbuf_size, self.n_subbufs, self.header] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&[self.mode, self.scope]);
        out.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        out.extend_from_slice(self.name);
    }

    fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        Fields::all(body, "open", |f| {
            let (subbuf_size, n_subbufs, header) = (f.u32()?, f.u32()?, f.u32()?);
            let (mode, scope, len) = (f.u8()?, f.u8()?, f.u16()?);
            (mode <= 2 && scope <= 2).then_some(())?;
            Some(Open { subbuf_size, n_subbufs, header, mode, scope, name: f.bytes(len.into())? })
        })
    }
}

/// The channel that was opened, with its real geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReply {
    /// Number of the channel in later frames of this connection.
    pub channel: u32,
    /// Size of a sub-buffer in bytes.
    pub subbuf_size: u32,
    /// Number of sub-buffers.
    pub n_subbufs: u32,
    /// Zeroed bytes at the start of each sub-buffer.
    pub header: u32,
    /// 1 no-overwrite, 2 overwrite.
    pub mode: u8,
    /// 1 one buffer a CPU, 2 global.
    pub scope: u8,
    /// 1 if this request created the channel.
    pub created: u16,
    /// Number of buffers: the number of CPUs, or 1.
    pub n_bufs: u32,
}

impl Body<'_> for OpenReply {
    const KIND: FrameType = FrameType::Open;
    const REPLY: bool = true;

    fn encode(&self, out: &mut Vec<u8>) {
        for value in [self.channel, self.subbuf_size, self.n_subbufs, self.header] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&[self.mode, self.scope]);
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&self.n_bufs.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "open reply", |f| {
            Some(OpenReply {
                channel: f.u32()?,
                subbuf_size: f.u32()?,
                n_subbufs: f.u32()?,
                header: f.u32()?,
                mode: f.u8()?,
                scope: f.u8()?,
                created: f.u16()?,
                n_bufs: f.u32()?,
            })
        })
    }
}
