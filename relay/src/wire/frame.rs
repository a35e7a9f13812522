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
//! ATTACH   u32 channel   path of the executable, to the end
//! reply    u32 process   u32 clock   u64 zero
//! DEFINE   u32 channel   u8 level   u8 zero   u16 fields   u32 line   name   target   file   then the fields
//!          a text is u16 length and bytes; a field is u8 type   u8 zero   name
//! reply    u32 id
//! LEVELS   u32 channel
//! reply    u32 layout version   with a descriptor
//! ERROR    u32 errno   text (UTF-8)
//! ```
//!
//! `SHARE` asks for the channel's files, to write them directly. Its replies all have its id, and bring descriptors.
//! The first reply begins with the control file and the bell, an eventfd of this connection. Data files follow, and
//! further replies bring more: numbers `first` to `first + count - 1`. The last reply brings the last file.
//!
//! With [`SHARE_READ`] the files can only be read, and the bell is a timer that the daemon rings. It rings once after
//! each `WATCH`, when the buffer has finished sub-buffers or the channel has ended. `CONSUME` gives `count` sub-buffers
//! back, if the first is number `from`.
//!
//! `ATTACH`, `DEFINE` and `LEVELS` are for timed channels alone. There a message of a `WRITE` is a record without its
//! stamp: the head of 8 bytes, then the payload. The file that `LEVELS` brings can only be read.
//!
//! A reply has its request's type with [`REPLY_BIT`] set, and the request's id. A refusal is an `ERROR` with that id.
//! The daemon answers every request; a `WRITE` only if [`WRITE_REPLY`] is set. With [`WRITE_HAND_BACK`] too, a daemon
//! that ends may count fewer messages than the frame has. The others are the producer's again.

mod answer;
mod attach;
mod define;
mod fields;
mod fixed;
mod hello;
mod open;
mod packet;
mod shape;
#[cfg(test)]
mod tests;
mod write;

pub use answer::{Refusal, done};
pub use attach::Attach;
pub use define::{Define, DefineField};
pub use fields::Body;
pub use fixed::{
    AttachReply, Close, Consume, DefineReply, Flush, Levels, LevelsReply, OpenReply, Share, ShareReply,
    Watch, WriteReply,
};
pub use hello::{Hello, HelloReply};
pub use open::Open;
pub use packet::{Frame, FrameError, FrameType, begin, finish};
pub use write::{Messages, Write};

/// Largest frame, header included, in bytes.
/// It stays below the packet limit of an untuned system.
pub const FRAME_MAX: usize = 64 << 10;
/// Length of the header before every body, in bytes.
pub const HEADER_LEN: usize = 12;
/// First bytes of `HELLO` and its reply.
pub const MAGIC: [u8; 8] = *b"relayfs\n";
/// The version of this protocol; peers agree on the highest that both speak.
pub const VERSION: u16 = 1;
/// Longest text of an `ERROR`, in bytes; senders cut longer texts.
pub const ERROR_TEXT_MAX: usize = 4096;

/// Longest answer of a daemon, in bytes: a refusal with the longest text.
pub const ANSWER_MAX: usize = HEADER_LEN + 4 + ERROR_TEXT_MAX;

/// Set in the type of a reply.
pub const REPLY_BIT: u16 = 0x8000;
/// Flag of `SHARE`: for reading the files only.
pub const SHARE_READ: u16 = 1;
/// Flag of `OPEN`: create the channel if it does not exist.
pub const OPEN_CREATE: u16 = 1;
/// Flag of `OPEN`: the sender writes. A daemon with `--create-on-write` creates the channel if it does not exist.
/// A daemon of an older release ignores the flag.
pub const OPEN_WRITE: u16 = 2;
/// Flag of `WRITE`: answer once every message is written or dropped.
pub const WRITE_REPLY: u16 = 1;
/// Flag of `WRITE`: the only message of the frame continues in the next frame of this id.
/// The body of that frame has the same fixed part, followed by more bytes of the message.
pub const WRITE_MORE: u16 = 2;
/// Flag of `WRITE`: hand messages back that still wait for room when the daemon ends.
/// The reply then counts fewer messages than the frame has. The others, its last ones, are the producer's again.
/// A daemon of an older release ignores the flag, and drops them.
pub const WRITE_HAND_BACK: u16 = 4;

/// Most descriptors in one frame.
pub const DESCRIPTORS_MAX: usize = 32;
/// Descriptors before the data files in the first reply to `SHARE`: control file and bell.
pub const SHARE_FIRST_EXTRA: usize = 2;

/// `cpu` of a `FLUSH` that means every buffer.
pub const ALL_CPUS: u32 = u32::MAX;
/// `wait_ms` of a `WRITE` that waits for room without a limit.
pub const WAIT_FOREVER: u32 = u32::MAX;
/// `header` of an `OPEN` that leaves the value to the daemon; sizes and counts use 0.
pub const HEADER_DEFAULT: u32 = u32::MAX;

/// Length of a `WRITE`'s fixed part, in bytes.
pub const WRITE_FIXED_LEN: usize = 16;
/// Bytes before each message in a `WRITE`.
pub const MESSAGE_PREFIX_LEN: usize = 4;
/// Room for messages, each with its prefix, in one `WRITE`.
pub const WRITE_ROOM: usize = FRAME_MAX - HEADER_LEN - WRITE_FIXED_LEN;
