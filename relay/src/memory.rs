//! Memory that other processes write too: mappings, and the atomics that models replace.
//!
//! Code reaches bytes that a peer may change only through this room. It may not know rings or files' names.

pub mod lent;
#[cfg_attr(loom, path = "memory/mapping_model.rs")]
pub mod mapping;
pub mod sync;
