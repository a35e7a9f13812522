//! One buffer: a ring of sub-buffers, one writer at a time, one reading side.
//!
//! Writers append by restartable sequences, the reader reads, maps or copies. The rules are the kernel's.
//! It may not know sockets, users, or which process it runs in.

pub mod buffer;
#[cfg(not(loom))]
pub mod mapped_reader;
pub mod reader;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(loom)))]
pub mod rseq;
#[cfg(loom)]
pub mod scheduler_model;
pub mod subbuf_start;
pub mod writer;
