//! Processes to which the kernel does not tell how others ended, as before Linux 6.15.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::refused::{JUMP_IF_EQUAL, LOAD, NUMBER, RETURN, refuse, step};

/// The number of the request, with a structure of 64 bytes.
const PIDFD_GET_INFO: u32 = 0xc040_ff0b;
/// Offset in `seccomp_data` of the lower half of the call's second argument.
const SECOND: u32 = 24;

/// Makes a command run as on a kernel that does not tell how a process ended. It takes root, or CAP_SYS_ADMIN.
pub fn without_ends(command: &mut Command) -> &mut Command {
    // SAFETY: the function makes one system call, of which it gives the kernel the address of locals.
    unsafe { command.pre_exec(refuse_ends) }
}

/// Has the kernel refuse PIDFD_GET_INFO, with the error of kernels that do not know it.
fn refuse_ends() -> io::Result<()> {
    refuse(&mut [
        step(LOAD, NUMBER, 0, 0),
        step(JUMP_IF_EQUAL, libc::SYS_ioctl as u32, 0, 3),
        step(LOAD, SECOND, 0, 0),
        step(JUMP_IF_EQUAL, PIDFD_GET_INFO, 0, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOTTY as u32, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ])
}
