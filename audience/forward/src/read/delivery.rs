//! What a lane hands over to the main thread.

use std::sync::Arc;

use relay::trace::merge::Notice;
use relay::trace::packet::PacketHeader;

use super::room::Share;
use super::texts::{Dictionary, Processes};
use crate::message::SubBuffer;

/// What a lane hands over.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A sub-buffer that passed all checks.
    SubBuffer(Box<Arrived>),
    /// Something that stands before the next sub-buffer.
    Notice {
        /// What to say.
        notice: Notice,
        /// How many messages of the stream could not be used.
        n_refused: u64,
    },
    /// All messages that were in the stream at the start have come.
    End,
}

/// A sub-buffer from the stream.
#[derive(Debug)]
pub(super) struct Arrived {
    /// Identifies the channel: one that was created again has another.
    pub(super) instance: u64,
    /// Number of the sub-buffer.
    pub(super) number: u64,
    /// When the server stored its first part, in nanoseconds since 1970.
    pub(super) stored: i128,
    /// What the sub-buffer is.
    pub(super) of: SubBuffer,
    /// A packet, or the bytes of a raw channel.
    pub(super) bytes: Vec<u8>,
    /// The memory of the bytes.
    pub(super) share: Share,
    /// Of a timed channel.
    pub(super) timed: Option<Timed>,
}

/// What belongs to a packet.
#[derive(Debug)]
pub(super) struct Timed {
    /// The packet's header.
    pub(super) header: PacketHeader,
    /// The events; `None` if the stream does not have them.
    pub(super) dictionary: Option<Arc<Dictionary>>,
    /// The processes.
    pub(super) processes: Option<Arc<Processes>>,
}

/// Kinds of notices.
pub(super) mod kind {
    /// A message that no forwarder would write.
    pub(crate) const REFUSED: &str = "refused";
    /// Parts or texts that are not there.
    pub(crate) const INCOMPLETE: &str = "incomplete";
    /// Numbers that are not there.
    pub(crate) const MISSING: &str = "missing";
    /// Another channel of the same name begins.
    pub(crate) const RECREATED: &str = "recreated";
}

/// Returns a notice behind which the stream continues.
pub(super) fn notice(kind: &'static str, text: String) -> Notice {
    Notice { kind, text, restarts: false }
}
