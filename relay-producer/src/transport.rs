//! The two ways into a buffer, and the choice between them.

use std::fmt;

/// How messages get into the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// Through a Unix socket: the daemon writes for us.
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

/// Which transport a channel is to be opened with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// Shared buffers where they are to be had, else the socket.
    #[default]
    Auto,
    /// Shared buffers, or it is an error.
    Shared,
    /// The socket.
    Socket,
}
