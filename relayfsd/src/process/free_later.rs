//! Frees large memory on a separate thread.
//!
//! That takes long, and the calling thread may serve files or the socket.

use std::thread;

/// Smallest size that is freed on a separate thread, in bytes.
const LARGE: u64 = 16 << 20;

/// Drops a value with `size` bytes of memory, on a separate thread if `size` is large.
pub(crate) fn elsewhere<T: Send + 'static>(value: T, size: u64) {
    if size >= LARGE {
        // If no thread can be started, the value is dropped here.
        let _ = thread::Builder::new().name("free".into()).spawn(move || drop(value));
    }
}
