//! Restartable sequences, rseq(2): the executor of writers that share a CPU.
//!
//! A sequence is a short run of instructions. If its thread is preempted, migrated or gets a signal inside it, the
//! kernel jumps to a handler, which starts over. A thread that checks its CPU at the start of a sequence is therefore
//! alone on that CPU until the end, without a lock.
//!
//! It needs x86-64, and an area of each thread that the kernel knows. glibc 2.35 and later registers one for each thread
//! (`rseq/area.rs`). Where the C library has registered none, `rseq/own.rs` registers one at a thread's first write.
//! Where the kernel refuses that, there are no sequences, and messages go over the socket.
//!
//! `rseq/code.rs` has the pieces of assembly that sequences have in common, `rseq/record.rs` appends records with their
//! stamps, `rseq/switch.rs` finishes and begins sub-buffers.
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

#[macro_use]
mod code;
mod area;
mod own;
mod pool;
mod record;
mod switch;

use std::arch::asm;

pub use self::area::{Sequences, ThreadArea};
use self::code::REP_MOVSB_MIN;
use crate::clock::Clock;
use crate::layout::position::Position;
use crate::memory::sync::AtomicU64;
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Appended, Executor, Sequence};

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
        // - the abort handler is preceded by the signature that every area is registered with, and leaves by a way out.
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
                commit_append!(),
                area = in(reg) self.area.offset,
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
            Some(Clock::Tsc) => self.append_with_tsc(buffer, head, payload),
            Some(clock) => self.append_at_state(buffer, clock, head, payload),
            None => Appended::Elsewhere,
        }
    }

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        self.run_switch(buffer, sequence)
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
                area = in(reg) self.area.offset,
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
