//! The Unix socket: connections of producers and of readers that map buffers.
//!
//! `daemon` creates the socket and starts the event loop, which owns every connection. A connection decodes frames and
//! calls `registry`, `channel` and `writers`; `policy` has its quotas, `state` the socket's directory, `process` the ends
//! of peers. The protocol is `relay::wire`. This room may not know FUSE, the tree or the mount.

pub(crate) mod attached;
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
