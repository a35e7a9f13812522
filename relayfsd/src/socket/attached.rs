//! A process that is attached to timed channels, and what its end leaves in them: a `process` record.
//!
//! An exit with status 0 leaves none. A script that calls `relay-producer` for each message would otherwise have two
//! records for each. An end of which the kernel tells no status leaves none either: it may be regular.
//!
//! The record comes behind the messages of the process. Its connection's frames are read first, and the writers have
//! written them. What the process wrote directly is there when it has ended.
//!
//! A connection that ends need not be the end of its process. So the daemon looks whether the process is ending. If it
//! is, the daemon holds the channels for the moment until the kernel tells how.

use std::collections::BTreeMap;
use std::sync::Arc;

use log::debug;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use relay::trace::event::{Event, What};

use crate::channel::ChannelRef;
use crate::channel::timed::record_of;
use crate::process::identity::{self, Identity};
use crate::process::pidfd::{End, Followed};
use crate::socket::backpressure::InFlight;
use crate::socket::peer::Peer;
use crate::writers::Writers;

/// Set in the token of a connection's process.
pub(crate) const PROCESS: u64 = 1 << 62;

/// The process of a connection, and the timed channels that it is attached to.
pub(crate) struct Attached {
    identity: Identity,
    /// `None`: the process cannot be followed, so its end leaves no record.
    followed: Option<Followed>,
    /// The channels with the process's number in each, by the connection's numbers.
    channels: BTreeMap<u32, (ChannelRef, u32)>,
}

impl Attached {
    /// Finds the process at the other end of a connection, and follows it. `executable` is what it says of itself.
    pub(crate) fn new(peer: &Peer, executable: &[u8], epoll: &Epoll) -> Attached {
        let pid = peer.pid();
        let followed = Followed::peer(peer);
        let identity = Identity::read(pid, peer.uid(), executable);
        // The number may be another process's by now.
        let is_it = followed.as_ref().is_some_and(Followed::runs);
        let identity =
            if is_it { identity } else { Identity { pid, uid: peer.uid(), ..Identity::default() } };
        let followed = followed.filter(|followed| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, peer.number() | PROCESS);
            let watched = epoll.add(followed, event);
            watched.inspect_err(|error| debug!("{peer}: its process cannot be followed: {error}")).is_ok()
        });
        Attached { identity, followed, channels: BTreeMap::new() }
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Notes that the process has a number in a channel.
    pub(crate) fn add(&mut self, number: u32, channel: ChannelRef, process: u32) {
        self.channels.insert(number, (channel, process));
    }

    /// Returns the process's number in a channel.
    pub(crate) fn number_in(&self, number: u32) -> Option<u32> {
        self.channels.get(&number).map(|(_, process)| *process)
    }

    /// Handles the close of a channel: the process is not attached to it any more.
    pub(crate) fn remove(&mut self, number: u32) {
        if let Some((channel, process)) = self.channels.remove(&number)
            && let Some(timed) = channel.timed()
        {
            timed.detach(process);
        }
    }

    /// Returns how the process ended, if it has and the kernel tells now.
    pub(crate) fn end(&self) -> Option<End> {
        self.followed.as_ref()?.end()
    }

    /// Returns whether the process's end is near, after its connection has ended.
    pub(crate) fn is_ending(&self) -> bool {
        // In this order: in between, the process may end and its parent may ask, and then its number finds nothing.
        self.followed.as_ref().is_some_and(|followed| identity::is_ending(followed.pid()) || !followed.runs())
    }

    /// Stops following the process.
    pub(crate) fn forget(mut self, epoll: &Epoll) {
        if let Some(followed) = self.followed.take() {
            let _ = epoll.delete(followed);
        }
        let numbers: Vec<u32> = self.channels.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.remove(number));
    }

    /// Leaves a record of the end in each channel, once the writers have written the messages.
    ///
    /// An end that is regular, or may be, leaves none.
    pub(crate) fn report(self, end: End, in_flight: &InFlight, writers: Arc<Writers>, epoll: &Epoll) {
        if let Some(followed) = &self.followed {
            let _ = epoll.delete(followed);
        }
        let Attached { identity, channels, .. } = self;
        in_flight.when_quiet(Box::new(move || {
            for (channel, process) in channels.into_values() {
                let Some(timed) = channel.timed() else { continue };
                timed.detach(process);
                if timed.note_end(process)
                    && let Some(record) = record_of_end(&identity, end)
                {
                    writers.record(&channel, record);
                }
            }
        }));
    }
}

/// Makes the record of a process's end. A regular end has none, and neither has one that the kernel does not tell.
fn record_of_end(identity: &Identity, end: End) -> Option<Vec<u8>> {
    let (what, status) = match end {
        End::Exit(0) | End::Unknown => return None,
        End::Exit(status) => (What::Exit, status),
        End::Signal(signal) => (What::Signal, signal),
    };
    let command = identity.command.as_bytes();
    record_of(&Event::Process { pid: identity.pid, what: Some(what), status, command }, identity.pid)
}
