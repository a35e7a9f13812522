//! The object that `struct rchan *` points to.
//!
//! A handle is never freed, so the library can check a pointer to a closed one: a second close, or a write afterwards,
//! is an error. A closed handle is used again only when [`CLOSED_MAX`] others have been closed since.
//!
//! A channel may be closed while other threads write. They can hold two kinds of objects:
//!
//! * The [`Appender`], which almost every message uses. No count shows which threads use it, so it is never freed. It
//!   is small: it keeps only the addresses of the buffers.
//! * All the rest, [`Open`]. [`Handle::with`] counts the threads that use it, and it is freed when there are none.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::{NonNull, null, null_mut};
use std::slice;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use nix::errno::Errno;
use relay::system::process_lock::ProcessLock;
use relay_producer::{Appender, DirectBuffers, Level, Quick};

use crate::error;
use crate::open::Open;

/// Number of closed handles that wait before the first of them is used again.
const CLOSED_MAX: usize = 256;
/// `RELAYFS_CHANNEL_VERSION`.
const VERSION: c_uint = 1;

/// Closed channels that a thread was still using at the last check, with their handles.
static LINGERING: ProcessLock<Vec<Lingering>> = ProcessLock::new(Vec::new(), Vec::clone);
/// The closed handles, in the order in which they were closed.
static CLOSED: ProcessLock<VecDeque<&'static Handle>> = ProcessLock::new(VecDeque::new(), VecDeque::clone);

/// Buffers of handles that have none. No message is written there.
static NO_BUFFERS: LazyLock<DirectBuffers> = LazyLock::new(DirectBuffers::none);

/// Addresses of memory that is never freed.
/// Leak checkers do not report memory that is reachable from here.
static KEPT: ProcessLock<Vec<usize>> = ProcessLock::new(Vec::new(), Vec::clone);

/// `struct rchan`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Rchan {
    version: c_uint,
    is_global: c_int,
    subbuf_size: usize,
    n_subbufs: usize,
    alloc_size: usize,
    cb: *const c_void,
    private_data: *mut c_void,
    last_toobig: AtomicUsize,
    buf: *mut *mut RchanBuf,
    n_bufs: usize,
    parent: *const c_void,
    has_base_filename: c_int,
    base_filename: *const c_char,
    overwrite: c_int,
    header: usize,
}

/// `struct rchan_buf`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct RchanBuf {
    chan: *mut Rchan,
    cpu: c_uint,
}

/// The object that begins with `struct rchan`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Handle {
    public: UnsafeCell<Rchan>,
    /// The handle's address. A copy of a handle, or other memory, does not have it.
    me: AtomicUsize,
    /// The buffers of `appender`, or [`NO_BUFFERS`]: never null, so that the path of almost every message has no look at
    /// that.
    buffers: AtomicPtr<DirectBuffers>,
    /// Null while closed, or if messages do not use it.
    /// A value that was ever here is never freed.
    appender: AtomicPtr<Appender>,
    /// Null while it is closed.
    open: AtomicPtr<Open>,
    /// Number of threads that may be using the present or former value of `open`.
    n_inside: AtomicUsize,
    /// Number of `struct rchan_buf` that exist.
    n_made: AtomicUsize,
}

// SAFETY: `public` is written by the thread that opens, before any other thread has the pointer, and by the program;
// this library does not read the fields that the program may write.
unsafe impl Sync for Handle {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Handle {}

/// A closed channel. A forked child gets a copy in its own memory, where no code reads the original again.
#[derive(Clone)]
struct Lingering {
    handle: &'static Handle,
    /// From `Box::into_raw` in `publish`; no handle has it any more.
    open: NonNull<Open>,
}

// SAFETY: it stands for an `Open` that belongs to this value alone, except for the threads that are counted.
unsafe impl Send for Lingering {}
// SAFETY: as above; a reference to it gives no way to the `Open` but through the list's lock for writing.
unsafe impl Sync for Lingering {}

/// A thread that may be using a channel.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn new(n_inside: &'a AtomicUsize) -> Inside<'a> {
        // SeqCst, like every access to `open` and `n_inside`: of a thread that enters and a thread that closes, either
        // the first finds the channel closed, or the second finds a thread inside.
        n_inside.fetch_add(1, Ordering::SeqCst);
        Inside(n_inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The geometry of a channel as the program sees it, before and after it is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) subbuf_size: usize,
    pub(crate) n_subbufs: usize,
    pub(crate) n_bufs: usize,
    pub(crate) header: usize,
    pub(crate) is_global: bool,
    pub(crate) overwrite: bool,
}

/// The program's arguments, which it finds in `struct rchan`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    pub(crate) cb: *const c_void,
    pub(crate) private_data: *mut c_void,
    pub(crate) parent: *const c_void,
    /// From `CString::into_raw`.
    pub(crate) base_filename: *mut c_char,
}

impl Handle {
    /// Returns a closed handle that no other thread has.
    pub(crate) fn take() -> &'static Handle {
        bury();
        let mut closed = CLOSED.write();
        if closed.len() > CLOSED_MAX
            && let Some(handle) = closed.pop_front()
        {
            return handle;
        }
        drop(closed);
        let public = Rchan {
            version: VERSION,
            is_global: 0,
            subbuf_size: 0,
            n_subbufs: 0,
            alloc_size: 0,
            cb: null(),
            private_data: null_mut(),
            last_toobig: AtomicUsize::new(0),
            buf: null_mut(),
            n_bufs: 0,
            parent: null(),
            has_base_filename: 1,
            base_filename: null(),
            overwrite: 0,
            header: 0,
        };
        let handle = Handle {
            public: UnsafeCell::new(public),
            me: AtomicUsize::new(0),
            buffers: AtomicPtr::new(no_buffers()),
            appender: AtomicPtr::new(null_mut()),
            open: AtomicPtr::new(null_mut()),
            n_inside: AtomicUsize::new(0),
            n_made: AtomicUsize::new(0),
        };
        let handle: &'static Handle = Box::leak(Box::new(handle));
        handle.me.store(std::ptr::from_ref(handle).addr(), Ordering::Relaxed);
        handle
    }

    /// Returns the handle that a program's pointer points to.
    ///
    /// # Safety
    /// The pointer is null, or points to memory that can be read like a handle.
    // SAFETY: as the doc says.
    #[inline(always)]
    pub(crate) unsafe fn find(chan: *const Rchan) -> Result<&'static Handle, Errno> {
        if chan.is_null() || !chan.cast::<Handle>().is_aligned() {
            return Err(Errno::EINVAL);
        }
        let handle = chan.cast::<Handle>();
        // SAFETY: as the caller promises.
        let me = unsafe { &raw const (*handle).me };
        // SAFETY: as above.
        if unsafe { me.read() }.into_inner() != handle.addr() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: an object with its own address in it is a handle, and none is ever freed.
        Ok(unsafe { &*handle })
    }

    /// Returns the handle like [`Self::find`], with fewer instructions. `None`: ask that.
    ///
    /// # Safety
    /// As [`Self::find`].
    // SAFETY: as the doc says.
    #[inline(always)]
    pub(crate) unsafe fn find_quick(chan: *const Rchan) -> Option<&'static Handle> {
        if chan.is_null() {
            return None;
        }
        let handle = chan.cast::<Handle>();
        // SAFETY: as the caller promises; the field is an address of plain memory.
        let me = unsafe { &raw const (*handle).me }.cast::<usize>();
        // SAFETY: as above. Perhaps the address is not that of a handle, and then not aligned.
        if unsafe { me.read_unaligned() } != handle.addr() {
            return None;
        }
        // SAFETY: as in `find`: a handle has its own address in it, and is aligned.
        Some(unsafe { &*handle })
    }

    /// Returns the handle and the number of a buffer that a program's pointer points to.
    ///
    /// # Safety
    /// The pointer is null, or points to a buffer of a handle.
    // SAFETY: as the doc says.
    pub(crate) unsafe fn find_buf(buf: *const RchanBuf) -> Result<(&'static Handle, usize), Errno> {
        if buf.is_null() || !buf.is_aligned() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: as the caller promises.
        let RchanBuf { chan, cpu } = unsafe { buf.read() };
        // SAFETY: as above.
        Ok((unsafe { Handle::find(chan) }?, cpu as usize))
    }

    /// Returns the pointer that programs have.
    pub(crate) fn as_chan(&'static self) -> *mut Rchan {
        self.public.get()
    }

    /// Appends a message behind the last one or drops it, if that takes one look and the C library has registered the
    /// calling thread's area.
    #[inline(always)]
    pub(crate) fn write_quick(&self, message: &[u8]) -> Quick {
        // Acquire, pairs with the Release of `publish`.
        let buffers = self.buffers.load(Ordering::Acquire);
        // SAFETY: a static's, or those of an appender from `publish`, which leaked it and with it the count that keeps
        // them; they are only shared, and no code frees them.
        unsafe { &*buffers }.write_quick(message)
    }

    /// Appends a message behind the last one, where [`Self::write_quick`] never does.
    pub(crate) fn append_otherwise(&self, message: &[u8]) -> bool {
        self.appender().is_some_and(|appender| appender.append_otherwise(message))
    }

    /// Appends a `log` record behind the last one, unless it is disabled. False: nothing was done.
    #[inline(always)]
    pub(crate) fn append_log(&self, level: Level, target: &[u8], text: &[u8]) -> bool {
        self.appender()
            .is_some_and(|appender| !appender.enabled(level, target) || appender.log(level, target, text))
    }

    /// Returns whether a `log` record is written. False only if it is known to be disabled.
    #[inline(always)]
    pub(crate) fn logs(&self, level: Level, target: &[u8]) -> bool {
        match self.appender() {
            Some(appender) => appender.enabled(level, target),
            None => self.with(|open| Ok(open.channel.enabled(level, target))).unwrap_or(true),
        }
    }

    /// Drops a message that was not appended, if the buffer is full. False: nothing was done.
    pub(crate) fn drop_if_full(&self, message: &[u8]) -> bool {
        self.appender().is_some_and(|appender| appender.drop_if_full(message))
    }

    #[inline(always)]
    fn appender(&self) -> Option<&'static Appender> {
        // Acquire, pairs with the Release of `publish`.
        let appender = self.appender.load(Ordering::Acquire);
        // SAFETY: null, or from `publish`, which leaked it; it is only shared, and no code frees it.
        unsafe { appender.as_ref() }
    }

    /// Calls `act` with the channel, unless it is closed.
    /// EBADF also replaces a failure due to a close meanwhile.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&Open) -> Result<T, Errno>) -> Result<T, Errno> {
        let _inside = Inside::new(&self.n_inside);
        let open = self.open.load(Ordering::SeqCst);
        // SAFETY: null, or from `Box::into_raw` in `publish`. Once it is no longer in the handle, only `bury` frees it,
        // and not before it has seen `n_inside` at 0: `Inside` was counted before the pointer was loaded here.
        let found = unsafe { open.as_ref() }.ok_or(Errno::EBADF)?;
        act(found).map_err(|errno| match errno {
            Errno::ENODEV if self.open.load(Ordering::SeqCst) != open => Errno::EBADF,
            errno => errno,
        })
    }

    /// Describes the channel to the program.
    /// The thread that took the handle calls it before publishing.
    pub(crate) fn describe(&'static self, given: Given, shape: Shape) {
        let public = self.public.get();
        // SAFETY: no other thread has the handle yet. Callbacks of this thread may have it, but do not run now.
        let public = unsafe { &mut *public };
        if !std::ptr::eq(public.base_filename, given.base_filename) && !public.base_filename.is_null() {
            // SAFETY: from `CString::into_raw` for an earlier channel, and this is the only copy.
            drop(unsafe { std::ffi::CString::from_raw(public.base_filename.cast_mut()) });
        }
        // Relaxed, both: no other thread has the handle.
        if shape.n_bufs > self.n_made.load(Ordering::Relaxed) {
            self.n_made.store(shape.n_bufs, Ordering::Relaxed);
            // The earlier ones stay: the library can still check an old pointer to one of them.
            let chan = self.as_chan();
            let bufs: Vec<RchanBuf> =
                (0..shape.n_bufs).map(|cpu| RchanBuf { chan, cpu: cpu as c_uint }).collect();
            let pointers: Vec<*mut RchanBuf> = bufs.leak().iter_mut().map(std::ptr::from_mut).collect();
            public.buf = pointers.leak().as_mut_ptr();
            keep(public.buf);
        }
        public.n_bufs = shape.n_bufs;
        public.is_global = shape.is_global.into();
        public.subbuf_size = shape.subbuf_size;
        public.n_subbufs = shape.n_subbufs;
        public.alloc_size = shape.subbuf_size.saturating_mul(shape.n_subbufs);
        public.cb = given.cb;
        public.private_data = given.private_data;
        public.parent = given.parent;
        public.base_filename = given.base_filename;
        public.overwrite = shape.overwrite.into();
        public.header = shape.header;
        public.last_toobig.store(0, Ordering::Relaxed);
    }

    /// Returns the buffer of a CPU as programs see it, null if there is none.
    pub(crate) fn buf(&self, cpu: usize) -> *mut RchanBuf {
        let public = self.public.get();
        // SAFETY: written by `describe` alone, before any other thread has the handle.
        let bufs = unsafe { (*public).buf };
        // SAFETY: as above.
        let n_bufs = unsafe { (*public).n_bufs };
        // SAFETY: `describe`, which comes before everything else, made at least `n_bufs` of them.
        let bufs = unsafe { slice::from_raw_parts(bufs, n_bufs) };
        bufs.get(cpu).copied().unwrap_or(null_mut())
    }

    /// Gives the open channel to the program.
    pub(crate) fn publish(&'static self, open: Box<Open>) -> *mut Rchan {
        let appender = open.appender().map(|appender| &*Box::leak(Box::new(appender)));
        self.open.store(Box::into_raw(open), Ordering::SeqCst);
        let pointer = |appender: &Appender| std::ptr::from_ref(appender).cast_mut();
        self.appender.store(appender.map_or(null_mut(), pointer), Ordering::Release);
        let pointer = |appender: &Appender| std::ptr::from_ref(appender.buffers()).cast_mut();
        self.buffers.store(appender.map_or_else(no_buffers, pointer), Ordering::Release);
        self.as_chan()
    }

    /// Closes the channel after the daemon has got everything that was sent to it.
    /// EBADF: it was closed before. `last` is called with the channel, while other threads may still be using it.
    pub(crate) fn close(&'static self, last: impl FnOnce(&Open)) -> Result<(), Errno> {
        let open = NonNull::new(self.open.swap(null_mut(), Ordering::SeqCst)).ok_or(Errno::EBADF)?;
        self.buffers.store(no_buffers(), Ordering::Relaxed);
        keep(self.appender.swap(null_mut(), Ordering::Relaxed));
        // SAFETY: from `Box::into_raw` in `publish`, and taken out of the handle once. So this thread alone has it
        // freed, below.
        let found = unsafe { open.as_ref() };
        // A thread that has found it before may still be sending; a later one finds it closed.
        let synced = found.channel.sync().map_err(|error| error::of_request(&error));
        found.channel.close();
        last(found);
        LINGERING.write().push(Lingering { handle: self, open });
        bury();
        synced
    }

    /// Returns a handle that is not, or no longer, needed.
    pub(crate) fn give_back(&'static self) {
        CLOSED.write().push_back(self);
    }

    /// Notes the length of a message that was too big.
    pub(crate) fn note_too_big(&self, len: usize) {
        let public = self.public.get();
        // SAFETY: an atomic, which every thread may store to.
        let last_toobig = unsafe { &raw const (*public).last_toobig };
        // SAFETY: as above.
        unsafe { &*last_toobig }.store(len, Ordering::Relaxed);
    }
}

fn no_buffers() -> *mut DirectBuffers {
    std::ptr::from_ref(&*NO_BUFFERS).cast_mut()
}

/// Frees the closed channels that no thread uses any more, and makes their handles available.
fn bury() {
    let free = |lingering: &mut Lingering| lingering.handle.n_inside.load(Ordering::SeqCst) == 0;
    let over: Vec<Lingering> = LINGERING.write().extract_if(.., free).collect();
    for Lingering { handle, open } in over {
        // SAFETY: from `Box::into_raw` in `publish`, and in the list once. No thread was inside after it had been taken
        // out of the handle, so no thread has it: a thread that enters later does not find it there, see `with`.
        drop(unsafe { Box::from_raw(open.as_ptr()) });
        handle.give_back();
    }
}

fn keep<T>(address: *mut T) {
    if !address.is_null() {
        KEPT.write().push(address.expose_provenance());
    }
}
