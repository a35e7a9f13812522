//! How messages get from a producer into the buffers: by the socket, or directly.
//!
//! A test belongs here if its subject is the producer's library, `relay-producer`, or a frame.

mod frontends;
mod frontends_forked;
mod frontends_odd;
mod levels;
mod producer;
mod producer_library;
mod producer_waiting;
mod services;
mod shared;
mod shared_ends;
mod shared_writing;
mod socket;
mod socket_peers;
mod timed;
mod timed_clocks;
mod timed_direct;
mod timed_frames;
mod timed_order;
mod timed_processes;
mod together;
mod unload;
