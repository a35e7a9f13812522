//! What the daemon was asked for: the command line, `-o` words and mount(8)'s own language become [`options::Options`].
//!
//! `main` calls [`options::Options::parse`]; every other room gets finished values.
//! This room may not know any other room of the daemon: no file is opened here and nothing is started.

pub(crate) mod cli;
pub(crate) mod mount_helper;
pub(crate) mod mount_options;
pub(crate) mod options;
