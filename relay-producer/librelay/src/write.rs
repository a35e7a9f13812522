//! What `relay_write` leaves to others: messages that are not simply appended.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::slice;

use nix::errno::Errno;
use relay_producer::{DIRECT_MAX, Quick};

use crate::error::{failed, guarded, status};
use crate::handle::{Handle, Rchan};
use crate::reserve;

/// Returns what [`relay_write`](crate::c_api::relay_write) does for a dropped message.
#[inline(never)]
pub(crate) extern "C" fn dropped() -> c_int {
    failed(Errno::ENOSPC, -1)
}

/// Does all that [`relay_write`](crate::c_api::relay_write) does, while threads have reserved messages.
///
/// # Safety
/// As [`relay_write`](crate::c_api::relay_write).
// SAFETY: as the doc says.
#[inline(never)]
pub(crate) unsafe extern "C" fn write_beside_reserved(
    chan: *mut Rchan,
    data: *const c_void,
    length: usize,
) -> c_int {
    reserve::commit_pending();
    if !data.is_null() && length <= DIRECT_MAX {
        // SAFETY: as the caller promises.
        let handle = unsafe { Handle::find(chan) };
        // SAFETY: as the caller promises; the length was checked.
        let message = unsafe { slice::from_raw_parts(data.cast(), length) };
        match handle.map(|handle| handle.write_quick(message)) {
            Ok(Quick::Written) => return 0,
            Ok(Quick::Dropped) => return dropped(),
            Ok(Quick::Undone) | Err(_) => {}
        }
    }
    // SAFETY: as the caller promises.
    unsafe { write(chan, data, length) }
}

/// Does all that [`relay_write`](crate::c_api::relay_write) does, except for reserved messages.
///
/// # Safety
/// As [`relay_write`](crate::c_api::relay_write).
// SAFETY: as the doc says.
#[inline(never)]
pub(crate) unsafe extern "C" fn write(chan: *mut Rchan, data: *const c_void, length: usize) -> c_int {
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    let message: &[u8] = match (data.is_null(), length) {
        (_, 0) => &[],
        (true, _) => return failed(Errno::EFAULT, -1),
        (false, _) if isize::try_from(length).is_err() => return failed(Errno::EMSGSIZE, -1),
        // SAFETY: as the caller promises.
        (false, _) => unsafe { slice::from_raw_parts(data.cast(), length) },
    };
    if length <= DIRECT_MAX
        && let Ok(handle) = handle
    {
        // A message that is not for the quick way of drops.
        if handle.drop_if_full(message) {
            return dropped();
        }
        if handle.append_otherwise(message) {
            return 0;
        }
    }
    status(guarded(|| handle?.write(message)))
}
