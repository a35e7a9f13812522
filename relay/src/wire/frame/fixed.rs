//! Bodies that are a list of numbers. Each list here is documentation, layout and code.

use super::fields::{Fields, Number};
use super::{Body, FrameError, FrameType};

/// Makes a struct and its [`Body`] from a list of numbers.
/// The list begins with `KIND request` or `KIND reply`; the fields follow in their order.
macro_rules! bodies {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:ident $role:ident $what:literal {
            $($(#[$field_doc:meta])* $field:ident: $number:ty,)*
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $number,)*
        }

        impl Body<'_> for $name {
            const KIND: FrameType = FrameType::$kind;
            const REPLY: bool = bodies!(@$role);

            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }

            fn decode(body: &[u8]) -> Result<Self, FrameError> {
                Fields::all(body, $what, |fields| Some($name { $($field: fields.number()?,)* }))
            }
        }
    )*};
    (@request) => { false };
    (@reply) => { true };
}

bodies! {
    /// The opened channel, with its real geometry.
    OpenReply: Open reply "open reply" {
        /// Number of the channel in later frames of this connection.
        channel: u32,
        /// Size of a sub-buffer in bytes.
        subbuf_size: u32,
        /// Number of sub-buffers.
        n_subbufs: u32,
        /// Zeroed bytes at the start of each sub-buffer.
        header: u32,
        /// 1 no-overwrite, 2 overwrite; and 0x10 timed.
        mode: u8,
        /// 1 one buffer for each CPU, 2 global.
        scope: u8,
        /// 1 if this request created the channel.
        created: u16,
        /// Number of buffers: the number of CPUs, or 1.
        n_bufs: u32,
    }

    /// The results for the messages of a `WRITE`.
    WriteReply: Write reply "write reply" {
        /// Messages now in the buffer.
        written: u64,
        /// Messages dropped because every sub-buffer was full.
        dropped: u64,
        /// Messages dropped because no sub-buffer can ever hold them.
        too_big: u64,
    }

    /// Asks to finish current sub-buffers.
    Flush: Flush request "flush" {
        /// The channel's number.
        channel: u32,
        /// The CPU of the buffer, or [`ALL_CPUS`](super::ALL_CPUS).
        cpu: u32,
    }

    /// Gives a channel back.
    Close: Close request "close" {
        /// The channel's number.
        channel: u32,
    }

    /// Asks for a channel's files.
    Share: Share request "share" {
        /// The channel's number.
        channel: u32,
    }

    /// Brings some of a channel's files.
    ShareReply: Share reply "share reply" {
        /// Version of the files' layout, [`crate::layout::abi::LAYOUT_VERSION`].
        layout_version: u32,
        /// Number of the first data file that comes with this reply.
        first: u32,
        /// Number of data files that come with this reply.
        count: u32,
    }

    /// Asks for one ring of the bell once a buffer has a finished sub-buffer.
    Watch: Watch request "watch" {
        /// The channel's number.
        channel: u32,
        /// The CPU of the buffer.
        cpu: u32,
    }

    /// What the process is called in the channel, and which clock stamps its records.
    AttachReply: Attach reply "attach reply" {
        /// Number of the process in the channel, 1 and up.
        process: u32,
        /// Number of the clock, see [`crate::clock::Clock`].
        clock: u32,
        /// Number of the process in the daemon's PID namespace; 0 if the daemon does not know it.
        pid: u32,
        /// Zero.
        reserved: u32,
    }

    /// The id of a defined event.
    DefineReply: Define reply "define reply" {
        /// 256 and up; the same for the same definition.
        id: u32,
    }

    /// Asks for a timed channel's file of levels.
    Levels: Levels request "levels" {
        /// The channel's number.
        channel: u32,
    }

    /// Brings the file of levels.
    LevelsReply: Levels reply "levels reply" {
        /// Version of the file's layout, [`crate::layout::levels::LEVELS_VERSION`].
        layout_version: u32,
    }

    /// Gives sub-buffers back.
    Consume: Consume request "consume" {
        /// The channel's number.
        channel: u32,
        /// The CPU of the buffer.
        cpu: u32,
        /// Number of the first of these sub-buffers since the channel was created.
        from: u64,
        /// Number of sub-buffers.
        count: u64,
    }
}

impl WriteReply {
    /// Returns the number of messages that were written or dropped.
    ///
    /// Less than the frame has: the rest is handed back, see [`WRITE_HAND_BACK`](super::WRITE_HAND_BACK). The numbers
    /// are a peer's, so the sum ends at the largest number.
    pub fn total(&self) -> u64 {
        self.written.saturating_add(self.dropped).saturating_add(self.too_big)
    }
}
