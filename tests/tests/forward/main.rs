//! Channels in NATS JetStream: `relay-forward --to` with a real server, which is killed, full, split, or three.
//!
//! A test belongs here if it needs a server.

mod cluster;
mod errors;
mod followed;
mod killed;
mod order;
mod server;
mod stored;
