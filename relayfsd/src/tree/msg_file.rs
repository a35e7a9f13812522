//! The file `msg`: each write(2) is one message, into the buffer of the writing thread's CPU.
//!
//! In a timed channel the message is a text: the newline at the end of the write is not a part of it.

use nix::sched::sched_getcpu;
use relay::layout::geometry::MESSAGE_MAX;
use relay::ring::writer::WriteResult;
use relay::system::proc_stat;
use relay::trace::event::id;

use crate::channel::ChannelRef;
use crate::channel::timed::record;
use crate::tree::Written;
use crate::writers::{Job, Unavailable, Writers};

/// Longest write(2) that is sure to come in one piece, in bytes.
///
/// The kernel cuts longer writes after as many whole pages as a request can have. It cuts an unaligned write up to a
/// page earlier. Each piece would be a separate message.
const WRITE_MAX: usize = MESSAGE_MAX - 4096;
/// Index of the CPU's number among the words behind the thread's name in `/proc/TID/stat`.
const STAT_CPU: usize = 36;

/// Writes a message for a thread.
pub(crate) fn write(writers: &Writers, channel: &ChannelRef, bytes: &[u8], by: u32, written: Written) {
    if bytes.len() > WRITE_MAX {
        return written(Err(libc::EMSGSIZE));
    }
    let cpu = if channel.geometry().global() { 0 } else { cpu_of(by) };
    if cpu >= channel.n_bufs() {
        return written(Err(libc::ENXIO));
    }
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut copy = Vec::new();
    if copy.try_reserve_exact(bytes.len()).is_err() {
        channel.buffer(cpu).count_dropped_elsewhere(1);
        return written(Err(libc::ENOMEM));
    }
    match channel.timed() {
        None => copy.extend_from_slice(bytes),
        Some(_) => copy = record(id::TEXT, by, text),
    }
    let done = Box::new(move |placed: Result<WriteResult, Unavailable>| {
        written(match placed {
            Ok(WriteResult::Written) => Ok(()),
            Ok(WriteResult::Full) => Err(libc::ENOSPC),
            Ok(WriteResult::TooBig) => Err(libc::EMSGSIZE),
            Ok(WriteResult::Closed) => Err(libc::ENODEV),
            Err(unavailable) => Err(unavailable.errno()),
        });
    });
    let job = Job::Message { channel: channel.clone(), cpu, bytes: copy, is_own: false, done };
    writers.submit_now(job);
}

/// Returns the CPU on which a thread began to wait for the daemon.
///
/// If the daemon cannot find that out, returns the CPU of the calling thread. An example is a thread in a PID namespace
/// that is not below the daemon's.
fn cpu_of(thread: u32) -> usize {
    let cpu = proc_stat::read(thread, "stat").and_then(|stat| proc_stat::number(&stat, STAT_CPU));
    cpu.or_else(|| sched_getcpu().ok()).unwrap_or(0)
}
