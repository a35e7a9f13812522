//! One buffer: a ring of sub-buffers with one writer at a time and one reading side.
//!
//! Writers append with restartable sequences; readers read, map or copy. The rules are the kernel's. The daemon's
//! writers and files, direct producers and mapping readers call it. It may not know sockets, users, or which process it
//! runs in.

pub mod area_owners;
pub mod buffer;
#[cfg(not(loom))]
pub mod mapped_reader;
pub mod reader;
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
pub mod rseq;
#[cfg(loom)]
pub mod scheduler_model;
pub mod subbuf_start;
pub mod writer;
