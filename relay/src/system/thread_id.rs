//! The id of the calling thread, without a system call for each look.
//!
//! A thread keeps its id beside the number of its process's *generation*. That number lies in a page that the kernel
//! zeroes in a forked child (MADV_WIPEONFORK), by whichever call the process forked. So a child never takes the id that
//! its thread has kept from the parent for its own, and the next look asks the kernel.
//!
//! All of it can run in a signal handler: it takes no lock and allocates nothing but that one page.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Length of the page; longer pages are mapped whole all the same.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Set in a kept word if the thread may not read the time stamp counter. No thread's id is as large.
const NO_TSC: u64 = 1 << 31;
/// Number of no generation: it has no 32 zero bits, so no thread is known in it.
const NEVER: u64 = NO_TSC;

/// The word with the number of the generation, above 32 zero bits. [`NOT_YET`] before the first look.
static GENERATION: AtomicPtr<AtomicU64> = AtomicPtr::new((&raw const NOT_YET).cast_mut());
/// Stands in for that word.
static NOT_YET: AtomicU64 = AtomicU64::new(NEVER);
/// The same, if the kernel cannot zero pages at a fork.
static NONE: AtomicU64 = AtomicU64::new(NEVER);
/// The highest number of this process and its forebears.
static LAST: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// `generation | NO_TSC | thread id`. It has no destructor, so no thread has to register one.
    static KEPT: Cell<u64> = const { Cell::new(0) };
}

/// The calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThisThread {
    generation: u64,
    /// The id, perhaps with [`NO_TSC`].
    word: u64,
}

impl ThisThread {
    /// Returns the calling thread.
    #[inline]
    pub fn find() -> ThisThread {
        ThisThread::known().unwrap_or_else(look_up)
    }

    /// Returns the calling thread if it was looked up before, and may read the time stamp counter.
    #[inline(always)]
    pub fn known() -> Option<ThisThread> {
        let generation = generation();
        let word = KEPT.get().wrapping_sub(generation);
        // 0 is no id: the thread has kept none.
        (word.wrapping_sub(1) < NO_TSC - 1).then_some(ThisThread { generation, word })
    }

    /// Returns the calling thread's id and the low half of `owner`, if the high half is the generation's number, and
    /// [`Self::known`] knows the thread. A low half of 2^31 or more is not found, and an id of 0 says nothing.
    ///
    /// One comparison for both: it is on the way of each record.
    #[inline(always)]
    pub fn known_in(owner: u64) -> Option<(u32, u32)> {
        let generation = generation();
        let (id, low) = (KEPT.get().wrapping_sub(generation), owner.wrapping_sub(generation));
        ((id | low) < NO_TSC).then_some((id as u32, low as u32))
    }

    /// Returns the thread's id as gettid(2) does.
    #[inline(always)]
    pub fn id(self) -> u32 {
        self.word as u32 & !(NO_TSC as u32)
    }

    /// Returns whether the thread may read the time stamp counter, see PR_SET_TSC in prctl(2).
    /// The answer is that of the thread's first look.
    #[inline(always)]
    pub fn may_read_tsc(self) -> bool {
        self.word & NO_TSC == 0
    }

    /// Returns the number of the process's generation.
    /// A forked child has another one than its parent. 0: the number cannot be known.
    #[inline(always)]
    pub fn generation(self) -> u32 {
        (self.generation >> 32) as u32
    }

    /// Returns a number that is another one in each forked child, also where a child of another PID namespace has its
    /// parent's number. Never 0. If the number of the generation cannot be known, it is the process's.
    #[inline]
    pub fn process(self) -> u64 {
        if self.generation == 0 { std::process::id().into() } else { self.generation }
    }
}

/// Returns the number of the process's generation above 32 zero bits; 0 in a child that has not looked, or [`NEVER`].
#[inline(always)]
fn generation() -> u64 {
    let word = GENERATION.load(Ordering::Acquire);
    // SAFETY: `page` never stores the address of anything that is unmapped or freed, see there.
    unsafe { &*word }.load(Ordering::Relaxed)
}

/// Asks the kernel for the calling thread's id, and keeps it.
#[cold]
#[inline(never)]
fn look_up() -> ThisThread {
    let word = page();
    // Relaxed, here and below: a thread that sees 0 finds out in the exchange, and nothing else is ordered by it.
    let is_none = std::ptr::eq(word, &NONE);
    let mut generation = if is_none { 0 } else { word.load(Ordering::Relaxed) };
    if generation == 0 && !is_none {
        let next = u64::from(LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1)) << 32;
        generation = match word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => next,
            Err(other) => other,
        };
    }
    let kept = KEPT.get();
    if generation != 0 && kept >> 32 == generation >> 32 {
        return ThisThread { generation, word: kept - generation };
    }
    let id = nix::unistd::gettid().as_raw().unsigned_abs();
    let this = ThisThread { generation, word: u64::from(id) | if reads_tsc() { 0 } else { NO_TSC } };
    if generation != 0 {
        KEPT.set(generation | this.word);
    }
    this
}

/// Returns the word with the generation's number; [`NONE`] if the kernel cannot zero pages at a fork.
fn page() -> &'static AtomicU64 {
    // Acquire, pairs with the AcqRel below: the page was advised before its address could be seen.
    let known = GENERATION.load(Ordering::Acquire);
    let not_yet = (&raw const NOT_YET).cast_mut();
    if known != not_yet {
        // SAFETY: stored below; what is stored there is never unmapped.
        return unsafe { &*known };
    }
    let made = map();
    let word = made.unwrap_or_else(|| (&raw const NONE).cast_mut());
    match GENERATION.compare_exchange(not_yet, word, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: a static, or the start of a mapping that only the other branch would unmap.
        Ok(_) => unsafe { &*word },
        Err(other) => {
            if let Some(made) = made.and_then(|made| std::ptr::NonNull::new(made.cast())) {
                // SAFETY: our own mapping, whose address no other code has.
                let _ = unsafe { munmap(made, PAGE.get()) };
            }
            // SAFETY: the page of the thread that came first, which stays.
            unsafe { &*other }
        }
    }
}

/// Maps a page that is zero in each forked child.
fn map() -> Option<*mut AtomicU64> {
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let page = unsafe { mmap_anonymous(None, PAGE, prot, MapFlags::MAP_PRIVATE) }.ok()?;
    // SAFETY: our own mapping, which is all zeroes now.
    if unsafe { madvise(page, PAGE.get(), MmapAdvise::MADV_WIPEONFORK) }.is_err() {
        // SAFETY: as above; its address is stored nowhere.
        let _ = unsafe { munmap(page, PAGE.get()) };
        return None;
    }
    Some(page.as_ptr().cast())
}

/// Returns whether the calling thread may read the time stamp counter.
fn reads_tsc() -> bool {
    let mut mode: libc::c_int = 0;
    // SAFETY: the kernel stores one int at the address. Where there is no such switch, the call fails.
    let asked = unsafe { libc::prctl(libc::PR_GET_TSC, &raw mut mode) };
    asked != 0 || mode != libc::PR_TSC_SIGSEGV
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Pid, fork, gettid};

    use super::*;

    fn real() -> u32 {
        gettid().as_raw().unsigned_abs()
    }

    #[test]
    fn each_thread_has_its_own_id() {
        let here = ThisThread::find();
        assert_eq!((here.id(), here), (real(), ThisThread::find()));
        assert!(here.may_read_tsc() && here.generation() != 0);
        thread::spawn(move || {
            let there = ThisThread::find();
            assert_eq!((there.id(), there.generation()), (real(), here.generation()));
            assert_ne!(there.id(), here.id());
        })
        .join()
        .unwrap();
    }

    /// Runs `check` in a child made by `make`, which returns 0 there.
    fn in_child(make: impl FnOnce() -> i32, check: impl FnOnce() -> bool) {
        match make() {
            // SAFETY: ends the child at once.
            0 => unsafe { libc::_exit(if check() { 0 } else { 1 }) },
            child => {
                let child = Pid::from_raw(child);
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
    }

    #[test]
    fn forked_child_has_another_id_and_generation_by_any_call() {
        let before = ThisThread::find();
        let is_new = move || {
            let first = ThisThread::find();
            let is_right = |this: ThisThread| {
                this.id() == real() && this.generation() != before.generation() && this.generation() != 0
            };
            is_right(first) && ThisThread::find() == first && {
                // A grandchild, too, by the call that tells no library.
                let mut grand = true;
                // SAFETY: the child only looks and ends.
                let made = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
                if made == 0 {
                    let here = ThisThread::find();
                    grand = here.id() == real() && here.generation() != first.generation();
                    // SAFETY: ends the grandchild at once.
                    unsafe { libc::_exit(if grand { 0 } else { 1 }) }
                }
                grand &= waitpid(Pid::from_raw(made), None) == Ok(WaitStatus::Exited(Pid::from_raw(made), 0));
                grand && is_right(ThisThread::find())
            }
        };
        // SAFETY: the child only looks, forks and ends.
        let forked = || match unsafe { fork() }.unwrap() {
            ForkResult::Child => 0,
            ForkResult::Parent { child } => child.as_raw(),
        };
        in_child(forked, is_new);
        // SAFETY: as above.
        in_child(|| unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32, is_new);
        assert_eq!(ThisThread::find(), before, "the parent's stays");
    }

    /// A child that has the word of its parent must not pass for it.
    #[test]
    fn no_thread_is_known_where_pages_cannot_be_zeroed() {
        let without_page = || {
            GENERATION.store((&raw const NONE).cast_mut(), Ordering::Release);
            KEPT.set(0);
            (0..2).all(|_| {
                let this = ThisThread::find();
                (this.id(), this.generation(), this.process()) == (real(), 0, std::process::id().into())
                    && this.may_read_tsc()
                    && ThisThread::known().is_none()
                    && [0, 7, 1 << 32 | 7].iter().all(|owner| ThisThread::known_in(*owner).is_none())
            })
        };
        ThisThread::find();
        // SAFETY: the child only looks and ends.
        let made = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
        in_child(made, without_page);
    }

    #[test]
    fn owner_is_known_in_its_generation_alone() {
        let this = ThisThread::find();
        let owner = u64::from(this.generation()) << 32 | 7;
        assert_eq!(ThisThread::known_in(owner), Some((this.id(), 7)));
        assert_eq!(ThisThread::known_in(owner + (1 << 32)), None);
        assert_eq!(ThisThread::known_in(owner - (1 << 32)), None);
        assert_eq!(ThisThread::known_in(7), None);
        // It is only not found this way.
        assert_eq!(ThisThread::known_in(owner | 1 << 31), None);
        let of_new_thread = thread::spawn(move || ThisThread::known_in(owner)).join().unwrap();
        assert_eq!(of_new_thread, None, "it has not looked yet");
    }

    #[test]
    fn thread_that_may_not_read_the_counter_is_known() {
        thread::spawn(|| {
            // SAFETY: it concerns this thread alone, which does not read the counter.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) }, 0);
            let this = ThisThread::find();
            let again = ThisThread::find();
            assert_eq!(ThisThread::known_in(u64::from(this.generation()) << 32 | 7), None);
            // SAFETY: as above; the end of a thread may read it.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_ENABLE) }, 0);
            assert_eq!((this.id(), this.may_read_tsc(), this), (real(), false, again));
        })
        .join()
        .unwrap();
    }
}
