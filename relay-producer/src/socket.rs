//! The connection to the daemon: handshake, files, frames, replies, finding the next daemon.
//!
//! `channel` and `batch` call it. It may not decide by which transport a message goes.

pub(crate) mod connection;
pub(crate) mod follow;
pub(crate) mod handshake;
pub(crate) mod receive_files;
pub(crate) mod reconnect;
mod renamed;
pub(crate) mod replies;
pub(crate) mod write_frame;
