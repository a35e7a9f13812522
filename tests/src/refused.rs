//! Processes in which the kernel refuses restartable sequences.
//!
//! A seccomp filter refuses the system calls. It stays with all descendants of the process.
//!
//! The C library of a process without sequences registers no areas, by GLIBC_TUNABLES, and the filter refuses those of
//! the project. It lets the C library's areas pass, so that a test without sequences can start a process with them: with
//! another GLIBC_TUNABLES. The filter tells the areas by their addresses, of which those of the project are multiples of
//! 64, and those of glibc are not.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The variable that tells the C library to register no areas.
pub const TUNABLES: &str = "GLIBC_TUNABLES";
/// The value that does so.
pub const NO_AREAS: &str = "glibc.pthread.rseq=0";
/// The variable by which tests know that the kernel refuses restartable sequences.
pub const AREAS: &str = "RELAYFS_TESTS_RSEQ";
/// Its value then.
pub const REFUSED: &str = "refused";

/// Makes a command run without restartable sequences. It takes root, or CAP_SYS_ADMIN.
pub fn without_sequences(command: &mut Command) -> &mut Command {
    command.env(TUNABLES, NO_AREAS).env(AREAS, REFUSED);
    // SAFETY: the function makes one system call, of which it gives the kernel the address of locals.
    unsafe { command.pre_exec(refuse_areas) }
}

/// Loads a word of the call.
pub const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
/// Goes to one of two later steps.
pub const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
/// Says what the kernel does with the call.
pub const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Offsets in `seccomp_data`: the call's number, and the lower half of its first argument.
pub const NUMBER: u32 = 0;
const FIRST: u32 = 16;

/// A step of a filter: how far the next one is if a comparison holds, and if not.
pub const fn step(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Has the kernel refuse the project's areas from now on, to the calling thread and all that it starts.
pub fn refuse_areas() -> io::Result<()> {
    refuse(&mut [
        step(LOAD, NUMBER, 0, 0),
        step(JUMP_IF_EQUAL, libc::SYS_rseq as u32, 0, 4),
        step(LOAD, FIRST, 0, 0),
        step(AND, 63, 0, 0),
        step(JUMP_IF_EQUAL, 0, 0, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ])
}

/// Sets a filter of system calls.
pub fn refuse(steps: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let (filter, program) = (libc::SECCOMP_MODE_FILTER, &raw const program);
    // SAFETY: the kernel copies the program, whose steps are those of the slice.
    let said = unsafe { libc::prctl(libc::PR_SET_SECCOMP, filter, program, 0, 0) };
    if said == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
