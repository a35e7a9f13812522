//! Restartable sequences, rseq(2): a short run of instructions that the kernel starts over, by jumping to a handler,
//! if its thread was preempted, migrated or got a signal inside it. So a thread that checks its CPU at the start of
//! a sequence is alone on that CPU until the end of it, without a lock.
//!
//! x86-64 with a C library that registers its threads (glibc 2.35 and later). Elsewhere, and for threads that are not
//! registered, there are no sequences, and messages go by the socket. The library's symbols are looked up at run
//! time, so that programs start with any.
//!
//! Each sequence here is, in the words of librseq:
//!
//! ```text
//! rseq_cs <- descriptor                              last instruction before the sequence
//! start:   if rseq.cpu_id != cpu      goto failed
//!          if *state != from          goto failed
//!          stores, zeroes, bytes of the message      mean nothing until the commit
//! commit:  *state <- to                              last instruction of the sequence
//! end:     rseq_cs <- 0                              on every way out, or a later dlclose leaves a wild pointer
//! failed:  rseq_cs <- 0
//! ```
//!
//! Stores on x86-64 become visible in their order, string stores before later plain ones too, so the commit is a
//! release (A in `writer.rs`), and `begun`, the last of the stores, is seen before the bytes (E). Nothing but `rseq_cs`
//! is ever written in the thread's area. A debugger that steps through a sequence aborts it each time.
#![allow(unsafe_code)]

use std::arch::asm;
use std::marker::PhantomData;

use crate::buffer::Buffer;
use crate::shm::Mapping;
use crate::sync::{AtomicIsize, AtomicU64, Ordering};
use crate::writer::{Append, Run, Sequence};

/// From this length on, `rep movsb` copies; it is what processors do best with much.
const REP_MOVSB_MIN: usize = 2048;

/// From the thread pointer to the thread's area; 0 before the first look, `ABSENT` where there is none.
static AREA_OFFSET: AtomicIsize = AtomicIsize::new(0);
const ABSENT: isize = isize::MIN;

/// The knowledge that this process's threads are registered, and where.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    offset: isize,
}

impl Sequences {
    /// Whether threads can run sequences in this process.
    pub fn find() -> Option<Sequences> {
        Thread::current()?;
        // Relaxed: as in `current`, which has found it.
        Some(Sequences { offset: AREA_OFFSET.load(Ordering::Relaxed) })
    }

    /// The calling thread.
    #[inline(always)]
    pub fn thread(self) -> Thread {
        let thread_pointer: *mut u8;
        // SAFETY: on x86-64 the word at fs:0 is the thread pointer itself.
        unsafe {
            asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, preserves_flags, readonly, pure))
        };
        Thread { area: thread_pointer.wrapping_offset(self.offset), _not_send: PhantomData }
    }
}

/// The calling thread's registration.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    area: *mut u8,
    _not_send: PhantomData<*mut u8>,
}

/// A thread that believes itself to be on a CPU, and writes only as long as that is so.
#[derive(Clone, Copy, Debug)]
pub struct OnCpu {
    thread: Thread,
    cpu: u32,
}

impl Thread {
    /// The calling thread, if it can run sequences.
    #[inline]
    pub fn current() -> Option<Thread> {
        // Relaxed: the offset is the same for whoever finds it out.
        let mut offset = AREA_OFFSET.load(Ordering::Relaxed);
        if offset == 0 {
            offset = find_area();
        }
        if offset == ABSENT {
            return None;
        }
        let thread_pointer: *mut u8;
        // SAFETY: on x86-64 the word at fs:0 is the thread pointer itself.
        unsafe {
            asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, preserves_flags, readonly, pure))
        };
        Some(Thread { area: thread_pointer.wrapping_offset(offset), _not_send: PhantomData })
    }

    /// The CPU the thread is on at this moment, or a number larger than any if it is not registered.
    #[inline]
    pub fn cpu(&self) -> u32 {
        // SAFETY: the area is the calling thread's own, alive as long as it, and the kernel keeps its second word, the
        // current CPU, up to date; it may change between any two instructions, hence volatile.
        unsafe { self.area.cast::<u32>().wrapping_add(1).read_volatile() }
    }

    /// This thread as a writer of the buffer of `cpu`.
    #[inline]
    pub fn on(self, cpu: u32) -> OnCpu {
        OnCpu { thread: self, cpu }
    }
}

/// Asks the C library where it put the area.
#[cold]
fn find_area() -> isize {
    // SAFETY: dlsym takes a terminated name; the handle means all libraries loaded.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) }.cast::<isize>();
    // SAFETY: as above.
    let size = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) }.cast::<u32>();
    let mut found = ABSENT;
    if !offset.is_null() && !size.is_null() {
        // SAFETY: glibc documents both as constants of these types; the size is 0 where registration is switched off.
        if unsafe { size.read() } != 0 {
            // SAFETY: as above.
            found = unsafe { offset.read() };
        }
    }
    AREA_OFFSET.store(found, Ordering::Relaxed);
    found
}

/// The copy inside a sequence: rcx bytes from rsi to rdi, by overlapping moves of the largest fitting size.
/// Uses {tmp}, rdi, rsi, rcx, xmm0-7; goes on at 60.
macro_rules! copy {
    () => {
        "
        cmp rcx, 16
        jb 20f
        cmp rcx, 32
        ja 30f
        movups xmm0, [rsi]
        movups xmm1, [rsi + rcx - 16]
        movups [rdi], xmm0
        movups [rdi + rcx - 16], xmm1
        jmp 60f
    30: cmp rcx, 64
        ja 40f
        movups xmm0, [rsi]
        movups xmm1, [rsi + 16]
        movups xmm2, [rsi + rcx - 32]
        movups xmm3, [rsi + rcx - 16]
        movups [rdi], xmm0
        movups [rdi + 16], xmm1
        movups [rdi + rcx - 32], xmm2
        movups [rdi + rcx - 16], xmm3
        jmp 60f
    40: cmp rcx, {rep_movsb_min}
        jae 50f
        movups xmm4, [rsi + rcx - 64]
        movups xmm5, [rsi + rcx - 48]
        movups xmm6, [rsi + rcx - 32]
        movups xmm7, [rsi + rcx - 16]
        lea rcx, [rdi + rcx - 64]
    41: movups xmm0, [rsi]
        movups xmm1, [rsi + 16]
        movups xmm2, [rsi + 32]
        movups xmm3, [rsi + 48]
        add rsi, 64
        movups [rdi], xmm0
        movups [rdi + 16], xmm1
        movups [rdi + 32], xmm2
        movups [rdi + 48], xmm3
        add rdi, 64
        cmp rdi, rcx
        jb 41b
        movups [rcx], xmm4
        movups [rcx + 16], xmm5
        movups [rcx + 32], xmm6
        movups [rcx + 48], xmm7
        jmp 60f
    50: rep movsb
        jmp 60f
    20: cmp rcx, 8
        jb 21f
        mov {tmp}, [rsi]
        mov rsi, [rsi + rcx - 8]
        mov [rdi], {tmp}
        mov [rdi + rcx - 8], rsi
        jmp 60f
    21: cmp rcx, 4
        jb 22f
        mov {tmp:e}, [rsi]
        mov esi, [rsi + rcx - 4]
        mov [rdi], {tmp:e}
        mov [rdi + rcx - 4], esi
        jmp 60f
    22: test rcx, rcx
        jz 60f
        movzx {tmp:e}, byte ptr [rsi]
        mov [rdi], {tmp:l}
        movzx {tmp:e}, byte ptr [rsi + rcx - 1]
        mov [rdi + rcx - 1], {tmp:l}
        shr rcx, 1
        movzx {tmp:e}, byte ptr [rsi + rcx]
        mov [rdi + rcx], {tmp:l}
    60:
        "
    };
}

/// A place where a test may let a writer die: with `ud2`, if its number is in `relay_kill_at`. Nothing in other builds.
#[cfg(feature = "kill-points")]
macro_rules! kill_point {
    ($number:literal) => {
        concat!("cmp dword ptr [rip + relay_kill_at], ", $number, "\njne 90f\nud2\n90:\n")
    };
}
#[cfg(not(feature = "kill-points"))]
macro_rules! kill_point {
    ($number:literal) => {
        ""
    };
}

/// Number of the place where the writer dies; 0 is none.
// SAFETY: no other symbol has this name.
#[cfg(feature = "kill-points")]
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "it is named in assembly")]
static relay_kill_at: crate::sync::AtomicU32 = crate::sync::AtomicU32::new(0);

/// Lets this process die at a place in its next sequence: 1 before anything, 2 with the descriptor installed, 3 after
/// the words of a switch are stored, 4 right before the commit, 5 right after it.
#[cfg(feature = "kill-points")]
pub fn die_at(point: u32) {
    relay_kill_at.store(point, Ordering::SeqCst);
}

/// The descriptor, its installation, and the start of a sequence.
macro_rules! begin {
    () => {
        "
        .pushsection .data.rel.ro.rseq_cs, \"aw\"
        .balign 32
    77: .long 0, 0
        .quad 2f, 3f - 2f, 4f
        .popsection
        lea {tmp}, [rip + 77b]
        mov qword ptr [{area} + 8], {tmp}
    2:
        "
    };
}

/// What follows the commit of an append, as `end`, but goes to {failed} after an abort or a failed check.
macro_rules! end_or_fail {
    () => {
        "
    3:  mov qword ptr [{area} + 8], 0
        .pushsection .text.rseq_abort, \"ax\"
        .byte 0x0f, 0xb9, 0x3d
        .long 0x53053053
    4:
    5:  mov qword ptr [{area} + 8], 0
        jmp {failed}
        .popsection
        "
    };
}

/// What follows the commit: leaves 1 in {tmp}, or 0 after an abort or a failed check, and no descriptor installed.
macro_rules! end {
    () => {
        "
    3:  mov {tmp:e}, 1
        jmp 6f
        .pushsection .text.rseq_abort, \"ax\"
        .byte 0x0f, 0xb9, 0x3d
        .long 0x53053053
    4:  jmp 5f
        .popsection
    5:  xor {tmp:e}, {tmp:e}
    6:  mov qword ptr [{area} + 8], 0
        "
    };
}

/// What a switch needs, where its sequence finds it.
#[repr(C)]
struct Switch {
    cpu: u64,
    state: *const AtomicU64,
    from: u64,
    to: u64,
    stores: *const (*const AtomicU64, u64),
    n_stores: u64,
    zero: *mut u8,
    zero_len: usize,
    message_to: *mut u8,
    message: *const u8,
    message_len: usize,
}

impl Run for OnCpu {
    #[inline(always)]
    fn append(&self, buffer: &Buffer, append: Append<'_>) -> bool {
        let Some(to) = buffer.data().address(append.at, append.message.len()) else { return false };
        let state: *const AtomicU64 = &buffer.block().state;
        // SAFETY:
        // - the area is the calling thread's own, and only its descriptor word is written, which is zero again after;
        // - `state` borrows from the mapping; the bytes written are the `message.len()` bytes of the ring that
        //   `address` checked; those read are the message's;
        // - all registers used are declared, and flags and memory are taken to be changed by default;
        // - the abort handler is preceded by the signature that glibc registered, and leaves by the same way out.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!(),
                kill_point!("2"),
                "cmp dword ptr [{area} + 4], {cpu:e}",
                "jne 5f",
                "cmp qword ptr [{state}], {from}",
                "jne 5f",
                kill_point!("3"),
                copy!(),
                kill_point!("4"),
                "mov qword ptr [{state}], {to}",
                end_or_fail!(),
                kill_point!("5"),
                area = in(reg) self.thread.area,
                cpu = in(reg) self.cpu,
                state = in(reg) state,
                from = in(reg) append.from.0,
                to = in(reg) append.to.0,
                rep_movsb_min = const REP_MOVSB_MIN,
                tmp = out(reg) _,
                failed = label { return false },
                inout("rdi") to.as_ptr() => _,
                inout("rsi") append.message.as_ptr() => _,
                inout("rcx") append.message.len() => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                options(nostack),
            );
        }
        true
    }

    #[inline(never)]
    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        let inside = |data: &Mapping, at, len| data.address(at, len).map(|address| address.as_ptr());
        let (Some(zero), Some(message_to)) = (
            inside(buffer.data(), sequence.zero.start, sequence.zero.len()),
            inside(buffer.data(), sequence.message_at, sequence.message.len()),
        ) else {
            return false;
        };
        let stores =
            sequence.stores.as_slice().iter().map(|(word, value)| (std::ptr::from_ref(*word), *value));
        let mut list = [(std::ptr::null(), 0); Sequence::STORES_MAX];
        list.iter_mut().zip(stores).for_each(|(to, store)| *to = store);
        let switch = Switch {
            cpu: self.cpu.into(),
            state: &buffer.block().state,
            from: sequence.from.0,
            to: sequence.to.0,
            stores: list.as_ptr(),
            n_stores: sequence.stores.as_slice().len() as u64,
            zero,
            zero_len: sequence.zero.len(),
            message_to,
            message: sequence.message.as_ptr(),
            message_len: sequence.message.len(),
        };
        let done: u64;
        // SAFETY: as in `append`; besides, `switch` and `list` outlive the block, the words in the list are borrowed from
        // the mapping for as long as `sequence`, and `zero` was checked like the message's place.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!(),
                kill_point!("2"),
                "mov ecx, [{switch}]",
                "cmp dword ptr [{area} + 4], ecx",
                "jne 5f",
                "mov rdx, [{switch} + 8]",
                "mov rax, [{switch} + 16]",
                "cmp qword ptr [rdx], rax",
                "jne 5f",
                "mov rsi, [{switch} + 32]",
                "mov rcx, [{switch} + 40]",
                "test rcx, rcx",
                "jz 62f",
                "61: mov rdi, [rsi]",
                "mov rax, [rsi + 8]",
                "mov [rdi], rax",
                "add rsi, 16",
                "dec rcx",
                "jnz 61b",
                "62:",
                kill_point!("3"),
                "mov rdi, [{switch} + 48]",
                "mov rcx, [{switch} + 56]",
                "xor eax, eax",
                "rep stosb",
                "mov rdi, [{switch} + 64]",
                "mov rsi, [{switch} + 72]",
                "mov rcx, [{switch} + 80]",
                copy!(),
                kill_point!("4"),
                "mov rax, [{switch} + 24]",
                "mov qword ptr [rdx], rax",
                end!(),
                kill_point!("5"),
                area = in(reg) self.thread.area,
                switch = in(reg) &raw const switch,
                rep_movsb_min = const REP_MOVSB_MIN,
                tmp = out(reg) done,
                out("rax") _, out("rdx") _, out("rdi") _, out("rsi") _, out("rcx") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                options(nostack),
            );
        }
        done != 0
    }

    fn count(&self, counter: &AtomicU64, n: u64) -> bool {
        let counter: *const AtomicU64 = counter;
        let done: u64;
        // SAFETY: as in `append`; the commit is one addition to a word borrowed from the mapping.
        unsafe {
            asm!(
                begin!(),
                "cmp dword ptr [{area} + 4], {cpu:e}",
                "jne 5f",
                "add qword ptr [{counter}], {n}",
                end!(),
                area = in(reg) self.thread.area,
                cpu = in(reg) self.cpu,
                counter = in(reg) counter,
                n = in(reg) n,
                tmp = out(reg) done,
                options(nostack),
            );
        }
        done != 0
    }
}
