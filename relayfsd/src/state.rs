//! The state directory: what survives a daemon, and how the next daemon takes it over.
//!
//! `daemon` locks the directory with `takeover.rs`, recovers its channels and hands them to `registry`, which also
//! writes the state file. `socket` uses `state_dir.rs` for its own directory. The room checks mounts with `mount`, maps
//! files with `channel`, asks `config` what to keep, and `process` whether a limit is behind an error. It may not know
//! the registry, the writers, FUSE, the tree, or the socket.

pub(crate) mod end_report;
pub(crate) mod moved;
pub(crate) mod recovery;
pub(crate) mod state_dir;
pub(crate) mod takeover;
