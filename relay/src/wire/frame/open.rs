//! OPEN: attaches to a channel or creates it.

use super::fields::{Fields, Number};
use super::{Body, FrameError, FrameType};

/// Asks for a channel. The geometry counts only if the request creates the channel.
/// A zero leaves a value to the daemon; for `header` that is [`HEADER_DEFAULT`](super::HEADER_DEFAULT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open<'a> {
    /// Size of a sub-buffer in bytes.
    pub subbuf_size: u32,
    /// Number of sub-buffers.
    pub n_subbufs: u32,
    /// Zeroed bytes at the start of each sub-buffer.
    pub header: u32,
    /// 1 no-overwrite, 2 overwrite; and 0x10 timed, or 0x20 raw.
    pub mode: u8,
    /// 1 one buffer for each CPU, 2 global.
    pub scope: u8,
    /// The channel's name, unchecked.
    pub name: &'a [u8],
}

impl<'a> Body<'a> for Open<'a> {
    const KIND: FrameType = FrameType::Open;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        [self.subbuf_size, self.n_subbufs, self.header].into_iter().for_each(|number| number.put(out));
        [self.mode, self.scope].into_iter().for_each(|number| number.put(out));
        (self.name.len() as u16).put(out);
        out.extend_from_slice(self.name);
    }

    fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        Fields::all(body, "open", |f| {
            let (subbuf_size, n_subbufs, header) = (f.number()?, f.number()?, f.number()?);
            let (mode, scope, len): (u8, u8, u16) = (f.number()?, f.number()?, f.number()?);
            Open::is_known(mode, scope).then_some(())?;
            Some(Open { subbuf_size, n_subbufs, header, mode, scope, name: f.bytes(len.into())? })
        })
    }
}
