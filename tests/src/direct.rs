//! Writes directly: checks whether this process can, and moves to the CPU whose buffer is written.
//!
//! The suite also runs with restartable sequences refused, see [`crate::refused`]. Tests of shared buffers then check
//! that the channel uses the socket, and that it gives the reason. It runs a third time where the C library registers no
//! areas, and the project its own. Nothing else differs then.

use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use relay_producer::{Channel, Transport};

use crate::cpus;
pub use crate::refused::without_sequences;
use crate::refused::{AREAS, NO_AREAS, REFUSED, TUNABLES};

/// The reason that a process without restartable sequences uses the socket.
pub const WHY_NO_SEQUENCES: &str = "the kernel refuses restartable sequences, rseq(2): Linux 4.18 and later have them, \
                                    except under valgrind, gVisor or a seccomp filter without rseq";

/// Whether this process and its children run without restartable sequences.
pub fn is_without_sequences() -> bool {
    std::env::var(AREAS).is_ok_and(|areas| areas == REFUSED)
}

/// Allows restartable sequences to a command, even if this process has none.
pub fn with_sequences(command: &mut Command) -> &mut Command {
    if is_without_sequences() { command.env_remove(TUNABLES).env_remove(AREAS) } else { command }
}

/// Makes the C library of a command register no areas, so that the project registers its own.
pub fn with_own_areas(command: &mut Command) -> &mut Command {
    with_sequences(command).env(TUNABLES, NO_AREAS)
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
    pin_thread(Pid::from_raw(0), cpu);
}

/// Moves a process's first thread to a CPU, and leaves it there.
#[track_caller]
pub fn pin_thread(thread: Pid, cpu: usize) {
    cpus::stay_online();
    let mut set = CpuSet::new();
    set.set(cpu).expect("a small number");
    sched_setaffinity(thread, &set).unwrap_or_else(|error| panic!("going to CPU {cpu}: {error}"));
}
