//! What a channel's files do when they are read, polled, mapped and written: the kernel's rules, replayed.
//!
//! A test belongs here if its subject is one file operation, or one rule of a sub-buffer.

mod channel_lifetime;
mod conformance;
mod consumed;
mod cpu_numbers;
mod directories;
mod file;
mod flush_interval;
mod histories;
mod listing;
mod mapped;
mod mapping;
mod overwritten;
mod poll;
mod read;
mod seek;
mod snapshot_copying;
mod stale_offset;
mod take;
mod take_killed;
mod timed;
mod timed_copies;
mod write;
