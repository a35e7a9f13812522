//! Kernel interfaces other than memory: CPUs, descriptors, the table of mounts, signals.
//!
//! Every program may call it. It may not know channels.

pub mod cpus;
pub mod descriptor;
pub mod mountinfo;
pub mod signals;
