//! Restartable sequences, rseq(2): the executor of writers that share a CPU.
//!
//! A sequence is a short run of instructions. If its thread is preempted, migrated or gets a signal inside it, the
//! kernel jumps to a handler, which starts over. A thread that checks its CPU at the start of a sequence is therefore
//! alone on that CPU until the end, without a lock.
//!
//! It needs x86-64 and a C library that registers its threads (glibc 2.35 and later). Elsewhere, and for unregistered
//! threads, there are no sequences, and messages go over the socket. The library's symbols are looked up at run time,
//! so that programs start with any C library.
//!
//! The steps of each sequence, in librseq's terms (`append` loads the state instead of comparing it):
//!
//! ```text
//! rseq_cs <- descriptor                              last instruction before the sequence
//! start:   if rseq.cpu_id != cpu      goto failed
//!          if *state != from          goto failed
//!          stores, zeroes, bytes of the message      no reader looks there before the commit
//! commit:  *state <- to                              last instruction of the sequence
//! end:     rseq_cs <- 0                              on every exit, or a later dlclose leaves a wild pointer
//! failed:  rseq_cs <- 0
//! ```
//!
//! Stores on x86-64 become visible in program order; string stores also come before later plain ones. So the commit is
//! a release (A in `writer.rs`), and `begun`, the last of the stores, is seen before the bytes (E). The code writes
//! nothing but `rseq_cs` in the thread's area. A debugger that steps through a sequence aborts it each time.
#![allow(unsafe_code)]

use std::arch::asm;

use crate::layout::position::Position;
use crate::memory::mapping::Mapping;
use crate::memory::sync::{AtomicIsize, AtomicU64, Ordering};
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Appended, Executor, Sequence};

/// From this length on, `rep movsb` copies, which processors do best with long copies.
const REP_MOVSB_MIN: usize = 2048;

/// Distance from the thread pointer to the thread's area; `ABSENT` if there is none.
/// 0 before the first look.
static AREA_OFFSET: AtomicIsize = AtomicIsize::new(0);
const ABSENT: isize = isize::MIN;

/// Proof that this process's threads are registered, and the distance to each thread's area.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    offset: isize,
}

/// An executor for a thread on a CPU; it changes nothing once the thread has left that CPU.
#[derive(Clone, Copy, Debug)]
pub struct RseqExecutor {
    sequences: Sequences,
    cpu: usize,
}

impl Sequences {
    /// Returns whether threads of this process can run sequences.
    pub fn find() -> Option<Sequences> {
        // Relaxed: every thread finds the same offset.
        let offset = match AREA_OFFSET.load(Ordering::Relaxed) {
            0 => find_area(),
            offset => offset,
        };
        (offset != ABSENT).then_some(Sequences { offset })
    }

    /// Returns the CPU of the calling thread at this moment.
    /// The number is above that of any CPU if the thread is not registered.
    #[inline(always)]
    pub fn cpu(self) -> usize {
        let cpu: usize;
        // SAFETY: the C library has an area for every thread, registered or not, at this distance from where fs points.
        // The kernel keeps the area's second word up to date, which may change between any two instructions, hence not
        // `pure`.
        unsafe {
            asm!("mov {:e}, fs:[{} + 4]", out(reg) cpu, in(reg) self.offset,
                options(nostack, preserves_flags, readonly))
        };
        cpu
    }

    /// Returns an executor that writes the buffer of `cpu` for the calling thread.
    #[inline(always)]
    pub fn on(self, cpu: usize) -> RseqExecutor {
        RseqExecutor { sequences: self, cpu }
    }
}

/// Asks the C library for the offset of the area.
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

/// Copies rcx bytes from rsi to rdi inside a sequence.
/// The moves overlap and have the largest fitting size. Uses {tmp}, rdi, rsi, rcx, xmm0-7; continues at 60.
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

/// A point where a test can kill the writer: `ud2` if its number is in `relay_kill_at`.
/// Empty in other builds.
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

/// Number of the point where the writer dies; 0 for none.
// SAFETY: no other symbol has this name.
#[cfg(feature = "kill-points")]
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "it is named in assembly")]
static relay_kill_at: crate::memory::sync::AtomicU32 = crate::memory::sync::AtomicU32::new(0);

/// Kills this process at a point of its next sequence.
/// 1: before anything; 2: with the descriptor installed; 3: after the words of a switch are stored; 4: right before the
/// commit; 5: right after it.
#[cfg(feature = "kill-points")]
pub fn die_at(point: u32) {
    relay_kill_at.store(point, Ordering::SeqCst);
}

/// The signature before an abort handler: the number that glibc registered with.
/// The kernel checks it.
macro_rules! signature {
    () => {
        ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n"
    };
}

/// The descriptor, its installation, and the start of a sequence.
macro_rules! begin {
    ($scratch:literal) => {
        concat!(
            "
        .pushsection .data.rel.ro.rseq_cs, \"aw\"
        .balign 32
    77: .long 0, 0
        .quad 2f, 3f - 2f, 4f
        .popsection
        lea ",
            $scratch,
            ", [rip + 77b]
        mov qword ptr fs:[{area} + 8], ",
            $scratch,
            "
    2:
            "
        )
    };
}

/// The code behind the commit.
/// Leaves 1 in {tmp}, or 0 after an abort or a failed check, and no descriptor installed.
macro_rules! end {
    () => {
        concat!(
            "
    3:  mov {tmp:e}, 1
        jmp 6f
        .pushsection .text.rseq_abort, \"ax\"
            ",
            signature!(),
            "
    4:  jmp 5f
        .popsection
    5:  xor {tmp:e}, {tmp:e}
    6:  mov qword ptr fs:[{area} + 8], 0
            "
        )
    };
}

/// The operands of a switch, in memory for its sequence.
#[repr(C)]
struct Switch {
    cpu: usize,
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
    start: *const u8,
    start_len: usize,
}

impl Executor for RseqExecutor {
    #[inline(always)]
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        let (window, state) = (buffer.window(), &raw const buffer.block().state);
        // SAFETY:
        // - the area, at a distance from where fs points, is the calling thread's own, and only its descriptor word is
        //   written, which is zero again after;
        // - `state` and `window` are borrowed for longer than this takes;
        // - the window's address is that of a whole sub-buffer inside the mapping, whatever else it says, and the message is
        //   copied to an offset of at most `room` there, so it ends inside; the bytes read are the message's;
        // - all registers used are declared, and flags and memory are taken to be changed by default;
        // - the abort handler is preceded by the signature that glibc registered, and leaves by a way out.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!("rdi"),
                kill_point!("2"),
                "cmp dword ptr fs:[{area} + 4], {tmp:e}",
                "jne 5f",
                "mov {room}, [{window} + 16]",
                "sub {room}, {len}",
                "jb 7f",
                "mov rdi, [{state}]",
                "sub rdi, [{window}]",
                "cmp rdi, {room}",
                "ja 7f",
                "add rdi, [{window} + 8]",
                kill_point!("3"),
                copy!(),
                kill_point!("4"),
                "add qword ptr [{state}], {len}",
                "3: mov qword ptr fs:[{area} + 8], 0",
                kill_point!("5"),
                ".pushsection .text.rseq_abort, \"ax\"",
                signature!(),
                "4:",
                "5: mov qword ptr fs:[{area} + 8], 0",
                "jmp {interrupted}",
                "7: mov qword ptr fs:[{area} + 8], 0",
                "jmp {elsewhere}",
                ".popsection",
                area = in(reg) self.sequences.offset,
                state = in(reg) state,
                window = in(reg) window,
                room = out(reg) _,
                len = in(reg) message.len(),
                rep_movsb_min = const REP_MOVSB_MIN,
                tmp = inout(reg) self.cpu => _,
                interrupted = label { return Appended::Interrupted },
                elsewhere = label { return Appended::Elsewhere },
                out("rdi") _,
                inout("rsi") message.as_ptr() => _,
                inout("rcx") message.len() => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                options(nostack),
            );
        }
        Appended::Done
    }

    fn locate(&self, buffer: &Buffer, position: Position) {
        let widths = buffer.widths();
        let subbuf_size = buffer.geometry().subbuf_size();
        let Some(address) = buffer.data().address(widths.slot(position) * subbuf_size, subbuf_size) else {
            return;
        };
        let begin = widths.at(position, 0).0;
        // SAFETY: as in `append`; the one store is to the window, which is aligned to its size, so that no interruption
        // leaves half of it. A failed store shows at the next message.
        unsafe {
            asm!(
                "movq {both}, {begin}",
                "movq {high}, {address}",
                "punpcklqdq {both}, {high}",
                begin!("{tmp}"),
                "cmp dword ptr fs:[{area} + 4], {cpu:e}",
                "jne 5f",
                "movaps [{window}], {both}",
                end!(),
                area = in(reg) self.sequences.offset,
                cpu = in(reg) self.cpu,
                window = in(reg) buffer.window(),
                begin = in(reg) begin,
                address = in(reg) address.as_ptr(),
                both = out(xmm_reg) _,
                high = out(xmm_reg) _,
                tmp = out(reg) _,
                options(nostack),
            );
        }
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
            cpu: self.cpu,
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
            start: sequence.start.as_ptr(),
            start_len: sequence.start.len().min(sequence.zero.len()),
        };
        let done: u64;
        // SAFETY: as in `append`; besides, `switch` and `list` outlive the block, the words in the list are borrowed from
        // the mapping for as long as `sequence`, `zero` was checked like the message's place, and `start` is no longer.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!("{tmp}"),
                kill_point!("2"),
                "mov ecx, [{switch}]",
                "cmp dword ptr fs:[{area} + 4], ecx",
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
                "mov rdi, [{switch} + 48]",
                "mov rsi, [{switch} + 88]",
                "mov rcx, [{switch} + 96]",
                "rep movsb",
                "mov rdi, [{switch} + 64]",
                "mov rsi, [{switch} + 72]",
                "mov rcx, [{switch} + 80]",
                copy!(),
                kill_point!("4"),
                "mov rax, [{switch} + 24]",
                "mov qword ptr [rdx], rax",
                end!(),
                kill_point!("5"),
                area = in(reg) self.sequences.offset,
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
                begin!("{tmp}"),
                "cmp dword ptr fs:[{area} + 4], {cpu:e}",
                "jne 5f",
                "add qword ptr [{counter}], {n}",
                end!(),
                area = in(reg) self.sequences.offset,
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
