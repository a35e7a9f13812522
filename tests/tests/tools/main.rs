//! Tools of the system on a channel's files, from cat to rsync.
//!
//! A test belongs here if it runs a program that does not know relayfs.

mod container_files;
mod containers;
mod languages;
mod pages;
mod shippers;
mod snapshot_tools;
mod take_tools;
mod tools;
mod tools_follow;
mod tools_mapping;
mod tools_poll;
mod tools_splice;
mod tools_text;
