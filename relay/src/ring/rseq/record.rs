//! The sequences that append a record with its stamp.
//!
//! Both run like the append of a bare message, and put stamp and head before the payload. The stamp is taken between
//! the look at `state` and the commit. If another writer of the CPU comes between, the kernel aborts the sequence, or
//! the state is another one; then the writer starts over and looks at the clock again. So stamps never decrease within
//! a buffer.

use std::arch::asm;
use std::mem::offset_of;

use super::RseqExecutor;
use crate::clock::Clock;
use crate::layout::abi::BufferBlock;
use crate::layout::geometry::RECORD_OVERHEAD;
use crate::memory::sync::Ordering;
use crate::ring::buffer::Buffer;
use crate::ring::writer::Appended;

impl RseqExecutor {
    /// Appends a record with a stamp of the time stamp counter, which the sequence reads. With `DROPS`, counts it as
    /// dropped instead if the buffer is known to be full.
    #[inline(always)]
    pub(super) fn append_with_tsc<const DROPS: bool>(
        &self,
        buffer: &Buffer,
        head: u64,
        payload: &[u8],
    ) -> Appended {
        // SAFETY: as in `append_bare` in `rseq.rs`. The room compared with the payload's length is that behind stamp and head,
        // so these are inside as well. A thread that may not read the counter gets a signal, and the caller knows it may.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!("{dst}"),
                kill_point!("2"),
                "cmp dword ptr fs:[{area} + 4], {tmp:e}",
                "jne 5f",
                "mov rdx, [{window} + 24]",
                "sub rdx, {n}",
                "js 7f",
                "mov {state}, [{window} + 56]",
                "mov {dst}, [{state}]",
                "sub {dst}, [{window}]",
                "cmp {dst}, rdx",
                no_room!(),
                "add {dst}, [{window} + 8]",
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "mov [{dst}], rax",
                "mov [{dst} + 8], {head}",
                "add {dst}, 16",
                kill_point!("3"),
                copy!("[{window} + 48]"),
                "lea {tmp}, [{n} + {overhead}]",
                commit_append!("{tmp}"),
                drop_if_full!("{end}", "lea {end}, [{n} + {overhead}]"),
                area = in(reg) self.area.offset,
                window = in(reg) buffer.window(),
                state = out(reg) _,
                overhead = const RECORD_OVERHEAD,
                head = in(reg) head,
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
                dst = out(reg) _,
                end = out(reg) _,
                src = in(reg) payload.as_ptr(),
                n = in(reg) payload.len(),
                out("rax") _, out("rdx") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
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
                begin!("{dst}"),
                kill_point!("2"),
                "cmp dword ptr fs:[{area} + 4], {tmp:e}",
                "jne 5f",
                "mov {end}, [{window} + 24]",
                "sub {end}, {n}",
                "js 7f",
                "mov {dst}, [{state}]",
                "cmp {dst}, {from}",
                "jne 5f",
                "sub {dst}, [{window}]",
                "cmp {dst}, {end}",
                "ja 7f",
                "add {dst}, [{window} + 8]",
                "mov [{dst}], {stamp}",
                "mov [{dst} + 8], {head}",
                "add {dst}, 16",
                kill_point!("3"),
                copy!("[{window} + 48]"),
                commit_append!("{len}"),
                area = in(reg) self.area.offset,
                state = in(reg) state,
                window = in(reg) window,
                end = out(reg) _,
                len = in(reg) RECORD_OVERHEAD + payload.len(),
                head = in(reg) head,
                from = in(reg) from,
                stamp = in(reg) stamp,
                tmp = inout(reg) self.cpu => _,
                interrupted = label { return Appended::Interrupted },
                elsewhere = label { return Appended::Elsewhere },
                dst = out(reg) _,
                src = in(reg) payload.as_ptr(),
                n = in(reg) payload.len(),
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
