//! Registers threads of which the C library has registered no area.
//!
//! A thread is registered at its first write, with an area from `pool.rs`, and stays so until it ends. Nothing happens
//! at its end: the kernel forgets an area with its thread, and the memory is never unmapped. So it does not matter which
//! destructors run, in which order, or whether the code is still loaded then.
//!
//! - A forked child's thread keeps its registration, at the same address in its copy of the memory. Its owner's word is
//!   zero there, which tells it to adopt its area.
//! - A thread made by clone(2) has its own area if it has its own thread pointer and thread-local memory.
//! - The child of vfork(2), and every process that shares the memory of another, is not registered.
//! - If another library has registered the thread first, the thread has no area here. If a library comes later, the
//!   kernel tells that library.

#[cfg(target_arch = "x86_64")]
use std::arch::{asm, global_asm};
use std::ptr;
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};

#[cfg(target_arch = "aarch64")]
pub(super) use super::aarch64::thread_pointer;
use super::pool::{self, Place};
use crate::memory::sync::{AtomicIsize, AtomicPtr, AtomicU64, Ordering};
use crate::ring::area_owners::Owner;

/// Length that is registered, in bytes: the one that every kernel accepts.
pub(super) const AREA_LEN: u32 = 32;
/// Precedes every abort handler, see `signature!` in `code.rs`. It is the same as that of glibc.
pub(super) const SIGNATURE: u32 = if cfg!(target_arch = "aarch64") { 0xd428_bc00 } else { 0x5305_3053 };
/// In place of a CPU's number while the kernel has not registered the area. It is the same as that of glibc.
const NOT_REGISTERED: u32 = u32::MAX;

/// What rseq(2) registers, alone in its cache line. The kernel writes all but `rseq_cs`.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Area {
    cpu_id_start: AtomicU32,
    cpu_id: AtomicU32,
    rseq_cs: AtomicU64,
    flags: AtomicU32,
    /// Of later kernels, for areas that are registered with a larger length.
    rest: [AtomicU32; 3],
}

const _: () = assert!(size_of::<Area>() == 64 && std::mem::offset_of!(Area, rest) == 20);

/// The area of threads that are not registered: they are on no CPU.
static NO_AREA: Area = Area::new();
/// The word of its owner.
static NO_OWNER: AtomicU64 = AtomicU64::new(1);

/// What a thread keeps of its area, in its thread-local memory. Zero in a new thread.
#[repr(C)]
pub(super) struct Kept {
    /// Distance from the thread pointer to the area.
    offset: AtomicIsize,
    /// The owner's word; null if the thread has not asked for an area yet.
    owner: AtomicPtr<AtomicU64>,
}

// The memory of `Kept`. It is reached by a TLS descriptor, which needs neither a lock nor memory in a signal handler, also
// in a library that was loaded by dlopen. `thread_local!` would allocate there. Weak, and with a number for the layout of
// `Kept`: a program may link several releases of this crate.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .tbss.relay_rseq_kept_1, \"awT\", @nobits",
    ".weak relay_rseq_kept_1",
    ".hidden relay_rseq_kept_1",
    ".type relay_rseq_kept_1, @object",
    ".size relay_rseq_kept_1, {size}",
    ".balign 8",
    "relay_rseq_kept_1:",
    ".zero {size}",
    ".popsection",
    size = const size_of::<Kept>(),
);

impl Area {
    const fn new() -> Area {
        Area {
            cpu_id_start: AtomicU32::new(0),
            cpu_id: AtomicU32::new(NOT_REGISTERED),
            rseq_cs: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            rest: [const { AtomicU32::new(0) }; 3],
        }
    }

    /// Makes an area that another thread had look as new.
    fn clear(&self) {
        // Relaxed: no other thread looks at it, and the kernel not before the system call.
        self.cpu_id.store(NOT_REGISTERED, Ordering::Relaxed);
        for word in [&self.cpu_id_start, &self.flags].into_iter().chain(&self.rest) {
            word.store(0, Ordering::Relaxed);
        }
        self.rseq_cs.store(0, Ordering::Relaxed);
    }

    /// Returns the distance from the calling thread's thread pointer.
    fn offset(&self) -> isize {
        ptr::from_ref(self).addr().wrapping_sub(thread_pointer()).cast_signed()
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) fn thread_pointer() -> usize {
    let thread: usize;
    // SAFETY: loads the first word at the thread pointer, which has its own address by the ABI of x86-64.
    unsafe {
        asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, preserves_flags, readonly));
    }
    thread
}

/// Returns the distance from the thread pointer to the calling thread's area, and registers one at the first call.
/// A thread that cannot be registered gets an area that says so.
#[inline]
pub(super) fn offset() -> isize {
    let kept = kept();
    match kept.owner() {
        Some(owner) if Owner::of(owner) != Owner::OF_PARENT => kept.offset.load(Ordering::Relaxed),
        _ => settle(kept).0,
    }
}

/// Registers the calling thread, unless it is registered here.
pub(super) fn register() -> Result<(), Errno> {
    settle(kept()).1
}

impl Kept {
    fn owner(&self) -> Option<&'static AtomicU64> {
        // Relaxed, here and elsewhere: only the thread itself and its signal handlers look.
        let owner = self.owner.load(Ordering::Relaxed);
        // SAFETY: null, or the address of a static or of a word of the pool, which are never unmapped.
        unsafe { owner.as_ref() }
    }

    fn keep(&self, area: &'static Area, owner: &'static AtomicU64) {
        self.offset.store(area.offset(), Ordering::Relaxed);
        self.owner.store(ptr::from_ref(owner).cast_mut(), Ordering::Relaxed);
    }
}

/// Returns the calling thread's memory.
#[inline]
#[cfg(target_arch = "aarch64")]
fn kept() -> &'static Kept {
    // SAFETY: as below.
    unsafe { &*super::aarch64::kept() }
}

/// Returns the calling thread's memory.
#[inline]
#[cfg(target_arch = "x86_64")]
fn kept() -> &'static Kept {
    let kept: *const Kept;
    // SAFETY: the sequence of x86-64's ABI for TLS descriptors: rax has the distance of the variable from the thread
    // pointer after the call, which the linker replaces in programs. The first word at the thread pointer is its own
    // address. Where memory is allocated all the same, the call is one of the C library.
    unsafe {
        asm!(
            "leaq relay_rseq_kept_1@TLSDESC(%rip), %rax",
            "call *relay_rseq_kept_1@TLSCALL(%rax)",
            "addq %fs:0, %rax",
            out("rax") kept,
            clobber_abi("C"),
            options(att_syntax),
        );
    }
    // SAFETY: the memory is the thread's, zero at first, aligned as above, and accessed as atomics alone. It lives as long
    // as the thread, and no caller in this file passes the reference to another thread.
    unsafe { &*kept }
}

/// Registers the thread, or adopts its area after a fork. Returns the distance of its area.
#[cold]
#[inline(never)]
fn settle(kept: &'static Kept) -> (isize, Result<(), Errno>) {
    // A signal handler that writes would register another area, or find one that is half registered.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    // Looked at once more: a handler may have come before.
    let result = match kept.owner() {
        None => register_new(kept),
        Some(owner) => {
            if Owner::of(owner) == Owner::OF_PARENT && pool::is_own_process() == Ok(true) {
                pool::adopt(owner);
            }
            Ok(())
        }
    };
    if let Ok(before) = before {
        // Cannot fail: it is a mask that was in force.
        let _ = before.thread_set_mask();
    }
    let offset = match kept.owner() {
        Some(_) => kept.offset.load(Ordering::Relaxed),
        None => NO_AREA.offset(),
    };
    (offset, result)
}

fn register_new(kept: &Kept) -> Result<(), Errno> {
    // In the child of vfork(2) the memory is its parent's: it must stay as it is.
    if !pool::is_own_process()? {
        return Err(Errno::EPERM);
    }
    let registered = pool::take().and_then(|place| {
        let Place { area, owner } = place;
        area.clear();
        match register_area(area) {
            Ok(()) => {
                kept.keep(area, owner);
                Ok(())
            }
            Err(errno) => {
                place.give_back();
                Err(errno)
            }
        }
    });
    if registered.is_err() {
        kept.keep(&NO_AREA, &NO_OWNER);
    }
    registered
}

fn register_area(area: &'static Area) -> Result<(), Errno> {
    // SAFETY: the kernel writes the area's 32 bytes while this thread lives, and reads `rseq_cs`. They are never unmapped,
    // and no other thread takes the area before the kernel says that this thread has ended.
    let said = unsafe { libc::syscall(libc::SYS_rseq, ptr::from_ref(area), AREA_LEN, 0, SIGNATURE) };
    Errno::result(said)?;
    // The kernel stores the CPU before it returns. A filter that answers for the kernel does not.
    if area.cpu_id.load(Ordering::Relaxed) == NOT_REGISTERED { Err(Errno::ENOSYS) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, Signal, raise, sigaction};
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork, gettid};

    use super::super::area::of_c_library;
    use super::*;

    /// Runs a test in a thread that the kernel does not know.
    fn unregistered(test: impl FnOnce() + Send + 'static) {
        let run = || {
            if let Some(offset) = of_c_library() {
                let address = thread_pointer().wrapping_add_signed(offset);
                // The length is that of the C library's release.
                let is_off = (32..=256).step_by(4).any(|len: u32| {
                    // SAFETY: ends the registration of this thread, which the C library does not use.
                    unsafe { libc::syscall(libc::SYS_rseq, address, len, 1, SIGNATURE) == 0 }
                });
                assert!(is_off, "the C library's area of a new thread");
            }
            test();
        };
        thread::spawn(run).join().unwrap();
    }

    /// The area of the calling thread.
    fn here() -> usize {
        thread_pointer().wrapping_add_signed(offset())
    }

    fn cpu_here() -> usize {
        // SAFETY: an area of this file, which stays.
        unsafe { &*ptr::with_exposed_provenance::<Area>(here()) }.cpu_id.load(Ordering::Relaxed) as usize
    }

    /// Checks on each CPU that the kernel writes the thread's area.
    fn is_kept_up_to_date() -> bool {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let right = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).all(|cpu| {
            let mut one = CpuSet::new();
            one.set(cpu).unwrap();
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            cpu_here() == cpu && sched_getcpu() == Ok(cpu)
        });
        sched_setaffinity(Pid::from_raw(0), &allowed).unwrap();
        right
    }

    #[test]
    fn thread_keeps_one_area_which_the_kernel_writes() {
        unregistered(|| {
            assert_eq!(register(), Ok(()));
            let first = here();
            assert!(is_kept_up_to_date());
            assert_eq!((register(), here()), (Ok(()), first));
            let other = thread::spawn(|| {
                let _ = register(); // refused if the C library has registered it
                here()
            });
            assert_ne!(other.join().unwrap(), first);
        });
    }

    #[test]
    fn thread_that_another_library_has_registered_is_on_no_cpu() {
        unregistered(|| {
            static THEIRS: Area = Area::new();
            register_area(&THEIRS).unwrap();
            assert_eq!(register(), Err(Errno::EINVAL));
            assert_eq!(cpu_here(), NOT_REGISTERED as usize);
            assert_eq!(THEIRS.cpu_id.load(Ordering::Relaxed) as usize, sched_getcpu().unwrap());
        });
    }

    #[test]
    fn first_look_may_be_in_a_signal_handler() {
        extern "C" fn handler(_: libc::c_int) {
            SEEN.store(here(), Ordering::Relaxed);
        }
        static SEEN: crate::memory::sync::AtomicUsize = crate::memory::sync::AtomicUsize::new(0);
        unregistered(|| {
            let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
            // SAFETY: the handler takes no lock and allocates nothing.
            unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
            raise(Signal::SIGUSR2).unwrap();
            assert_eq!(here(), SEEN.load(Ordering::Relaxed));
            assert!(is_kept_up_to_date());
        });
    }

    /// Forks, and returns whether `check` holds in the child.
    fn in_child(check: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child looks at its own memory, makes system calls and ends.
        match unsafe { fork() }.unwrap() {
            // SAFETY: ends the child at once.
            ForkResult::Child => unsafe { libc::_exit(if check() { 0 } else { 1 }) },
            ForkResult::Parent { child } => waitpid(child, None) == Ok(WaitStatus::Exited(child, 0)),
        }
    }

    #[test]
    fn forked_child_keeps_its_area_and_frees_the_others() {
        unregistered(|| {
            let first = here();
            let owner = || kept().owner().unwrap();
            let is_own = || Owner::of(owner()).tid() == Some(gettid().as_raw().unsigned_abs());
            assert!(is_own());
            let is_right = move || {
                let before = Owner::of(owner());
                // Another thread of the child, before it has adopted its area.
                let early = pool::take().is_ok_and(|place| ptr::from_ref(place.area).addr() != first);
                before == Owner::OF_PARENT && here() == first && is_own() && early && is_kept_up_to_date()
            };
            assert!(in_child(move || is_right() && in_child(is_right)));
            assert!(is_own() && here() == first && is_kept_up_to_date());
        });
    }

    #[test]
    fn process_that_shares_the_memory_of_another_is_not_registered() {
        unregistered(|| {
            let mut stack = vec![0; 64 << 10];
            let child = Box::new(|| {
                let offset = settle(kept());
                isize::from(offset != (NO_AREA.offset(), Err(Errno::EPERM)))
            });
            // As vfork(2), but with another stack.
            let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
            pool::is_own_process().unwrap();
            // SAFETY: the child makes system calls and ends, while this thread waits.
            let child = unsafe { nix::sched::clone(child, &mut stack, flags, Some(libc::SIGCHLD)) }.unwrap();
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            assert!(kept().owner().is_none(), "it has left nothing behind");
            assert_eq!(register(), Ok(()));
            assert!(is_kept_up_to_date());
        });
    }
}
