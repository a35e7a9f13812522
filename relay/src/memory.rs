//! Memory that other processes write too: mappings, and the atomics that models replace.
//!
//! Bytes that a peer may change are reached here and nowhere else. It may not know rings or files' names.

pub mod lent;
#[cfg_attr(loom, path = "memory/mapping_model.rs")]
pub mod mapping;
pub mod sync;
