//! Writes directly: checks whether this process can, and moves to the CPU whose buffer is written.
//!
//! The suite also runs with restartable sequences switched off, by `GLIBC_TUNABLES=glibc.pthread.rseq=0`. Tests of
//! shared buffers then check that the channel uses the socket, and that it gives the reason.

use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use relay_producer::{Channel, Transport};

/// The variable that switches restartable sequences off.
pub const TUNABLES: &str = "GLIBC_TUNABLES";
/// The value that switches them off.
pub const NO_SEQUENCES: &str = "glibc.pthread.rseq=0";
/// The reason that a process without restartable sequences uses the socket.
pub const WHY_NO_SEQUENCES: &str =
    "the C library registers no restartable sequences: glibc 2.35 and later do, unless glibc.pthread.rseq=0";

/// Whether this process and its children run without restartable sequences.
pub fn is_without_sequences() -> bool {
    std::env::var(TUNABLES).is_ok_and(|tunables| tunables.contains(NO_SEQUENCES))
}

/// Allows restartable sequences to a command, even if this process has none.
pub fn with_sequences(command: &mut Command) -> &mut Command {
    command.env_remove(TUNABLES)
}

/// Checks that a channel is written directly.
///
/// If sequences are switched off, checks that it uses the socket, and says why.
#[track_caller]
pub fn assert_direct(channel: &Channel) {
    let expected = if is_without_sequences() {
        (Transport::Socket, Some(WHY_NO_SEQUENCES.to_owned()))
    } else {
        (Transport::Shared, None)
    };
    assert_eq!((channel.transport(), channel.why_socket()), expected);
}

/// Runs a function on a CPU, and then restores the calling thread's CPUs.
#[track_caller]
pub fn on_cpu<T>(cpu: usize, act: impl FnOnce() -> T) -> T {
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread).expect("where this thread may run");
    pin(cpu);
    let result = act();
    sched_setaffinity(this_thread, &before).expect("going back");
    result
}

/// Moves the calling thread to a CPU, and leaves it there.
#[track_caller]
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a small number");
    sched_setaffinity(Pid::from_raw(0), &set).unwrap_or_else(|error| panic!("going to CPU {cpu}: {error}"));
}
