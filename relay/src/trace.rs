//! Records of timed channels outside the ring: packets, events, CTF text, merging and printing.
//!
//! The daemon makes packets and CTF text, readers parse and print them. Everything here gets bytes that a hostile
//! process may have written: it checks, shows what can be shown, and never panics. `relay/docs/TIMED.md` has the
//! formats. The room may not know buffers, files or the protocol.

pub mod definition;
#[cfg(not(loom))]
pub mod directives;
pub mod event;
mod json;
pub mod level;
pub mod merge;
pub mod metadata;
pub mod names;
pub mod packet;
mod quoted;
pub mod record;
pub mod text;

pub use level::Level;
