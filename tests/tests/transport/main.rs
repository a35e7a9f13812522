//! How messages get from a producer into the buffers: by the socket, or directly.
//!
//! A test belongs here if its subject is the producer's library, `relay-producer`, or a frame.

mod producer;
mod shared;
mod shared_ends;
mod shared_writing;
mod socket;
mod socket_peers;
mod together;
mod unload;
