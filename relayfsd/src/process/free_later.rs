//! Frees large memory on a thread made for that: it takes long, and the caller may serve files or the socket.

use std::thread;

/// From this size on, in bytes, memory is freed elsewhere.
const LARGE: u64 = 16 << 20;

/// Drops a value that has `size` bytes of memory, on another thread if that is much.
pub(crate) fn elsewhere<T: Send + 'static>(value: T, size: u64) {
    if size >= LARGE {
        // Where there is no thread for it, the value is dropped here.
        let _ = thread::Builder::new().name("free".into()).spawn(move || drop(value));
    }
}
