//! What a connection does that reads channels in mappings: wait for finished sub-buffers, and give them back.

use std::collections::BTreeSet;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::channel::PollState;
use crate::connection::Refused;
use crate::consumed;
use crate::registry::Held;

/// Tells who waits by the socket from who polls an open file, whose numbers are smaller.
const BY_SOCKET: u64 = 1 << 63;

/// The readings of one connection.
pub(crate) struct Reading {
    /// As who it waits.
    waiter: u64,
    /// What we ring; made when the first channel is read.
    bell: Option<Arc<EventFd>>,
    /// The channels whose files it was given to look at.
    channels: BTreeSet<u32>,
}

impl Reading {
    pub(crate) fn new(connection: u64) -> Reading {
        Reading { waiter: BY_SOCKET | connection, bell: None, channels: BTreeSet::new() }
    }

    /// Channel `number` is read from now on. The bell is non-blocking: a reader that fills it holds up nobody.
    pub(crate) fn begin(&mut self, number: u32) -> nix::Result<&EventFd> {
        if self.bell.is_none() {
            self.bell = Some(Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?));
        }
        self.channels.insert(number);
        self.bell.as_deref().ok_or(Errno::EIO)
    }

    /// Channel `number` is not read any more.
    pub(crate) fn end(&mut self, number: u32, channel: &Held) {
        if self.channels.remove(&number) {
            (0..channel.n_bufs()).for_each(|cpu| channel.forget_waiter(cpu, self.waiter));
        }
    }

    /// Rings, once, when the buffer has something finished, or ends. An error if it is over already.
    pub(crate) fn watch(&self, number: u32, channel: &Held, cpu: usize) -> Result<(), Refused> {
        let bell = self.check(number)?;
        let ring = {
            let bell = bell.clone();
            // A bell that is full has been rung.
            Box::new(move || {
                let _ = bell.write(1);
            })
        };
        match channel.poll(cpu, self.waiter, Some(ring)) {
            PollState::Idle => {}
            PollState::Readable => {
                channel.forget_waiter(cpu, self.waiter);
                let _ = bell.write(1);
            }
            PollState::Broken => return Err(Refused::request(Errno::EIO, "the channel is broken")),
            PollState::Closed => return Err(Refused::request(Errno::ENODEV, "the channel is over")),
        }
        Ok(())
    }

    /// Gives `count` sub-buffers back, the first of which has number `from`.
    pub(crate) fn consume(
        &self,
        number: u32,
        channel: &Held,
        cpu: usize,
        from: u64,
        count: u64,
    ) -> Result<(), Refused> {
        self.check(number)?;
        consumed::give_back(channel, cpu, Some(from), count)
            .map_err(|error| Refused::request(Errno::from_raw(consumed::errno(&error)), error))
    }

    fn check(&self, number: u32) -> Result<&Arc<EventFd>, Refused> {
        let bell = self.bell.as_ref().filter(|_| self.channels.contains(&number));
        bell.ok_or_else(|| {
            Refused::request(Errno::EPERM, format!("channel {number} was not shared for reading"))
        })
    }
}
