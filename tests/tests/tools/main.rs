//! Tools of the system on a channel's files, from cat to rsync.
//!
//! A test belongs here if it runs a program that does not know relayfs.

mod control_files;
mod follow;
mod mapping;
mod ordinary;
mod poll;
mod snapshot;
mod splice;
mod take;
