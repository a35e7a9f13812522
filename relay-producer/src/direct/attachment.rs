//! The writers of a timed channel's records: the process's number, and the table of threads.
//!
//! A direct writer looks, for each record, at its thread's word in the shared table, and stores it if another thread's
//! is there. The process's number comes from the daemon, for one connection of one process. A forked child has none
//! until it has its own connection: [`ThisThread::generation`] tells it from its parent.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use relay::clock::{Anchor, Clock};
use relay::layout::abi::ThreadTable;
use relay::ring::buffer::Buffer;
use relay::system::thread_id::ThisThread;

use crate::first_thread::FirstThread;

/// What this process is to a timed channel whose buffers it has mapped.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// `generation << 32 | number of the process`; the number is 0 if it is not known.
    owner: AtomicU64,
    first_thread: FirstThread,
    /// Generation whose clock is not the channel's; 0 for none.
    refused: AtomicU32,
}

/// Whether a thread may write directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Introduced {
    /// It may.
    Known,
    /// It may, and is the first of a forked child.
    Child,
    /// Its clock is not the channel's, or it may not read it.
    Refused,
}

impl Attachment {
    /// Takes the numbers of this process: in the channel, and in the daemon's PID namespace.
    pub(crate) fn new(process: u32, pid_there: u32) -> Attachment {
        let attachment = Attachment::none();
        attachment.renew(process, pid_there);
        attachment
    }

    /// Returns a placeholder for a raw channel.
    pub(crate) fn none() -> Attachment {
        Attachment { owner: AtomicU64::new(0), first_thread: FirstThread::new(0), refused: AtomicU32::new(0) }
    }

    /// Notes the numbers that this process has got, see [`Self::new`].
    pub(crate) fn renew(&self, process: u32, pid_there: u32) {
        self.first_thread.renew(pid_there);
        self.renew_in(ThisThread::find().generation(), process);
    }

    fn renew_in(&self, generation: u32, process: u32) {
        // Without a generation a child would write as its parent. So its records, and its parent's, have the thread alone.
        let process = if generation == 0 { 0 } else { process };
        // Relaxed, as all accesses here: the word is complete in itself, and a late look costs another one.
        self.owner.store(u64::from(generation) << 32 | u64::from(process), Ordering::Relaxed);
    }

    /// Returns the number that records of the calling thread have.
    pub(crate) fn number_in(&self, this: ThisThread) -> u32 {
        self.first_thread.number_in(this)
    }

    /// Returns whether a thread of this generation may write, if it may read the clock.
    /// Then `tid` has its word in the table.
    #[inline(always)]
    pub(crate) fn knows(&self, generation: u32, tid: u32, buffer: &Buffer) -> bool {
        let owner = self.owner.load(Ordering::Relaxed);
        let process = owner as u32;
        match buffer.threads() {
            Some(threads) if (owner >> 32) as u32 == generation && process != 0 => {
                threads.note(tid, process);
                true
            }
            _ => false,
        }
    }

    /// Returns the number of the record's thread, if the caller may write, and the thread has its word in the table. This
    /// is `about`, or the caller.
    /// `None` says nothing: see [`Self::knows`].
    #[inline(always)]
    pub(crate) fn has_noted(&self, about: Option<u32>, threads: &ThreadTable) -> Option<u32> {
        let (id, process) = ThisThread::known_in(self.owner.load(Ordering::Relaxed))?;
        // A process without a number has no words. A CPU may load the owner before an older first thread's number, but no
        // thread has noted that one for this process.
        let tid = about.unwrap_or_else(|| self.first_thread.number_of(id));
        threads.has(tid, process).then_some(tid)
    }

    /// Looks whether a thread may write, and puts `tid` into the table.
    #[cold]
    #[inline(never)]
    pub(crate) fn introduce(&self, this: ThisThread, tid: u32, buffer: &Buffer) -> Introduced {
        if !this.may_read_tsc() {
            return Introduced::Refused;
        }
        let mut introduced = Introduced::Known;
        let mut owner = self.owner.load(Ordering::Relaxed);
        if (owner >> 32) as u32 != this.generation() {
            // A child may be in another time namespace than its parent.
            let is_refused = self.refused.load(Ordering::Relaxed) == this.generation();
            if is_refused || why_other_clock(buffer).is_some() {
                self.refused.store(this.generation(), Ordering::Relaxed);
                return Introduced::Refused;
            }
            let child = u64::from(this.generation()) << 32;
            owner = match self.owner.compare_exchange(owner, child, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    introduced = Introduced::Child;
                    child
                }
                Err(other) => other,
            };
        }
        let process = owner as u32;
        if let (Some(threads), 1..) = (buffer.threads(), process) {
            threads.note(tid, process);
        }
        introduced
    }

    /// Puts `tid` into the table, if this process has a number.
    pub(crate) fn note(&self, tid: u32, buffer: &Buffer) {
        self.knows(ThisThread::find().generation(), tid, buffer);
    }
}

/// Returns why this process cannot stamp a channel's records, if it cannot.
pub(crate) fn why_other_clock(buffer: &Buffer) -> Option<String> {
    let clock = buffer.clock()?;
    if !ThisThread::find().may_read_tsc() {
        return Some("this thread may not read the time stamp counter: see PR_SET_TSC in prctl(2)".into());
    }
    // Of the clocks of channels, CLOCK_MONOTONIC alone differs between time namespaces.
    if clock != Clock::Monotonic {
        return None;
    }
    let theirs = buffer.anchors()?.read().last().copied()?;
    let ours = Anchor::take(Clock::Monotonic);
    let seconds = Duration::from_nanos(ours.apart(&theirs)?).as_secs();
    Some(format!(
        "CLOCK_MONOTONIC here is not the daemon's, {seconds} s apart: another time namespace, or a clock that was set"
    ))
}

#[cfg(test)]
mod tests {
    use relay::GeometrySpec;
    use relay::layout::abi::Anchors;

    use super::*;

    fn buffer(clock: Clock) -> Buffer {
        let geometry = "timed".parse::<GeometrySpec>().unwrap().build().unwrap();
        Buffer::anonymous_with_clock(geometry, 0, clock).unwrap()
    }

    #[test]
    fn clock_of_another_time_namespace_is_known_by_the_anchors() {
        let buffer = buffer(Clock::Monotonic);
        assert_eq!(why_other_clock(&buffer), None, "no anchor, no doubt");
        let (mut anchors, table) = (Anchors::default(), buffer.anchors().unwrap());
        let mut add = |apart: u64| {
            let own = Anchor::take(Clock::Monotonic);
            let theirs = own.monotonic + apart;
            assert!(anchors.add(table, Anchor { ticks: theirs, monotonic: theirs, ..own }));
            why_other_clock(&buffer)
        };
        assert_eq!(add(0), None);
        assert_eq!(add(900_000_000), None);
        let why = add(5_000_000_000).unwrap();
        assert!(why.contains("is not the daemon's") && why.contains("another time namespace"), "{why}");
        let tsc = self::buffer(Clock::Tsc);
        assert!(Anchors::default().add(tsc.anchors().unwrap(), Anchor { ticks: 1, ..Anchor::default() }));
        assert_eq!(why_other_clock(&tsc), None, "the counter is the same everywhere");
    }

    #[test]
    fn thread_is_noted_once_its_process_has_a_number() {
        let (buffer, attachment) = (buffer(Clock::Tsc), Attachment::new(0, 0));
        let (this, threads) = (ThisThread::find(), buffer.threads().unwrap());
        assert!(!attachment.knows(this.generation(), this.id(), &buffer));
        assert_eq!(attachment.introduce(this, this.id(), &buffer), Introduced::Known);
        assert_eq!(threads.process_of(this.id()), None);
        assert_eq!(attachment.has_noted(None, threads), None);
        attachment.renew(7, 0);
        assert_eq!(attachment.has_noted(None, threads), None, "not yet");
        assert!(attachment.knows(this.generation(), this.id(), &buffer));
        assert_eq!(attachment.has_noted(None, threads), Some(this.id()));
        assert_eq!(attachment.has_noted(Some(12345), threads), None);
        assert_eq!(threads.process_of(this.id()), Some(7));
        attachment.note(12345, &buffer);
        assert_eq!(threads.process_of(12345), Some(7));
        assert_eq!(attachment.has_noted(Some(12345), threads), Some(12345));
        // As in a forked child, whose parent had that number.
        attachment.owner.store(u64::from(u32::MAX) << 32 | 7, Ordering::Relaxed);
        assert!(!attachment.knows(this.generation(), this.id(), &buffer));
        assert_eq!(attachment.has_noted(None, threads), None);
        assert_eq!(attachment.introduce(this, this.id(), &buffer), Introduced::Child);
        assert_eq!(attachment.has_noted(None, threads), None, "the word is that of its parent");
        assert_eq!(attachment.introduce(this, this.id(), &buffer), Introduced::Known);
        assert_eq!(attachment.owner.load(Ordering::Relaxed) as u32, 0);
        // As where the kernel cannot zero pages at a fork.
        attachment.renew_in(0, 7);
        assert!(!attachment.knows(0, 4321, &buffer));
        assert_eq!(attachment.introduce(this, 4321, &buffer), Introduced::Child);
        assert_eq!(threads.process_of(4321), None);
    }
}
