//! The two ways into a buffer, and the choice between them.

use std::fmt;

/// The way of messages into the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// Through a Unix socket: the daemon writes on behalf of this process.
    Socket,
    /// By writing the buffers, which this process has mapped.
    Shared,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Socket => "socket",
            Transport::Shared => "shared",
        })
    }
}

/// The transport that a channel may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// Shared buffers if this process can have them, else the socket.
    #[default]
    Auto,
    /// Shared buffers only; opening fails without them.
    Shared,
    /// The socket only.
    Socket,
}
