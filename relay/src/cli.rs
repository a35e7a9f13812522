//! Code that the command lines share: sizes, durations, intervals, numbers, texts on one line, and wrong usage.
//!
//! The programs' option parsers call it. It may not know any particular option.

pub mod duration;
pub mod flush_interval;
pub mod number;
pub mod one_line;
pub mod size;
pub mod usage_error;
