//! The FUSE side of the mounted tree: requests become calls of `tree`, results replies.
//!
//! `daemon` calls [`fs::serve`] once; from then on the kernel sends requests. `fs.rs` is the only file that names
//! fuser, because each release of fuser changes its API. A handler looks up a node or an open file, makes one call and
//! replies. The room uses `tree`, the poll states of `channel`, and the mount options of `config`. It may not know the
//! socket, the state directory, the writers, or how to mount.

pub(crate) mod fs;
pub(crate) mod passthrough;

mod permissions;
