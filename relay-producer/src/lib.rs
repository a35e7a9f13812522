//! Writes messages into the channels of a relayfs mount.
//!
//! ```no_run
//! let channel = relay_producer::Channel::open("/mnt/relay", "cpu")?;
//! channel.write(b"Hello world\n")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A message of a process that the daemon trusts is written straight into the channel's buffers, which it shares with
//! the daemon: a few nanoseconds, and no system call. Everybody else's goes through a socket, by the same calls.
//! [`Channel::transport`] says which it is, [`Channel::why_socket`] why.
//!
//! [`Channel::write`] never waits: a message for which there is no room is dropped, and counted. Who would rather know
//! what became of every message, or wait for room, writes batches:
//!
//! ```no_run
//! use relay_producer::{BatchOptions, Channel, Wait};
//!
//! let channel = Channel::builder("/mnt/relay", "app/log").create(true).open()?;
//! let counts = channel.write_batch(["one\n", "two\n"], BatchOptions { wait: Wait::Forever, ..Default::default() })?;
//! assert_eq!(counts.written, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A write never raises SIGPIPE and never panics; what it returns when the daemon goes away is said at [`Channel`].

mod batch;
mod builder;
mod channel;
mod direct;
mod error;
mod options;
mod socket;
mod transport;

pub use batch::{Batch, DaemonEvent};
pub use builder::Builder;
pub use channel::Channel;
pub use direct::appender::Appender;
pub use direct::buffers::DIRECT_MAX;
pub use error::{BatchError, NoSuchCpu, OpenError, RequestError, WriteError};
pub use options::{BatchOptions, Counts, Wait};
pub use relay::ring::subbuf_start::{START_MAX, SubbufHeader, SubbufInfo};
pub use relay::wire::socket::{ConnectError, Refused};
pub use relay::{Geometry, GeometrySpec, Mode};
pub use transport::{Transport, TransportChoice};
