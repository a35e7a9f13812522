//! The relay channel of relayfs: code shared by daemon, producers and readers.
//!
//! A *channel* has one *buffer* for each CPU. A buffer is a ring of *sub-buffers*. Writers append to the buffer of
//! their CPU; the daemon reads. The terms are the kernel's (`Documentation/filesystems/relay.rst`). `relay/docs/` has the
//! layout and the rules.
//!
//! This crate does not know FUSE or threads. Of command lines it knows only sizes, durations and usage errors.

pub mod cli;
pub mod clock;
pub mod layout;
pub mod memory;
pub mod ring;
pub mod system;
pub mod trace;
pub mod wire;

pub use layout::channel_name::{ChannelName, NameError};
pub use layout::geometry::{Geometry, GeometryError, GeometrySpec, Mode};
