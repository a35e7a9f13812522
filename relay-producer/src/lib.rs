//! Writes messages into the channels of a relayfs mount.
//!
//! ```no_run
//! let channel = relay_producer::Channel::open("/mnt/relay", "cpu")?;
//! channel.write(b"Hello world\n")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In a process that the daemon trusts, a message is written straight into the channel's buffers, which the process
//! shares with the daemon. That takes a few nanoseconds and no system call. Other processes send over a socket: the API
//! is the same, only slower. [`Channel::transport`] says which of the two applies, [`Channel::why_socket`] says why.
//!
//! [`Channel::write`] never waits: a message without room is dropped and counted. To learn the result for every
//! message, or to wait for room, write batches:
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
//! A *timed* channel holds records with time stamps, in one order over all CPUs:
//!
//! ```no_run
//! use relay_producer::{Channel, Definition, Field, FieldType, Level, Value};
//!
//! let channel = Channel::builder("/mnt/relay", "app/trace").create(true).timed(true).open()?;
//! channel.log(Level::Info, "app::db", "connected")?;
//! let query = channel.define(Definition {
//!     name: "query".into(),
//!     level: Some(Level::Debug),
//!     target: module_path!().into(),
//!     file: file!().into(),
//!     line: line!(),
//!     fields: vec![Field { name: "rows".into(), kind: FieldType::U64 }],
//! })?;
//! query.write(&[Value::U64(3)])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A write never raises SIGPIPE and never panics. [`Channel`] says what a write returns when the daemon has gone away.

mod batch;
mod builder;
mod channel;
mod definitions;
mod direct;
mod error;
mod event;
mod first_thread;
mod frontend;
mod levels;
#[cfg(feature = "log")]
pub mod log;
mod options;
mod panic;
mod record;
mod route;
mod socket;
#[cfg(feature = "tracing")]
pub mod tracing;
mod transport;

pub use batch::{Batch, DaemonEvent};
pub use builder::Builder;
pub use channel::Channel;
pub use direct::appender::Appender;
pub use direct::buffers::DIRECT_MAX;
#[doc(hidden)] // for librelay alone
pub use direct::buffers::{DirectBuffers, Quick};
pub use error::{BatchError, NoSuchCpu, OpenError, RequestError, WriteError};
pub use event::Event;
pub use frontend::late::FrontendError;
pub use options::{BatchOptions, Counts, Wait};
pub use panic::panic_hook;
pub use relay::ring::subbuf_start::{START_MAX, SubbufHeader, SubbufInfo};
pub use relay::trace::definition::{Definition, DefinitionError, Field, FieldType, Value};
pub use relay::trace::directives::{Directives, DirectivesError};
pub use relay::trace::event::Stream;
pub use relay::trace::level::Level;
pub use relay::wire::socket::{ConnectError, Refused};
pub use relay::{Geometry, GeometrySpec, Mode};
pub use transport::{Transport, TransportChoice};
