//! What the front ends have in common: a channel that may come later, and texts that are composed for one write.

#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) mod cut;
pub(crate) mod late;
