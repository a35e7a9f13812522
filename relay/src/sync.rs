//! The one door to atomics: everything in this crate that is shared goes through here, so that a model checker's
//! types can take the place of the standard library's.

pub(crate) use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering, fence};
