//! The daemon as a process: background, log, signals, privileges, limits of the machine.
//!
//! `main` and `daemon` call it while the daemon starts. `kill_point.rs` has the places where tests end the daemon; any
//! room may name one. `channel` asks how a reader ended (`killed.rs`), and frees large memory (`free_later.rs`).
//! `socket` follows processes to their end (`pidfd.rs`, `identity.rs`), and asks for their groups (`peer_groups.rs`).
//! This room may know only `config`: no channels, no tree, no socket, no state directory.

pub(crate) mod daemonize;
pub(crate) mod free_later;
pub(crate) mod host_limits;
pub(crate) mod identity;
pub(crate) mod kill_point;
pub(crate) mod killed;
pub(crate) mod logging;
pub(crate) mod peer_groups;
pub(crate) mod pidfd;
pub(crate) mod privileges;
pub(crate) mod signals;
