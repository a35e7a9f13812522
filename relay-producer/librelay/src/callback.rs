//! The program's callbacks, and the call of `subbuf_start` before a sub-buffer begins.
//!
//! Within that call, `relay_buf_full` and `subbuf_start_reserve` use the thread's [`Asked`].

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use nix::errno::Errno;
use nix::libc::mode_t;
use relay_producer::{START_MAX, SubbufHeader, SubbufInfo, WriteError};

use crate::handle::{Handle, RchanBuf};
use crate::open::Open;

/// `subbuf_start`.
pub(crate) type SubbufStart = extern "C" fn(*mut RchanBuf, *mut c_void, *mut c_void, usize) -> c_int;
/// `create_buf_file`.
pub(crate) type CreateBufFile =
    extern "C" fn(*const c_char, *const c_void, mode_t, *mut RchanBuf, *mut c_int) -> *const c_void;
/// `remove_buf_file`.
pub(crate) type RemoveBufFile = extern "C" fn(*const c_void) -> c_int;

/// `struct rchan_callbacks`. The program promises that any thread may call them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Callbacks {
    pub(crate) subbuf_start: Option<SubbufStart>,
    pub(crate) create_buf_file: Option<CreateBufFile>,
    pub(crate) remove_buf_file: Option<RemoveBufFile>,
}

/// The present call of `subbuf_start` in this thread.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The address of the `struct rchan_buf`.
    buf: usize,
    full: bool,
    /// Bytes that the callback may reserve. The next field is the number that it has reserved.
    reservable: usize,
    reserved: usize,
}

thread_local! {
    static ASKED: Cell<Option<Asked>> = const { Cell::new(None) };
}

/// Calls `subbuf_start` for the first sub-buffer of a channel that does not exist yet.
/// Returns the number of bytes that it reserved.
pub(crate) fn ask_first(subbuf_start: SubbufStart, handle: &Handle) -> Result<usize, Errno> {
    let switching = SubbufInfo { padding: 0, full: false, header: START_MAX };
    ask(subbuf_start, handle.buf(0), switching).map(|(asked, _)| asked.reserved).ok_or(Errno::EDEADLK)
}

/// Calls `subbuf_start`. `None`: this thread is inside such a call already.
fn ask(
    subbuf_start: SubbufStart,
    buf: *mut RchanBuf,
    switching: SubbufInfo,
) -> Option<(Asked, Option<SubbufHeader>)> {
    let SubbufInfo { padding, full, header } = switching;
    let asked = Asked { buf: buf.addr(), full, reservable: header, reserved: 0 };
    if ASKED.get().is_some() {
        return None;
    }
    ASKED.set(Some(asked));
    let mut start = SubbufHeader { bytes: [0; START_MAX] };
    let answer = subbuf_start(buf, start.bytes.as_mut_ptr().cast(), null_mut(), padding);
    let asked = ASKED.take().unwrap_or(asked);
    // The callback must not write bytes that it did not reserve.
    start.bytes[asked.reserved.min(START_MAX)..].fill(0);
    Some((asked, (answer != 0).then_some(start)))
}

/// Returns whether a buffer is full, if this thread is inside a call about it.
pub(crate) fn is_full(buf: *const RchanBuf) -> Option<bool> {
    ASKED.get().filter(|asked| asked.buf == buf.addr()).map(|asked| asked.full)
}

/// Reserves the start of the sub-buffer that the present call is about.
pub(crate) fn reserve(buf: *const RchanBuf, len: usize) -> Result<(), Errno> {
    let asked = ASKED.get().filter(|asked| asked.buf == buf.addr() && len <= asked.reservable.min(START_MAX));
    ASKED.set(Some(Asked { reserved: len, ..asked.ok_or(Errno::EINVAL)? }));
    Ok(())
}

/// Writes a message, and calls `subbuf_start` before each sub-buffer.
pub(crate) fn write(
    handle: &Handle,
    open: &Open,
    subbuf_start: SubbufStart,
    message: &[u8],
) -> Result<(), WriteError> {
    open.channel.write_if(message, &mut |cpu, switching| {
        let (_, start) = ask(subbuf_start, handle.buf(cpu), switching)?;
        start
    })
}

/// Returns whether this thread is inside a call of `subbuf_start`.
pub(crate) fn is_asking() -> bool {
    ASKED.get().is_some()
}
