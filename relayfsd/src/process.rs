//! The daemon as a process: background, log, privileges, limits of the machine, and the places where tests end it.
//!
//! `main` and `daemon` call it while the daemon starts. Any room may name a kill point. `channel` asks how a reader
//! ended (`killed.rs`), and frees large memory (`free_later.rs`).
//! This room may not know channels, the tree, or the socket.

pub(crate) mod daemonize;
pub(crate) mod free_later;
pub(crate) mod host_limits;
pub(crate) mod kill_point;
pub(crate) mod killed;
pub(crate) mod logging;
pub(crate) mod privileges;
pub(crate) mod signals;
