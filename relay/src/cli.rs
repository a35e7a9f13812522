//! Code that the command lines share: sizes, durations, and one-line reports of wrong usage.
//!
//! The programs' option parsers call it. It may not know any particular option.

pub mod duration;
pub mod size;
pub mod usage_error;
