//! The sequences of aarch64.
//!
//! They have the steps of `rseq.rs`. Two things differ from x86-64, whose stores become visible in their order:
//!
//! - A and E: the commit of a change is a store with release (`stlr`), as are the words of a switch. A barrier behind
//!   those words keeps the stores into the sub-buffer behind `begun`. It is `dmb ish`, the fence of the model, since
//!   a switch is rare.
//! - The processor may be interrupted between the two halves of a store of 16 bytes. So `locate` stores a position first
//!   that no state belongs to, then the address, then the position.
//!
//! No channel has the clock `tsc`: stamps are taken before a sequence, which commits if the state is still the same.

use std::arch::{asm, global_asm};

use super::RseqExecutor;
use super::own::Kept;
use super::switch::Switch;
use crate::clock::Clock;
use crate::layout::geometry::RECORD_OVERHEAD;
use crate::layout::position::Position;
use crate::memory::sync::{AtomicU64, Ordering};
use crate::ring::buffer::Buffer;
use crate::ring::writer::{Appended, Executor, Sequence};

/// Copies {len} bytes from {src} to {dst} inside a sequence.
/// The moves overlap and have the largest fitting size. Uses {dst}, {src}, {len}, {tmp}, {end}, v0-7; continues at 60.
macro_rules! copy {
    () => {
        "
        add {tmp}, {src}, {len}
        add {end}, {dst}, {len}
        cmp {len}, #16
        b.lo 20f
        cmp {len}, #32
        b.hi 30f
        ldr q0, [{src}]
        ldr q1, [{tmp}, #-16]
        str q0, [{dst}]
        str q1, [{end}, #-16]
        b 60f
    30: cmp {len}, #64
        b.hi 40f
        ldp q0, q1, [{src}]
        ldp q2, q3, [{tmp}, #-32]
        stp q0, q1, [{dst}]
        stp q2, q3, [{end}, #-32]
        b 60f
    40: ldp q4, q5, [{tmp}, #-64]
        ldp q6, q7, [{tmp}, #-32]
        sub {end}, {end}, #64
    41: ldp q0, q1, [{src}]
        ldp q2, q3, [{src}, #32]
        add {src}, {src}, #64
        stp q0, q1, [{dst}]
        stp q2, q3, [{dst}, #32]
        add {dst}, {dst}, #64
        cmp {dst}, {end}
        b.lo 41b
        stp q4, q5, [{end}]
        stp q6, q7, [{end}, #32]
        b 60f
    20: cmp {len}, #8
        b.lo 21f
        ldr {src}, [{src}]
        ldr {tmp}, [{tmp}, #-8]
        str {src}, [{dst}]
        str {tmp}, [{end}, #-8]
        b 60f
    21: cmp {len}, #4
        b.lo 22f
        ldr {src:w}, [{src}]
        ldr {tmp:w}, [{tmp}, #-4]
        str {src:w}, [{dst}]
        str {tmp:w}, [{end}, #-4]
        b 60f
    22: cbz {len}, 60f
        ldrb {tmp:w}, [{tmp}, #-1]
        strb {tmp:w}, [{end}, #-1]
        lsr {len}, {len}, #1
        ldrb {tmp:w}, [{src}, {len}]
        strb {tmp:w}, [{dst}, {len}]
        ldrb {tmp:w}, [{src}]
        strb {tmp:w}, [{dst}]
    60:
        "
    };
}

/// A point where a test can kill the writer: `udf` if its number is in `relay_kill_at`.
/// Empty in other builds.
#[cfg(feature = "kill-points")]
macro_rules! kill_point {
    ($number:literal) => {
        concat!(
            "adrp {tmp}, relay_kill_at\nldr {tmp:w}, [{tmp}, :lo12:relay_kill_at]\ncmp {tmp:w}, #",
            $number,
            "\nb.ne 90f\nudf #0\n90:\n"
        )
    };
}
#[cfg(not(feature = "kill-points"))]
macro_rules! kill_point {
    ($number:literal) => {
        ""
    };
}

/// Is the thread on {cpu}? The first step of a sequence.
macro_rules! check_cpu {
    () => {
        "
        ldr {tmp:w}, [{area}, #4]
        cmp {tmp:w}, {cpu:w}
        b.ne 5f
        "
    };
}

/// The descriptor, its installation, and the start of a sequence.
macro_rules! begin {
    () => {
        "
        .pushsection .data.rel.ro.rseq_cs, \"aw\"
        .balign 32
    77: .word 0, 0
        .quad 2f, 3f - 2f, 4f
        .popsection
        adrp {tmp}, 77b
        add {tmp}, {tmp}, :lo12:77b
        str {tmp}, [{area}, #8]
    2:
        "
    };
}

/// The code behind the commit, and the ways out: to {failed} after an abort or a failed check (5), and to the label of
/// `$elsewhere` where there is no room (7). Each leaves no descriptor installed.
///
/// The kernel checks the number before the abort handler: with it every area is registered, by glibc and by `own.rs`.
/// All of it is beside the sequence, as far as conditional jumps reach.
macro_rules! end {
    ($elsewhere:literal) => {
        concat!(
            "
    3:  str xzr, [{area}, #8]
        b 8f
        .inst 0xd428bc00
    4:
    5:  str xzr, [{area}, #8]
        b {failed}
    7:  str xzr, [{area}, #8]
        b ",
            $elsewhere,
            "
    8:
            "
        )
    };
}

impl Executor for RseqExecutor {
    #[inline(always)]
    fn append(&self, buffer: &Buffer, message: &[u8]) -> Appended {
        let (window, state) = (buffer.window(), &raw const buffer.block().state);
        // SAFETY:
        // - the area is the calling thread's own, and only its descriptor word is written, which is zero again after;
        // - `state` and `window` are borrowed for longer than this takes;
        // - the window's address is that of a whole sub-buffer inside the mapping, whatever else it says, and the message is
        //   copied to an offset of at most `end` there, the room, so it ends inside; the bytes read are the message's;
        // - all registers used are declared, and flags and memory are taken to be changed by default;
        // - the abort handler is preceded by the signature that every area is registered with, and leaves by a way out.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!(),
                kill_point!("2"),
                check_cpu!(),
                "ldr {end}, [{window}, #16]",
                "subs {end}, {end}, {len}",
                "b.mi 7f",
                "ldr {to}, [{state}]",
                "ldr {tmp}, [{window}]",
                "sub {dst}, {to}, {tmp}",
                "cmp {dst}, {end}",
                "b.hi 7f",
                "ldr {tmp}, [{window}, #8]",
                "add {dst}, {dst}, {tmp}",
                "add {to}, {to}, {len}",
                kill_point!("3"),
                copy!(),
                kill_point!("4"),
                "stlr {to}, [{state}]",
                end!("{elsewhere}"),
                kill_point!("5"),
                area = in(reg) self.area.address(),
                cpu = in(reg) self.cpu,
                state = in(reg) state,
                window = in(reg) window,
                to = out(reg) _,
                dst = out(reg) _,
                src = inout(reg) message.as_ptr() => _,
                len = inout(reg) message.len() => _,
                tmp = out(reg) _,
                end = out(reg) _,
                failed = label { return Appended::Interrupted },
                elsewhere = label { return Appended::Elsewhere },
                out("v0") _, out("v1") _, out("v2") _, out("v3") _,
                out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                options(nostack),
            );
        }
        Appended::Done
    }

    #[inline(always)]
    fn append_record(&self, buffer: &Buffer, head: u64, payload: &[u8]) -> Appended {
        match buffer.clock() {
            Some(clock) => self.append_at_state(buffer, clock, head, payload),
            None => Appended::Elsewhere,
        }
    }

    fn locate(&self, buffer: &Buffer, position: Position) {
        let widths = buffer.widths();
        let subbuf_size = buffer.geometry().subbuf_size();
        let Some(address) = buffer.data().address(widths.slot(position) * subbuf_size, subbuf_size) else {
            return;
        };
        let begin = widths.at(position, 0).0;
        // SAFETY: as in `append`; all three stores are to the window. If only the first ones are made, no offset from the
        // position fits a sub-buffer: it is half of all positions away. Every address is that of a whole sub-buffer.
        unsafe {
            asm!(
                begin!(),
                check_cpu!(),
                "eor {tmp}, {begin}, #0x8000000000000000",
                "str {tmp}, [{window}]",
                "str {address}, [{window}, #8]",
                "str {begin}, [{window}]",
                end!("{failed}"),
                area = in(reg) self.area.address(),
                cpu = in(reg) self.cpu,
                window = in(reg) buffer.window(),
                begin = in(reg) begin,
                address = in(reg) address.as_ptr(),
                tmp = out(reg) _,
                failed = label { return },
                options(nostack),
            );
        }
    }

    fn switch(&self, buffer: &Buffer, sequence: &Sequence<'_>) -> bool {
        self.run_switch(buffer, sequence)
    }

    fn count(&self, counter: &AtomicU64, n: u64) -> bool {
        let counter: *const AtomicU64 = counter;
        // SAFETY: as in `append`; the commit is one store to a word borrowed from the mapping.
        unsafe {
            asm!(
                begin!(),
                check_cpu!(),
                "ldr {tmp}, [{counter}]",
                "add {tmp}, {tmp}, {n}",
                "str {tmp}, [{counter}]",
                end!("{failed}"),
                area = in(reg) self.area.address(),
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
}

impl RseqExecutor {
    /// Appends a record with a stamp that is taken before the sequence, which commits only if the state is still the same.
    #[inline(never)]
    fn append_at_state(&self, buffer: &Buffer, clock: Clock, head: u64, payload: &[u8]) -> Appended {
        let (window, state) = (buffer.window(), &raw const buffer.block().state);
        // Acquire: the look at the clock comes after it. A stamp that was taken before another writer's record would
        // otherwise pass for a later one.
        let from = buffer.block().state.load(Ordering::Acquire);
        let stamp = clock.now();
        // SAFETY: as in `append`. The room compared with the payload's length is that behind stamp and head, so these are inside
        // as well.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!(),
                kill_point!("2"),
                check_cpu!(),
                "ldr {end}, [{window}, #24]",
                "subs {end}, {end}, {len}",
                "b.mi 7f",
                "ldr {tmp}, [{state}]",
                "cmp {tmp}, {to}",
                "b.ne 5f",
                "ldr {tmp}, [{window}]",
                "sub {dst}, {to}, {tmp}",
                "cmp {dst}, {end}",
                "b.hi 7f",
                "ldr {tmp}, [{window}, #8]",
                "add {dst}, {dst}, {tmp}",
                "add {to}, {to}, {record_len}",
                "stp {stamp}, {head}, [{dst}], #16",
                kill_point!("3"),
                copy!(),
                kill_point!("4"),
                "stlr {to}, [{state}]",
                end!("{elsewhere}"),
                kill_point!("5"),
                area = in(reg) self.area.address(),
                cpu = in(reg) self.cpu,
                state = in(reg) state,
                window = in(reg) window,
                record_len = in(reg) RECORD_OVERHEAD + payload.len(),
                stamp = in(reg) stamp,
                head = in(reg) head,
                to = inout(reg) from => _,
                dst = out(reg) _,
                src = inout(reg) payload.as_ptr() => _,
                len = inout(reg) payload.len() => _,
                tmp = out(reg) _,
                end = out(reg) _,
                failed = label { return Appended::Interrupted },
                elsewhere = label { return Appended::Elsewhere },
                out("v0") _, out("v1") _, out("v2") _, out("v3") _,
                out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                options(nostack),
            );
        }
        Appended::Done
    }

    /// Runs the sequence that finishes or begins a sub-buffer.
    ///
    /// # Safety
    ///
    /// All pointers in `switch` are valid for what it says.
    pub(super) unsafe fn switch(&self, switch: &Switch) -> bool {
        let switch: *const Switch = switch;
        // SAFETY: as in `append`, and by the caller's promise.
        unsafe {
            asm!(
                kill_point!("1"),
                begin!(),
                kill_point!("2"),
                check_cpu!(),
                "ldr {state}, [{switch}, #8]",
                "ldr {tmp}, [{switch}, #16]",
                "ldr {end}, [{state}]",
                "cmp {tmp}, {end}",
                "b.ne 5f",
                "ldr {tmp}, [{switch}, #136]",
                "ldr {tmp}, [{tmp}]",
                "cbnz {tmp}, 5f",
                "ldr {src}, [{switch}, #32]",
                "ldr {len}, [{switch}, #40]",
                "cbz {len}, 62f",
                "61: ldp {dst}, {tmp}, [{src}], #16",
                "stlr {tmp}, [{dst}]",
                "subs {len}, {len}, #1",
                "b.ne 61b",
                "62: dmb ish",
                kill_point!("3"),
                "ldr {dst}, [{switch}, #48]",
                "ldr {len}, [{switch}, #56]",
                "63: cmp {len}, #16",
                "b.lo 64f",
                "stp xzr, xzr, [{dst}], #16",
                "sub {len}, {len}, #16",
                "b 63b",
                "64: cbz {len}, 65f",
                "strb wzr, [{dst}], #1",
                "sub {len}, {len}, #1",
                "b 64b",
                "65: ldr {dst}, [{switch}, #48]",
                "ldr {src}, [{switch}, #88]",
                "ldr {len}, [{switch}, #96]",
                copy!(),
                "ldr {dst}, [{switch}, #64]",
                "ldr {len}, [{switch}, #104]",
                "cbz {len}, 66f",
                "ldr {tmp}, [{switch}, #112]",
                "ldr {end}, [{switch}, #120]",
                "stp {tmp}, {end}, [{dst}], #16",
                "66: ldr {src}, [{switch}, #72]",
                "ldr {len}, [{switch}, #80]",
                copy!(),
                kill_point!("4"),
                "ldr {end}, [{switch}, #24]",
                "stlr {end}, [{state}]",
                end!("{failed}"),
                kill_point!("5"),
                area = in(reg) self.area.address(),
                cpu = in(reg) self.cpu,
                switch = in(reg) switch,
                state = out(reg) _,
                dst = out(reg) _,
                src = out(reg) _,
                len = out(reg) _,
                tmp = out(reg) _,
                end = out(reg) _,
                failed = label { return false },
                out("v0") _, out("v1") _, out("v2") _, out("v3") _,
                out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                options(nostack),
            );
        }
        true
    }
}

// The memory of `Kept`, as in `own.rs`.
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

/// Returns the address that the thread pointer has.
#[inline(always)]
pub(super) fn thread_pointer() -> usize {
    let thread: usize;
    // SAFETY: reads a register that belongs to the thread.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) thread, options(nostack, nomem, preserves_flags)) };
    thread
}

/// Returns the calling thread's memory.
#[inline]
pub(super) fn kept() -> *const Kept {
    let offset: usize;
    // SAFETY: the sequence of the ABI for TLS descriptors: x0 has the distance of the variable from the thread pointer after
    // the call, which the linker replaces in programs.
    unsafe {
        asm!(
            "adrp x0, :tlsdesc:relay_rseq_kept_1",
            "ldr x1, [x0, :tlsdesc_lo12:relay_rseq_kept_1]",
            "add x0, x0, :tlsdesc_lo12:relay_rseq_kept_1",
            ".tlsdesccall relay_rseq_kept_1",
            "blr x1",
            out("x0") offset,
            clobber_abi("C"),
        );
    }
    std::ptr::with_exposed_provenance(thread_pointer().wrapping_add(offset))
}
