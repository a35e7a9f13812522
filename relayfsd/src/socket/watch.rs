//! Serves readers of mappings: they wait for finished sub-buffers, and give them back.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::channel::give_back::errno;
use crate::channel::{ChannelRef, PollState};
use crate::socket::refusal::FrameRefusal;

/// Set in the waiter's number of a connection. Open files, which poll, have smaller numbers.
const BY_SOCKET: u64 = 1 << 63;

/// The reader's bell: a timer that expires at once.
///
/// Setting a timer never waits, whatever the reader does with its descriptor. An eventfd could wait: the non-blocking
/// flag belongs to the open file, which the reader shares. A reader that makes the eventfd blocking and fills it would
/// block the daemon.
struct Bell(TimerFd);

impl Bell {
    fn new() -> nix::Result<Bell> {
        TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC).map(Bell)
    }

    fn ring(&self) {
        // Cannot fail: this takes no memory, and the time is valid.
        let _ = self.0.set(Expiration::OneShot(TimeSpec::new(0, 1)), TimerSetTimeFlags::empty());
    }
}

/// The channels that one connection reads in mappings.
pub(crate) struct Reading {
    /// The connection's number as a waiter.
    waiter: u64,
    /// Created when the first channel is read.
    bell: Option<Arc<Bell>>,
    /// The channels whose files the connection got for reading.
    channels: BTreeSet<u32>,
}

impl Reading {
    pub(crate) fn new(connection: u64) -> Reading {
        Reading { waiter: BY_SOCKET | connection, bell: None, channels: BTreeSet::new() }
    }

    /// Begins to read channel `number`. Returns the bell.
    pub(crate) fn begin(&mut self, number: u32) -> nix::Result<BorrowedFd<'_>> {
        if self.bell.is_none() {
            self.bell = Some(Arc::new(Bell::new()?));
        }
        self.channels.insert(number);
        self.bell.as_ref().map(|bell| bell.0.as_fd()).ok_or(Errno::EIO)
    }

    /// Ends reading channel `number`.
    pub(crate) fn end(&mut self, number: u32, channel: &ChannelRef) {
        if self.channels.remove(&number) {
            (0..channel.n_bufs()).for_each(|cpu| channel.forget_waiter(cpu, self.waiter));
        }
    }

    /// Rings once, when the buffer has a finished sub-buffer, or ends.
    ///
    /// Fails if it has ended already.
    pub(crate) fn watch(&self, number: u32, channel: &ChannelRef, cpu: usize) -> Result<(), FrameRefusal> {
        let bell = self.check(number)?;
        let ring = {
            let bell = bell.clone();
            Box::new(move || bell.ring())
        };
        match channel.poll(cpu, self.waiter, Some(ring)) {
            PollState::Idle => {}
            PollState::Readable => {
                channel.forget_waiter(cpu, self.waiter);
                bell.ring();
            }
            PollState::Broken => return Err(FrameRefusal::request(Errno::EIO, "the channel is broken")),
            PollState::Closed => return Err(FrameRefusal::request(Errno::ENODEV, "the channel is over")),
        }
        Ok(())
    }

    /// Gives back `count` sub-buffers, the first of which has number `from`.
    ///
    /// Returns whether a batch waits for the room that this makes.
    pub(crate) fn consume(
        &self,
        number: u32,
        channel: &ChannelRef,
        cpu: usize,
        from: u64,
        count: u64,
    ) -> Result<bool, FrameRefusal> {
        self.check(number)?;
        let given = channel.give_back(cpu, Some(from), count);
        given.map_err(|error| FrameRefusal::request(Errno::from_raw(errno(&error)), error))
    }

    fn check(&self, number: u32) -> Result<&Arc<Bell>, FrameRefusal> {
        let bell = self.bell.as_ref().filter(|_| self.channels.contains(&number));
        bell.ok_or_else(|| {
            FrameRefusal::request(Errno::EPERM, format!("channel {number} was not shared for reading"))
        })
    }
}
