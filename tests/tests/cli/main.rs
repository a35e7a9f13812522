//! The commands: options, exit statuses, what they print, signals, and how a daemon starts and ends.
//!
//! A test belongs here if its subject is a command line, or a message of a command.

mod advice;
mod audience;
mod daemon;
mod daemon_options;
mod daemon_places;
mod inherited_signals;
mod mount_helper;
mod record;
mod signals;
mod standard_streams;
mod umask;
