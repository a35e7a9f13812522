//! A library that a program can load, write by, and unload: see `tests/src/bin/test-unload.rs`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};

use relay_producer::{Channel, Transport};

/// Opens channel `cpu` of a mount; null if that fails or its buffers are not shared.
///
/// # Safety
/// `mount` is a string that ends with a zero byte.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_open(mount: *const c_char) -> *mut Channel {
    // SAFETY: as the caller promises.
    let mount = unsafe { CStr::from_ptr(mount) };
    let channel = mount.to_str().ok().and_then(|mount| Channel::open(mount, "cpu").ok());
    let shared = channel.filter(|channel| channel.transport() == Transport::Shared);
    shared.map_or(std::ptr::null_mut(), |channel| Box::into_raw(Box::new(channel)))
}

/// Writes one message; 0 if it was written.
///
/// # Safety
/// `channel` is from [`plugin_open`], and `message` has `len` bytes.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_write(channel: *const Channel, message: *const u8, len: usize) -> c_int {
    // SAFETY: as the caller promises.
    let channel = unsafe { &*channel };
    // SAFETY: as above.
    let message = unsafe { std::slice::from_raw_parts(message, len) };
    c_int::from(channel.write(message).is_err())
}

/// Closes a channel.
///
/// # Safety
/// `channel` is from [`plugin_open`], and nobody uses it any more.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_close(channel: *mut Channel) {
    // SAFETY: as the caller promises.
    drop(unsafe { Box::from_raw(channel) });
}
