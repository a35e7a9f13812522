//! ATTACH: makes the connection's process known in a timed channel.

use super::fields::{Fields, Number};
use super::{Body, FrameError, FrameType};

/// Attaches the connection's process to a timed channel, once behind its `OPEN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach<'a> {
    /// The channel's number.
    pub channel: u32,
    /// The path of its executable, as the process says; empty if it does not. A daemon may not be allowed to look.
    pub executable: &'a [u8],
}

impl<'a> Body<'a> for Attach<'a> {
    const KIND: FrameType = FrameType::Attach;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        self.channel.put(out);
        out.extend_from_slice(self.executable);
    }

    fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        Fields::all(body, "attach", |f| Some(Attach { channel: f.number()?, executable: f.rest() }))
    }
}
