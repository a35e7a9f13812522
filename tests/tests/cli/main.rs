//! The commands: options, exit statuses, what they print, signals, and how a daemon starts and ends.
//!
//! A test belongs here if its subject is a command line, or a message of a command.

mod advice;
mod audience;
mod audience_timed;
mod boot;
mod convert;
mod daemon;
mod daemon_options;
mod daemon_places;
mod doctor;
mod exec;
mod forward_forged;
mod forward_from;
mod forward_streams;
mod forward_tail;
mod help;
mod inherited_signals;
mod install;
mod manual;
mod metrics;
mod mount_helper;
mod readme;
mod record;
mod record_continued;
mod record_reset;
mod record_timed;
mod report;
mod signals;
mod standard_streams;
mod status;
mod top;
mod umask;
mod watch;
