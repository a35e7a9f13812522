//! The atomics of this crate. Models replace the standard library's types with loom's here.

#[cfg(loom)]
pub(crate) use crate::ring::scheduler_model::AtomicU64;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// For `rseq.rs`.
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "linux", not(loom)))]
pub(crate) use std::sync::atomic::AtomicIsize;
/// Bytes that other processes may change and no model watches: padding of shared words, and lent memory.
pub(crate) use std::sync::atomic::AtomicU8 as AtomicByte;
#[cfg(all(not(loom), feature = "kill-points"))]
pub(crate) use std::sync::atomic::AtomicU32;
/// For `mapping.rs` and `mapped_reader.rs`, which no model runs.
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicUsize};
