//! The area of a thread, which rseq(2) registers: the C library's, or one of ours.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::marker::PhantomData;

use super::{RseqExecutor, linked, own};
use crate::memory::sync::{AtomicIsize, Ordering};

/// Where the areas of this process's threads are: the distance from the thread pointer to that of the C library, or one
/// of the numbers below. 0 before the first look.
static AREAS: AtomicIsize = AtomicIsize::new(0);
/// The C library registers none, and the library registers its own.
const OWN: isize = isize::MIN;
/// The kernel refuses to register any.
const REFUSED: isize = isize::MIN + 1;
/// Another library has registered its own.
const TAKEN: isize = isize::MIN + 2;

/// Proof that threads of this process can run sequences.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    areas: Areas,
}

#[derive(Clone, Copy, Debug)]
enum Areas {
    /// The C library's, at this distance from the thread pointer.
    OfCLibrary(isize),
    /// Ours.
    Own,
}

/// The area of the calling thread.
#[derive(Clone, Copy, Debug)]
pub struct ThreadArea {
    /// Distance from the thread pointer.
    pub(super) offset: isize,
    /// Other threads have other areas.
    of_this_thread: PhantomData<*const ()>,
}

impl Sequences {
    /// Returns whether threads of this process can run sequences.
    /// The first call looks up symbols, so it does not belong into a signal handler.
    pub fn find() -> Option<Sequences> {
        let areas = match look() {
            REFUSED | TAKEN => return None,
            OWN => Areas::Own,
            offset => Areas::OfCLibrary(offset),
        };
        Some(Sequences { areas })
    }

    /// Returns why [`Self::find`] finds none.
    pub fn why_none() -> Option<&'static str> {
        match look() {
            REFUSED => Some(
                "the kernel refuses restartable sequences, rseq(2): Linux 4.18 and later have them, except under valgrind, gVisor \
                 or a seccomp filter without rseq",
            ),
            TAKEN => Some(
                "another library has registered this process's threads for restartable sequences, rseq(2)",
            ),
            _ => None,
        }
    }

    /// Returns the calling thread's area if the C library registers the areas.
    /// The thread may be one that the C library has not registered; then its CPU's number is too high.
    #[inline(always)]
    pub fn of_c_library(self) -> Option<ThreadArea> {
        match self.areas {
            Areas::OfCLibrary(offset) => Some(ThreadArea::at(offset)),
            Areas::Own => None,
        }
    }

    /// Returns the calling thread's area, and registers one if the C library has registered none.
    pub fn here(self) -> ThreadArea {
        match self.of_c_library() {
            Some(area) if area.is_registered() => area,
            _ => ThreadArea::at(own::offset()),
        }
    }

    /// Returns the CPU of the calling thread at this moment.
    /// The number is above that of any CPU if the thread cannot run sequences.
    pub fn cpu(self) -> usize {
        self.here().cpu()
    }

    /// Returns an executor that writes the buffer of `cpu` for the calling thread.
    pub fn on(self, cpu: usize) -> RseqExecutor {
        self.here().on(cpu)
    }
}

impl ThreadArea {
    #[inline(always)]
    pub(super) fn at(offset: isize) -> ThreadArea {
        ThreadArea { offset, of_this_thread: PhantomData }
    }

    /// Returns the area's address.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(super) fn address(self) -> *mut u32 {
        std::ptr::with_exposed_provenance_mut(own::thread_pointer().wrapping_add_signed(self.offset))
    }

    fn is_registered(self) -> bool {
        // The C library and `own` mark others with numbers that are negative as i32.
        i32::try_from(self.cpu()).is_ok()
    }

    /// Returns the CPU of the calling thread at this moment.
    /// The number is above that of any CPU if the thread is not registered.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub fn cpu(self) -> usize {
        let cpu: usize;
        // SAFETY: there is an area at this distance from where fs points: that which the C library has for every thread,
        // registered or not, or one of ours, which are never unmapped. The kernel keeps the area's second word up to
        // date, which may change between any two instructions, hence not `pure`.
        unsafe {
            asm!("mov {:e}, fs:[{} + 4]", out(reg) cpu, in(reg) self.offset,
                options(nostack, preserves_flags, readonly))
        };
        cpu
    }

    /// Returns the CPU of the calling thread at this moment.
    /// The number is above that of any CPU if the thread is not registered.
    #[inline(always)]
    #[cfg(target_arch = "aarch64")]
    pub fn cpu(self) -> usize {
        // SAFETY: inside the area, see `address`.
        let word = unsafe { self.address().add(1) };
        // SAFETY: there is an area at this distance from the thread pointer: that which the C library has for every thread,
        // registered or not, or one of ours, which are never unmapped. The kernel keeps its second word up to date.
        unsafe { word.read_volatile() as usize }
    }

    /// Returns an executor that writes the buffer of `cpu` for the calling thread.
    #[inline(always)]
    pub fn on(self, cpu: usize) -> RseqExecutor {
        RseqExecutor { area: self, cpu }
    }
}

/// Returns what [`AREAS`] has, and looks at the first call.
fn look() -> isize {
    // Relaxed, here and below: the number says all, and the first that is found stays.
    match AREAS.load(Ordering::Relaxed) {
        0 => {
            let found = find_areas();
            AREAS
                .compare_exchange(0, found, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|other| other, |_| found)
        }
        areas => areas,
    }
}

/// Asks the C library for its areas, and otherwise tries to register one for the calling thread.
/// If that thread is registered, a C library that is linked statically has done so, or another library.
#[cold]
fn find_areas() -> isize {
    match c_library::offset() {
        Some(offset) => offset,
        None => match own::register() {
            Ok(()) => OWN,
            // The kernel has another area of the thread.
            Err(nix::Error::EINVAL | nix::Error::EBUSY) => linked::offset().unwrap_or(TAKEN),
            Err(_) => REFUSED,
        },
    }
}

/// For tests of `own`: the distance of the C library's areas, also in programs that are linked statically.
#[cfg(test)]
pub(super) fn of_c_library() -> Option<isize> {
    static FOUND: std::sync::OnceLock<Option<isize>> = std::sync::OnceLock::new();
    // In a thread that no test has changed.
    let find = || c_library::offset().or_else(linked::offset);
    *FOUND.get_or_init(|| std::thread::spawn(find).join().expect("a search"))
}

/// glibc 2.35 and later registers an area for each thread, at the same distance from its thread pointer.
/// `__rseq_offset` has the distance, and `__rseq_size` is 0 if registration is switched off or refused.
mod c_library {
    /// Returns the distance, if the C library registers areas.
    /// The symbols are looked up at run time, so that programs start with any C library.
    pub(super) fn offset() -> Option<isize> {
        // SAFETY: dlsym takes a terminated name; the handle means all libraries loaded.
        let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) }.cast::<isize>();
        // SAFETY: as above.
        let size = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) }.cast::<u32>();
        if offset.is_null() || size.is_null() {
            return None;
        }
        // SAFETY: glibc documents both as constants of these types.
        if unsafe { size.read() } == 0 {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { offset.read() })
    }
}
