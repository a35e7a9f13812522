//! The file `msg`: each write(2) is one message, into the buffer of the writing thread's CPU.

use std::fs;

use nix::sched::sched_getcpu;
use relay::layout::geometry::MESSAGE_MAX;
use relay::ring::writer::WriteResult;

use crate::channel::ChannelRef;
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
    let mut copy = Vec::new();
    if copy.try_reserve_exact(bytes.len()).is_err() {
        channel.buffer(cpu).count_dropped_elsewhere(1);
        return written(Err(libc::ENOMEM));
    }
    copy.extend_from_slice(bytes);
    let done = Box::new(move |placed: Result<WriteResult, Unavailable>| {
        written(match placed {
            Ok(WriteResult::Written) => Ok(()),
            Ok(WriteResult::Full) => Err(libc::ENOSPC),
            Ok(WriteResult::TooBig) => Err(libc::EMSGSIZE),
            Ok(WriteResult::Closed) => Err(libc::ENODEV),
            Err(unavailable) => Err(unavailable.errno()),
        });
    });
    let job = Job::Message { channel: channel.clone(), cpu, bytes: copy, done };
    writers.submit_now(job);
}

/// Returns the CPU on which a thread began to wait for the daemon.
///
/// If the daemon cannot find that out, returns the CPU of the calling thread. An example is a thread in a PID namespace
/// that is not below the daemon's.
fn cpu_of(thread: u32) -> usize {
    let stat = (thread != 0).then(|| fs::read_to_string(format!("/proc/{thread}/stat")));
    stat.and_then(|stat| cpu_in(&stat.ok()?)).or_else(|| sched_getcpu().ok()).unwrap_or(0)
}

/// Returns the CPU in the text of `/proc/TID/stat`.
///
/// The name, in parentheses, may have any characters in it.
fn cpu_in(stat: &str) -> Option<usize> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(STAT_CPU)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_in_stat_text_is_found() {
        let stat = "12 (a) b 7) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 5 0 0";
        assert_eq!(cpu_in(stat), Some(5));
        assert_eq!(cpu_in("12 (a"), None);
    }
}
