//! What a connection does that reads channels in mappings: wait for finished sub-buffers, and give them back.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::channel::give_back::errno;
use crate::channel::{ChannelRef, PollState};
use crate::socket::refusal::Refused;

/// Tells who waits by the socket from who polls an open file, whose numbers are smaller.
const BY_SOCKET: u64 = 1 << 63;

/// What we ring. A timer that runs out at once: setting it never waits, whatever the reader does with its end. An eventfd would
/// not do: non-blocking is the open file, which is the reader's too, and who makes it blocking and fills it has us wait for him.
struct Bell(TimerFd);

impl Bell {
    fn new() -> nix::Result<Bell> {
        TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC).map(Bell)
    }

    fn ring(&self) {
        // It takes no memory, and there is nothing wrong with the time.
        let _ = self.0.set(Expiration::OneShot(TimeSpec::new(0, 1)), TimerSetTimeFlags::empty());
    }
}

/// The readings of one connection.
pub(crate) struct Reading {
    /// As who it waits.
    waiter: u64,
    /// Made when the first channel is read.
    bell: Option<Arc<Bell>>,
    /// The channels whose files it was given to look at.
    channels: BTreeSet<u32>,
}

impl Reading {
    pub(crate) fn new(connection: u64) -> Reading {
        Reading { waiter: BY_SOCKET | connection, bell: None, channels: BTreeSet::new() }
    }

    /// Channel `number` is read from now on. Returns the bell.
    pub(crate) fn begin(&mut self, number: u32) -> nix::Result<BorrowedFd<'_>> {
        if self.bell.is_none() {
            self.bell = Some(Arc::new(Bell::new()?));
        }
        self.channels.insert(number);
        self.bell.as_ref().map(|bell| bell.0.as_fd()).ok_or(Errno::EIO)
    }

    /// Channel `number` is not read any more.
    pub(crate) fn end(&mut self, number: u32, channel: &ChannelRef) {
        if self.channels.remove(&number) {
            (0..channel.n_bufs()).for_each(|cpu| channel.forget_waiter(cpu, self.waiter));
        }
    }

    /// Rings, once, when the buffer has something finished, or ends. An error if it is over already.
    pub(crate) fn watch(&self, number: u32, channel: &ChannelRef, cpu: usize) -> Result<(), Refused> {
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
            PollState::Broken => return Err(Refused::request(Errno::EIO, "the channel is broken")),
            PollState::Closed => return Err(Refused::request(Errno::ENODEV, "the channel is over")),
        }
        Ok(())
    }

    /// Gives `count` sub-buffers back, the first of which has number `from`. Returns whether a batch waits for the room that
    /// this makes.
    pub(crate) fn consume(
        &self,
        number: u32,
        channel: &ChannelRef,
        cpu: usize,
        from: u64,
        count: u64,
    ) -> Result<bool, Refused> {
        self.check(number)?;
        let given = channel.give_back(cpu, Some(from), count);
        given.map_err(|error| Refused::request(Errno::from_raw(errno(&error)), error))
    }

    fn check(&self, number: u32) -> Result<&Arc<Bell>, Refused> {
        let bell = self.bell.as_ref().filter(|_| self.channels.contains(&number));
        bell.ok_or_else(|| {
            Refused::request(Errno::EPERM, format!("channel {number} was not shared for reading"))
        })
    }
}
