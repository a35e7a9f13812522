//! The kernel's side of the mounted tree: requests of FUSE become calls of `tree`, and answers become replies.
//!
//! `daemon` calls [`fs::serve`] once; from then on the kernel calls. `fs.rs` is the only file that names fuser,
//! because each of its releases changes its API. A handler looks something up, makes one call and replies.
//! This room may not know the socket or the state directory.

pub(crate) mod fs;
pub(crate) mod passthrough;
