//! Kernel interfaces other than memory: CPUs, descriptors, locks, the table of mounts, `/proc`, signals, threads, forks.
//!
//! Every program may call it. It may not know channels.

pub mod at_fork;
pub mod cpus;
pub mod descriptor;
pub mod locks;
pub mod mountinfo;
pub mod next_try;
pub mod proc_stat;
pub mod process_lock;
pub mod signals;
pub mod thread_id;
