//! The relay channel of relayfs: what the daemon, the producers and the readers agree on.
//!
//! A *channel* is one *buffer* for each CPU; a buffer is a ring of *sub-buffers*. Writers append to the
//! buffer of their CPU, the daemon reads. The words, and what they mean, are the kernel's
//! (`Documentation/filesystems/relay.rst`); `relay/docs/` has the layout and the rules.
//!
//! This crate knows neither FUSE nor threads nor, but for how to complain of them, command lines.

pub mod cli;
pub mod layout;
pub mod memory;
pub mod ring;
pub mod system;
pub mod wire;

pub use layout::channel_name::{ChannelName, NameError};
pub use layout::geometry::{Geometry, GeometryError, GeometrySpec, Mode};
