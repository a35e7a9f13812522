//! SHARE, which asks for a channel's files, and its reply.

use super::fields::Fields;
use super::{Body, FrameError, FrameType};

/// Asks for a channel's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The channel's number.
    pub channel: u32,
}

impl Body<'_> for Share {
    const KIND: FrameType = FrameType::Share;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.channel.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "share", |f| Some(Share { channel: f.u32()? }))
    }
}

/// Brings some of a channel's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareReply {
    /// Version of the files' layout, [`crate::layout::abi::LAYOUT_VERSION`].
    pub layout_version: u32,
    /// Number of the first data file that comes with this reply.
    pub first: u32,
    /// How many data files come with this reply.
    pub count: u32,
}

impl Body<'_> for ShareReply {
    const KIND: FrameType = FrameType::Share;
    const REPLY: bool = true;

    fn encode(&self, out: &mut Vec<u8>) {
        for value in [self.layout_version, self.first, self.count] {
            out.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Fields::all(body, "share reply", |f| {
            Some(ShareReply { layout_version: f.u32()?, first: f.u32()?, count: f.u32()? })
        })
    }
}
