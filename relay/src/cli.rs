//! What the command lines share: sizes, durations, texts on one line, and how wrong usage is reported.

pub mod duration;
pub mod one_line;
pub mod size;
pub mod usage_error;
