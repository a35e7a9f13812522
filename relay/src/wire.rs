//! The protocol of the Unix socket: frames, and the blocking client's end of the socket.
//!
//! The daemon and its clients call it. It may not know rings: a frame carries bytes.

pub mod frame;
pub mod socket;
