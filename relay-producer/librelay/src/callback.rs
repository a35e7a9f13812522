//! The program's callbacks, and being asked for `subbuf_start` before a sub-buffer is begun.
//!
//! What `relay_buf_full` and `subbuf_start_reserve` mean within it they find in the thread's [`Asked`].

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

/// `struct rchan_callbacks`, which is the program's promise that these can be called from any thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Callbacks {
    pub(crate) subbuf_start: Option<SubbufStart>,
    pub(crate) create_buf_file: Option<CreateBufFile>,
    pub(crate) remove_buf_file: Option<RemoveBufFile>,
}

/// What is being asked for in this thread.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The address of the `struct rchan_buf`.
    buf: usize,
    full: bool,
    /// What may be reserved, and what was.
    reservable: usize,
    reserved: usize,
}

thread_local! {
    static ASKED: Cell<Option<Asked>> = const { Cell::new(None) };
}

/// Asks for the first sub-buffer of a channel that is not there yet, and returns what it reserved.
pub(crate) fn ask_first(subbuf_start: SubbufStart, handle: &Handle) -> Result<usize, Errno> {
    let switching = SubbufInfo { padding: 0, full: false, header: START_MAX };
    ask(subbuf_start, handle.buf(0), switching).map(|(asked, _)| asked.reserved).ok_or(Errno::EDEADLK)
}

/// Asks. `None`: it is being asked already.
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
    // What it wrote and did not reserve is not its to write.
    start.bytes[asked.reserved.min(START_MAX)..].fill(0);
    Some((asked, (answer != 0).then_some(start)))
}

/// Whether a buffer is full, if this thread is being asked about it.
pub(crate) fn is_full(buf: *const RchanBuf) -> Option<bool> {
    ASKED.get().filter(|asked| asked.buf == buf.addr()).map(|asked| asked.full)
}

/// Reserves the start of the sub-buffer that this thread is being asked about.
pub(crate) fn reserve(buf: *const RchanBuf, len: usize) -> Result<(), Errno> {
    let asked = ASKED.get().filter(|asked| asked.buf == buf.addr() && len <= asked.reservable.min(START_MAX));
    ASKED.set(Some(Asked { reserved: len, ..asked.ok_or(Errno::EINVAL)? }));
    Ok(())
}

/// Writes a message, asking before each sub-buffer.
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

/// Whether this thread is being asked.
pub(crate) fn is_asking() -> bool {
    ASKED.get().is_some()
}
