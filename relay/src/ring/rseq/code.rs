//! Pieces of assembly that sequences have in common.

/// From this length on, `rep movsb` copies, which processors do best with long copies.
pub(super) const REP_MOVSB_MIN: usize = 2048;

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

/// The commit of an append of {len} bytes, and the ways out: behind it, to {interrupted} after an abort or on another CPU
/// (5), and to {elsewhere} where there is no room (7). Each leaves no descriptor installed.
macro_rules! commit_append {
    () => {
        concat!(
            kill_point!("4"),
            "
        add qword ptr [{state}], {len}
    3:  mov qword ptr fs:[{area} + 8], 0
            ",
            kill_point!("5"),
            "
        .pushsection .text.rseq_abort, \"ax\"
            ",
            signature!(),
            "
    4:
    5:  mov qword ptr fs:[{area} + 8], 0
        jmp {interrupted}
    7:  mov qword ptr fs:[{area} + 8], 0
        jmp {elsewhere}
        .popsection
            "
        )
    };
}
