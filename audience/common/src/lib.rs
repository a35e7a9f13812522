//! What `audience` and `relay-forward` share: options, filters, lines on standard output, traces on disk.
//!
//! Both print the records of timed channels and write recordings. They differ in where the packets come from, which
//! nothing here knows.

pub mod error;
pub mod filter;
pub mod note;
pub mod options;
pub mod output;
pub mod print;
pub mod signals;
pub mod trace_dir;
