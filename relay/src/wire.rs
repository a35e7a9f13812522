//! The protocol of the Unix socket: frames, and the blocking client's end of it.
//!
//! It may not know rings: what a frame carries is bytes.

pub mod frame;
pub mod socket;
