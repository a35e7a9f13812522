//! The state directory: what survives a daemon, and how the next daemon takes it over.
//!
//! `daemon` has `takeover.rs` lock the directory, recovers its channels and hands them to the registry.
//! This room may not know FUSE, the tree, or the socket.

pub(crate) mod end_report;
pub(crate) mod moved;
pub(crate) mod recovery;
pub(crate) mod state_dir;
pub(crate) mod takeover;
