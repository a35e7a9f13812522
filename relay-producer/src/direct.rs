//! Writing the mapped buffers: no system call for a message, no lock, nothing that a signal handler may not do.
//!
//! `channel`, `batch` and librelay call it first, and use `socket` for messages that it cannot write. It may not know
//! frames or how a connection is made.

pub(crate) mod appender;
pub(crate) mod attachment;
pub(crate) mod buffers;
pub(crate) mod content;
pub(crate) mod doorbell;
pub(crate) mod generations;
pub(crate) mod rseq;
