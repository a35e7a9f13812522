//! The sequence that finishes or begins a sub-buffer.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

use super::RseqExecutor;
use crate::clock::Clock;
use crate::memory::mapping::Mapping;
use crate::memory::sync::AtomicU64;
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Message, Sequence};

/// The operands of a switch, in memory for its sequence.
#[repr(C)]
pub(super) struct Switch {
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
    /// 0: a bare message. 1: a record with the stamp below. 2: a record with the time stamp counter.
    stamping: u64,
    stamp: u64,
    head: u64,
    wide_from: usize,
    /// A word that must be 0.
    unless: *const AtomicU64,
}

// Sequences know the offsets. Each field has 8 bytes, and this is the last one.
const _: () = assert!(std::mem::offset_of!(Switch, unless) == 136);

/// The word of a sequence that needs none.
static NOTHING: AtomicU64 = AtomicU64::new(0);

const BARE: u64 = 0;
const STAMP_GIVEN: u64 = 1;
const STAMP_BY_TSC: u64 = 2;

impl RseqExecutor {
    /// Runs the sequence of [`Executor::switch`](crate::ring::writer::Executor::switch).
    #[inline(never)]
    pub(super) fn run_switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        let inside = |data: &Mapping, at, len| data.address(at, len).map(|address| address.as_ptr());
        let (Some(zero), Some(message_to)) = (
            inside(buffer.data(), sequence.zero.start, sequence.zero.len()),
            inside(buffer.data(), sequence.message_at, sequence.message.len_in_ring()),
        ) else {
            return false;
        };
        let (head, message) = match sequence.message {
            Message::Bare(message) => (None, message),
            Message::Record { head, payload } => (Some(head), payload),
        };
        let (stamping, stamp) = match (head, buffer.clock()) {
            (None, _) => (BARE, 0),
            (Some(_), Some(Clock::Tsc)) if cfg!(target_arch = "x86_64") => (STAMP_BY_TSC, 0),
            // The caller has loaded `from` before. The sequence fails if the state is another one by now.
            (Some(_), Some(clock)) => (STAMP_GIVEN, clock.now()),
            (Some(_), None) => return false,
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
            message: message.as_ptr(),
            message_len: message.len(),
            start: sequence.start.as_ptr(),
            start_len: sequence.start.len().min(sequence.zero.len()),
            stamping,
            stamp,
            head: head.unwrap_or(0),
            wide_from: buffer.window().wide_from(),
            unless: sequence.unless.unwrap_or(&NOTHING),
        };
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as below.
        let done = u64::from(unsafe { self.switch(&switch) });
        #[cfg(target_arch = "x86_64")]
        let done: u64;
        // SAFETY: as in `append`; besides, `switch` and `list` outlive the block, the words in the list are borrowed from
        // the mapping for as long as `sequence`, `zero` was checked like the message's place, and `start` is no longer.
        #[cfg(target_arch = "x86_64")]
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
                "mov rax, [{switch} + 136]",
                "cmp qword ptr [rax], 0",
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
                "mov {dst}, [{switch} + 64]",
                "mov rcx, [{switch} + 104]",
                "test rcx, rcx",
                "jz 64f",
                "mov rax, [{switch} + 112]",
                "cmp rcx, {stamp_by_tsc}",
                "jne 63f",
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "mov rdx, [{switch} + 8]",
                "63: mov [{dst}], rax",
                "mov rax, [{switch} + 120]",
                "mov [{dst} + 8], rax",
                "add {dst}, 16",
                "64:",
                "mov {src}, [{switch} + 72]",
                "mov {n}, [{switch} + 80]",
                copy!("[{switch} + 128]"),
                kill_point!("4"),
                "mov rax, [{switch} + 24]",
                "mov qword ptr [rdx], rax",
                end!(leave_wide!("[{switch} + 128]")),
                kill_point!("5"),
                area = in(reg) self.area.offset,
                switch = in(reg) &raw const switch,
                stamp_by_tsc = const STAMP_BY_TSC,
                tmp = out(reg) done,
                dst = out(reg) _,
                src = out(reg) _,
                n = out(reg) _,
                end = out(reg) _,
                out("rax") _, out("rdx") _, out("rdi") _, out("rsi") _, out("rcx") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            );
        }
        done != 0
    }
}
