//! A library for `LD_PRELOAD` (ld.so(8)) that answers mount(2) and umount(2) for the type relayfs.
//!
//! It serves programs that were written for a relayfs in the kernel. It answers their
//! `mount("relayfs", "/mnt/relay", "relayfs", 0, NULL)` as the kernel would, and also the `umount` of that mount. All
//! other calls go to the C library. `audience --exec` runs a program with it.
//!
//! This file is the C interface; `mounts.rs` does the work. The command shares the file that runs relayfsd.
#![allow(unsafe_code)]

mod mounts;
#[path = "../../src/bin/audience/mount/start_daemon.rs"]
mod start_daemon;

use std::ffi::{CStr, OsStr, c_char, c_int, c_ulong, c_void};
use std::mem::transmute;
use std::os::unix::ffi::OsStrExt;
use std::panic::catch_unwind;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags};

use mounts::{Request, Unmount};

/// The file system type that this library answers for.
const TYPE: &[u8] = b"relayfs";
/// With one of these flags the call is about an existing mount, and the kernel ignores the type.
const NO_NEW_MOUNT: MsFlags = MsFlags::MS_REMOUNT
    .union(MsFlags::MS_BIND)
    .union(MsFlags::MS_MOVE)
    .union(MsFlags::MS_SHARED)
    .union(MsFlags::MS_PRIVATE)
    .union(MsFlags::MS_SLAVE)
    .union(MsFlags::MS_UNBINDABLE);

/// A string of C.
type Text = *const c_char;
// SAFETY: the type is as the C library documents it; a caller here owes what our caller owed us.
type MountFn = unsafe extern "C" fn(Text, Text, Text, c_ulong, *const c_void) -> c_int;
// SAFETY: as above.
type UmountFn = unsafe extern "C" fn(Text) -> c_int;
// SAFETY: as above.
type Umount2Fn = unsafe extern "C" fn(Text, c_int) -> c_int;

/// mount(2): answers calls for the type `relayfs`; passes all other calls on.
///
/// # Safety
///
/// As for mount(2): strings that end with a zero byte, or null.
// SAFETY: the name is meant to take the place of the C library's, and the function has the same signature.
#[unsafe(no_mangle)]
// SAFETY: see "Safety".
pub unsafe extern "C" fn mount(
    source: Text,
    target: Text,
    fs_type: Text,
    flags: c_ulong,
    data: *const c_void,
) -> c_int {
    let flag_bits = MsFlags::from_bits_retain(flags);
    // SAFETY: the caller's promise.
    let is_relayfs = unsafe { text(fs_type) }.is_some_and(|fs_type| fs_type.as_bytes() == TYPE);
    // SAFETY: the caller's promise.
    let point = unsafe { text(target) };
    match point {
        Some(point) if is_relayfs && !flag_bits.intersects(NO_NEW_MOUNT) => {
            // SAFETY: the caller's promise.
            let source = unsafe { text(source) };
            // SAFETY: the caller's promise; options are text for every file system but a few old ones.
            let options = unsafe { text(data.cast()) };
            let request = Request { source, point: Path::new(point), flags: flag_bits, options };
            answer(catch_unwind(|| mounts::mount(request)).unwrap_or(Err(Errno::EIO)))
        }
        _ => {
            let real = next(c"mount");
            // SAFETY: the C library's function of this name has this type.
            let real: Option<MountFn> = unsafe { transmute(real) };
            let Some(real) = real else { return answer(Err(Errno::ENOSYS)) };
            // SAFETY: with our caller's arguments, and promise.
            unsafe { real(source, target, fs_type, flags, data) }
        }
    }
}

/// umount(2): see [`umount2`].
///
/// # Safety
///
/// As for umount(2): a string that ends with a zero byte, or null.
// SAFETY: the name is meant to take the place of the C library's, and the function has the same signature.
#[unsafe(no_mangle)]
// SAFETY: see "Safety".
pub unsafe extern "C" fn umount(target: Text) -> c_int {
    // SAFETY: the caller's promise.
    if let Some(result) = unsafe { unmount_ours(target, 0) } {
        return answer(result);
    }
    let real = next(c"umount");
    // SAFETY: the C library's function of this name has this type.
    let real: Option<UmountFn> = unsafe { transmute(real) };
    let Some(real) = real else { return answer(Err(Errno::ENOSYS)) };
    // SAFETY: with our caller's argument, and promise.
    unsafe { real(target) }
}

/// umount2(2): unmounts what this process mounted by our [`mount()`]; passes other calls on.
///
/// Where our [`mount()`] has answered in this process, any other mount at the same place is left alone.
///
/// # Safety
///
/// As for umount2(2): a string that ends with a zero byte, or null.
// SAFETY: the name is meant to take the place of the C library's, and the function has the same signature.
#[unsafe(no_mangle)]
// SAFETY: see "Safety".
pub unsafe extern "C" fn umount2(target: Text, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { unmount_ours(target, flags) } {
        Some(result) => answer(result),
        // SAFETY: the caller's promise.
        None => unsafe { real_umount2(target, flags) },
    }
}

/// Unmounts a mount of this library. `None` if the path is not this library's concern.
///
/// # Safety
///
/// As for [`umount2`].
// SAFETY: see "Safety".
unsafe fn unmount_ours(target: Text, flags: c_int) -> Option<Result<(), Errno>> {
    // SAFETY: the caller's promise.
    let path = Path::new(unsafe { text(target) }?);
    let what = catch_unwind(|| mounts::what_to_unmount(path)).unwrap_or(Unmount::Refused);
    let own = match what {
        Unmount::PassOn => return None,
        Unmount::Refused => return Some(Err(Errno::EINVAL)),
        Unmount::Own(own) => own,
    };
    // SAFETY: the caller's promise.
    let tried = Errno::result(unsafe { real_umount2(target, flags) }).map(drop);
    let lazily = MntFlags::from_bits_retain(flags).contains(MntFlags::MNT_DETACH);
    Some(catch_unwind(|| mounts::unmounted(&own, tried, lazily)).unwrap_or(Err(Errno::EIO)))
}

/// # Safety
///
/// As for [`umount2`].
// SAFETY: see "Safety".
unsafe fn real_umount2(target: Text, flags: c_int) -> c_int {
    let real = next(c"umount2");
    // SAFETY: the C library's function of this name has this type.
    let real: Option<Umount2Fn> = unsafe { transmute(real) };
    let Some(real) = real else { return answer(Err(Errno::ENOSYS)) };
    // SAFETY: the caller's promise.
    unsafe { real(target, flags) }
}

/// Finds the next function of this name, behind this library's; null if there is none.
fn next(name: &CStr) -> *mut c_void {
    // SAFETY: a string that ends with a zero byte, and a handle that dlsym knows.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// Turns a result into a system call's return value, and sets errno.
fn answer(result: Result<(), Errno>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(errno) => {
            errno.set();
            -1
        }
    }
}

/// # Safety
///
/// Null, or a string that ends with a zero byte and stays for as long as the result is used.
// SAFETY: see "Safety".
unsafe fn text<'a>(string: Text) -> Option<&'a OsStr> {
    if string.is_null() {
        return None;
    }
    // SAFETY: not null, and otherwise the caller's promise.
    let string = unsafe { CStr::from_ptr(string) };
    Some(OsStr::from_bytes(string.to_bytes()))
}
