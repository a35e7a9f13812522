//! Channels in NATS JetStream: `relay-forward --to` with a real server, which is killed, full, split, or three.
//!
//! A test belongs here if it needs a server.

mod cluster;
mod credentials;
mod errors;
mod followed;
mod foreign;
mod gone;
mod halted;
mod jwt;
mod killed;
mod late;
mod late_text;
mod lost;
mod on_way;
mod order;
mod removed;
mod reset;
mod rights;
mod server;
mod split;
mod stands_still;
mod start;
mod stored;
mod texts;
mod tls;
mod way;
mod window;
