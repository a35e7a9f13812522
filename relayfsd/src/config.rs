//! Reads the command line, `-o` words and mount(8)'s arguments into [`options::Options`].
//!
//! `main` calls [`options::Request::parse`]. The rooms `daemon`, `mount`, `fuse`, `registry`, `state` and `process` get
//! finished values. This room opens no files of the daemon and starts nothing. It may know no other room except
//! `policy`, whose `--shared` values it parses.

pub(crate) mod cli;
pub(crate) mod mount_helper;
pub(crate) mod mount_options;
pub(crate) mod options;
