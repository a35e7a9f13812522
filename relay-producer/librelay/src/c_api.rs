//! The functions of `relay.h`: they convert arguments from C to Rust, and results to errno.
//!
//! No panic leaves them. There should be none; one that happens becomes EIO.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;
use std::slice;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use relay::layout::paths::mount_by_environment;
use relay::system::next_try::NextTry;
use relay_producer::{DIRECT_MAX, Quick, WriteError};

use crate::callback::{self, Callbacks};
use crate::control::Control;
use crate::error::{self, failed, guarded, status};
use crate::event::Events;
use crate::handle::{Given, Handle, Rchan, RchanBuf};
use crate::open::{self, Open, Request, absolute};
use crate::place::{Place, checked, join};
use crate::reserve;
use crate::write::{dropped, write, write_beside_reserved};

/// Returns a text from C; `None` for null.
///
/// # Safety The pointer is null, or the text ends with a zero byte.
// SAFETY: as the doc says.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: as the caller promises.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

fn name_of(text: &CStr) -> Result<&str, Errno> {
    text.to_str().map_err(|_| Errno::EINVAL)
}

/// Returns the place that a `struct dentry *` stands for.
fn place(dentry: *const c_void) -> Result<Option<&'static Place>, Errno> {
    if dentry.is_null() { Ok(None) } else { Place::at(dentry.addr()).map(Some).ok_or(Errno::EINVAL) }
}

/// The arguments of `relay_open_at`.
struct Arguments<'a> {
    mount: Option<&'a CStr>,
    base_filename: Option<&'a CStr>,
    parent: *const c_void,
    subbuf_size: usize,
    n_subbufs: usize,
    cb: *const c_void,
    callbacks: Callbacks,
    private_data: *mut c_void,
    is_timed: bool,
}

fn open_at(arguments: &Arguments) -> Result<*mut Rchan, Errno> {
    let mount = arguments.mount.filter(|mount| !mount.is_empty());
    let mount = mount
        .map_or_else(mount_by_environment, |mount| Path::new(OsStr::from_bytes(mount.to_bytes())).into());
    let base = arguments.base_filename.ok_or(Errno::ENOTSUP)?;
    let parent = place(arguments.parent)?;
    let name = join(parent, name_of(base)?);
    checked(&name)?;
    if arguments.subbuf_size == 0 || arguments.n_subbufs == 0 {
        return Err(Errno::EINVAL);
    }
    let mut request = Request {
        mount: absolute(&mount)?,
        name,
        subbuf_size: arguments.subbuf_size,
        n_subbufs: arguments.n_subbufs,
        is_global: false,
        reserved: None,
        is_timed: arguments.is_timed,
    };
    if request.is_timed && arguments.callbacks.subbuf_start.is_some() {
        return Err(Errno::ENOTSUP);
    }
    let given = Given {
        cb: arguments.cb,
        private_data: arguments.private_data,
        parent: arguments.parent,
        base_filename: base.to_owned().into_raw(),
    };
    let handle = Handle::take();
    let opened = guarded(|| open_handle(handle, &mut request, given, arguments.callbacks));
    opened.inspect_err(|_| handle.give_back())
}

fn open_handle(
    handle: &'static Handle,
    request: &mut Request,
    given: Given,
    callbacks: Callbacks,
) -> Result<*mut Rchan, Errno> {
    handle.describe(given, request.shape());
    let mut file = None;
    if let Some(create) = callbacks.create_buf_file {
        let (created, is_global) = create_buf_file(handle, request, given.parent, create)?;
        request.name = created.as_str().strip_suffix('0').ok_or(Errno::ENOTSUP)?.to_owned();
        request.is_global = is_global;
        file = Some(created);
    }
    if let Some(subbuf_start) = callbacks.subbuf_start {
        request.reserved = Some(callback::ask_first(subbuf_start, handle)?);
    }
    let channel = request.open()?;
    handle.describe(given, open::shape_of(&channel));
    let control = Control::new(&request.mount, &request.name);
    let (events, next_try) = (Events::default(), NextTry::default());
    Ok(handle.publish(Box::new(Open { channel, control, callbacks, file, events, next_try })))
}

/// Asks the program for a name, and whether the channel is global.
fn create_buf_file(
    handle: &'static Handle,
    request: &Request,
    parent: *const c_void,
    create: callback::CreateBufFile,
) -> Result<(&'static Place, bool), Errno> {
    let base = request.name.rsplit('/').next().unwrap_or_default();
    let filename = CString::new(format!("{base}0")).map_err(|_| Errno::EINVAL)?;
    // `base` may have been below directories: then they are part of the parent.
    let parent = match request.name.rsplit_once('/') {
        Some((dir, _)) => std::ptr::from_ref(Place::new(dir, None)?).cast(),
        None => parent,
    };
    let mut is_global = 0;
    Errno::clear();
    let dentry = create(filename.as_ptr(), parent, 0o400, handle.buf(0), &raw mut is_global);
    let created = place(dentry)?;
    let why = || if Errno::last_raw() == 0 { Errno::ECANCELED } else { Errno::last() };
    Ok((created.ok_or_else(why)?, is_global != 0))
}

impl Handle {
    /// Writes a message.
    pub(crate) fn write(&self, message: &[u8]) -> Result<(), Errno> {
        self.with(|open| {
            let written = match open.callbacks.subbuf_start {
                None => open.channel.write(message),
                Some(_) if callback::is_asking() => return Err(Errno::EDEADLK),
                Some(subbuf_start) => callback::write(self, open, subbuf_start, message),
            };
            written.map_err(|error| self.lost(message.len(), error))
        })
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn lost(&self, len: usize, error: WriteError) -> Errno {
        if matches!(error, WriteError::TooBig { .. }) {
            self.note_too_big(len);
        }
        error::of_write(error)
    }
}

/// Is no instruction, but keeps the compiler from computing the next condition before it checks the last one.
#[inline(always)]
fn keep_apart() {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) }
}

/// See `relay.h`.
///
/// # Safety
/// Texts end with a zero byte; callbacks can be called from any thread, as long as the channel is open.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_open(
    base_filename: *const c_char,
    parent: *const c_void,
    subbuf_size: usize,
    n_subbufs: usize,
    cb: *const Callbacks,
    private_data: *mut c_void,
) -> *mut Rchan {
    let mount = std::ptr::null();
    // SAFETY: as the caller promises.
    unsafe { relay_open_at(mount, base_filename, parent, subbuf_size, n_subbufs, cb, private_data) }
}

/// See `relay.h`.
///
/// # Safety
/// As [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_open_at(
    mount: *const c_char,
    base_filename: *const c_char,
    parent: *const c_void,
    subbuf_size: usize,
    n_subbufs: usize,
    cb: *const Callbacks,
    private_data: *mut c_void,
) -> *mut Rchan {
    // SAFETY: as the caller promises.
    unsafe { open_kind(mount, base_filename, parent, (subbuf_size, n_subbufs), cb, private_data, false) }
}

/// Opens a channel, which is timed if it is a new one and `is_timed`.
///
/// # Safety
/// As [`relay_open`].
// SAFETY: as the doc says.
pub(crate) unsafe fn open_kind(
    mount: *const c_char,
    base_filename: *const c_char,
    parent: *const c_void,
    (subbuf_size, n_subbufs): (usize, usize),
    cb: *const Callbacks,
    private_data: *mut c_void,
    is_timed: bool,
) -> *mut Rchan {
    reserve::commit_pending();
    let arguments = Arguments {
        // SAFETY: as the caller promises.
        mount: unsafe { text(mount) },
        // SAFETY: as the caller promises.
        base_filename: unsafe { text(base_filename) },
        parent,
        subbuf_size,
        n_subbufs,
        cb: cb.cast(),
        // SAFETY: as the caller promises; null is no callbacks.
        callbacks: if cb.is_null() { Callbacks::default() } else { unsafe { cb.read() } },
        private_data,
        is_timed,
    };
    guarded(|| open_at(&arguments)).unwrap_or_else(|errno| failed(errno, null_mut()))
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_close(chan: *mut Rchan) -> c_int {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    status(guarded(|| {
        handle?.close(|open| {
            if let (Some(remove), Some(file)) = (open.callbacks.remove_buf_file, open.file) {
                remove(std::ptr::from_ref(file).cast());
            }
        })
    }))
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from [`relay_open`]; `data` has `length` bytes.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_write(chan: *mut Rchan, data: *const c_void, length: usize) -> c_int {
    // The path of almost every message. Its calls are its last steps, so it saves no registers; `write` starts over.
    if reserve::PENDING.load(Ordering::Relaxed) != 0 {
        // SAFETY: as the caller promises.
        return unsafe { write_beside_reserved(chan, data, length) };
    }
    if data.is_null() {
        // SAFETY: as the caller promises.
        return unsafe { write(chan, data, length) };
    }
    keep_apart();
    if length > DIRECT_MAX {
        // SAFETY: as the caller promises.
        return unsafe { write(chan, data, length) };
    }
    keep_apart();
    // SAFETY: as the caller promises.
    if let Some(handle) = unsafe { Handle::find_quick(chan) } {
        // SAFETY: as the caller promises; the length was checked.
        let message = unsafe { slice::from_raw_parts(data.cast(), length) };
        match handle.write_quick(message) {
            Quick::Written => return 0,
            Quick::Dropped => return dropped(),
            Quick::Undone => {}
        }
    }
    // SAFETY: as the caller promises.
    unsafe { write(chan, data, length) }
}

/// See `relay.h`.
///
/// # Safety
/// As [`relay_write`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __relay_write(chan: *mut Rchan, data: *const c_void, length: usize) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { relay_write(chan, data, length) }
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_reserve(chan: *mut Rchan, length: usize) -> *mut c_void {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    let reserved = guarded(|| {
        let handle = handle?;
        handle.with(|open| {
            if length > open.channel.geometry().payload_max() {
                handle.note_too_big(length);
                return Err(Errno::EMSGSIZE);
            }
            Ok(())
        })?;
        reserve::reserve(handle, length)
    });
    reserved.map_or_else(|errno| failed(errno, null_mut()), |bytes| bytes.cast())
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_commit(chan: *mut Rchan) -> c_int {
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    status(guarded(|| reserve::commit(handle?)))
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_flush(chan: *mut Rchan) -> c_int {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    status(guarded(|| handle?.with(|open| open.channel.flush().map_err(|error| error::of_request(&error)))))
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_reset(chan: *mut Rchan) -> c_int {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    status(guarded(|| handle?.with(|open| open.control.reset())))
}

/// See `relay.h`.
///
/// # Safety
/// `buf` is null or a buffer of a channel from [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_buf_full(buf: *mut RchanBuf) -> c_int {
    if let Some(full) = callback::is_full(buf) {
        return full.into();
    }
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let found = unsafe { Handle::find_buf(buf) };
    let full = guarded(|| {
        let (handle, cpu) = found?;
        handle.with(|open| match open.channel.is_full(cpu) {
            Some(full) => Ok(full),
            None => Ok(open.control.finished(cpu)? >= open.channel.geometry().n_subbufs() as u64),
        })
    });
    full.map_or_else(|errno| failed(errno, -1), c_int::from)
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from [`relay_open`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_subbufs_consumed(
    chan: *mut Rchan,
    cpu: c_uint,
    subbufs_consumed: usize,
) {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    // This function returns nothing: errno alone shows the result.
    let before = Errno::last_raw();
    let consumed = guarded(|| {
        handle?.with(|open| {
            let (n_bufs, n_subbufs) = (open.channel.n_bufs(), open.channel.geometry().n_subbufs());
            if cpu as usize >= n_bufs || subbufs_consumed > n_subbufs {
                return Err(Errno::EINVAL);
            }
            open.control.consume(cpu as usize, subbufs_consumed)
        })
    });
    Errno::set_raw(consumed.map_or_else(|errno| errno as i32, |()| before));
}

/// See `relay.h`.
///
/// # Safety
/// `buf` is what `subbuf_start` was called with.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn subbuf_start_reserve(buf: *mut RchanBuf, length: usize) {
    status(callback::reserve(buf, length));
}

/// See `relay.h`.
///
/// # Safety
/// `name` is null or ends with a zero byte.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_create_dir(
    name: *const c_char,
    parent: *const c_void,
) -> *const c_void {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let name = unsafe { text(name) };
    let made = guarded(|| Place::new(name_of(name.ok_or(Errno::EINVAL)?)?, place(parent)?));
    made.map_or_else(|errno| failed(errno, std::ptr::null()), |place| std::ptr::from_ref(place).cast())
}

/// See `relay.h`.
///
/// # Safety
/// As [`relay_create_dir`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_create_buf_file(
    name: *const c_char,
    parent: *const c_void,
) -> *const c_void {
    // SAFETY: as the caller promises.
    unsafe { relay_create_dir(name, parent) }
}

/// See `relay.h`. Any pointer is valid.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn relay_remove_dir(dentry: *const c_void) -> c_int {
    reserve::commit_pending();
    status(guarded(|| place(dentry)?.map(drop).ok_or(Errno::EINVAL)))
}

/// See `relay.h`. Any pointer is valid.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn relay_remove_buf_file(dentry: *const c_void) -> c_int {
    relay_remove_dir(dentry)
}

/// See `relay.h`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn relay_switch_subbuf(_buf: *mut RchanBuf, _length: usize) -> usize {
    reserve::commit_pending();
    failed(Errno::ENOTSUP, 0)
}

/// See `relay.h`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn relay_late_setup_files(
    _chan: *mut Rchan,
    _base_filename: *const c_char,
    _parent: *const c_void,
) -> c_int {
    reserve::commit_pending();
    failed(Errno::ENOTSUP, -1)
}
