//! The socket protocol: frames on a `SOCK_SEQPACKET` Unix socket, one frame a packet, little-endian.
//!
//! ```text
//! frame    u32 len (whole frame)   u16 type   u16 flags   u32 id   body
//!
//! HELLO    [u8; 8] magic   u16 min version   u16 max version   u32 zero   u64 features
//! reply    [u8; 8] magic   u16 version   u16 zero   u32 frame_max   u32 message_max   u32 n_cpus   u64 features
//! OPEN     u32 subbuf_size   u32 n_subbufs   u32 header   u8 mode   u8 scope   u16 name length   name
//! reply    u32 channel   u32 subbuf_size   u32 n_subbufs   u32 header   u8 mode   u8 scope   u16 created   u32 n_bufs
//! WRITE    u32 channel   u32 cpu   u32 wait_ms   u32 lost   then messages, each u32 length and its bytes
//! reply    u64 written   u64 dropped   u64 too_big
//! FLUSH    u32 channel   u32 cpu or ALL_CPUS
//! reply    empty
//! CLOSE    u32 channel
//! reply    empty
//! SHARE    u32 channel
//! reply    u32 layout version   u32 first   u32 count   with descriptors
//! WATCH    u32 channel   u32 cpu
//! reply    empty
//! CONSUME  u32 channel   u32 cpu   u64 from   u64 count
//! reply    empty
//! ERROR    u32 errno   text (UTF-8)
//! ```
//!
//! `SHARE` asks for the channel's files, to write them directly. Its replies, all with its id, bring descriptors: the
//! first the control file and the bell (an eventfd of this connection; a reader's is a timer), then, as do further ones, data files number
//! `first` to `first + count - 1`; the last brings the last file. With [`SHARE_READ`] they can only be read, and the bell is
//! rung by the daemon: once after each `WATCH`, when its buffer has finished sub-buffers or is over. `CONSUME` gives
//! `count` of them back, if the first is number `from`.
//!
//! A reply has its request's type with [`REPLY_BIT`] set and the request's id; a refusal is an `ERROR` with that
//! id. Every request is answered but `WRITE`, which is answered only if [`WRITE_REPLY`] is set.

mod shape;

use thiserror::Error;

/// Largest frame, header included, in bytes. Senders stay below the packet limit of an untuned system.
pub const FRAME_MAX: usize = 64 << 10;
/// Length of the header before every body, in bytes.
pub const HEADER_LEN: usize = 12;
/// First bytes of `HELLO` and its reply.
pub const MAGIC: [u8; 8] = *b"relayfs\n";
/// The version of this protocol; peers agree on the highest that both speak.
pub const VERSION: u16 = 1;
/// Longest text of an `ERROR`, in bytes; longer ones are cut.
pub const ERROR_TEXT_MAX: usize = 4096;

/// Set in the type of a reply.
pub const REPLY_BIT: u16 = 0x8000;
/// Flag of `SHARE`: to read the files, not to write them.
pub const SHARE_READ: u16 = 1;
/// Flag of `OPEN`: create the channel if there is none of that name.
pub const OPEN_CREATE: u16 = 1;
/// Flag of `WRITE`: answer when every message is written or dropped.
pub const WRITE_REPLY: u16 = 1;
/// Flag of `WRITE`: the frame's only message is longer than the frame and goes on in the next frame of this id,
/// whose body, after the same fixed part, is just more bytes.
pub const WRITE_MORE: u16 = 2;

/// Most descriptors that come with one frame.
pub const DESCRIPTORS_MAX: usize = 32;

/// `cpu` of a `FLUSH` that means every buffer.
pub const ALL_CPUS: u32 = u32::MAX;
/// `wait_ms` of a `WRITE` that waits for room as long as it takes.
pub const WAIT_FOREVER: u32 = u32::MAX;
/// `header` of an `OPEN` that leaves it to the daemon; for sizes and counts 0 does that.
pub const HEADER_DEFAULT: u32 = u32::MAX;

/// Length of a `WRITE`'s fixed part, in bytes.
pub const WRITE_FIXED_LEN: usize = 16;
/// Bytes before each message in a `WRITE`.
pub const MESSAGE_PREFIX_LEN: usize = 4;
/// Room for messages, each with its prefix, in one `WRITE`.
pub const WRITE_ROOM: usize = FRAME_MAX - HEADER_LEN - WRITE_FIXED_LEN;

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
        let (Some(len), Some(kind), Some(flags), Some(id)) =
            (fields.u32(), fields.u16(), fields.u16(), fields.u32())
        else {
            return Err((0, FrameError::Short(packet.len())));
        };
        if len as usize != packet.len() || packet.len() > FRAME_MAX {
            return Err((id, FrameError::Length { said: len as usize, got: packet.len() }));
        }
        let known = FrameType::from_wire(kind & !REPLY_BIT).ok_or((id, FrameError::UnknownType(kind)))?;
        Ok(Frame { kind: known, reply: kind & REPLY_BIT != 0, flags, id, body: fields.0 })
    }
}

/// Starts a frame in `out`, which is emptied; [`finish`] completes it.
pub fn begin(out: &mut Vec<u8>, kind: FrameType, reply: bool, flags: u16, id: u32) {
    out.clear();
    out.extend_from_slice(&[0; 4]);
    let kind = kind as u16 | if reply { REPLY_BIT } else { 0 };
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
}

/// Completes a frame begun with [`begin`]: fills in its length.
pub fn finish(out: &mut [u8]) {
    let len = (out.len() as u32).to_le_bytes();
    out[..4].copy_from_slice(&len);
}

/// A body that can be written and read.
pub trait Body<'a>: Sized {
    /// The type of the frames with this body.
    const KIND: FrameType;
    /// Whether it is the body of a reply.
    const REPLY: bool;
    /// Appends the body to a frame.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads the body of a frame.
    fn decode(body: &'a [u8]) -> Result<Self, FrameError>;

    /// A whole frame with this body.
    fn frame(&self, flags: u16, id: u32) -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out, Self::KIND, Self::REPLY, flags, id);
        self.encode(&mut out);
        finish(&mut out);
        out
    }
}

/// First request of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version the producer speaks.
    pub min_version: u16,
    /// Highest version the producer speaks.
    pub max_version: u16,
    /// Feature bits the producer knows; none are defined yet.
    pub features: u64,
}

impl Body<'_> for Hello {
    const KIND: FrameType = FrameType::Hello;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.min_version.to_le_bytes());
        out.extend_from_slice(&self.max_version.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.features.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields(body);
        fields.all("hello", |f| {
            f.magic()?;
            let hello =
                Hello { min_version: f.u16()?, max_version: f.u16()?, features: (f.u32()?, f.u64()?).1 };
            Some(hello)
        })
    }
}

/// What the daemon says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloReply {
    /// The version that both sides use from now on.
    pub version: u16,
    /// Largest frame the daemon takes, in bytes.
    pub frame_max: u32,
    /// Longest message the daemon takes, in bytes.
    pub message_max: u32,
    /// Number of configured CPUs.
    pub n_cpus: u32,
    /// Feature bits that both sides know; none are defined yet.
    pub features: u64,
}

impl Body<'_> for HelloReply {
    const KIND: FrameType = FrameType::Hello;
    const REPLY: bool = true;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.frame_max.to_le_bytes());
        out.extend_from_slice(&self.message_max.to_le_bytes());
        out.extend_from_slice(&self.n_cpus.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields(body);
        fields.all("hello reply", |f| {
            f.magic()?;
            let version = (f.u16()?, f.u16()?).0;
            Some(HelloReply {
                version,
                frame_max: f.u32()?,
                message_max: f.u32()?,
                n_cpus: f.u32()?,
                features: f.u64()?,
            })
        })
    }
}

/// Asks for a channel. A zero (for `header`, [`HEADER_DEFAULT`]) leaves a value to the daemon; the geometry counts
/// only if the channel is created.
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
        let mut fields = Fields(body);
        fields.all("open", |f| {
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
        let mut fields = Fields(body);
        fields.all("open reply", |f| {
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

/// Messages for one buffer. `messages` is checked by whoever walks it, see [`Messages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// The channel's number from [`OpenReply`].
    pub channel: u32,
    /// The CPU whose buffer is meant; ignored by global channels.
    pub cpu: u32,
    /// How long to wait for room, in milliseconds: 0 not at all, [`WAIT_FOREVER`] as long as it takes.
    pub wait_ms: u32,
    /// Messages the producer had to drop since its last frame, because the socket was full.
    pub lost: u32,
    /// Messages, each with its length before it; or a piece of one, see [`WRITE_MORE`].
    pub messages: &'a [u8],
}

impl<'a> Body<'a> for Write<'a> {
    const KIND: FrameType = FrameType::Write;
    const REPLY: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        for value in [self.channel, self.cpu, self.wait_ms, self.lost] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(self.messages);
    }

    fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Fields(body);
        fields.all("write", |f| {
            let (channel, cpu, wait_ms, lost) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
            Some(Write { channel, cpu, wait_ms, lost, messages: std::mem::take(&mut f.0) })
        })
    }
}

/// Walks the messages of a `WRITE`. A length that exceeds what is left ends the walk with an error.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<&'a [u8], FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut fields = Fields(self.0);
        let message = fields.u32().and_then(|len| fields.bytes(len as usize));
        self.0 = if message.is_some() { fields.0 } else { &[] };
        Some(message.ok_or(FrameError::Malformed("write")))
    }
}

/// What became of the messages of a `WRITE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteReply {
    /// Messages now in the buffer.
    pub written: u64,
    /// Messages dropped because every sub-buffer was full.
    pub dropped: u64,
    /// Messages dropped because no sub-buffer could ever hold them.
    pub too_big: u64,
}

impl Body<'_> for WriteReply {
    const KIND: FrameType = FrameType::Write;
    const REPLY: bool = true;

    fn encode(&self, out: &mut Vec<u8>) {
        for value in [self.written, self.dropped, self.too_big] {
            out.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields(body);
        fields.all("write reply", |f| {
            Some(WriteReply { written: f.u64()?, dropped: f.u64()?, too_big: f.u64()? })
        })
    }
}

/// Asks to finish current sub-buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// The channel's number.
    pub channel: u32,
    /// The CPU whose buffer is meant, or [`ALL_CPUS`].
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
        let mut fields = Fields(body);
        fields.all("flush", |f| Some(Flush { channel: f.u32()?, cpu: f.u32()? }))
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
        let mut fields = Fields(body);
        fields.all("close", |f| Some(Close { channel: f.u32()? }))
    }
}

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
        let mut fields = Fields(body);
        fields.all("share", |f| Some(Share { channel: f.u32()? }))
    }
}

/// Brings some of a channel's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareReply {
    /// Version of the files' layout, [`crate::abi::LAYOUT_VERSION`].
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
        let mut fields = Fields(body);
        fields.all("share reply", |f| {
            Some(ShareReply { layout_version: f.u32()?, first: f.u32()?, count: f.u32()? })
        })
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
        let mut fields = Fields(body);
        fields.all("watch", |f| Some(Watch { channel: f.u32()?, cpu: f.u32()? }))
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
        let mut fields = Fields(body);
        fields.all("consume", |f| {
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
        let mut fields = Fields(body);
        fields.all("error", |f| {
            let errno = f.u32()?.cast_signed();
            let text = std::mem::take(&mut f.0);
            Some(Refusal { errno, text: String::from_utf8_lossy(text).into_owned() })
        })
    }
}

/// What is left to read of a frame.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn magic(&mut self) -> Option<()> {
        (self.array()? == MAGIC).then_some(())
    }

    /// Runs `read` and insists that it used up everything: bytes beyond a body are as wrong as missing ones.
    fn all<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Fields<'a>) -> Option<T>,
    ) -> Result<T, FrameError> {
        read(self).filter(|_| self.0.is_empty()).ok_or(FrameError::Malformed(what))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    fn round_trip<'a, B: Body<'a> + PartialEq + Debug>(body: &B, frame: &'a [u8]) {
        let decoded = Frame::decode(frame).unwrap();
        assert_eq!((decoded.kind, decoded.reply), (B::KIND, B::REPLY));
        assert_eq!((decoded.flags, decoded.id), (5, 77));
        assert_eq!(&B::decode(decoded.body).unwrap(), body);
        for end in 0..decoded.body.len().min(24) {
            // Whatever a cut body decodes to, it is not this one, and nothing panics.
            assert_ne!(B::decode(&decoded.body[..end]).ok().as_ref(), Some(body));
        }
    }

    #[test]
    fn every_body_survives_the_round_trip() {
        macro_rules! check {
            ($($body:expr),* $(,)?) => { $( let body = $body; round_trip(&body, &body.frame(5, 77)); )* };
        }
        check!(
            Hello { min_version: 1, max_version: 3, features: 1 << 40 },
            HelloReply { version: 1, frame_max: 65536, message_max: 1 << 20, n_cpus: 8, features: 0 },
            Open {
                subbuf_size: 8192,
                n_subbufs: 2,
                header: HEADER_DEFAULT,
                mode: 2,
                scope: 1,
                name: b"app/log"
            },
            OpenReply {
                channel: 4,
                subbuf_size: 1,
                n_subbufs: 2,
                header: 3,
                mode: 1,
                scope: 2,
                created: 1,
                n_bufs: 9
            },
            Write { channel: 1, cpu: 2, wait_ms: 3, lost: 4, messages: b"\x01\0\0\0x" },
            WriteReply { written: 1, dropped: 2, too_big: 3 },
            Flush { channel: 1, cpu: ALL_CPUS },
            Close { channel: 9 },
            Share { channel: 9 },
            ShareReply { layout_version: 1, first: 30, count: 2 },
            Watch { channel: 9, cpu: 1 },
            Consume { channel: 9, cpu: 1, from: u64::MAX, count: 3 },
            Refusal { errno: 2, text: "no channel 'ä'".into() },
        );
    }

    /// The bytes on the wire, as `DESIGN.md` draws them.
    #[test]
    fn a_frame_to_the_byte() {
        let frame = Write { channel: 1, cpu: 2, wait_ms: 0, lost: 3, messages: b"\x02\0\0\0hi" }
            .frame(WRITE_REPLY, 7);
        let expected: &[u8] =
            b"\x22\0\0\0\x03\0\x01\0\x07\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x02\0\0\0hi";
        assert_eq!(frame, expected);
    }

    #[test]
    fn broken_packets_are_told_apart() {
        assert_eq!(Frame::decode(b"abc"), Err((0, FrameError::Short(3))));
        let mut frame = Close { channel: 1 }.frame(0, 9);
        frame.push(0);
        assert_eq!(Frame::decode(&frame), Err((9, FrameError::Length { said: 16, got: 17 })));
        frame.pop();
        frame[4] = 0x44;
        assert_eq!(Frame::decode(&frame), Err((9, FrameError::UnknownType(0x44))));
        assert_eq!(Close::decode(b"12345"), Err(FrameError::Malformed("close")));
    }

    #[test]
    fn messages_are_walked_and_bad_lengths_end_the_walk() {
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
