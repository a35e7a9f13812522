//! The relay channel of relayfs: what the daemon, the producers and the readers agree on.
//!
//! A *channel* is one *buffer* for each CPU; a buffer is a ring of *sub-buffers*. Writers append to the
//! buffer of their CPU, the daemon reads. The words, and what they mean, are the kernel's
//! (`Documentation/filesystems/relay.rst`); `DESIGN.md` has the layout and the rules.
//!
//! This crate knows neither FUSE nor threads nor, but for how to complain of them, command lines.

pub mod abi;
pub mod buffer;
pub mod client;
pub mod complaint;
pub mod cpus;
pub mod descriptor;
pub mod duration;
#[cfg(not(loom))]
pub mod files;
pub mod frame;
pub mod gate;
pub mod geometry;
pub mod lent;
pub mod mountinfo;
pub mod name;
pub mod paths;
#[cfg(not(loom))]
pub mod point;
pub mod position;
pub mod reader;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
pub mod rseq;
#[cfg_attr(loom, path = "shm_model.rs")]
pub mod shm;
pub mod signals;
pub mod size;
#[cfg(not(loom))]
pub mod state_file;
#[cfg(loom)]
pub mod steps_model;
pub mod sync;
#[cfg(not(loom))]
pub mod view;
pub mod wake;
pub mod writer;

pub use geometry::{Geometry, GeometryError, GeometrySpec, Mode};
pub use name::{ChannelName, NameError};
