//! The texts by which people and programs watch the daemon: `status` and `metrics`.
//!
//! `tree` shows them as files. The room finds channels in `registry`, and what it says of them in `channel`. It consumes
//! nothing, keeps nothing between two looks, and may not know the tree, FUSE, the socket or the writers.

pub(crate) mod metrics;
pub(crate) mod status;

mod exposition;

use std::time::{Duration, SystemTime};

/// What the texts say of the daemon besides its channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Daemon {
    /// When it began to serve the tree.
    pub(crate) started: SystemTime,
    /// For how long it has served it, whatever becomes of the machine's date.
    pub(crate) uptime: Duration,
    /// The files that processes have open.
    pub(crate) open_files: usize,
}
