//! Writing directly: whether that is to be had here, and being on the CPU whose buffer is written.
//!
//! The suite is also passed with restartable sequences switched off, `GLIBC_TUNABLES=glibc.pthread.rseq=0`. Then a test
//! of shared buffers finds the socket in their place, and checks that, and why.

use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use relay_producer::{Channel, Transport};

/// The variable that switches restartable sequences off.
pub const TUNABLES: &str = "GLIBC_TUNABLES";
/// Its value that does.
pub const NO_SEQUENCES: &str = "glibc.pthread.rseq=0";
/// Why a process without them goes by the socket.
pub const WHY_NO_SEQUENCES: &str =
    "the C library registers no restartable sequences: glibc 2.35 and later do, unless glibc.pthread.rseq=0";

/// Whether this process, and those it starts, are to do without restartable sequences.
pub fn is_without_sequences() -> bool {
    std::env::var(TUNABLES).is_ok_and(|tunables| tunables.contains(NO_SEQUENCES))
}

/// A command that may run restartable sequences, whatever this process may.
pub fn with_sequences(command: &mut Command) -> &mut Command {
    command.env_remove(TUNABLES)
}

/// That a channel is written directly, or, where that was switched off, is not, and says so.
#[track_caller]
pub fn assert_direct(channel: &Channel) {
    let expected = if is_without_sequences() {
        (Transport::Socket, Some(WHY_NO_SEQUENCES.to_owned()))
    } else {
        (Transport::Shared, None)
    };
    assert_eq!((channel.transport(), channel.why_socket()), expected);
}

/// Does something on a CPU: the calling thread goes there, and afterwards where it may have been before.
#[track_caller]
pub fn on_cpu<T>(cpu: usize, act: impl FnOnce() -> T) -> T {
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread).expect("where this thread may run");
    pin(cpu);
    let result = act();
    sched_setaffinity(this_thread, &before).expect("going back");
    result
}

/// Moves the calling thread to a CPU, for good.
#[track_caller]
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a small number");
    sched_setaffinity(Pid::from_raw(0), &set).unwrap_or_else(|error| panic!("going to CPU {cpu}: {error}"));
}
