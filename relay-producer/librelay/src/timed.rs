//! The functions of `relay.h` about timed channels.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::slice;
use std::sync::atomic::{AtomicPtr, Ordering};

use nix::errno::Errno;
use relay_producer::{Definition, Field, FieldType, Level, Value};

use crate::c_api::{open_kind, text};
use crate::callback::Callbacks;
use crate::error::{failed, guarded, status};
use crate::event::EventClass;
use crate::handle::{Handle, Rchan};
use crate::reserve;
use crate::site::{self, Site};

/// Most values of an event: as many as it can have fields.
const VALUES_MAX: usize = relay::trace::definition::FIELDS_MAX;

/// `struct relay_field`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CField {
    name: *const c_char,
    kind: c_int,
}

/// `struct relay_definition`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CDefinition {
    name: *const c_char,
    level: c_int,
    line: c_uint,
    target: *const c_char,
    file: *const c_char,
    fields: *const CField,
    n_fields: usize,
}

/// `struct relay_value`. The meaning of the other fields depends on `kind`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct CValue {
    kind: c_int,
    /// Bits of a number, or 0 or 1.
    bits: u64,
    data: *const c_void,
    length: usize,
}

/// `struct relay_site`. The program has it in its memory, and gives it to one call at a time or to many.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CSite {
    level: c_int,
    line: c_uint,
    file: *const c_char,
    target: *const c_char,
    /// The event that the last call of this place has used.
    event: AtomicPtr<EventClass>,
    /// File and line as text, once a call has made it. The library's, never freed.
    place: AtomicPtr<c_char>,
    /// For later versions.
    reserved: *mut c_void,
}

fn level_of(number: c_int) -> Result<Level, Errno> {
    u8::try_from(number).ok().and_then(Level::of_number).ok_or(Errno::EINVAL)
}

/// Returns bytes from C.
///
/// # Safety
/// `data` is null, or has `length` bytes.
// SAFETY: as the doc says.
unsafe fn bytes<'a>(data: *const c_void, length: usize) -> Result<&'a [u8], Errno> {
    match (data.is_null(), length) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Errno::EFAULT),
        (false, _) if isize::try_from(length).is_err() => Err(Errno::EMSGSIZE),
        // SAFETY: as the caller promises.
        (false, _) => Ok(unsafe { slice::from_raw_parts(data.cast(), length) }),
    }
}

/// See `relay.h`.
///
/// # Safety
/// As `relay_open`.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_open_timed(
    mount: *const c_char,
    base_filename: *const c_char,
    parent: *const c_void,
    subbuf_size: usize,
    n_subbufs: usize,
    cb: *const Callbacks,
    private_data: *mut c_void,
) -> *mut Rchan {
    // SAFETY: as the caller promises.
    unsafe { open_kind(mount, base_filename, parent, (subbuf_size, n_subbufs), cb, private_data, true) }
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from `relay_open`; `target` is null or ends with a zero byte; `data` has `length` bytes.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_log(
    chan: *mut Rchan,
    level: c_int,
    target: *const c_char,
    data: *const c_void,
    length: usize,
) -> c_int {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    // SAFETY: as the caller promises.
    let target = unsafe { text(target) }.map_or(&[][..], CStr::to_bytes);
    // SAFETY: as the caller promises.
    let text = unsafe { bytes(data, length) };
    // The path of almost every record.
    if let (Ok(handle), Ok(level), Ok(text)) = (handle, level_of(level), text)
        && handle.append_log(level, target, text)
    {
        return 0;
    }
    status(guarded(|| {
        let (handle, level, text) = (handle?, level_of(level)?, text?);
        handle.with(|open| {
            open.channel.log_bytes(level, target, text).map_err(|error| handle.lost(length, error))
        })
    }))
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from `relay_open`; `target` is null or ends with a zero byte.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_log_enabled(
    chan: *mut Rchan,
    level: c_int,
    target: *const c_char,
) -> c_int {
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    // SAFETY: as the caller promises.
    let target = unsafe { text(target) }.map_or(&[][..], CStr::to_bytes);
    match (handle, level_of(level)) {
        (Ok(handle), Ok(level)) => handle.logs(level, target).into(),
        // relay_log says what is wrong.
        _ => 1,
    }
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from `relay_open`; `data` has `length` bytes.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_text(chan: *mut Rchan, data: *const c_void, length: usize) -> c_int {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    // SAFETY: as the caller promises.
    let text = unsafe { bytes(data, length) };
    status(guarded(|| {
        let (handle, text) = (handle?, text?);
        handle.with(|open| open.channel.text_bytes(text).map_err(|error| handle.lost(length, error)))
    }))
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from `relay_open`; `site` is null or a place whose texts end with a zero byte, and whose event only
/// this function has set; `data` has `length` bytes.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_log_at(
    chan: *mut Rchan,
    site: *mut CSite,
    data: *const c_void,
    length: usize,
) -> c_int {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    // SAFETY: as the caller promises.
    let text = unsafe { bytes(data, length) };
    if site.is_null() || !site.is_aligned() {
        return failed(Errno::EINVAL, -1);
    }
    // SAFETY: as the caller promises. Other threads use it at the same time, and only store the event.
    let site = unsafe { &*site };
    // SAFETY: as the caller promises.
    let [file, target] = [site.file, site.target].map(|place| unsafe { self::text(place) });
    // Acquire, pairs with the Release below: the object is complete.
    // SAFETY: null, or from an earlier call.
    let known = unsafe { class_at(site.event.load(Ordering::Acquire)) }.ok();
    let keep = |class: &'static EventClass| {
        // Release, pairs with the Acquire above.
        site.event.store(std::ptr::from_ref(class).cast_mut(), Ordering::Release);
    };
    status(guarded(|| {
        let (handle, text) = (handle?, text?);
        let [file, target] = [file, target].map(|place| place.map_or(&[][..], CStr::to_bytes));
        let place = Site { level: level_of(site.level)?, line: site.line, file, target };
        if target.is_empty() && site.place.load(Ordering::Relaxed).is_null() {
            name_place(&site.place, &place);
        }
        site::write(handle, &place, known, keep, text)
    }))
}

/// Gives a place its text, which stays for ever as the place does.
#[cold]
fn name_place(to: &AtomicPtr<c_char>, site: &Site<'_>) {
    // It has no zero byte, since file names in C have none.
    let Ok(name) = CString::new(site.target()) else { return };
    let name = name.into_raw();
    // Release, pairs with the Acquire in logf.c: the text is complete.
    if to.compare_exchange(null_mut(), name, Ordering::Release, Ordering::Relaxed).is_err() {
        // SAFETY: from `into_raw` above, and no other thread has it.
        drop(unsafe { CString::from_raw(name) });
    }
}

/// See `relay.h`.
///
/// # Safety
/// `chan` is null or from `relay_open`; `definition` is null or a definition whose texts end with a zero byte, and
/// which has as many fields as it says.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_define(
    chan: *mut Rchan,
    definition: *const CDefinition,
) -> *const EventClass {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let handle = unsafe { Handle::find(chan) };
    // SAFETY: as the caller promises.
    let definition = unsafe { definition_of(definition) };
    let defined = guarded(|| {
        let (handle, definition) = (handle?, definition?);
        handle.with(|open| open.events.define(handle, &open.channel, definition))
    });
    defined.map_or_else(|errno| failed(errno, std::ptr::null()), std::ptr::from_ref)
}

/// Returns a definition from C.
///
/// # Safety
/// As [`relay_define`].
// SAFETY: as the doc says.
unsafe fn definition_of(definition: *const CDefinition) -> Result<Definition, Errno> {
    if definition.is_null() || !definition.is_aligned() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: as the caller promises.
    let CDefinition { name, level, line, target, file, fields, n_fields } = unsafe { definition.read() };
    // SAFETY: as the caller promises.
    let owned = |place: *const c_char| match unsafe { text(place) } {
        None => Ok(String::new()),
        Some(text) => text.to_str().map(str::to_owned).map_err(|_| Errno::EINVAL),
    };
    if n_fields > VALUES_MAX || n_fields > 0 && fields.is_null() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: as the caller promises; none are asked for if there are none.
    let fields = if n_fields == 0 { &[][..] } else { unsafe { slice::from_raw_parts(fields, n_fields) } };
    let fields = fields.iter().map(|field| {
        let kind = u8::try_from(field.kind).ok().and_then(FieldType::of_number).ok_or(Errno::EINVAL)?;
        Ok(Field { name: owned(field.name)?, kind })
    });
    Ok(Definition {
        name: owned(name)?,
        level: if level == 0 { None } else { Some(level_of(level)?) },
        target: owned(target)?,
        file: owned(file)?,
        line,
        fields: fields.collect::<Result<_, Errno>>()?,
    })
}

/// See `relay.h`.
///
/// # Safety
/// `class` is null or from [`relay_define`]; `values` has `n_values` values, whose data has as many bytes as it says.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn relay_event(
    class: *const EventClass,
    values: *const CValue,
    n_values: usize,
) -> c_int {
    reserve::commit_pending();
    // SAFETY: as the caller promises.
    let class = unsafe { class_at(class) };
    // SAFETY: as the caller promises.
    let values = unsafe { values_of(values, n_values) };
    status(guarded(|| {
        let (class, (values, n_values)) = (class?, values?);
        class.handle.with(|open| open.events.write(class, &values[..n_values]))
    }))
}

/// Returns the object that a program's pointer points to.
///
/// # Safety
/// The pointer is null, or points to memory that can be read like such an object.
// SAFETY: as the doc says.
unsafe fn class_at(class: *const EventClass) -> Result<&'static EventClass, Errno> {
    if class.is_null() || !class.is_aligned() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: as the caller promises.
    let me = unsafe { &raw const (*class).me };
    // SAFETY: as above.
    if unsafe { me.read() }.into_inner() != class.addr() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: an object with its own address in it is one that `Events::define` has made, and none is ever freed.
    Ok(unsafe { &*class })
}

/// Returns values from C, and their number.
///
/// # Safety
/// As [`relay_event`].
// SAFETY: as the doc says.
unsafe fn values_of<'a>(
    values: *const CValue,
    n_values: usize,
) -> Result<([Value<'a>; VALUES_MAX], usize), Errno> {
    if n_values > VALUES_MAX || n_values > 0 && (values.is_null() || !values.is_aligned()) {
        return Err(Errno::EINVAL);
    }
    let mut converted = [Value::Bool(false); VALUES_MAX];
    for (at, to) in converted.iter_mut().enumerate().take(n_values) {
        // SAFETY: as the caller promises: there are `n_values`.
        let from = unsafe { values.add(at) };
        // SAFETY: as above.
        let CValue { kind, bits, data, length } = unsafe { from.read() };
        let kind = u8::try_from(kind).ok().and_then(FieldType::of_number).ok_or(Errno::EINVAL)?;
        *to = match kind {
            FieldType::U64 => Value::U64(bits),
            FieldType::I64 => Value::I64(bits.cast_signed()),
            FieldType::F64 => Value::F64(f64::from_bits(bits)),
            FieldType::Bool => Value::Bool(bits != 0),
            // SAFETY: as the caller promises.
            FieldType::Str => Value::Str(unsafe { bytes(data, length) }?),
            // SAFETY: as the caller promises.
            FieldType::Bytes => Value::Bytes(unsafe { bytes(data, length) }?),
        };
    }
    Ok((converted, n_values))
}
