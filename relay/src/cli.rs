//! What the command lines share: sizes, durations, and how wrong usage is reported in one line.

pub mod duration;
pub mod size;
pub mod usage_error;
