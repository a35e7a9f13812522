//! Pieces of assembly that sequences have in common.

/// Copies {n} bytes from {src} to {dst} inside a sequence, and leaves these three as they are.
/// The moves overlap and have the largest fitting size. From the length at `$wide_from` on they have 32 bytes; see
/// `Window`. Uses {tmp}, {end} and vector registers, of which a caller declares all: `vzeroupper` changes all of them.
/// Continues at 60.
macro_rules! copy {
    ($wide_from:literal) => {
        concat!(
            "
        cmp {n}, 16
        jb 20f
        cmp {n}, 32
        ja 30f
        movups xmm0, [{src}]
        movups xmm1, [{src} + {n} - 16]
        movups [{dst}], xmm0
        movups [{dst} + {n} - 16], xmm1
        jmp 60f
    30: cmp {n}, 64
        ja 40f
        movups xmm0, [{src}]
        movups xmm1, [{src} + 16]
        movups xmm2, [{src} + {n} - 32]
        movups xmm3, [{src} + {n} - 16]
        movups [{dst}], xmm0
        movups [{dst} + 16], xmm1
        movups [{dst} + {n} - 32], xmm2
        movups [{dst} + {n} - 16], xmm3
        jmp 60f
    40: cmp {n}, ",
            $wide_from,
            "
        jae 50f
        movups xmm4, [{src} + {n} - 64]
        movups xmm5, [{src} + {n} - 48]
        movups xmm6, [{src} + {n} - 32]
        movups xmm7, [{src} + {n} - 16]
        lea {end}, [{n} - 64]
        xor {tmp:e}, {tmp:e}
    41: movups xmm0, [{src} + {tmp}]
        movups xmm1, [{src} + {tmp} + 16]
        movups xmm2, [{src} + {tmp} + 32]
        movups xmm3, [{src} + {tmp} + 48]
        movups [{dst} + {tmp}], xmm0
        movups [{dst} + {tmp} + 16], xmm1
        movups [{dst} + {tmp} + 32], xmm2
        movups [{dst} + {tmp} + 48], xmm3
        add {tmp}, 64
        cmp {tmp}, {end}
        jb 41b
        movups [{dst} + {end}], xmm4
        movups [{dst} + {end} + 16], xmm5
        movups [{dst} + {end} + 32], xmm6
        movups [{dst} + {end} + 48], xmm7
        jmp 60f
    50: vmovups ymm0, [{src}]
        vmovups ymm1, [{src} + 32]
        cmp {n}, 128
        ja 51f
        vmovups ymm2, [{src} + {n} - 64]
        vmovups ymm3, [{src} + {n} - 32]
        vmovups [{dst}], ymm0
        vmovups [{dst} + 32], ymm1
        vmovups [{dst} + {n} - 64], ymm2
        vmovups [{dst} + {n} - 32], ymm3
        vzeroupper
        jmp 60f
    51: vmovups ymm4, [{src} + {n} - 128]
        vmovups ymm5, [{src} + {n} - 96]
        vmovups ymm6, [{src} + {n} - 64]
        vmovups ymm7, [{src} + {n} - 32]
        lea {end}, [{n} - 128]
        cmp {n}, 256
        ja 52f
        vmovups ymm2, [{src} + 64]
        vmovups ymm3, [{src} + 96]
        vmovups [{dst}], ymm0
        vmovups [{dst} + 32], ymm1
        vmovups [{dst} + 64], ymm2
        vmovups [{dst} + 96], ymm3
        jmp 54f
    52: mov {tmp:e}, {dst:e}
        neg {tmp:e}
        and {tmp:e}, 31
        vmovups [{dst}], ymm0
    53: vmovups ymm0, [{src} + {tmp}]
        vmovups ymm1, [{src} + {tmp} + 32]
        vmovups ymm2, [{src} + {tmp} + 64]
        vmovups ymm3, [{src} + {tmp} + 96]
        vmovups [{dst} + {tmp}], ymm0
        vmovups [{dst} + {tmp} + 32], ymm1
        vmovups [{dst} + {tmp} + 64], ymm2
        vmovups [{dst} + {tmp} + 96], ymm3
        sub {tmp}, -128
        cmp {tmp}, {end}
        jb 53b
    54: vmovups [{dst} + {end}], ymm4
        vmovups [{dst} + {end} + 32], ymm5
        vmovups [{dst} + {end} + 64], ymm6
        vmovups [{dst} + {end} + 96], ymm7
        vzeroupper
        jmp 60f
    20: cmp {n}, 8
        jb 21f
        mov {tmp}, [{src}]
        mov {end}, [{src} + {n} - 8]
        mov [{dst}], {tmp}
        mov [{dst} + {n} - 8], {end}
        jmp 60f
    21: cmp {n}, 4
        jb 22f
        mov {tmp:e}, [{src}]
        mov {end:e}, [{src} + {n} - 4]
        mov [{dst}], {tmp:e}
        mov [{dst} + {n} - 4], {end:e}
        jmp 60f
    22: test {n}, {n}
        jz 60f
        movzx {tmp:e}, byte ptr [{src}]
        mov [{dst}], {tmp:l}
        movzx {tmp:e}, byte ptr [{src} + {n} - 1]
        mov [{dst} + {n} - 1], {tmp:l}
        mov {end}, {n}
        shr {end}, 1
        movzx {tmp:e}, byte ptr [{src} + {end}]
        mov [{dst} + {end}], {tmp:l}
    60:
        "
        )
    };
}

/// Behind an abort, what `vzeroupper` would have done in the copy, where the processor knows it.
macro_rules! leave_wide {
    ($wide_from:literal) => {
        concat!("cmp qword ptr ", $wide_from, ", -1\nje 5f\nvzeroupper\n")
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

/// The signature before an abort handler: the number that every area is registered with, by glibc and by `own.rs`.
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
        end!("")
    };
    ($after_abort:expr) => {
        concat!(
            "
    3:  mov {tmp:e}, 1
        jmp 6f
        .pushsection .text.rseq_abort, \"ax\"
            ",
            signature!(),
            "
    4:
            ",
            $after_abort,
            "
        jmp 5f
        .popsection
    5:  xor {tmp:e}, {tmp:e}
    6:  mov qword ptr fs:[{area} + 8], 0
            "
        )
    };
}

/// The code behind the commit, and the way to {failed} after an abort or a failed check (5).
/// Each leaves no descriptor installed.
macro_rules! end_by_label {
    () => {
        concat!(
            "
    3:  mov qword ptr fs:[{area} + 8], 0
        .pushsection .text.rseq_abort, \"ax\"
            ",
            signature!(),
            "
    4:
    5:  mov qword ptr fs:[{area} + 8], 0
        jmp {failed}
        .popsection
            "
        )
    };
}

/// The commit of an append of `$len` bytes, and the ways out: behind it, to {interrupted} after an abort or on another
/// CPU (5), and to {elsewhere} where there is no room (7). Each leaves no descriptor installed.
macro_rules! commit_append {
    ($len:literal) => {
        concat!(
            kill_point!("4"),
            "
        add qword ptr [{state}], ",
            $len,
            "
    3:  mov qword ptr fs:[{area} + 8], 0
            ",
            kill_point!("5"),
            "
        .pushsection .text.rseq_abort, \"ax\"
            ",
            signature!(),
            "
    4:
            ",
            leave_wide!("[{window} + 48]"),
            "
    5:  mov qword ptr fs:[{area} + 8], 0
        jmp {interrupted}
    7:  mov qword ptr fs:[{area} + 8], 0
        jmp {elsewhere}
        .popsection
            "
        )
    };
}

/// Leaves an append that finds no room, by the flags of a comparison with it.
macro_rules! no_room {
    () => {
        ".if {drops}\nja 8f\n.else\nja 7f\n.endif"
    };
}

/// Behind [`commit_append!`]: the way of a message of `$len` bytes that does not fit where the last one ended (8). If
/// {drops} is 1 and the buffer is known to be full, it is counted as dropped, and the way out is to {full}.
/// {state} has the block's address, {tmp} the CPU.
///
/// It is another sequence. Only `dropped` and `dropped_bytes` change other processes' view, by an instruction each.
/// An abort between these two leaves 0 in {dst} and no zero flag: `inc` has cleared the one that `xor` has set. Then the
/// bytes are counted at `dropped_bytes_elsewhere`. An abort anywhere before means that nothing was done.
macro_rules! drop_if_full {
    ($len:literal) => {
        drop_if_full!($len, "")
    };
    ($len:literal, $get_len:literal) => {
        concat!(
            "
        .if {drops}
        .pushsection .data.rel.ro.rseq_cs, \"aw\"
        .balign 32
    78: .long 0, 0
        .quad 82f, 83f - 82f, 84f
        .popsection
        .pushsection .text.rseq_abort, \"ax\"
    8:
            ",
            $get_len,
            "
        lea {dst}, [rip + 78b]
        mov qword ptr fs:[{area} + 8], {dst}
    82: cmp dword ptr fs:[{area} + 4], {tmp:e}
        jne 5b
        mov {dst}, [{state}]
        add {dst}, [{state} + {consumed}]
        cmp {dst}, [{window} + 32]
        jne 7b
        cmp ",
            $len,
            ", [{state} + {longest_dropped}]
        ja 7b
        dec qword ptr [{window} + 40]
        js 7b
        xor {dst:e}, {dst:e}
        inc qword ptr [{state} + {dropped}]
        add qword ptr [{state} + {dropped_bytes}], ",
            $len,
            "
    83: mov qword ptr fs:[{area} + 8], 0
        jmp {full}
            ",
            signature!(),
            "
    84: jz 5b
        test {dst}, {dst}
        jnz 5b
        lock add qword ptr [{state} + {dropped_bytes_elsewhere}], ",
            $len,
            "
        jmp 83b
        .popsection
        .endif
            "
        )
    };
}
