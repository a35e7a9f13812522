//! What is asked of the kernel and is not memory: the table of mounts.

pub mod cpus;
pub mod descriptor;
pub mod mountinfo;
pub mod signals;
