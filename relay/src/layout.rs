//! Geometry, names, positions, the control file, the state directory and its state file.
//!
//! This room has numbers, offsets and names. Every other room may use it. It may not know how bytes get there.

pub mod abi;
#[cfg(not(loom))]
pub mod channel_files;
pub mod channel_name;
pub mod geometry;
#[cfg(not(loom))]
pub mod levels;
#[cfg(not(loom))]
pub mod mount_point;
pub mod paths;
pub mod position;
#[cfg(not(loom))]
pub mod state_file;
