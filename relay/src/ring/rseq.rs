//! Restartable sequences, rseq(2): the executor of writers that share a CPU.
//!
//! A sequence is a short run of instructions. If its thread is preempted, migrated or gets a signal inside it, the
//! kernel jumps to a handler, which starts over. A thread that checks its CPU at the start of a sequence is therefore
//! alone on that CPU until the end, without a lock.
//!
//! It needs x86-64 or aarch64, and an area of each thread that the kernel knows. glibc 2.35 and later registers one for
//! each thread (`rseq/area.rs`). Where the C library has registered none, `rseq/own.rs` registers one at a thread's first
//! write. Where the kernel refuses that, there are no sequences, and messages go over the socket.
//!
//! Here are the sequences of x86-64: `rseq/code.rs` has the pieces of assembly that they have in common, `rseq/record.rs`
//! appends records with their stamps, `rseq/switch.rs` finishes and begins sub-buffers. `rseq/aarch64.rs` has those of
//! aarch64.
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

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
#[macro_use]
mod code;
mod area;
mod linked;
mod own;
mod per_cpu;
mod pool;
#[cfg(target_arch = "x86_64")]
mod record;
mod switch;

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

pub use self::area::{Sequences, ThreadArea};
pub use self::per_cpu::PerCpu;
#[cfg(target_arch = "x86_64")]
use {
    crate::clock::Clock,
    crate::layout::abi::BufferBlock,
    crate::layout::position::Position,
    crate::memory::mapping::Window,
    crate::memory::sync::AtomicU64,
    crate::ring::buffer::Buffer,
    crate::ring::writer::{Appended, Executor, Sequence},
    std::mem::offset_of,
};

/// An executor for a thread on a CPU; it changes nothing once the thread has left that CPU.
#[derive(Clone, Copy, Debug)]
pub struct RseqExecutor {
    area: ThreadArea,
    cpu: usize,
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
    relay_kill_at.store(point, crate::memory::sync::Ordering::SeqCst);
}

#[cfg(target_arch = "x86_64")]
impl RseqExecutor {
    /// Appends a message. With `DROPS`, counts it as dropped instead if the buffer is known to be full.
    #[inline(always)]
    fn append_bare<const DROPS: bool>(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        // SAFETY:
        // - the area, at a distance from where fs points, is the calling thread's own, and only its descriptor word is
        //   written, which is zero again after;
        // - the window is borrowed for longer than this takes, and its pointer is to the `state` of the same buffer;
        // - `state` is the first field of the buffer's block, so the counters of drops are fields of that block, too;
        // - the window's address is that of a whole sub-buffer inside the mapping, whatever else it says, and the message is
        //   copied to an offset of at most `room` there, so it ends inside; the bytes read are the message's;
        // - all registers used are declared, and flags and memory are taken to be changed by default; the high halves of
        //   vector registers belong to those that are declared;
        // - instructions of AVX run only where `wide_from` says that the processor has them;
        // - the abort handler is preceded by the signature that every area is registered with, and leaves by a way out.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!("{dst}"),
                kill_point!("2"),
                "cmp dword ptr fs:[{area} + 4], {tmp:e}",
                "jne 5f",
                "mov {end}, [{window} + 16]",
                "sub {end}, {n}",
                "js 7f",
                "mov {state}, [{window} + 56]",
                "mov {dst}, [{state}]",
                "sub {dst}, [{window}]",
                "cmp {dst}, {end}",
                no_room!(),
                "add {dst}, [{window} + 8]",
                kill_point!("3"),
                copy!("[{window} + 48]"),
                commit_append!("{n}"),
                drop_if_full!("{n}"),
                area = in(reg) self.area.offset,
                window = in(reg) buffer.window(),
                state = out(reg) _,
                end = out(reg) _, // the room, before
                dst = out(reg) _,
                src = in(reg) message.as_ptr(),
                n = in(reg) message.len(),
                tmp = inout(reg) self.cpu => _,
                drops = const DROPS as u8,
                consumed = const offset_of!(BufferBlock, consumed),
                longest_dropped = const offset_of!(BufferBlock, longest_dropped),
                dropped = const offset_of!(BufferBlock, dropped),
                dropped_bytes = const offset_of!(BufferBlock, dropped_bytes),
                dropped_bytes_elsewhere = const offset_of!(BufferBlock, dropped_bytes_elsewhere),
                interrupted = label { return Appended::Interrupted },
                elsewhere = label { return Appended::Elsewhere },
                full = label { return Appended::Dropped },
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            );
        }
        Appended::Done
    }
}

#[cfg(target_arch = "x86_64")]
impl Executor for RseqExecutor {
    #[inline(always)]
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        self.append_bare::<false>(buffer, message)
    }

    #[inline(always)]
    fn append_or_drop(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        self.append_bare::<true>(buffer, message)
    }

    fn locate(&self, buffer: &Buffer, position: Position) {
        let widths = buffer.widths();
        let subbuf_size = buffer.geometry().subbuf_size();
        let Some(address) = buffer.data().address(widths.slot(position) * subbuf_size, subbuf_size) else {
            return;
        };
        let begin = widths.at(position, 0).0;
        // SAFETY: as in `append_bare`; the one store is to the window, which is aligned to its size, so that no interruption
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
                area = in(reg) self.area.offset,
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

    #[inline(always)]
    fn append_record(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        match buffer.clock() {
            Some(Clock::Tsc) => self.append_with_tsc::<false>(buffer, head, payload),
            Some(clock) => self.append_at_state(buffer, clock, head, payload),
            None => Appended::Elsewhere,
        }
    }

    #[inline(always)]
    fn append_record_quick<const DROPS: bool>(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        self.append_with_tsc::<DROPS>(buffer, head, payload)
    }

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        self.run_switch(buffer, sequence)
    }

    #[inline(always)]
    fn count(&self, counter: &AtomicU64, n: u64) -> bool {
        let counter: *const AtomicU64 = counter;
        // SAFETY: as in `append_bare`; the commit is one addition to a word borrowed from the mapping.
        unsafe {
            asm!(
                begin!("{tmp}"),
                "cmp dword ptr fs:[{area} + 4], {cpu:e}",
                "jne 5f",
                "add qword ptr [{counter}], {n}",
                end_by_label!(),
                area = in(reg) self.area.offset,
                cpu = in(reg) self.cpu,
                counter = in(reg) counter,
                n = in(reg) n,
                tmp = out(reg) _,
                failed = label { return false },
                options(nostack),
            );
        }
        true
    }

    fn note_full(&self, buffer: &Buffer, state: Position, consumed: Position) {
        // SAFETY: as in `append_bare`; both stores are to the window.
        unsafe {
            asm!(
                begin!("{tmp}"),
                "cmp dword ptr fs:[{area} + 4], {cpu:e}",
                "jne 5f",
                "mov [{window} + 32], {sum}",
                "mov qword ptr [{window} + 40], {drops}",
                end!(),
                area = in(reg) self.area.offset,
                cpu = in(reg) self.cpu,
                window = in(reg) buffer.window(),
                sum = in(reg) state.0.wrapping_add(consumed.0),
                drops = const Window::DROPS_UNNOTED,
                tmp = out(reg) _,
                options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests;
