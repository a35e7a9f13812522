//! The Unix socket: connections of producers and of readers that map buffers.
//!
//! `daemon` starts the event loop, which owns every connection; a connection takes frames apart and calls `registry`,
//! `channel` and `writers`. The protocol is `relay::wire`.
//! This room may not know FUSE or the tree.

pub(crate) mod backpressure;
pub(crate) mod connection;
pub(crate) mod context;
pub(crate) mod event_loop;
pub(crate) mod listener;
pub(crate) mod peer;
pub(crate) mod reassembly;
pub(crate) mod refusal;
pub(crate) mod requests;
pub(crate) mod watch;
