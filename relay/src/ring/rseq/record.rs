//! The sequences that append a record with its stamp.
//!
//! Both run like the append of a bare message, and put stamp and head before the payload. The stamp is taken between
//! the look at `state` and the commit. If another writer of the CPU comes between, the kernel aborts the sequence, or
//! the state is another one; then the writer starts over and looks at the clock again. So stamps never decrease within
//! a buffer.

use std::arch::asm;

use super::RseqExecutor;
use super::code::REP_MOVSB_MIN;
use crate::clock::Clock;
use crate::layout::geometry::RECORD_OVERHEAD;
use crate::memory::sync::Ordering;
use crate::ring::buffer::Buffer;
use crate::ring::writer::Appended;

impl RseqExecutor {
    /// Appends a record with a stamp of the time stamp counter, which the sequence reads.
    #[inline(always)]
    pub(super) fn append_with_tsc(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        let (window, state) = (buffer.window(), &raw const buffer.block().state);
        // SAFETY: as in `append` in `rseq.rs`. The length compared with the room is that of the whole record, so stamp and
        // head are inside as well. A thread that may not read the counter gets a signal, and the caller knows it may.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!("rdi"),
                kill_point!("2"),
                "cmp dword ptr fs:[{area} + 4], {tmp:e}",
                "jne 5f",
                "mov rdx, [{window} + 24]",
                "sub rdx, {len}",
                "jb 7f",
                "mov rdi, [{state}]",
                "sub rdi, [{window}]",
                "cmp rdi, rdx",
                "ja 7f",
                "add rdi, [{window} + 8]",
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "mov [rdi], rax",
                "mov [rdi + 8], {head}",
                "add rdi, 16",
                kill_point!("3"),
                copy!(),
                commit_append!(),
                area = in(reg) self.area.offset,
                state = in(reg) state,
                window = in(reg) window,
                len = in(reg) RECORD_OVERHEAD + payload.len(),
                head = in(reg) head,
                rep_movsb_min = const REP_MOVSB_MIN,
                tmp = inout(reg) self.cpu => _,
                interrupted = label { return Appended::Interrupted },
                elsewhere = label { return Appended::Elsewhere },
                out("rax") _, out("rdx") _, out("rdi") _,
                inout("rsi") payload.as_ptr() => _,
                inout("rcx") payload.len() => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                options(nostack),
            );
        }
        Appended::Done
    }

    /// Appends a record with a stamp that is taken before the sequence, which commits only if the state is still the same.
    /// It is for clocks that take a call.
    #[cold]
    #[inline(never)]
    pub(super) fn append_at_state(
        &self,
        buffer: &Buffer,
        clock: Clock,
        head: u64,
        payload: &[u8],
    ) -> Appended {
        let (window, state) = (buffer.window(), &raw const buffer.block().state);
        // Acquire: the look at the clock comes after it. A stamp that was taken before another writer's record would
        // otherwise pass for a later one.
        let from = buffer.block().state.load(Ordering::Acquire);
        let stamp = clock.now();
        // SAFETY: as above.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!("rdi"),
                kill_point!("2"),
                "cmp dword ptr fs:[{area} + 4], {tmp:e}",
                "jne 5f",
                "mov {room}, [{window} + 24]",
                "sub {room}, {len}",
                "jb 7f",
                "mov rdi, [{state}]",
                "cmp rdi, {from}",
                "jne 5f",
                "sub rdi, [{window}]",
                "cmp rdi, {room}",
                "ja 7f",
                "add rdi, [{window} + 8]",
                "mov [rdi], {stamp}",
                "mov [rdi + 8], {head}",
                "add rdi, 16",
                kill_point!("3"),
                copy!(),
                commit_append!(),
                area = in(reg) self.area.offset,
                state = in(reg) state,
                window = in(reg) window,
                room = out(reg) _,
                len = in(reg) RECORD_OVERHEAD + payload.len(),
                head = in(reg) head,
                from = in(reg) from,
                stamp = in(reg) stamp,
                rep_movsb_min = const REP_MOVSB_MIN,
                tmp = inout(reg) self.cpu => _,
                interrupted = label { return Appended::Interrupted },
                elsewhere = label { return Appended::Elsewhere },
                out("rdi") _,
                inout("rsi") payload.as_ptr() => _,
                inout("rcx") payload.len() => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                options(nostack),
            );
        }
        Appended::Done
    }
}
